"""Raw text to words with their positions, split as BioNLP2004 (GENIA) splits its text.

    split_words("the IL-2 gene (IL2).")  # the  IL-2  gene  (  IL2  )  .

The rule gives a model words as in its training data: of that corpus' sentences, joined by spaces, 99.4 % (test) to
99.7 % (train) are split as in the corpus; most of the others hold abbreviations that the rule does not know.

- white space separates words;
- brackets, commas, semicolons, double quotes, `% & < > = ? !` and `…` are always words of their own (an arrow `-->` is
  one word);
- in what remains, full stops, a colon or an apostrophe at the end are a word of their own, and so are an apostrophe at
  the start and a possessive `'s`; inside a word they are kept: PU.1, 0.05, 16:1, 5'-flanking;
- Chinese and Japanese, which have no spaces between words, are split into characters, as their corpora are (MSRA,
  Weibo, Resume) and as BERT's own tokenizers do; their punctuation marks are words of their own;
- a full stop stays with an initial, a dotted abbreviation (M., i.e.) and a few known ones (vs.), except at the end of
  the text;
- hyphens, slashes, plus signs and all other characters are kept: IL-2, NF-kappaB, p50/p65, CD4+.

Tokens that were added to a tokenizer, such as "<URL>", are words of their own where `split_words` is told of them.

Nothing is normalised: a word is a slice of the text, and only white space is between words. Splitting is stable:
splitting `" ".join(words)` gives `words` again.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

_PIECE = re.compile(r"\S+")
# Han, kana and the punctuation that is used with them, each with its combining marks and variation selectors
_CHARACTER = "[\u3001-\u3029\u3030-\u3098\u309b-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff0f"
_CHARACTER += (
    "\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003ffff][\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef]*"
)
_ALONE = re.compile(rf"""-+>|[()\[\]{{}},;"“”„«»…%&<>=?!]|{_CHARACTER}""")
_HEAD = re.compile(r"''?(?!s?$)")
_MARK = re.compile(r"'s|''?|\.+|:")
_TAIL = re.compile(rf"(.+?)({_MARK.pattern})", re.DOTALL)
_ABBREVIATION = re.compile(r"(?:[^\W\d_]\.)+|vs\.|al\.|ca\.|cf\.|approx\.|Dr\.|Fig\.|No\.")


class Word(NamedTuple):
    """A word and its position in characters: `text[start:end] == word.text`."""

    text: str
    start: int
    end: int


def split_words(text: str, keep: Iterable[str] = ()) -> list[Word]:
    """Split a raw text into words by the rule at the top of this file; only white space is left out.

    Example:
        from lorakit.data.pretokenizer import split_words
        [word.text for word in split_words("the IL-2 gene (IL2).")]  # ['the', 'IL-2', 'gene', '(', 'IL2', ')', '.']

    Args:
        text: any text.
        keep: strings without white space that are words of their own wherever they occur, such as a tokenizer's added
            tokens (`lorakit.data.subwords.kept_tokens`).

    Returns:
        The words in order, each with its start and end in characters of the text.

    Raises:
        ValueError: the text holds half a surrogate pair, which no tokenizer accepts.
    """
    check_text(text)
    last = len(text.rstrip())
    kept = map(re.escape, sorted(keep, key=len, reverse=True))
    separate = re.compile("|".join((*kept, _ALONE.pattern)))
    words = []
    for piece in _PIECE.finditer(text):
        begin = piece.start()
        for alone in separate.finditer(text, piece.start(), piece.end()):
            words += _trim(text, begin, alone.start(), last)
            words.append(Word(alone[0], alone.start(), alone.end()))
            begin = alone.end()
        words += _trim(text, begin, piece.end(), last)
    return words


def check_text(text: str) -> None:
    """Refuse half a surrogate pair, which no tokenizer accepts.

    Raises:
        ValueError: with its position.
    """
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise ValueError(
            f"character {half.start()} of the text is {half[0]!r}, half a surrogate pair, which is not text; decode the"
            " text as UTF-8"
        )


def split_at(words: Iterable[Word], borders: Collection[int]) -> list[Word]:
    """Cut words at positions in the text, such as the borders of annotations.

    Args:
        words: in order.
        borders: in characters of the text; those at a word's end or between words cut nothing.
    """
    cuts, pieces = sorted(borders), []
    for word in words:
        inside = cuts[bisect_right(cuts, word.start) : bisect_left(cuts, word.end)]
        for start, end in pairwise([word.start, *inside, word.end]) if inside else ((word.start, word.end),):
            pieces.append(Word(word.text[start - word.start : end - word.start], start, end))
    return pieces


def _trim(text: str, begin: int, end: int, last: int) -> list[Word]:
    """The words of text[begin:end], which holds neither white space nor a mark that is a word of its own."""
    before, after = [], []
    while begin < end and not _MARK.fullmatch(text, begin, end):
        if head := _HEAD.match(text, begin, end):
            before.append(Word(head[0], begin, head.end()))
            begin = head.end()
            continue
        tail = _TAIL.fullmatch(text, begin, end)
        if not tail or (tail[2] == "." and end != last and _ABBREVIATION.fullmatch(text, begin, end)):
            break
        after.append(Word(tail[2], tail.start(2), end))
        end = tail.start(2)
    middle = [Word(text[begin:end], begin, end)] if begin < end else []
    return before + middle + after[::-1]
