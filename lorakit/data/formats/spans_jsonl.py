"""JSON of texts and spans: {"text": str, "spans" or "entities": [{"start", "end", "label"}, ...]}.

This is what `lorakit predict --format jsonl` and transformers' pipelines give, and what many tools agree on. The type
may be called label, type, entity_group, entity or tag, and a span's own "text" is compared with its offsets. One object
per line, or all in an array.
https://huggingface.co/docs/transformers/main_classes/pipelines#transformers.TokenClassificationPipeline
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_records import (
    annotations_key,
    check_list,
    check_text,
    first_record,
    name_of,
    read_objects,
    read_span,
)
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Reading, about_gaps

SPANS = ("spans", "entities")


def recognise_spans_jsonl(path: Path) -> str | None:
    """The evidence that a file holds texts and spans: its first object does."""
    record = first_record(path)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    key = next((key for key in SPANS if isinstance(record.get(key), list)), None)
    if key is None or not all(isinstance(span, dict) and {"start", "end"} <= span.keys() for span in record[key]):
        return None
    return f"each object has a text, and {key} with start and end"


def read_spans_jsonl(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each object of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, offsets outside of the text.
    """
    for place, record in read_objects(path):
        text = check_text(record.get("text"), "text", place)
        key = annotations_key(record, SPANS, place)
        if key is None:
            raise ValueError(f"{place}: no 'spans' or 'entities'; the keys are {', '.join(record)}")
        spans = check_list(record[key], key, place)
        found = [read_span(span, f"{place}, span {number}") for number, span in enumerate(spans, start=1)]
        items, covered = [item for item, _ in found], [letters for _, letters in found]
        placed, notes = place_spans(text, items, covered, place, reading.offsets)
        yield Document((), None, place, text, spans=placed, id=name_of(record), notes=tuple(notes))


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
