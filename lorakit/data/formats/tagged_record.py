"""One sentence's object, {"tokens": [str, ...], "tags": [int or str, ...]}, as JSON lines and datasets hold it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.record import Document, as_argument

_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


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


def integers_of(record: Mapping[str, Any], named: str | None) -> str | None:
    """The record's column of tags, if they are numbers."""
    column = _field(record, named, field_names.TAGS)
    tags = record[column] if column else None
    return column if isinstance(tags, list) and any(isinstance(tag, int) for tag in tags) else None


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
        return f": name that of the tags, such as {as_argument({'tag': tags})}"
    if any(name in field_names.SPANS + field_names.DOCCANO for name in lists):
        return (
            ". Spans of words without a text are read as GLiNER writes them, with the last word of each entity:"
            ' {"tokenized_text": ["New", "York"], "ner": [[0, 1, "LOC"]]}'
        )
    return ': add the tags of the words, as "tags": ["B-LOC", "I-LOC", "O"]'


def _are_tags(values: Sequence[Any]) -> bool:
    """Whether a list may hold tags: strings, or numbers."""
    return all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)


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
