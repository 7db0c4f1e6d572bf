"""JSON of texts and spans: {"text": str, "spans" or "entities": [{"start", "end", "label"}, ...]}.

This is what `lorakit predict --format jsonl`, spaCy's Doc.to_json ("ents") and transformers' pipelines give, and what
many tools agree on. The type may be called label, type, entity_group, entity or tag, and a span's own "text" is
compared with its offsets. "tokens" that are objects with start and end are the words. One object per line, or all in
an array.
https://huggingface.co/docs/transformers/main_classes/pipelines#transformers.TokenClassificationPipeline
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import (
    annotations_key,
    check_list,
    check_text,
    first_record,
    name_of,
    read_objects,
    read_span,
    read_tokens,
)
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.offsets import is_whole, place_spans, place_words
from lorakit.data.formats.record import Annotation, Document, Reading, about_gaps
from lorakit.data.formats.span_pieces import are_tagged_pieces, join_pieces
from lorakit.data.formats.tagged_record import other_form


def recognise_spans_jsonl(path: Path) -> str | None:
    """The evidence that a file holds texts and spans: its first object does."""
    record = first_record(path)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    key = next((key for key in field_names.SPANS if isinstance(record.get(key), list)), None)
    if key is None or not all(isinstance(span, dict) and {"start", "end"} <= span.keys() for span in record[key]):
        return None
    return f"each object has a text, and {key} with start and end"


def read_spans_jsonl(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each object of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, offsets outside of the text.
    """
    yield from read_span_records(read_objects(path), reading)


def read_span_records(records: Iterable[tuple[str, dict[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yield a document for each (place, object).

    Raises:
        ValueError: as above; or the spans of the file count the words of "tokens", not characters.
    """
    counts = _Counts()
    for place, record in records:
        text = check_text(record.get("text"), "text", place)
        key = annotations_key(record, field_names.SPANS, place, reading)
        if record.get(key) is None:
            wanted = f"{key!r}" if key else "'spans' or 'entities'"
            raise ValueError(f"{place}: no {wanted}; the keys are {', '.join(record)}{other_form(record)}")
        values = check_list(record[key], key, place)
        found = [read_span(span, f"{place}, span {number}") for number, span in enumerate(values, start=1)]
        items, covered = [item for item, _ in found], [letters for _, letters in found]
        placed, notes = place_spans(text, items, covered, place, reading.offsets)
        if are_tagged_pieces(values):
            placed, joined = join_pieces(placed, text, place)
            notes += joined
        offsets = place_words(text, *read_tokens(record.get("tokens"), place), place, reading.offsets)
        is_proven = any(letters is not None for letters in covered)
        if not is_proven and reading.offsets is None:
            counts.add(text, placed, record, place)
        words, name = tuple(text[start:end] for start, end in offsets), name_of(record)
        yield Document(words, None, place, text, offsets, placed, name, (), tuple(notes), is_proven)
    counts.check()


class _Counts:
    """How many spans of a file may count words: all end among those of "tokens", and hardly any is a whole word."""

    def __init__(self) -> None:
        self.spans = self.whole = 0
        self.are_words = True
        self.first = ""

    def add(self, text: str, spans: Sequence[Annotation], record: dict[str, Any], place: str) -> None:
        """Count the spans of a record."""
        words = record.get("tokens") or record.get("words") or []
        strings = isinstance(words, list) and all(isinstance(word, str) for word in words)
        self.are_words &= strings and all(span.end <= len(words) for span in spans)
        self.first = self.first or (spans and f"{place}, {spans[0].name}") or ""
        self.spans += len(spans)
        self.whole += sum(is_whole(text, span.start, span.end) for span in spans)

    def check(self) -> None:
        """Refuse spans of words.

        Raises:
            ValueError: with the first, and both ways out.
        """
        if self.are_words and self.spans > 1 and 10 * self.whole <= self.spans:
            raise ValueError(
                f"{self.first}: the places seem to count words, not characters of the text; write spans of words as"
                ' GLiNER does, with the last word of each: {"tokenized_text": ["New", "York"], "ner": [[0, 1, "LOC"]]};'
                " if they do count characters, say offsets='characters'"
            )


def write_spans_jsonl(documents: Sequence[Document], path: Path) -> list[str]:
    """Write one object per line; an annotation with gaps from its first to its last character."""
    write_lines(path, map(_record, documents))
    return about_gaps(documents)


def _record(document: Document) -> dict[str, Any]:
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"text": document.text, "spans": [_span(document, item) for item in document.spans]}


def _span(document: Document, item: Annotation) -> dict[str, Any]:
    span: dict[str, Any] = {"start": item.start, "end": item.end, "label": item.label}
    span["text"] = (document.text or "")[item.start : item.end]
    span |= {"id": item.id} if item.id else {}
    return span | ({"score": item.score} if item.score is not None else {})
