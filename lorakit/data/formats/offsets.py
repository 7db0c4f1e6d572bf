"""How a file counts characters, found out by comparing: offsets to positions in a Python string.

Tools count Unicode characters (Python), UTF-16 units (JavaScript, Java) or UTF-8 bytes; some count a CRLF line end as
one character, some count from 1, and some name the last character of an annotation instead of the one after it. Most
texts read the same in all of these but the last two. Where they do not, the text that the file has beside an annotation
decides: the first way of counting under which all annotations of a document cover the text that they should.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lorakit._counts import counted
from lorakit.data.formats.record import Annotation, Document, Note

UNITS = ("characters", "utf-16", "bytes", "inclusive", "from-one", "from-one-inclusive")
_UNSPACED = "\u0e00"  # from here on are Thai and other scripts whose words no space separates
ASSUMED = "comes after a character beyond U+FFFF, which was counted as one character; offsets= says otherwise"

Pieces = tuple[tuple[int, int], ...]


def place_spans(
    text: str,
    items: Sequence[Annotation],
    covered: Sequence[str | None],
    place: str,
    unit: str | None = None,
    first: int = 0,
) -> tuple[tuple[Annotation, ...], list[Note]]:
    """Convert the places of a document's annotations to characters of its text.

    Args:
        text: the document's.
        items: its annotations, with places as the file counts.
        covered: the text that the file has beside each; None if it has none. White space is not compared: files show a
            line end as a space.
        place: where the document is, for messages.
        unit: one of UNITS; None finds it out.
        first: the offset of the text's first character, where the text is part of a longer one.

    Returns:
        The annotations, and notes: that the file does not count characters, or that nothing tells how it counts.

    Raises:
        ValueError: with the place and the annotation's id: offsets outside of the text, or that cover another text than
            the file has beside them; an unknown unit.
    """
    if unit is not None and unit not in UNITS:
        raise ValueError(f"unknown unit of offsets {unit!r}; it is one of {', '.join(UNITS)}")
    if not items:
        return (), []
    ways = [way for way in _ways(text) if unit in (None, way.unit)]
    told = any(letters is not None for letters in covered)
    for way in ways if told or unit else ways[:1]:
        found = [_convert(item.pieces, way, first) for item in items]
        if all(_fits(text, *pair) for pair in zip(found, covered, strict=True)):
            moved = [_moved(item, pieces) for item, pieces in zip(items, found, strict=True)]
            notes = [Note(f"offsets are {way.name} and were converted", place)] if way.name else []
            if not told and unit is None:
                notes += _unsure(text, moved, place)
            return tuple(moved), notes
    for item, letters in zip(items, covered, strict=True):
        _explain(text, item, letters, _convert(item.pieces, ways[0], first), place)
    raise AssertionError("an annotation fits nowhere and yet fits")


def place_words(
    text: str, items: Sequence[Annotation], covered: Sequence[str | None], place: str, unit: str | None = None
) -> tuple[tuple[int, int], ...]:
    """The places of words in characters of a text, without those of white space only.

    Args:
        text: the document's.
        items: its words in order, with places as the file counts.
        covered: the text that the file has beside each; None if it has none.
        place: where the document is, for messages.
        unit: how the file counts where it has no text beside the words.

    Raises:
        ValueError: as for `place_spans`; or two words overlap.
    """
    told = any(letters is not None for letters in covered)
    placed, _ = place_spans(text, items, covered, place, None if told else unit)
    reached = 0
    for number, word in enumerate(placed, start=1):
        if word.start < reached:
            raise ValueError(f"{place}, token {number}: it begins before the token before it ends; correct the offsets")
        reached = word.end
    return tuple((word.start, word.end) for word in placed if text[word.start : word.end].strip())


def check_ends(documents: Iterable[Document], source: str) -> None:
    """Refuse annotations whose ends all are one character short, such as those of tools that name the last character.

    Only places that the file does not prove are looked at. Such an end is before a character that is no white space;
    at least half of all, and two, are before the last character of a word.

    Raises:
        ValueError: with the first of them, and both ways out.
    """
    first, count, inside = "", 0, 0
    for document in documents:
        text = document.text or ""
        for item in document.spans if not document.is_proven else ():
            last, after = text[item.end : item.end + 1], text[item.end + 1 : item.end + 2]
            if not last.strip() or last.isalnum() and after.isalnum():
                return
            first = first or f"{document.place}: {text[item.start : item.end]!r} of {text[item.start : item.end + 1]!r}"
            count += 1
            inside += last.isalnum() and last < _UNSPACED and text[item.start : item.end][-1:].isalnum()
    if inside >= max(2, count / 2):
        raise ValueError(
            f"{source}: all {counted(count, 'annotation')} end one character before their words do, the first at"
            f" {first}; if the file names the last character of each, say offsets='inclusive', and if not,"
            " offsets='characters'"
        )


def check_starts(documents: Iterable[Document], source: str) -> None:
    """Refuse annotations whose starts all are one too high, such as those of tools that count characters from 1.

    Only places that the file does not prove are looked at: of two or more, at most a tenth are whole words, but at
    least nine tenths are if they begin one character earlier, and end one earlier too or not.

    Raises:
        ValueError: with the first of them, and both ways out.
    """
    found = [
        (document, item)
        for document in documents
        if document.text and not document.is_proven
        for item in document.spans
    ]

    def wholes(earlier: int, shorter: int) -> int:
        return sum(is_whole(doc.text or "", item.start - earlier, item.end - shorter) for doc, item in found)

    if len(found) < 2 or 10 * wholes(0, 0) > len(found):
        return

    def before_space(shorter: int) -> int:
        return sum(not (doc.text or "")[item.end - shorter :][:1].strip() for doc, item in found)

    units = {"from-one": 1, "from-one-inclusive": 0}
    possible = [unit for unit, shorter in units.items() if 10 * wholes(1, shorter) >= 9 * len(found)]
    if not possible:
        return
    unit = max(possible, key=lambda unit: before_space(units[unit]))  # of "IL-2", "IL-" seems whole, too
    document, item = found[0]
    text = document.text or ""
    read, meant = text[item.start : item.end], text[item.start - 1 : item.end - units[unit]]
    raise ValueError(
        f"{source}: the {counted(len(found), 'annotation')} begin one character after their words do, the first at"
        f" {document.place}: {read!r} instead of {meant!r}; if the file counts characters from 1, say"
        f" offsets={unit!r}, and if not, offsets='characters'"
    )


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether a piece of a text begins and ends with a word or a sign, and in the middle of no word."""
    piece = text[max(start, 0) : end]
    if start < 0 or not piece or piece[:1].isspace() or piece[-1:].isspace():
        return False
    cuts = (text[place - 1 : place + 1] for place in (start, end) if place)
    return not any(len(cut) == 2 and cut.isalnum() for cut in cuts)


