"""JSON lines: one object per sentence, {"tokens" | "words": [str, ...], "tags" | "ner_tags" | "labels": [int or str]}.

One array of such objects is read too.

Integer tags are ids; `label.json` beside the file names them, {label: id}, or another of `label_names`' files.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_records import first_record, is_array, read_objects
from lorakit.data.formats.json_writing import write_lines
from lorakit.data.formats.label_names import KEY, names_in
from lorakit.data.formats.record import Document, Note, Reading, about_texts
from lorakit.data.formats.text import read_head, read_lines
from lorakit.data.tags import check_labels

_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


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
        column = _integers(record, named.get("tag"))
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
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: invalid JSON: {error}; the file must hold one object per line") from error
        except RecursionError as error:
            raise ValueError(f"{place}: invalid JSON: brackets are nested too deeply") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        yield place, record


def read_record(
    record: Mapping[str, Any], labels: Sequence[str] | None, place: str, named: Mapping[str, str] | None = None
) -> Document:
    """Check one sentence's object and read its tags as labels.

    Args:
        record: the words under one of `field_names.WORDS`, and as many tags under one of `field_names.TAGS`.
        labels: the label of each id; None where the tags are strings.
        place: where the record is, for messages.
        named: the names of the fields where they are others: {"word": name, "tag": name}.

    Raises:
        ValueError: the words or tags are missing, not lists of the right kind or of different length, or a tag is
            unknown.
    """
    named, listed = named or {}, ", ".join(record) or "none"
    column = _field(record, named.get("word"), field_names.WORDS)
    words = record.get(column or "")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        wanted = named.get("word", "tokens")
        raise ValueError(f"{place}: {wanted!r} must be a list of strings; the keys are {listed}{other_form(record)}")
    if _HALF.search("\n".join(words)):
        word = next(word for word in words if _HALF.search(word))
        raise ValueError(f"{place}: word {word!r} holds half a surrogate pair, which is not text")
    column = _field(record, named.get("tag"), field_names.TAGS)
    if column is None:
        wanted = f"no {named['tag']!r}" if "tag" in named else "no 'tags', 'ner_tags' or 'labels'"
        raise ValueError(f"{place}: {wanted}; the keys are {listed}{_where_tags_may_be(record, words, named)}")
    tags = record[column]
    if not isinstance(tags, list):
        raise ValueError(f"{place}: {column!r} must be a list, got {tags!r}")
    if len(tags) != len(words):
        raise ValueError(f"{place}: {len(words)} tokens but {len(tags)} {column}; each word has one tag")
    name = record.get("id")
    return Document(tuple(words), _labels(tags, labels, place), place, id=_name(name))


def _field(record: Mapping[str, Any], named: str | None, usual: Sequence[str]) -> str | None:
    """The field that is named, or the first of the usual ones; None if the record does not have it."""
    return next((name for name in ([named] if named else usual) if name in record), None)


def _where_tags_may_be(record: Mapping[str, Any], words: Sequence[str], named: Mapping[str, str]) -> str:
    """What to do about a record of words whose tags have another name, or that marks its words otherwise."""
    lists = [name for name, value in record.items() if isinstance(value, list) and name not in field_names.WORDS]
    tags = next((name for name in lists if len(record[name]) == len(words) and _are_tags(record[name])), None)
    if tags is not None and "tag" in named:  # which other records have
        return f": if {tags!r} holds them here, rename it"
    if tags is not None:
        return f": name that of the tags, such as --columns tag={tags}"
    if any(name in field_names.SPANS + field_names.DOCCANO for name in lists):
        return (
            ". Spans of words without a text are read as GLiNER writes them, with the last word of each entity:"
            ' {"tokenized_text": ["New", "York"], "ner": [[0, 1, "LOC"]]}'
        )
    return ': add the tags of the words, as "tags": ["B-LOC", "I-LOC", "O"]'


def _are_tags(values: Sequence[Any]) -> bool:
    """Whether a list may hold tags: strings, or numbers."""
    return all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)


def other_form(record: Mapping[str, Any]) -> str:
    """What is missing in an object that has a text instead of words; "" for another object."""
    if any(isinstance(record.get(key), str) for key in field_names.TEXTS):
        return (
            '. An object with a text has its annotations as "label": [[start, end, "TYPE"], …] or "spans": [{"start":'
            ' 0, "end": 4, "label": "TYPE"}, …], and [] where there are none'
        )
    text = next((key for key, value in record.items() if isinstance(value, str) and key != "id"), None)
    is_marked = any(isinstance(record.get(key), list) for key in field_names.SPANS + field_names.DOCCANO)
    return f"; if {text!r} is the annotated text, call it 'text'" if text and is_marked else ""


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


def _integers(record: Mapping[str, Any], named: str | None) -> str | None:
    """The record's column of tags, if they are numbers."""
    column = _field(record, named, field_names.TAGS)
    tags = record[column] if column else None
    return column if isinstance(tags, list) and any(isinstance(tag, int) for tag in tags) else None


def _name(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _labels(tags: list[Any], labels: Sequence[str] | None, place: str) -> tuple[str, ...]:
    if len(set(map(type, tags))) > 1:  # True is 1 to a dictionary
        return tuple([_label(tag, labels, place) for tag in tags])
    try:
        known = {tag: _label(tag, labels, place) for tag in dict.fromkeys(tags)}
    except TypeError:  # lists and objects
        known = {}
    return tuple([known[tag] if known else _label(tag, labels, place) for tag in tags])


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
