"""Public docstrings are complete, and their examples run and give the results that they show.

In an example, the comment after an expression or a `print` is its result, `…` stands for anything, and a print without
one has its result in the comment lines that follow it.
"""

import ast
import contextlib
import inspect
import io
import re
import textwrap
from pathlib import Path

import pytest

import lorakit
from tests.support.tiny import ROOT

WITHOUT_EXAMPLE: set[str] = set()
MEASURED = {"EnergyMeter"}  # the example runs, but its results are the machine's
PACKAGE = Path(lorakit.__file__).parent


def section(docstring: str, title: str) -> str:
    """The indented lines of a Google section, or "" if there is none."""
    found = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    return textwrap.dedent(found[1]).strip("\n") if found else ""


def examples() -> dict[str, str]:
    """The example of every docstring of the package that has one, by module and name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                if example := section(ast.get_docstring(node) or "", "Example"):
                    found[f"{module}.{node.name}"] = example
    return found


EXAMPLES = examples()


def shown_results(lines: list[str], is_expression: bool) -> list[str]:
    """What the lines of one statement say that it prints, or that its value is."""
    shown, follows = [], False
    for line in lines:
        code, _, comment = line.partition("  # ")
        prints = code.lstrip().startswith("print(")
        if comment and (prints or is_expression):
            shown.append(comment.strip())
        elif follows and line.lstrip().startswith("# "):
            shown.append(line.strip()[2:])
            continue
        follows = prints and not comment
    return shown


def run_example(example: str, compare: bool = True) -> int:
    """Run an example statement by statement and compare each result it shows; returns how many it shows."""
    names: dict = {"lorakit": lorakit, "__name__": "__main__"}
    lines, count = example.splitlines(), 0
    body = ast.parse(example).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        source = lines[statement.lineno - 1 : following.lineno - 1 if following else None]
        is_print = isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("print(")
        is_expression = isinstance(statement, ast.Expr) and not is_print
        shown = shown_results(source, is_expression)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if is_expression:
                value = eval(compile(ast.Expression(statement.value), "example", "eval"), names)
                print(repr(value))
            else:
                exec(compile(ast.Module([statement], []), "example", "exec"), names)
        if shown and compare:
            pattern = re.escape("\n".join(shown)).replace("…", ".*")
            result = printed.getvalue().strip()
            bare = result[1:-1]  # of a tuple, which may be shown as it is written: a, b  # 1, 2
            assert any(re.fullmatch(pattern, text, re.DOTALL) for text in (result, bare)), (source, result)
        count += len(shown)
    return count


@pytest.fixture
def beside_the_examples(tmp_path, monkeypatch):
    """A folder with examples/, as the root of the project has it, in which an example may write."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_gives_the_results_it_shows(name, beside_the_examples):
    assert run_example(EXAMPLES[name], compare=name.rpartition(".")[2] not in MEASURED) >= 1


@pytest.mark.parametrize(
    "example",
    [
        "x = 1\nx + 1  # 3",
        "print(1)  # 2",
        "print(1)\n# 2",
        "if True:\n    print(1)  # 2",
        "import nothing",
    ],
)
def test_a_wrong_example_is_noticed(example, beside_the_examples):
    with pytest.raises((AssertionError, ImportError)):
        run_example(example)


def test_right_examples_pass(beside_the_examples):
    assert run_example("x = 1  # a remark\nx + 1  # 2\n[x, 'a']  # [1, …]\nprint('a\\nb')\n# a\n# b\n") == 4


def test_every_public_name_has_an_example():
    without = {name for name in lorakit.__all__ if not section(inspect.getdoc(getattr(lorakit, name)) or "", "Example")}
    assert without == WITHOUT_EXAMPLE


DOCUMENTED = sorted(set(lorakit.__all__) - WITHOUT_EXAMPLE)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_docstring_opens_with_one_sentence(name):
    first = inspect.getdoc(getattr(lorakit, name)).split("\n\n")[0]
    assert first.endswith(".") and first[0].isupper() and len(first) < 250, first


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_docstring_explains_every_parameter(name):
    public = getattr(lorakit, name)
    if inspect.isclass(public) and "__init__" not in vars(public):
        return  # its constructor is its base's
    explained = section(inspect.getdoc(public), "Args") + "\n" + section(inspect.getdoc(public), "Attributes")
    names = set(re.findall(r"\w+", " ".join(re.findall(r"^([\w, *]+):", explained, re.MULTILINE))))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p.name for p in inspect.signature(public).parameters.values() if p.kind not in variadic]
    assert [parameter for parameter in parameters if parameter not in names] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_docstring_says_what_is_returned_and_raised(name):
    public = getattr(lorakit, name)
    docstring = inspect.getdoc(public)
    if inspect.isclass(public):
        return
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(inspect.getsource(public))))
    assert section(docstring, "Raises") or not raises
    if not hasattr(public, "__wrapped__"):  # a context manager returns nothing to explain
        assert section(docstring, "Returns") or inspect.signature(public).return_annotation is None
