"""JSON lines: one object per sentence, {"tokens": [str, ...], "tags" | "ner_tags" | "labels": [int or str, ...]}.

Integer tags are ids; `label.json` beside the file names them, {label: id}.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats.text import Row, read_lines
from lorakit.data.tags import check_labels, check_tag

TAG_COLUMNS = ("tags", "ner_tags", "labels")


def read_json_lines(path: Path, labels: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the sentences of a file of JSON lines; blank lines are skipped.

    Args:
        path: the file.
        labels: the label of each id; None where the tags are strings.

    Raises:
        ValueError: with the line: invalid JSON, or an object that `read_record` refuses.
    """
    for place, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: invalid JSON: {error}; the file must hold one object per line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        yield read_record(record, labels, place)


def read_record(record: Mapping[str, Any], labels: Sequence[str] | None, place: str) -> Row:
    """Check one sentence's object and read its tags as labels.

    Args:
        record: the words under "tokens", and as many tags under one of TAG_COLUMNS.
        labels: the label of each id; None where the tags are strings.
        place: where the record is, for messages.

    Raises:
        ValueError: the words or tags are missing, not lists of the right kind or of different length, or a tag is
            unknown.
    """
    words = record.get("tokens")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{place}: 'tokens' must be a list of strings; the keys are {', '.join(record) or 'none'}")
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise ValueError(f"{place}: word {word!r} holds half a surrogate pair, which is not text")
    column = next((name for name in TAG_COLUMNS if name in record), None)
    if column is None:
        raise ValueError(f"{place}: no 'tags', 'ner_tags' or 'labels'; the keys are {', '.join(record)}")
    tags = record[column]
    if not isinstance(tags, list):
        raise ValueError(f"{place}: {column!r} must be a list, got {tags!r}")
    if len(tags) != len(words):
        raise ValueError(f"{place}: {len(words)} tokens but {len(tags)} {column}; each word has one tag")
    return Row(tuple(words), tuple(_label(tag, labels, place) for tag in tags), place)


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
    if not isinstance(ids, dict) or sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
        raise ValueError(f'{path}: must map labels to the ids 0, 1, 2, ..., such as {{"O": 0, "B-DNA": 1, "I-DNA": 2}}')
    labels = tuple(sorted(ids, key=ids.__getitem__))
    check_labels(labels, str(path))
    return labels


def _label(tag: Any, labels: Sequence[str] | None, place: str) -> str:
    if isinstance(tag, str):
        check_tag(tag, labels, place)
        return tag
    if not isinstance(tag, int) or isinstance(tag, bool):
        raise ValueError(f"{place}: unknown tag {tag!r}; a tag is a string or an integer")
    if labels is None:
        raise ValueError(f"{place}: tag {tag} is a number; put label.json, {{label: id}}, beside the file")
    if not 0 <= tag < len(labels):
        raise ValueError(f"{place}: unknown tag {tag}; the ids are 0 to {len(labels) - 1}")
    return labels[tag]
