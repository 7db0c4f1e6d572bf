"""Counts in messages are in the singular or the plural, everywhere."""

import ast
import re
from pathlib import Path

import pytest

from lorakit._counts import counted
from tests.support.tiny import ROOT

OTHERS = {"has", "is", "its", "ms", "names", "needs", "takes", "this", "was", "writes"}  # words in s after a value
NO_ADJECTIVE = r"(?!in |of |without |leaves |lorakit )"
ALWAYS_SEVERAL = {  # the start of what follows a count that cannot be 1, and why
    " bytes; at most": "more than a limit of megabytes",
    " rows, the last": "of a token table",
    " rows, and this": "of a token table",
    " rows: there": "of a token table",
    " rows of the batch": "of several adapters",
    " tokens but the model's": "of a tokenizer",
    " tokens in ": "the width of a compiled batch, 8 or more",
    " parameters are trained": "a model's, of which some are trained",
    " epochs": "more than before",
    " runs side": "asked in the line before",
    " other process": "the plural is chosen there: an import would make an eighth layer",
    " models in": "both modes",
    " CPUs, ": "not a message: a machine's name in a file",
}


def numbers_with_a_plural(path: Path) -> list[str]:
    """The text after each `{value}` of an f-string, where it begins with a word in the plural and is not a list."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for value, text in zip(node.values, node.values[1:], strict=False) if isinstance(node, ast.JoinedStr) else ():
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            shown = ast.unparse(value.value)
            number = re.search(r"len\(|count|\bsum\(|number|rows|width|epochs|_wh$|size", shown) or value.format_spec
            word = re.match(rf" {NO_ADJECTIVE}(?:[a-z-]+ )?([A-Za-z]+s|entities)\b", text.value)
            if number and word and word[1] not in OTHERS and ("join" not in shown and "!r" not in ast.unparse(value)):
                found.append(text.value)
    return found


FILES = [path for path in sorted((ROOT / "lorakit").rglob("*.py")) if path.parent.name != "formats"]


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in FILES])
def test_no_message_writes_a_plural_after_a_number_by_hand(path):
    assert [text for text in numbers_with_a_plural(path) if not text.startswith(tuple(ALWAYS_SEVERAL))] == []


def test_the_search_sees_a_plural_and_a_plural_after_an_adjective(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('f"{len(x):,} sentences"; f"{count} broken tags are"; f"{count} is"; f"{\', \'.join(x)} files"')
    assert numbers_with_a_plural(file) == [" sentences", " broken tags are"]


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 sentences"), (1, "1 sentence"), (2, "2 sentences"), (1200, "1,200 sentences")]
)
def test_one_is_singular_and_everything_else_plural(number, said):
    assert counted(number, "sentence") == said


def test_a_verb_may_agree_too():
    assert [counted(n, "entity is", "entities are") for n in (1, 3)] == ["1 entity is", "3 entities are"]
