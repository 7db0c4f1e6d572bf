"""CLUENER's JSON lines: {"text": str, "label": {TYPE: {SURFACE: [[first, last], ...]}}}, as many Chinese corpora have.

`last` is the last character of the entity, not the one after it. The surface is compared with the text.
https://github.com/CLUEbenchmark/CLUENER2020
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit._counts import counted
from lorakit.data.formats.json_records import (
    check_dict,
    check_label,
    check_list,
    check_offset,
    check_text,
    first_record,
    name_of,
    read_objects,
)
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.offsets import place_spans
from lorakit.data.formats.record import Annotation, Document, Reading, about_gaps


def recognise_cluener(path: Path) -> str | None:
    """The evidence that a file is CLUENER's: its first object has a text, and a label of types, surfaces and places."""
    record = first_record(path)
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return None
    label = record.get("label")
    if not isinstance(label, dict) or not all(isinstance(surfaces, dict) for surfaces in label.values()):
        return None
    return "each object has a text, and a label of types with the places of each surface"


def read_cluener(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document for each object of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, a surface that is not at its
            place.
    """
    for place, record in read_objects(path):
        text = check_text(record.get("text"), "text", place)
        if "label" not in record:
            raise ValueError(
                f"{place}: no 'label'; the keys are {', '.join(record)}: texts that nobody annotated cannot be a split;"
                ' take the file away, or give texts without entities "label": {}'
            )
        items, covered = [], []
        for label, surfaces in check_dict(record["label"], "'label'", place).items():
            for surface, places in check_dict(surfaces, f"'label' of {label!r}", place).items():
                for item in check_list(places, surface, place):
                    items.append(_annotation(check_label(label, place), item, f"{place}, {surface!r}"))
                    covered.append(surface)
        spans, notes = place_spans(text, items, covered, place, reading.offsets)
        yield Document((), None, place, text, (), tuple(spans), name_of(record), (), tuple(notes))


def _annotation(label: str, value: Any, place: str) -> Annotation:
    item = check_list(value, "a place", place)
    if len(item) != 2:
        raise ValueError(f"{place}: {item!r} must be [first character, last character]")
    first, last = (check_offset(offset, name, place) for offset, name in zip(item, ("first", "last"), strict=True))
    return Annotation(label, first, last + 1)


def write_cluener(documents: Sequence[Document], path: Path) -> list[str]:
    """Write one object per line; an annotation with gaps from its first to its last character, an empty one not."""
    write_lines(path, map(_record, documents))
    empty = sum(item.start == item.end for document in documents for item in document.spans)
    about = [f"{counted(empty, 'annotation')} of no character, left out"] if empty else []
    return about_gaps(documents) + about


def _record(document: Document) -> dict[str, Any]:
    label: dict[str, dict[str, list[list[int]]]] = {}
    for item in document.spans:
        if surface := (document.text or "")[item.start : item.end]:
            label.setdefault(item.label, {}).setdefault(surface, []).append([item.start, item.end - 1])
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"text": document.text, "label": label}
