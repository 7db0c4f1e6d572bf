"""How a corpus splits words where the usual rule (`pretokenizer`) does not, so that raw texts are split the same way.

elisions      `l'` and `hôpital` are two words, as in corpora of French, Italian or Catalan; the rule keeps one
characters    words of these scripts are single characters, as in corpora of characters in Thai or Khmer; the rule
              splits only Han and kana so
marks         the marks above and below characters are words too, as where a program took each code point for a word

What a model was trained on is stored in its configuration, under KEY, and with its adapter.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.data.pretokenizer import Word, split_at, split_words

KEY = "lorakit_words"  # in a model's configuration
SCRIPTS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "HANGUL")  # as the names of characters begin
FEWEST = 20  # words of a script, or elided words, before a corpus has a habit
SHARE = 0.95  # of a script's words that are one character

_ELIDED = re.compile(r"[^\W\d_]{1,6}['’]")
_TOGETHER = re.compile(r"([^\W\d_]{1,6}['’])[^\W\d_]{2,}")


@dataclass(frozen=True)
class WordHabits:
    """How a corpus splits words beyond the usual rule.

    Attributes:
        elisions: whether an elided word ends at its apostrophe.
        characters: scripts of SCRIPTS whose characters are words.
        marks: whether the combining marks of those scripts are words of their own.
    """

    elisions: bool = False
    characters: tuple[str, ...] = ()
    marks: bool = False

    def to_json(self) -> dict[str, Any]:
        """The habits as JSON; an empty object for the usual rule."""
        found = {"elisions": self.elisions, "characters": list(self.characters), "marks": self.marks}
        return {name: value for name, value in found.items() if value}


def learn_habits(sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> WordHabits:
    """Find the habits of a corpus.

    Example:
        from lorakit.data.habits import learn_habits
        learn_habits([(["l'", "hôpital"], ["O", "O"])] * 20)  # WordHabits(elisions=True, characters=(), marks=False)

    Args:
        sentences: (words, tags) pairs.
    """
    words: Counter[str] = Counter()
    for row, _ in sentences:
        words.update(row)
    apart = together = marks = 0
    single: Counter[str] = Counter()
    several: Counter[str] = Counter()
    for word, count in words.items():
        if word.isascii() and "'" not in word:
            continue
        apart += count * bool(_ELIDED.fullmatch(word))
        together += count * bool(_TOGETHER.fullmatch(word))
        if script := _script(word):
            (single if len(_characters(word)) == 1 else several)[script] += count
            marks += count * (len(word) == 1 and _is_mark(word))
    characters = [
        script for script in SCRIPTS if single[script] >= max(FEWEST, SHARE * (single[script] + several[script]))
    ]
    return WordHabits(apart >= FEWEST and apart > together, tuple(characters), bool(characters) and marks > 0)


def habits_of(model: Any) -> WordHabits:
    """The habits that a model's configuration names; the usual ones without."""
    stored = getattr(getattr(model, "config", None), KEY, None)
    return from_json(stored)


def remember_habits(model: Any, habits: WordHabits) -> None:
    """Write habits into a model's configuration; the usual ones leave no trace."""
    config = getattr(model, "config", None)
    if config is None:
        return
    if habits.to_json():
        setattr(config, KEY, habits.to_json())
    elif hasattr(config, KEY):
        delattr(config, KEY)


def from_json(stored: Any) -> WordHabits:
    """The habits of `WordHabits.to_json`; what this version does not know is left out."""
    stored = stored if isinstance(stored, Mapping) else {}
    scripts = stored.get("characters")
    known = [script for script in SCRIPTS if isinstance(scripts, list | tuple) and script in scripts]
    return WordHabits(stored.get("elisions") is True, tuple(known), stored.get("marks") is True)


def split_like(text: str, habits: WordHabits, keep: Sequence[str] = ()) -> list[Word]:
    """Split a raw text into words as the corpus does; `pretokenizer.split_words` explains the arguments.

    Example:
        from lorakit.data.habits import WordHabits, split_like
        [word.text for word in split_like("l'hôpital", WordHabits(elisions=True))]  # ["l'", 'hôpital']
    """
    words = split_words(text, keep)
    if not habits.to_json():
        return words
    borders: set[int] = set()
    kept = frozenset(keep)
    for word in words:
        if word.text in kept:
            continue
        if habits.elisions and (found := _TOGETHER.match(word.text)):
            borders.add(word.start + found.end(1))
        if habits.characters:
            at = word.start
            for character in word.text if habits.marks else _characters(word.text):
                if _script(character) in habits.characters:
                    borders |= {at, at + len(character)}
                at += len(character)
    return split_at(words, borders)


def _script(word: str) -> str | None:
    """The script of a word's first character, if it is one of SCRIPTS."""
    name = unicodedata.name(word[:1], "") if word and not word[0].isascii() else ""
    return next((script for script in SCRIPTS if name.startswith(script)), None)


def _characters(word: str) -> list[str]:
    """The characters of a word, each with the marks that follow it."""
    found: list[str] = []
    for character in word:
        if found and _is_mark(character):
            found[-1] += character
        else:
            found.append(character)
    return found


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
