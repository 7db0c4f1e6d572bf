"""What README and docs/ show runs as written, and what they name exists.

Python blocks of a page run in order, in one namespace, in a temporary folder beside examples/; the comment after a
`print(…)  # ` must be part of the output. Each line of a shell block is passed to the parser of the command it calls. A
Python block whose first line begins with `# needs ` (a GPU, the hub, several processes) is only compiled, unless it
names an optional package that is installed.
"""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import io
import json
import re
import runpy
import shlex
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import lorakit
from tests.support.tiny import ROOT

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXT["README.md"]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "sh", "json", "yaml", ""}  # "": what a command prints


def blocks(name: str, language: str) -> list[str]:
    """The page's blocks of a language, without the indentation of a surrounding list."""
    return [
        "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        for indent, kind, body in FENCE.findall(TEXT[name])
        if kind == language
    ]


@pytest.fixture
def beside_the_examples(tmp_path, monkeypatch):
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:  # a page's imports from its folder must not reach other tests
        if str(getattr(sys.modules[name], "__file__", "")).startswith((str(ROOT / "examples"), str(tmp_path))):
            del sys.modules[name]


@pytest.mark.parametrize("name", TEXT)
def test_every_block_is_of_a_language_that_is_checked(name):
    assert {kind for _, kind, _ in FENCE.findall(TEXT[name])} <= LANGUAGES
    assert TEXT[name].count("```") == 2 * len(FENCE.findall(TEXT[name])), "a fence is not closed"


def has_package(code: str) -> bool:
    """Whether a block's first line names an optional package that is installed, so that the block runs after all."""
    name = code.splitlines()[0].removeprefix("# needs ")
    return name in ("fastapi", "onnxruntime", "spacy") and importlib.util.find_spec(name) is not None


def run_in_order(name: str, codes: list[str]) -> None:
    """Run a page's blocks; raises unless each one runs and prints what it says it prints."""
    namespace: dict = {"__name__": "__main__"}
    expected = []
    shown = io.StringIO()
    for number, code in enumerate(codes, start=1):
        program = compile(code, f"{name}, block {number}", "exec")
        if code.startswith("# needs ") and not has_package(code):
            continue
        with contextlib.redirect_stdout(shown):
            exec(program, namespace)
        expected += re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE)
    if namespace.keys() != {"__name__"}:  # something ran
        assert expected, "a page with code must show what some of it prints"
    for line in expected:
        assert line in shown.getvalue(), f"{name}: {line!r} is not printed"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")  # of transformers' pipeline
@pytest.mark.parametrize("name", [name for name in TEXT if blocks(name, "python")])
def test_the_python_blocks_of_a_page_run_in_order(name, beside_the_examples):
    run_in_order(name, blocks(name, "python"))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print(1 + 1)  # 3\n", AssertionError),
        ("x = 1\n", AssertionError),
        ("print(y)  # 3\n", NameError),
        ("print(1  # 3\n", SyntaxError),
        ("# needs a GPU\nprint(1  # 3\n", SyntaxError),
    ],
)
def test_a_wrong_block_is_noticed(code, error):
    with pytest.raises(error):
        run_in_order("a page", ["z = 2\nprint(z)  # 2\n" * (error is not AssertionError), code])


class Accepted(Exception):
    """The parser took the arguments."""


def commands(name: str) -> list[str]:
    """The page's shell commands, without comments, with continued lines joined and `a && b` split."""
    text = "\n".join(blocks(name, "sh")).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


