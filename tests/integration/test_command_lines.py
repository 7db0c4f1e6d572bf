"""All command lines: a flag means the same in every command, and every --help shows examples that parse."""

import argparse
import contextlib
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from lorakit.cli import __main__ as cli
from tests.support.tiny import ROOT

SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "ArgumentParser(" in path.read_text(encoding="utf-8") or "Parser(prog=" in path.read_text(encoding="utf-8")
]
COMMANDS = [
    "lorakit", "lorakit train", "lorakit evaluate", "lorakit predict", "lorakit export", "lorakit calibrate",
    "lorakit tune", "lorakit data", "lorakit data show", "lorakit data convert", "lorakit data formats",
    "lorakit params", "lorakit energy", "lorakit energy run", "lorakit energy doctor", "lorakit energy merge",
    "lorakit energy calibrate", "lorakit report", "lorakit compare",
]  # fmt: skip
DIFFERENT = {  # flag: how it differs between commands, each for a reason
    "--mode": {"default"},  # the example compares the modes, `lorakit train` trains an adapter
    "--model": {"help", "default", "required", "type"},  # a base to train, or a fine-tuned model
    "--dataset": {
        "type",
        "help",
        "default",
        "required",
        "nargs",
    },  # examples have a corpus of their own, `export` proves with one
    "--format": {"help", "choices", "required"},  # `predict` also prints, `data convert` writes every format
    "--epochs": {"default"},  # the small examples have settings of their own
    "--learning-rate": {"help", "default"},
    "--output-dir": {"help", "default", "type"},  # of a run, or of a small example's adapter
    "--output": {"help"},  # without it `predict` prints, `report` writes report.html
    # runs are scored on two of the three, and `evaluate` takes a file alone; `train` divides a corpus without splits
    "--split": {"choices", "help", "default", "metavar"},
    "--margin": {"help"},  # `compare` compares whatever it is given, `train` its modes over several seeds
    "--co2": {"help"},  # `report` takes the run's own factor by default
    "--resume": {"help"},  # `tune` continues a search, which cannot be made longer
    "--json": {"help"},  # `energy run` leaves standard output to the command it runs
}


class Caught(Exception):
    pass


def parser_of_script(script: str) -> argparse.ArgumentParser:
    """The parser that a script builds, caught when it is asked to parse."""
    caught: list[argparse.ArgumentParser] = []

    def catch(parser, *_):
        caught.append(parser)
        raise Caught

    path, modules = list(sys.path), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Caught):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        patch.setattr(sys, "argv", [script])
        sys.path.insert(0, str((ROOT / script).parent))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(
                    (f"{ROOT}/examples", f"{ROOT}/benchmarks")
                ):
                    del sys.modules[name]
    return caught[0]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser of the project, by the command that calls it."""
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    root = hooks.root_parser()
    found = {}

    def walk(name, parser):
        found[name] = parser
        for child, its in hooks.subcommands(parser).items():
            walk(f"{name} {child}", its)

    walk("lorakit", root)
    return {**found, **{f"python {script}": parser_of_script(script) for script in SCRIPTS}}


def test_the_lists_here_name_every_command(parsers):
    assert list(parsers) == [*COMMANDS, *(f"python {script}" for script in SCRIPTS)]
    assert len(SCRIPTS) > 8


def traits(action: argparse.Action) -> dict[str, object]:
    names = ("dest", "nargs", "type", "choices", "metavar", "help", "default", "required")
    return {name: getattr(action, name) for name in names}


def different(parsers) -> dict[str, set[str]]:
    """Flags that several commands have, and how they differ."""
    uses: dict[str, list[dict[str, object]]] = {}
    for parser in parsers:
        for action in parser._actions:
            for flag in action.option_strings:
                if flag not in ("-h", "--help"):
                    uses.setdefault(flag, []).append(traits(action))
    return {
        flag: names
        for flag, found in uses.items()
        if (names := {name for name in found[0] if any(other[name] != found[0][name] for other in found)})
    }


def test_a_flag_is_the_same_in_all_commands_except_where_listed(parsers):
    shown = [parser for name, parser in parsers.items() if not name.startswith("python benchmarks/")]
    assert different(shown) == DIFFERENT


def test_a_flag_with_two_meanings_is_noticed():
    first, second = argparse.ArgumentParser(), argparse.ArgumentParser()
    first.add_argument("--r", type=int, default=32, help="LoRA rank")
    second.add_argument("--r", type=int, default=8, help="rank")
    assert different([first, second]) == {"--r": {"help", "default"}}


def test_every_flag_and_positional_has_a_help_text(parsers):
    for name, parser in parsers.items():
        if name.startswith("python benchmarks/"):
            continue
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{name}: {action.dest}"


def examples(text: str) -> list[str]:
    """Commands in a help text: on lines of their own or in backticks, without the remark after two spaces."""
    pattern = r"(?:^ +|`|\| )((?:lorakit|python \w+/\S+\.py|torchrun --\S+ \d+)(?: [^`\n]*)?)(?:`|$)"
    found = [command.split("  ")[0].strip() for command in re.findall(pattern, text, re.MULTILINE)]
    return [command for command in found if command not in COMMANDS and "COMMAND" not in command]  # a bare name


def accept(command: str, parsers) -> None:
    words = shlex.split(command)
    if words[0] == "torchrun":
        script = words[words.index("--") + 1 :]
        words = ["lorakit", *script[1:]] if script[0] in ("lorakit", "lorakit.cli") else ["python", *script]
    if words[0] == "python":
        parsers[f"python {words[1]}"].parse_args(words[2:])
    else:
        with pytest.MonkeyPatch.context() as patch:
            parse = argparse.ArgumentParser.parse_args

            def parse_only(parser, argv=None, namespace=None):
                parse(parser, argv, namespace)
                raise Caught

            patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
            with contextlib.suppress(Caught):
                cli.main(words[1:])


@pytest.mark.parametrize("name", [*COMMANDS, *(f"python {script}" for script in SCRIPTS)])
def test_every_help_has_examples_and_they_parse(name, parsers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("model: roberta-base\ndataset: corpus\n")
    Path("site.yaml").write_text("co2: 300\nout: energy.jsonl\n")
    found = examples(parsers[name].format_help())
    assert any(f"{command} ".startswith(f"{name} ") for command in found), f"{name} --help shows no example"
    for command in found:
        accept(command, parsers)


def test_an_example_that_does_not_parse_is_noticed(parsers):
    with pytest.raises(SystemExit, match="2"):
        accept("lorakit train --model roberta-base --nonsense 3", parsers)
    with pytest.raises(SystemExit, match="2"):
        accept("python examples/trainer.py --epochs many", parsers)
