"""From annotations with character offsets to tagged sentences, and an account of every annotation.

**Sentences.** Where the format marks sentences, those. Otherwise a sentence ends at every line end, and after a full
stop, `!`, `?` or `…` that is a word of its own (`lorakit.data.pretokenizer` keeps the stop of an abbreviation or an
initial with it) if white space follows, and then no lower-case letter; after `。`, `！` and `？` always. Two sentences
are joined where an annotation crosses their border: an annotation is never cut.

**Words.** Where the format gives words with their places, those. Otherwise each sentence is split as `lorakit predict`
splits a text. A word is cut where an annotation begins or ends inside it, so that the annotation keeps its exact place.

**Annotations.** A tagger knows one flat layer, so each annotation is either kept or left out by exactly one note:
one of several fragments with other words between them, one that covers no word, one inside another (`layer="inner"`
keeps the inner ones instead), one that overlaps another (the longer is kept), and one at the same place as another.
Fragments that only white space separates are one annotation.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from lorakit.data.formats.record import LAYERS, Annotation, Document, Note
from lorakit.data.pretokenizer import Word, split_at, split_words
from lorakit.data.tags import Span, from_spans, spans

GAPS = "fragments with words between them, left out"
EMPTY = "covers no word, left out"
NESTED = "inside another annotation, left out"
AROUND = "around another annotation, left out"
OVERLAP = "overlaps another annotation, left out"
DOUBLE = "at the same place as another annotation, left out"
LEFT_OUT = (GAPS, EMPTY, NESTED, AROUND, OVERLAP, DOUBLE)
CUT = "begins or ends inside a word, which was cut there"
TRIMMED = "begins or ends with white space, which was trimmed"
NO_WORD = "text without a word, left out"
JOINED = "crosses a sentence border; the sentences were joined"
ONE_PIECE = "fragments with only white space between them, read as one"

_LINE = re.compile(r"[\r\n\u2028\u2029]+")
_WIDE = "。！？"
_STOP = re.compile(rf"\.+|[!?…{_WIDE}]")
_WIDE_END = re.compile(rf"[{_WIDE}]+[”’」』）]*")
_END = re.compile(rf"(?:\.+|[!?…])[\"'”’»)\]]*\s+(?=\S)|{_WIDE_END.pattern}")


class Aligned(NamedTuple):
    """A document as tagged sentences.

    Attributes:
        sentences: in order; each has words, one flat layer of IOB2 tags, and where the document has a text, its own
            text and the offsets of its words in it.
        kept: how many annotations the tags stand for.
        notes: one for every other annotation, and one for each that was kept but not as it was.
    """

    sentences: list[Document]
    kept: int
    notes: list[Note]


def tag_sentences(
    document: Document, layer: str | None = None, split: Callable[[str], list[Word]] = split_words
) -> Aligned:
    """Turn a document with `spans` into tagged sentences; see the top of the file for how.

    Example:
        from lorakit.data.alignment import tag_sentences
        from lorakit.data.formats.record import Annotation, Document
        text = "IL-2-mediated. It works."
        aligned = tag_sentences(Document((), None, "notes.txt", text, spans=(Annotation("DNA", 0, 4, "T1"),)))
        aligned.sentences[0].words, aligned.sentences[0].tags  # (('IL-2', '-mediated', '.'), ('B-DNA', 'O', 'O'))
        aligned.notes[0]  # Note(kind='begins or ends inside a word, which was cut there', where='notes.txt, T1')

    Args:
        document: it has a text and spans in characters, or words and spans in words.
        layer: "outer" (None) keeps the outer of nested annotations, "inner" the inner.
        split: a text to its words, for documents that have none.

    Returns:
        The sentences, and what became of each annotation: `kept` and the notes whose kind is in LEFT_OUT add up to the
        number of annotations.

    Raises:
        ValueError: an unknown layer.
    """
    if layer not in (None, *LAYERS):
        raise ValueError(f"unknown layer {layer!r}; it is one of {', '.join(LAYERS)}")
    notes: list[Note] = []
    chosen = _flat(_pieces(document, notes), layer, notes, document)
    words = _words(document, split)
    borders = _borders(document, words)
    rows, at = [], 0
    if document.text is not None and document.offsets:
        words = _cut(words, chosen, document, notes)
    for start, end in _sentences(borders, words, chosen, document, notes):
        until = bisect_left(chosen, end, at, key=lambda item: item.start)
        inside, at = chosen[at:until], until
        there = words[_first_from(words, start) : _first_from(words, end)]
        if document.text is not None and not document.offsets:  # as `predict` splits a sentence alone
            there = [Word(w.text, w.start + start, w.end + start) for w in split(document.text[start:end])]
            there = _cut(there, inside, document, notes)
        if there:
            rows.append(_row(document, start, end, there, inside))
    if document.text is not None and not rows and not document.notes:  # else the reader says why there is no text
        notes.append(Note(NO_WORD, document.place))
    return Aligned(rows, len(chosen), notes)


def tag_documents(documents: Iterable[Document], layer: str | None = None) -> tuple[list[Document], list[Note]]:
    """Every document as tagged sentences, and all notes; a document that has tags is one already.

    Raises:
        ValueError: as `tag_sentences`.
    """
    sentences: list[Document] = []
    notes: list[Note] = []
    for document in documents:
        notes += document.notes
        if document.tags is None:
            aligned = tag_sentences(document, layer)
            notes += aligned.notes
            sentences += aligned.sentences
        else:
            sentences.append(document)
    return sentences, notes


# Words and text of a document -----------------------------------------------------------------------------------------


def with_text(document: Document) -> Document:
    """The document with a text and spans in characters, for formats that mark pieces of a text.

    Words without a text are joined by spaces, and are one sentence if the document does not say otherwise; an empty
    word keeps its place, between two spaces.
    """
    if document.text is not None and document.tags is None:
        return document
    found: Iterable[Annotation] = document.spans
    if document.tags is not None:
        found = (Annotation(span.type, span.start, span.end) for span in spans(document.tags))
    offsets, text = document.offsets, document.text
    if text is None or not offsets:
        offsets, text = [], " ".join(document.words)
        for word in document.words:
            start = offsets[-1][1] + 1 if offsets else 0
            offsets.append((start, start + len(word)))

    def place(start: int, end: int) -> tuple[int, int]:
        return (offsets[start][0], offsets[end - 1][1]) if start < end else (offsets[start][0],) * 2

    moved = []
    for item in found:
        start, end = place(item.start, item.end)
        pieces = tuple(place(*piece) for piece in item.fragments)
        moved.append(item._replace(start=start, end=end, fragments=pieces))
    sentences = tuple(place(start, end) for start, end in document.sentences if start < end)
    sentences = sentences or (((0, len(text)),) if text else ())
    return document._replace(text=text, offsets=tuple(offsets), tags=None, spans=tuple(moved), sentences=sentences)


def with_words(document: Document, split: Callable[[str], list[Word]] = split_words) -> Document:
    """The document with words, cut at its annotations, and spans in words, for formats that mark words.

    Annotations that cover no word are left out, and a note says so.
    """
    if document.tags is not None:
        found = tuple(Annotation(span.type, span.start, span.end) for span in spans(document.tags))
        return document._replace(tags=None, spans=found, text=None, offsets=())
    if document.text is None:
        return document
    notes: list[Note] = []
    words = _cut(_words(document, split), document.spans, document, notes)
    starts, ends = [word.start for word in words], [word.end for word in words]

    def place(start: int, end: int) -> tuple[int, int]:
        return bisect_right(ends, start), bisect_left(starts, end)

    moved = []
    for item in document.spans:
        start, end = place(item.start, item.end)
        pieces = tuple(place(*piece) for piece in item.fragments)
        if start < end and all(first < last for first, last in pieces):
            moved.append(item._replace(start=start, end=end, fragments=pieces))
        else:
            notes.append(Note(EMPTY, _where(document, item)))
    return document._replace(
        words=tuple(word.text for word in words),
        text=None,
        offsets=(),
        spans=tuple(moved),
        sentences=tuple(place(*sentence) for sentence in document.sentences),
        notes=(*document.notes, *notes),
    )


# Which annotations ----------------------------------------------------------------------------------------------------


def _pieces(document: Document, notes: list[Note]) -> list[Annotation]:
    """The annotations of one piece that cover a word, without white space at their ends."""
    found = []
    for item in document.spans:
        text = document.text
        if len(item.fragments) > 1:
            gaps = [(before[1], after[0]) for before, after in pairwise(item.fragments)]
            if not all(end >= start or (text is not None and not text[end:start].strip()) for end, start in gaps):
                notes.append(Note(GAPS, _where(document, item)))
                continue
            notes.append(Note(ONE_PIECE, _where(document, item)))
        start, end = item.start, item.end
        if text is not None:
            covered = text[start:end]
            start, end = end - len(covered.lstrip()), start + len(covered.rstrip())
        if start >= end:
            notes.append(Note(EMPTY, _where(document, item)))
            continue
        if (start, end) != (item.start, item.end):
            notes.append(Note(TRIMMED, _where(document, item)))
        found.append(item._replace(start=start, end=end, fragments=()))
    return found


def _flat(found: Sequence[Annotation], layer: str | None, notes: list[Note], document: Document) -> list[Annotation]:
    """A layer without overlaps, in order: of two that overlap the longer, of equals the first.

    Longest first, each is taken unless one that was taken is in its way. For the inner layer, those with another inside
    come last.
    """
    ordered = sorted(found, key=lambda item: item.start - item.end)  # stable: the first of equals stays the first
    if layer == "inner":
        around = _around(found)
        leaves = [item for item in ordered if (item.start, item.end) not in around]
        ordered = leaves + [item for item in reversed(ordered) if (item.start, item.end) in around]
    taken: list[Annotation] = []
    starts: list[int] = []
    for item in ordered:
        at = bisect_left(starts, item.end)
        rivals = [other for other in taken[max(0, bisect_right(starts, item.start) - 1) : at] if other.end > item.start]
        if not rivals:
            at = bisect_left(starts, item.start)
            taken.insert(at, item)
            starts.insert(at, item.start)
            continue
        rival = rivals[0]
        if (rival.start, rival.end) == (item.start, item.end):
            kind = DOUBLE
        elif _inside(item, rival):
            kind = NESTED
        else:
            kind = AROUND if all(_inside(other, item) for other in rivals) else OVERLAP
        notes.append(Note(kind, _where(document, item)))
    return taken


def _around(found: Sequence[Annotation]) -> set[tuple[int, int]]:
    """The places that have another place of an annotation inside them."""
    places = sorted({(item.start, item.end) for item in found})
    around = set()
    for i, (start, end) in enumerate(places):
        before = {place for place in places[max(0, i - 1) : i] if place[0] == start}
        after = places[i + 1 : bisect_left(places, (end, 0))]
        if before or any(other_end <= end for _, other_end in after):
            around.add((start, end))
    return around


def _inside(item: Annotation, other: Annotation) -> bool:
    return other.start <= item.start and item.end <= other.end


# Sentences ------------------------------------------------------------------------------------------------------------


def sentence_places(
    document: Document, split: Callable[[str], list[Word]] = split_words, whole: Sequence[Annotation] = ()
) -> list[tuple[int, int]]:
    """(start, end) of each sentence of a text in characters, without white space around it; see the top of the file.

    Args:
        document: it has a text.
        split: a text to its words, for documents that have none.
        whole: annotations that no border may cut.
    """
    text, words = document.text or "", _words(document, split)
    found = _sentences(_borders(document, words), words, whole, document, [])
    places = [(end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())) for start, end in found]
    return [(start, end) for start, end in places if start < end]


def _borders(document: Document, words: Sequence[Word]) -> list[int]:
    """Where sentences begin and end: as the format says, or where it does not, by line ends and stops."""
    end = len(words) if document.text is None else len(document.text)
    borders = {border for sentence in document.sentences for border in sentence} | {0, end}
    if document.text is not None:
        given = sorted(document.sentences)
        for border in _borders_in_text(document.text, words):  # for the text outside of the format's own sentences
            before = bisect_left(given, border, key=lambda sentence: sentence[0]) - 1
            if before < 0 or border >= given[before][1]:
                borders.add(border)
    return sorted(borders)


def _borders_in_text(text: str, words: Sequence[Word]) -> set[int]:
    borders = {match.end() for match in _LINE.finditer(text)}
    for word in words:
        if _STOP.fullmatch(word.text) and (end := _END.match(text, word.start)):
            if word.text[0] in _WIDE or not text[end.end() : end.end() + 1].islower():
                borders.add(end.end())
        else:  # in languages that do not separate words, the stop is part of a long one
            borders |= {word.start + match.end() for match in _WIDE_END.finditer(word.text)}
    return borders


def _sentences(
    borders: Sequence[int], words: Sequence[Word], chosen: Sequence[Annotation], document: Document, notes: list[Note]
) -> list[tuple[int, int]]:
    """The pieces between borders, without the borders inside an annotation or a word that the format gives."""
    inner = set()
    for item in chosen:
        crossed = borders[bisect_right(borders, item.start) : bisect_left(borders, item.end)]
        inner.update(crossed)
        notes += [Note(JOINED, _where(document, item))] if crossed else []
    if document.offsets or document.text is None:
        for word in words:
            inner.update(borders[bisect_right(borders, word.start) : bisect_left(borders, word.end)])
    return list(pairwise(border for border in borders if border not in inner))


# Words ----------------------------------------------------------------------------------------------------------------


def _words(document: Document, split: Callable[[str], list[Word]]) -> list[Word]:
    """The words that the format gives, with those of the text that it leaves out; or else those of `split`.

    A document without text has its words' numbers as places.
    """
    if document.text is None:
        return [Word(word, i, i + 1) for i, word in enumerate(document.words)]
    words, reached = [], 0
    for text, (start, end) in [*zip(document.words, document.offsets, strict=False), ("", (len(document.text),) * 2)]:
        if document.text[reached:start].strip():
            words += [Word(w.text, w.start + reached, w.end + reached) for w in split(document.text[reached:start])]
        words += [Word(text, start, end)] if text.strip() else []
        reached = end
    return words


def _cut(words: Sequence[Word], found: Sequence[Annotation], document: Document, notes: list[Note]) -> list[Word]:
    """The words, cut where an annotation begins or ends inside one."""
    starts, borders = [word.start for word in words], set()
    for item in found:
        ends = {item.start, item.end}.union(*item.fragments)
        at = {border: bisect_left(starts, border) - 1 for border in ends}
        cuts = {border for border, i in at.items() if i >= 0 and words[i].start < border < words[i].end}
        notes += [Note(CUT, _where(document, item))] if cuts else []
        borders |= cuts
    return split_at(words, borders)


def _first_from(words: Sequence[Word], place: int) -> int:
    """The number of the first word that begins at a place or after it."""
    return bisect_left(words, place, key=lambda word: word.start)


def _row(document: Document, start: int, end: int, words: Sequence[Word], found: Sequence[Annotation]) -> Document:
    """A sentence from its words and annotations."""
    starts, ends = [word.start for word in words], [word.end for word in words]
    marked = [Span(i.label, bisect_right(ends, i.start), bisect_left(starts, i.end)) for i in found]
    has_text = document.text is not None
    return Document(
        words=tuple(word.text for word in words),
        tags=from_spans(marked, len(words)),
        place=document.place,
        text=document.text[start:end] if has_text else None,
        offsets=tuple((word.start - start, word.end - start) for word in words) if has_text else (),
        id=document.id,
    )


def _where(document: Document, item: Annotation) -> str:
    return f"{document.place}, {item.name}"
