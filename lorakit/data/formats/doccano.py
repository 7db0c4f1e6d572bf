"""doccano's JSON lines for sequence labelling, in the forms of its versions.

    {"text": str, "label" or "labels": [[start, end, label], ...]}                              JSONL
    {"text": str, "entities": [{"id", "label", "start_offset", "end_offset"}], "relations": []} JSONL (relation)
    {"text": str, "entities": [[start, end, label], ...]}                                       2018
    {"text": str, "annotations": [{"label", "start_offset", "end_offset", "user"}]}             1.0 to 1.2

The last has numbers for labels and is refused unless they are names. doccano also exports texts that nobody annotated;
they look like those without entities, so texts without labels are noted. doccano counts Unicode characters (its first
versions: UTF-16 units).
https://doccano.github.io/doccano/tutorial/#export-a-dataset
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import (
    annotations_key,
    check_label,
    check_list,
    check_offset,
    check_text,
    first_record,
    name_of,
    read_objects,
    relation_notes,
)
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Note, Reading, about_gaps
from lorakit.data.formats.tagged_record import other_form

NO_LABELS = "text without labels, read as one without entities; if nobody annotated it, remove it from the file"


def recognise_doccano(path: Path) -> str | None:
    """The evidence that a file is doccano's: its first object has a text and spans of doccano's shape."""
    record = first_record(path)
    if not isinstance(record, dict) or not any(isinstance(record.get(key), str) for key in field_names.TEXTS):
        return None
    key = next(
        (key for key in field_names.DOCCANO if record.get(key)),
        next((key for key in field_names.DOCCANO if key in record), None),
    )
    if key is None or not isinstance(record[key], list):
        return None
    if record[key] and all(isinstance(span, list) and len(span) == 3 for span in record[key]):
        return f"each object has a text, and {key} of [start, end, label]"
    if record[key] and all(isinstance(span, dict) and "start_offset" in span for span in record[key]):
        return f"each object has a text, and {key} with start_offset"
    empty = not record[key] and (key.startswith("label") or "relations" in record)
    return f"each object has a text and {key}" if empty else None


def read_doccano(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each object of a file, which has one per line or all in an array.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, offsets outside of the text.
    """
    yield from read_doccano_records(read_objects(path), reading)


def read_doccano_records(records: Iterable[tuple[str, dict[str, Any]]], reading: Reading) -> Iterator[Document]:
    """Yield a document for each (place, object); arguments and errors as above."""
    for place, record in records:
        name = next((key for key in field_names.TEXTS if key in record), "text")
        text = check_text(record.get(name), name, place)
        key = annotations_key(record, field_names.DOCCANO, place, reading)
        if record.get(key) is None and not reading.unannotated:
            wanted = f"{key!r}" if key else "'label', 'labels' or 'entities'"
            raise ValueError(f"{place}: no {wanted}; the keys are {', '.join(record)}{other_form(record)}")
        spans = check_list(record.get(key) or [], key or "label", place)
        items = [_annotation(span, f"{place}, {key} {number}") for number, span in enumerate(spans, start=1)]
        placed, found = place_spans(text, items, [None] * len(items), place, reading.offsets)
        without = [] if spans else [Note(NO_LABELS, place)]
        notes = (*found, *without, *relation_notes(record, place))
        name = name_of(record, "id", "doc_id")
        yield Document((), None, place, text, spans=placed, id=name, notes=notes, is_proven=False)


def _annotation(span: Any, place: str) -> Annotation:
    if isinstance(span, list) and len(span) == 3 and not isinstance(span[0], str):
        start, end, label = span
        name = ""
    elif isinstance(span, dict):
        start, end, label, name = span.get("start_offset"), span.get("end_offset"), span.get("label"), name_of(span)
    else:
        raise ValueError(
            f"{place}: {span!r} is not [start, end, label]; these are labels of whole texts if the project's type is"
            " text classification"
        )
    place = f"{place}, id {name}" if name else place
    if isinstance(label, int) and not isinstance(label, bool):
        raise ValueError(
            f"{place}: the label is the number {label}; export the project again as 'JSONL (text label)', or with"
            " doccano 1.3 or later, which writes names"
        )
    start, end = check_offset(start, "start", place), check_offset(end, "end", place)
    return Annotation(check_label(label, place), start, end, name)


def write_doccano(documents: Sequence[Document], path: Path) -> list[str]:
    """Write one object with "text" and "label" per line, which doccano imports.

    An annotation with gaps is written from its first to its last character.
    """
    write_lines(path, map(_record, documents))
    return about_gaps(documents)


def _record(document: Document) -> dict[str, Any]:
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"text": document.text, "label": [[i.start, i.end, i.label] for i in document.spans]}