ALL_COMMANDS = list(dict.fromkeys(command for name in TEXT for command in commands(name)))
FREE = (  # commands of other programs, which are only compared with these patterns
    r"python3 -m venv \.venv",
    r"\.venv/bin/pip install -q -c constraints\.txt -e (\.|'\.\[[\w,]+\]')",
    r"\.venv/bin/python -m pytest -n 2",
    r"\.venv/bin/mkdocs (build --strict|serve)",
    r"sudo chmod a\+r /sys/class/powercap/intel-rapl\*/energy_uj",
)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_line_is_accepted(command, monkeypatch, beside_the_examples, capsys):
    if any(re.fullmatch(pattern, command) for pattern in FREE):
        return
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables for the command
        words = words[1:]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        before = words[: next(i for i, word in enumerate(words) if word.startswith("examples/") or word == "lorakit")]
        assert before[-1] == "--", "torchrun takes flags of the script for its own unless -- is before the script"
        parsed = get_args_parser().parse_args(words[1:])
        module = ["-m"] if parsed.module else []
        words = ["python", *module, parsed.training_script, *parsed.training_script_args]
    if words[:3] == ["python", "-m", "lorakit"]:
        words = ["lorakit", *words[3:]]
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "python":
        script, *arguments = arguments
        target = ROOT / script
        assert target.is_file(), f"{script} does not exist"
        if "argparse" not in target.read_text(encoding="utf-8"):
            assert not arguments, f"{script} takes no arguments"
            return
    else:
        assert program == "lorakit", f"this test does not know the command {program!r}"
        target = None

    taken = argparse.ArgumentParser.parse_known_args

    def parse_args(parser, argv=None, namespace=None):
        found, rest = taken(parser, argv, namespace)
        if rest:
            parser.error(f"unrecognised arguments: {rest}")
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        if target is None:
            from lorakit.cli.__main__ import main

            main(arguments)
        else:
            sys.path.insert(0, str(target.parent))
            runpy.run_path(str(target), run_name="__main__")
    except Accepted:
        return
    except SystemExit:
        pytest.fail(f"not accepted: {capsys.readouterr().err}")
    pytest.fail("no parser was asked")


@pytest.mark.parametrize(
    "command", ["lorakit train --model x --nonsense 1", "lorakit no-such", "python examples/bionlp.py --epoch", "rm x"]
)
def test_a_wrong_command_line_is_noticed(command, monkeypatch, beside_the_examples, capsys):
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        test_every_command_line_is_accepted(command, monkeypatch, beside_the_examples, capsys)


def test_the_readmes_commands_from_a_corpus_to_entities_work_one_after_another(
    monkeypatch, beside_the_examples, capsys
):
    from lorakit.cli.__main__ import main

    section = README.partition("## Your own corpus and base")[2].partition("\n## ")[0]
    corpus, *lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    monkeypatch.setattr(sys, "argv", shlex.split(corpus)[1:])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    shown = {}
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == ".venv/bin/lorakit"
        assert main([name, *arguments]) == 0
        shown[name] = capsys.readouterr().out
    assert list(shown) == ["data", "train", "evaluate", "predict", "params"]
    assert f"try it: lorakit predict --adapter {Path('runs/mine/adapter')}" in shown["train"]
    table = re.search(r"```\n(text .*?)```", TEXT["docs/index.md"], re.DOTALL)[1]
    now, then = (text.splitlines() for text in (shown["predict"], table))
    assert now[0] == then[0]
    for ours, listed in zip(now[1:], then[1:], strict=True):
        ours, listed = ours.split(), listed.split()
        assert float(ours.pop(4)) == pytest.approx(float(listed.pop(4)), abs=0.05)  # another CPU rounds differently
        assert ours == listed


@pytest.mark.parametrize("name", TEXT)
def test_yaml_blocks_are_settings_that_train_takes(name, monkeypatch, beside_the_examples, capsys):
    for block in blocks(name, "yaml"):
        Path("settings.yaml").write_text(block)
        command = "lorakit train --config settings.yaml --model x --dataset y"
        test_every_command_line_is_accepted(command, monkeypatch, beside_the_examples, capsys)


@pytest.mark.parametrize("name", TEXT)
def test_json_blocks_are_json(name):
    for block in blocks(name, "json"):
        json.loads(block)


