"""GLiNER's training data: {"tokenized_text": [word, ...], "ner": [[first, last, label], ...]}.

`last` is the last word of the entity, not the one after it. One array of objects, or an object per line.
https://github.com/urchade/GLiNER/blob/main/README.md
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_records import (
    check_label,
    check_list,
    check_offset,
    check_text,
    first_record,
    name_of,
    read_objects,
    relation_notes,
)
from lorakit.data.formats.json_writing import write_array
from lorakit.data.formats.record import Annotation, Document, Note, Reading, about_gaps


def recognise_gliner(path: Path) -> str | None:
    """The evidence that a file is GLiNER's: its first object has tokenized_text."""
    record = first_record(path)
    if isinstance(record, dict) and "tokenized_text" in record:
        return "each object has tokenized_text and ner"
    return None


def read_gliner(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield a document of words for each object of a file.

    Raises:
        ValueError: with the line: invalid JSON, a key that is missing or of another kind, words that do not exist.
    """
    for place, record in read_objects(path):
        words = check_list(record.get("tokenized_text"), "tokenized_text", place)
        words = tuple(check_text(word, "a word of tokenized_text", place) for word in words)
        found = check_list(record.get("ner"), "ner", place)
        spans = tuple(_annotation(item, words, f"{place}, ner {i}") for i, item in enumerate(found, start=1))
        notes = relation_notes(record, place) + tuple(
            Note(f"field {name!r} is not used", place)
            for name, value in record.items()
            if name not in ("tokenized_text", "ner", "relations") and isinstance(value, list) and value
        )
        yield Document(words, None, place, spans=spans, id=name_of(record), notes=notes)


def _annotation(value: Any, words: Sequence[str], place: str) -> Annotation:
    item = check_list(value, "an item of ner", place)
    if len(item) != 3:
        raise ValueError(f"{place}: {item!r} must be [first word, last word, label]")
    first, last = check_offset(item[0], "first word", place), check_offset(item[1], "last word", place)
    label = check_label(item[2], place)
    if not first <= last < len(words):
        raise ValueError(
            f"{place}: words {first} to {last} do not exist: the text has {len(words)} words, counted from 0, and the"
            " second number is the last word of the entity"
        )
    return Annotation(label, first, last + 1)


def write_gliner(documents: Sequence[Document], path: Path) -> list[str]:
    """Write an array of objects, from documents of words and spans in words."""
    records = []
    for document in documents:
        record: dict[str, Any] = {"id": document.id} if document.id else {}
        ner = [[item.start, item.end - 1, item.label] for item in document.spans]
        records.append(record | {"tokenized_text": list(document.words), "ner": ner})
    write_array(path, records)
    return about_gaps(documents, "word")
