"""The messages that the package raises, found in its code, and the lists of tests that know them."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.tiny import ROOT

Act = Callable[[Path], object]
"""Something to try, in a folder of its own."""


def text(node: ast.expr) -> str:
    """A message as it stands in the code; parts that vary are `…`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


def messages(files: Iterable[Path]) -> list[str]:
    """Of every error that is made in some files."""
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "func", None)
            name = getattr(name, "id", getattr(name, "attr", ""))
            if isinstance(node, ast.Call) and name.endswith("Error") and node.args:
                found.append(text(node.args[0]))
    return found


def as_regex(words: str) -> str:
    """A regular expression for a message with these words."""
    return ".*".join(map(re.escape, words.split("…")))


def check_lists(files: Iterable[Path], *lists: Iterable[str]) -> None:
    """Check that every message of the files has words in a list, and that there is a message for all words.

    Words of a list with a letter are a part of a message; those without one are a whole message.
    """
    found, known = messages(files), [words for one in lists for words in one]

    def fits(words: str, message: str) -> bool:
        return words in message if re.search("[A-Za-z]", words) else words == message

    unlisted = [message for message in found if not any(fits(words, message) for words in known)]
    assert unlisted == [], unlisted
    gone = [words for words in known if not any(fits(words, message) for message in found)]
    assert gone == [], gone


def check_tests_exist(places: Mapping[str, str]) -> None:
    """Check that the tests that follow an advice exist; each is named as `file::beginning of the test's name`."""
    for name, test in (place.split("::") for place in places.values()):
        files = (ROOT / "tests").rglob(f"test_{name}.py")
        assert any(f"def {test}" in path.read_text(encoding="utf-8") for path in files), (name, test)


def check_advice(words: str, acts: Sequence[Act], folder: Path) -> None:
    """Check that the first act is refused with these words, and that the others, which follow the advice, are not."""
    refused, *advice = acts
    with pytest.raises((ValueError, RuntimeError, OSError, ArithmeticError), match=f"(?s){as_regex(words)}"):
        refused(folder)
    assert advice
    for number, follow in enumerate(advice):
        (place := folder / str(number)).mkdir()
        follow(place)
