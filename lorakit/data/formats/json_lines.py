"""JSON lines: one object per sentence, {"tokens" | "words": [str, ...], "tags" | "ner_tags" | "labels": [int or str]}.

One array of such objects is read too.

Integer tags are ids; `label.json` beside the file names them, {label: id}, or another of `label_names`' files.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import first_record, is_array, read_objects
from lorakit.data.formats.json_text import DECODER
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.label_names import KEY, names_in
from lorakit.data.formats.record import Document, Note, Reading, about_texts
from lorakit.data.formats.tagged_record import integers_of, read_record
from lorakit.data.formats.text import read_head, read_lines, read_text
from lorakit.data.tags import check_labels


def recognise_json_lines(path: Path) -> str | None:
    """The evidence that a file holds JSON lines with tokens: its first object has them."""
    record = first_record(path) if is_array(read_head(path)) else _first_line(path)
    if not isinstance(record, dict) or not any(k in record for k in field_names.TAGS):
        return None
    words = next((name for name in field_names.WORDS if isinstance(record.get(name), list)), None)
    return f"each line is an object with {words} and tags" if words else None


def _first_line(path: Path) -> Any:
    line = next((line for line in read_head(path).split("\n") if line.strip()), "")
    try:
        return json.loads(line)
    except ValueError:
        return None


def read_json_lines(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a file of JSON lines, or of one array; blank lines are skipped.

    Args:
        path: the file.
        reading: its `labels` are the label of each id; None where the tags are strings, or are named elsewhere. Its
            `columns` name the fields of words and tags.

    Raises:
        ValueError: with the line: invalid JSON, or an object that `read_record` refuses.
    """
    labels = reading.labels
    named = reading.columns or {}
    is_said = False  # that label.json names the numbers of another field
    for place, record in read_objects(path) if is_array(read_head(path)) else _objects(path):
        notes: tuple[Note, ...] = ()
        column = integers_of(record, named.get("tag"))
        if column and column not in field_names.TAGS and reading.labels is not None and not is_said:
            notes, is_said = (Note(f"numbers of {column!r} are named by label.json", place),), True
        if labels is None and column and (found := names_in(path.parent, column)):
            labels, file = found
            check_labels(labels, str(path.parent / file))
            notes = (Note(f"numbers of tags are named by {file}", place),)
            if reading.agreed is not None:
                labels = reading.agreed.setdefault(KEY, labels)
        document = read_record(record, labels, place, named)
        yield document._replace(notes=notes) if notes else document


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of each line; the file is not parsed as a whole, so that a bad line is named."""
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = DECODER.decode(line)
        except ValueError as error:
            raise ValueError(f"{place}: invalid JSON: {error}; the file must hold one object per line") from error
        except RecursionError as error:
            raise ValueError(f"{place}: invalid JSON: brackets are nested too deeply") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        yield place, record


def read_labels(folder: Path) -> tuple[str, ...] | None:
    """The labels of the folder's `label.json` in the order of their ids; None without such a file.

    Raises:
        ValueError: the file is not JSON, does not map labels to 0, 1, 2, ..., or holds an invalid label.
    """
    path = folder / "label.json"
    if not path.exists():
        return None
    text = read_text(path)
    try:
        ids = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: invalid JSON: brackets are nested too deeply") from error
    if not isinstance(ids, dict) or sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
        raise ValueError(f'{path}: must map labels to the ids 0, 1, 2, ..., such as {{"O": 0, "B-DNA": 1, "I-DNA": 2}}')
    labels = tuple(sorted(ids, key=ids.__getitem__))
    check_labels(labels, str(path))
    return labels


def write_json_lines(documents: Sequence[Document], path: Path) -> list[str]:
    """Write an object per sentence: its tokens, its tags as strings and, where it has one, its id."""
    write_lines(path, map(_record, documents))
    return about_texts(documents)


def _record(document: Document) -> dict[str, Any]:
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"tokens": list(document.words), "tags": list(document.tags or ())}
