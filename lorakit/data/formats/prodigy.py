"""Prodigy's JSON lines of `db-out` for named entities.

    {"text": str, "tokens": [{"text", "start", "end", "id", "ws"}], "answer": "accept",
     "spans": [{"start", "end", "token_start", "token_end", "label"}]}

Offsets count Unicode characters; `token_end` is the last token, not the one after it. Examples that the annotator
rejected or skipped are left out and counted.
https://prodi.gy/docs/api-interfaces#ner_manual
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import (
    check_list,
    check_text,
    first_record,
    name_of,
    read_objects,
    read_span,
    read_tokens,
)
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.offsets import place_spans, place_words
from lorakit.data.formats.record import Document, Note, Reading, about_gaps
from lorakit.data.pretokenizer import Word, split_at, split_words


def recognise_prodigy(path: Path) -> str | None:
    """The evidence that a file is Prodigy's: its first object has keys of Prodigy's."""
    record = first_record(path)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    tokens = record.get("tokens")
    if isinstance(tokens, list) and tokens and all(isinstance(t, dict) and "start" in t for t in tokens):
        return "each object has a text, and tokens with start and end"
    own = next((key for key in field_names.PRODIGY if key in record), None)
    return f"each object has a text and {own}" if own and "label" not in record else None


def read_prodigy(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each object of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, offsets outside of the text,
            tokens that are not in the text.
    """
    yield from read_prodigy_records(read_objects(path), reading)


def read_prodigy_records(records: Iterable[tuple[str, dict[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yield a document for each (place, object); arguments and errors as above."""
    for place, record in records:
        text = check_text(record.get("text"), "text", place)
        key = (reading.columns or {}).get("tag", "spans")
        values = check_list(record.get(key) or [], key, place)
        found = [read_span(span, f"{place}, span {number}") for number, span in enumerate(values, start=1)]
        answer = record.get("answer", "accept")
        if answer != "accept" and reading.unannotated:
            yield Document((), None, place, text, id=name_of(record))
            continue
        if answer != "accept":
            kind = f"example that the annotator answered with {answer!r}, left out"
            left_out = [Note("annotation in an example that was not accepted, left out", place)] * len(found)
            yield Document((), None, place, "", notes=(Note(kind, place), *left_out))
            continue
        items, covered = [item for item, _ in found], [letters for _, letters in found]
        placed, notes = place_spans(text, items, covered, place, reading.offsets)
        offsets = place_words(text, *read_tokens(record.get("tokens"), place), place, reading.offsets)
        is_proven = any(letters is not None for letters in covered)
        notes += [Note("relation, not used", place)] * len(record.get("relations") or ())
        words, name = tuple(text[start:end] for start, end in offsets), name_of(record)
        yield Document(words, None, place, text, offsets, placed, name, (), tuple(notes), is_proven)


def write_prodigy(documents: Sequence[Document], path: Path) -> list[str]:
    """Write one example per line, with the words as tokens, cut where annotations begin or end."""
    write_lines(path, map(_example, documents))
    return about_gaps(documents)


def _example(document: Document) -> dict[str, Any]:
    text = document.text or ""
    given = [Word(text[start:end], start, end) for start, end in document.offsets if text[start:end].strip()]
    borders = {border for item in document.spans for border in (item.start, item.end)}
    words = split_at(given or split_words(text), borders)
    tokens = [
        {"text": w.text, "start": w.start, "end": w.end, "id": i, "ws": text[w.end : w.end + 1] == " "}
        for i, w in enumerate(words)
    ]
    starts, ends = {word.start: i for i, word in enumerate(words)}, {word.end: i for i, word in enumerate(words)}
    spans = []
    for item in document.spans:
        span: dict[str, Any] = {"start": item.start, "end": item.end}
        if item.start in starts and item.end in ends:
            span |= {"token_start": starts[item.start], "token_end": ends[item.end]}
        span |= {"label": item.label} | ({"id": item.id} if item.id else {})
        spans.append(span | ({"score": item.score} if item.score is not None else {}))
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"text": text, "tokens": tokens, "spans": spans, "answer": "accept"}
