"""JSON lines: one object per sentence, {"tokens" | "words": [str, ...], "tags" | "ner_tags" | "labels": [int or str]}.

Integer tags are ids; `label.json` beside the file names them, {label: id}, or another of `label_names`' files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.label_names import KEY, names_in
from lorakit.data.formats.record import Document, Note, Reading, about_texts
from lorakit.data.formats.text import read_head, read_lines
from lorakit.data.tags import check_labels

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("tags", "ner_tags", "labels")


def recognise_json_lines(path: Path) -> str | None:
    """The evidence that a file holds JSON lines with tokens: its first object has them."""
    line = next((line for line in read_head(path).split("\n") if line.strip()), "")
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not any(k in record for k in TAG_COLUMNS):
        return None
    words = next((name for name in WORD_COLUMNS if isinstance(record.get(name), list)), None)
    return f"each line is an object with {words} and tags" if words else None


def read_json_lines(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a file of JSON lines; blank lines are skipped.

    Args:
        path: the file.
        reading: its `labels` are the label of each id; None where the tags are strings, or are named elsewhere.

    Raises:
        ValueError: with the line: invalid JSON, or an object that `read_record` refuses.
    """
    labels = reading.labels
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: invalid JSON: {error}; the file must hold one object per line") from error
        except RecursionError as error:
            raise ValueError(f"{place}: invalid JSON: brackets are nested too deeply") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        notes: tuple[Note, ...] = ()
        if labels is None and (column := _integers(record)) and (found := names_in(path.parent, column)):
            labels, file = found
            check_labels(labels, str(path.parent / file))
            notes = (Note(f"numbers of tags are named by {file}", place),)
            if reading.agreed is not None:
                labels = reading.agreed.setdefault(KEY, labels)
        document = read_record(record, labels, place)
        yield document._replace(notes=notes) if notes else document


def read_record(record: Mapping[str, Any], labels: Sequence[str] | None, place: str) -> Document:
    """Check one sentence's object and read its tags as labels.

    Args:
        record: the words under one of WORD_COLUMNS, and as many tags under one of TAG_COLUMNS.
        labels: the label of each id; None where the tags are strings.
        place: where the record is, for messages.

    Raises:
        ValueError: the words or tags are missing, not lists of the right kind or of different length, or a tag is
            unknown.
    """
    words = next((record[name] for name in WORD_COLUMNS if name in record), None)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        keys = ", ".join(record) or "none"
        raise ValueError(f"{place}: 'tokens' must be a list of strings; the keys are {keys}{_other_form(record)}")
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise ValueError(f"{place}: word {word!r} holds half a surrogate pair, which is not text")
    column = next((name for name in TAG_COLUMNS if name in record), None)
    if column is None:
        raise ValueError(
            f"{place}: no 'tags', 'ner_tags' or 'labels'; the keys are {', '.join(record)}: rename that of the tags"
        )
    tags = record[column]
    if not isinstance(tags, list):
        raise ValueError(f"{place}: {column!r} must be a list, got {tags!r}")
    if len(tags) != len(words):
        raise ValueError(f"{place}: {len(words)} tokens but {len(tags)} {column}; each word has one tag")
    name = record.get("id")
    return Document(tuple(words), tuple([_label(tag, labels, place) for tag in tags]), place, id=_name(name))


def _other_form(record: Mapping[str, Any]) -> str:
    """What is missing in an object that has a text instead of words."""
    if not any(isinstance(record.get(key), str) for key in ("text", "data")):
        return ""
    return (
        '. An object with a text has its annotations as "label": [[start, end, "TYPE"], …] or "spans": [{"start": 0, '
        '"end": 4, "label": "TYPE"}, …], and [] where there are none'
    )


def read_labels(folder: Path) -> tuple[str, ...] | None:
    """The labels of the folder's `label.json` in the order of their ids; None without such a file.

    Raises:
        ValueError: the file is not JSON, does not map labels to 0, 1, 2, ..., or holds an invalid label.
    """
    path = folder / "label.json"
    if not path.exists():
        return None
    try:
        ids = json.loads("\n".join(line for _, line in read_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: invalid JSON: brackets are nested too deeply") from error
    if not isinstance(ids, dict) or sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
        raise ValueError(f'{path}: must map labels to the ids 0, 1, 2, ..., such as {{"O": 0, "B-DNA": 1, "I-DNA": 2}}')
    labels = tuple(sorted(ids, key=ids.__getitem__))
    check_labels(labels, str(path))
    return labels


def _integers(record: Mapping[str, Any]) -> str | None:
    """The record's column of tags, if they are numbers."""
    column = next((name for name in TAG_COLUMNS if isinstance(record.get(name), list)), None)
    return column if column and any(isinstance(tag, int) for tag in record[column]) else None


def _name(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _label(tag: Any, labels: Sequence[str] | None, place: str) -> str:
    if isinstance(tag, str):
        if labels is not None and tag not in labels:
            raise ValueError(f"{place}: unknown tag {tag!r}; the labels are {', '.join(labels)}")
        return tag
    if not isinstance(tag, int) or isinstance(tag, bool):
        raise ValueError(f"{place}: unknown tag {tag!r}; a tag is a string or an integer")
    if labels is None:
        raise ValueError(
            f"{place}: tag {tag} is a number; put label.json, {{label: id}}, beside the file, or the README.md of the"
            " dataset"
        )
    if not 0 <= tag < len(labels):
        raise ValueError(f"{place}: unknown tag {tag}; the ids are 0 to {len(labels) - 1}")
    return labels[tag]


def write_json_lines(documents: Sequence[Document], path: Path) -> list[str]:
    """Write an object per sentence: its tokens, its tags as strings and, where it has one, its id."""
    write_lines(path, map(_record, documents))
    return about_texts(documents)


def _record(document: Document) -> dict[str, Any]:
    record: dict[str, Any] = {"id": document.id} if document.id else {}
    return record | {"tokens": list(document.words), "tags": list(document.tags or ())}