@pytest.mark.parametrize("name", TEXT)
def test_every_file_a_page_links_to_exists(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", TEXT[name]):
        if name != "README.md" and target.startswith("results/"):  # docs/hooks.py puts benchmarks/results there
            assert (ROOT / "benchmarks" / target).exists(), target
        else:
            assert (folder / target).exists(), target
    for target in re.findall(r"^\| `(\w+/[\w./]*)` ", TEXT[name], re.MULTILINE):
        assert (ROOT / target).exists(), target


def test_the_two_commands_are_single_lines_that_set_everything_up():
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    assert len(lines) == 2
    assert all("-c constraints.txt" in line for line in lines)
    assert lines[0].endswith(".venv/bin/python examples/bionlp.py")
    assert lines[1].endswith(".venv/bin/python -m pytest -n 2")


def test_every_example_is_named_in_the_docs():
    for script in (ROOT / "examples").glob("*.py"):
        assert f"examples/{script.name}" in "".join(TEXT.values()), script.name


# ---- the troubleshooting page: the code can print every message it quotes

MESSAGES = re.findall(r"^### `(.+)`$", TEXT.get("docs/troubleshooting.md", ""), re.MULTILINE)


def templates(folder: Path) -> list[str]:
    """Every string in the package's source, with `…` in place of interpolated values, and counts in the plural."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else varied(part) for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def varied(part: ast.FormattedValue) -> str:
    """What stands for an interpolated value: `…`, or `… rows` for `{counted(n, 'row')}`."""
    call = part.value
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "counted"):
        return "…"
    nouns = [word.value for word in call.args[1:] if isinstance(word, ast.Constant)]
    return f"… {nouns[-1] if len(nouns) > 1 else f'{nouns[0]}s'}" if nouns else "…"


@pytest.fixture(scope="module")
def source():
    return templates(ROOT / "lorakit")


@pytest.mark.parametrize("message", MESSAGES)
def test_every_quoted_message_is_in_the_source(message, source):
    pieces = [piece for piece in message.split("…") if piece.strip()]
    assert max(map(len, pieces)) >= 12, "quote more of it, or it could be anything"
    pattern = re.compile(".*".join(re.escape(piece) for piece in pieces), re.DOTALL)
    assert any(pattern.search(text) for text in source), message


def test_a_message_that_the_code_does_not_print_is_noticed(source):
    assert MESSAGES
    with pytest.raises(AssertionError):
        test_every_quoted_message_is_in_the_source("no default targets for this kind of …", source)


def test_every_message_has_a_cause_and_a_fix():
    sections = re.split(r"^### ", TEXT["docs/troubleshooting.md"], flags=re.MULTILINE)[1:]
    for section in sections:
        assert "**Why.**" in section and "**Fix.**" in section, section.splitlines()[0]


# ---- reference pages


def test_the_api_page_has_every_public_name_under_its_owner():
    listed = re.findall(r"^::: lorakit\.([\w.]+)\.(\w+)$", TEXT["docs/api.md"], re.MULTILINE)
    named = {name: owner for owner, name in listed}
    for name in lorakit.__all__:
        assert getattr(lorakit, name).__module__ == f"lorakit.{named[name]}", name
    for owner, name in listed:
        module = importlib.import_module(f"lorakit.{owner}")
        assert getattr(module, name).__module__ == f"lorakit.{owner}", f"{name} belongs to another file"


def test_every_field_of_a_listed_record_is_explained_on_the_api_page():
    records = re.findall(r"^::: (lorakit\.[\w.]+)\.([A-Z]\w+)$", TEXT["docs/api.md"], re.MULTILINE)
    seen = set()
    for owner, name in records:
        record = getattr(importlib.import_module(owner), name)
        if is_dataclass(record):
            seen.add(name)
            # a table with defaults is only made of a section Args
            arguments = re.search(r"\nArgs:\n((?: {4}.*\n?|\n)+)", inspect.getdoc(record))
            explained = re.findall(r"^ {4}(\w+): \S", arguments[1], re.MULTILINE) if arguments else []
            assert explained == [field.name for field in fields(record) if field.init], name
    assert seen >= {"TrainConfig", "TrainResult", "Scores", "EntityScores", "Entity", "Reading", "Measurement"}


def test_the_command_line_page_has_every_command():
    specification = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    listed = re.findall(r"^<!-- help: (lorakit[\w -]*) -->$", TEXT["docs/cli.md"], re.MULTILINE)
    assert listed == [f"lorakit {' '.join(path)}".strip() for path in hooks.command_paths()]
    page = hooks.with_help(TEXT["docs/cli.md"])
    assert "<!-- help" not in page and page.count("usage: lorakit") == len(listed)