def _moved(item: Annotation, pieces: Pieces) -> Annotation:
    return item._replace(start=pieces[0][0], end=pieces[-1][1], fragments=pieces if len(pieces) > 1 else ())


def _unsure(text: str, items: Sequence[Annotation], place: str) -> list[Note]:
    first = next((i for i, character in enumerate(text) if character > "\uffff"), len(text))
    return [Note(ASSUMED, f"{place}, {item.name}") for item in items if item.end > first]


# Ways of counting ----------------------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """A way of counting.

    Attributes:
        unit: one of UNITS.
        name: in notes; "" where it is characters.
        position: offset -> position in the text, or None.
        last: 1 where the end is the last character of an annotation, not the one after it.
    """

    unit: str
    name: str
    position: Callable[[int], int | None]
    last: int = 0


def _ways(text: str) -> Iterator[_Way]:
    """Each way of counting, the usual ones first."""

    def same(offset: int) -> int | None:
        return offset if offset <= len(text) else None

    def from_one(offset: int) -> int | None:
        return offset - 1 if 0 < offset <= len(text) + 1 else None

    yield _Way("characters", "", same)
    if max(text, default="") > "\uffff":
        yield _Way("utf-16", "UTF-16 units", _counter(text, lambda character: 2 if character > "\uffff" else 1))
    else:
        yield _Way("utf-16", "", same)
    if text.isascii():
        yield _Way("bytes", "", same)
    else:
        yield _Way("bytes", "bytes of UTF-8", _counter(text, lambda character: len(character.encode())))
    if "\r\n" in text:
        yield _Way("characters", "characters with each line end as one", _line_ends_as_one(text))
    # a text with a byte-order mark also counts like this
    yield _Way("from-one", "counted from 1", from_one)
    yield _Way("inclusive", "those of the first and the last character", same, last=1)
    yield _Way("from-one-inclusive", "those of the first and the last character, counted from 1,", from_one, last=1)


def _counter(text: str, size: Callable[[str], int]) -> Callable[[int], int | None]:
    position, counted = {0: 0}, 0
    for index, character in enumerate(text, start=1):
        counted += size(character)
        position[counted] = index
    return position.get


def _line_ends_as_one(text: str) -> Callable[[int], int | None]:
    position, counted = {}, 0
    for index, character in enumerate(text):
        if character == "\n" and text[index - 1 : index] == "\r":
            continue
        position[counted] = index
        counted += 1
    position[counted] = len(text)
    return position.get


def _convert(pieces: Pieces, way: _Way, first: int) -> Pieces:
    """The pieces in characters; () if an offset is not a position in the text."""
    converted = []
    for begin, end in pieces:
        offsets = (begin, end + way.last)
        start, end = (way.position(offset - first) if offset >= first else None for offset in offsets)
        if start is None or end is None:
            return ()
        converted.append((start, end))
    return tuple(converted)


# Checks --------------------------------------------------------------------------------------------------------------


def _fits(text: str, pieces: Pieces, covered: str | None) -> bool:
    if not pieces or any(start > end for start, end in pieces):
        return False
    return covered is None or _letters(_cover(text, pieces)) == _letters(covered)


def _letters(text: str) -> str:
    return "".join(text.split())


def _cover(text: str, pieces: Pieces) -> str:
    return " ".join(text[start:end] for start, end in pieces)


def _explain(text: str, item: Annotation, covered: str | None, pieces: Pieces, place: str) -> None:
    """Raise the error of an annotation that does not fit."""
    if _fits(text, pieces, covered):
        return
    offsets = ";".join(f"{start}-{end}" for start, end in item.pieces)
    where = f"{place}, {item.id or item.label}: offsets {offsets}"
    if any(start > end for start, end in item.pieces):
        raise ValueError(f"{where} end before they begin; correct them in the file")
    if not pieces:
        raise ValueError(
            f"{where} are outside of the text of {len(text)} characters, or inside a character; correct them or"
            " the text, or say with offsets= how they count"
        )
    raise ValueError(
        f"{where} cover {_cover(text, pieces)[:60]!r}, but beside them the file has {str(covered)[:60]!r}; correct the"
        " offsets, or the text that they are of"
    )
