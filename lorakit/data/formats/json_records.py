"""Files of JSON objects: one per line, or all of them in one array."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats import field_names
from lorakit.data.formats.json_text import DECODER
from lorakit.data.formats.record import Annotation, Note, Reading, as_argument
from lorakit.data.formats.text import read_head, read_text

HEAD_BYTES = 1 << 20  # enough for the first record of most files
_WHITE = " \t\r\n"


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for every value of a file: its lines, the items of its array, or its only value.

    Raises:
        ValueError: the file cannot be read, or with the line: it is not JSON, such as a truncated file.
    """
    yield from parse_records(read_text(path), str(path))


def read_objects(path: Path, name: str = "each value") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every value of a file, all of which must be objects; `name` is for messages.

    Raises:
        ValueError: as `read_records`, or with the line: a value is not an object.
    """
    for place, value in read_records(path):
        yield place, check_dict(value, name, place)


def first_record(path: Path) -> Any:
    """The first value of a file, for recognising its format; None if its first HEAD_BYTES hold none."""
    try:
        return next(parse_records(read_head(path, HEAD_BYTES), ""), (None, None))[1]
    except ValueError:
        return None


def is_array(text: str) -> bool:
    """Whether a file's text begins as an array does."""
    return text.lstrip(_WHITE).startswith("[")


def read_span(value: Any, place: str) -> tuple[Annotation, str | None]:
    """A span {"start", "end", "label", ...} with its type under one of `field_names.TYPES`, and its own text or None.

    Raises:
        ValueError: with the place: a key is missing or of another kind.
    """
    span = check_dict(value, "a span", place)
    key = next((key for key in field_names.TYPES if key in span), None)
    if key is None:
        raise ValueError(f"{place}: no 'label'; the keys are {', '.join(span) or 'none'}")
    label = check_label(span[key], place)
    start, end = (check_offset(span.get(key), key, place) for key in ("start", "end"))
    covered = span.get("text") if isinstance(span.get("text"), str) else None
    return Annotation(label, start, end, name_of(span), score=score_of(span.get("score"))), covered


def read_tokens(value: Any, place: str) -> tuple[list[Annotation], list[str | None]]:
    """The words of an object, {"start", "end", "text"} of Prodigy and without text of spaCy's Doc.to_json, as spans.

    Args:
        value: of "tokens"; None, and a list of strings, which has no places, give no words.
        place: where the object is, for messages.

    Returns:
        The places of the words, and the text that the file has beside each, or None.

    Raises:
        ValueError: with the number of the token: a key is missing or of another kind.
    """
    tokens = check_list(value or [], "tokens", place)
    if all(isinstance(token, str) for token in tokens):
        return [], []
    items, covered = [], []
    for number, value in enumerate(tokens, start=1):
        token = check_dict(value, "a token", f"{place}, token {number}")
        start, end = (check_offset(token.get(key), key, f"{place}, token {number}") for key in ("start", "end"))
        text = check_text(token["text"], "text of a token", place) if "text" in token else None
        items.append(Annotation(text or "token", start, end))
        covered.append(text)
    return items, covered


def score_of(value: Any) -> float | None:
    """A score as a file has it; None for what is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def relation_notes(record: dict[str, Any], place: str) -> tuple[Note, ...]:
    """A note for each of an object's relations, which are not used."""
    relations = record.get("relations") or ()
    return tuple(Note("relation, not used", f"{place}, relation {i}") for i, _ in enumerate(relations, start=1))


def annotations_key(record: dict[str, Any], keys: Sequence[str], place: str, reading: Reading) -> str | None:
    """Which key holds an object's annotations: the one that `reading` names; or of several the one that is not empty,
    or the first; None for none.

    Raises:
        ValueError: with the place: several hold some that differ, of which all but one's would be lost.
    """
    if reading.columns and "tag" in reading.columns:
        return reading.columns["tag"]
    there = [key for key in keys if key in record]
    full = [key for key in there if record[key]]
    differ = any(_sorted(record[key]) != _sorted(record[full[0]]) for key in full[1:])
    if differ and not reading.unannotated:  # to predict, the text is enough
        listed = " and ".join(map(repr, full))
        raise ValueError(f"{place}: {listed} both hold annotations; choose one with {as_argument({'tag': full[0]})}")
    return next(iter(full or there), None)


def _sorted(annotations: Any) -> list[str]:
    items = annotations if isinstance(annotations, list) else [annotations]
    return sorted(json.dumps(item, sort_keys=True) for item in items)


def name_of(record: dict[str, Any], *keys: str) -> str:
    """The first of an object's ids (under "id" by default) as a string; "" if it has none."""
    return next((str(record[key]) for key in keys or ("id",) if record.get(key) not in (None, "")), "")


def check_offset(value: Any, name: str, place: str) -> int:
    """An offset as a file has it.

    Raises:
        ValueError: with the place: it is not an integer of at least 0.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{place}: {name!r} must be an integer of at least 0, got {_short(value)}")
    return value


def check_text(text: Any, name: str, place: str) -> str:
    """The value of a key that must be a text.

    Raises:
        ValueError: with the place: it is not a string, or holds half a surrogate pair.
    """
    if not isinstance(text, str):
        raise ValueError(f"{place}: {name!r} must be a string, got {_short(text)}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{place}: {name!r} holds half a surrogate pair, which is not text")
    return text


def check_list(value: Any, name: str, place: str) -> list[Any]:
    """The value of a key that must be a list.

    Raises:
        ValueError: with the place.
    """
    if not isinstance(value, list):
        raise ValueError(f"{place}: {name!r} must be a list, got {_short(value)}")
    return value


def check_dict(value: Any, name: str, place: str) -> dict[str, Any]:
    """A value that must be an object.

    Raises:
        ValueError: with the place.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {name} must be a JSON object, got {_short(value)}")
    return value


def check_label(label: Any, place: str) -> str:
    """An entity type as a file has it.

    Raises:
        ValueError: with the place: it is not a string, is empty, or holds a tab or a line end, which no tag can hold.
    """
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{place}: the label must be a name, got {_short(label)}")
    if any(character in label for character in "\t\r\n"):
        raise ValueError(f"{place}: the label {label!r} holds a tab or a line end; rename it in the file")
    return label


def parse_records(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for every value of a file's text; `path` is for messages.

    Raises:
        ValueError: with the line: it is not JSON.
    """
    at, line, counted = _skip(text, 0), 1, 0
    in_array = text[at : at + 1] == "["
    if in_array:  # a file of lines may hold an array in each: then the first array ends before the last line
        in_array = not _is_lines(text, at)
    at = _skip(text, at + 1) if in_array else at
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        if in_array and text[at] == "]":
            if _skip(text, at + 1) < len(text):
                raise ValueError(f"{place}: invalid JSON: there is more after the array's end")
            return
        try:
            value, end = DECODER.raw_decode(text, at)
        except ValueError as error:
            raise ValueError(_what(error, place, text)) from error
        yield place, value
        at = _skip(text, end)
        if in_array:
            if text[at : at + 1] not in (",", "]"):
                raise ValueError(_ends(path, text, at))
            if text[at] == ",":
                at = _skip(text, at + 1)
                if at == len(text):
                    raise ValueError(_ends(path, text, at))
        elif at < len(text) and "\n" not in text[end:at]:
            raise ValueError(f"{place}: invalid JSON: more than one value in a line; the file must hold one per line")
    if in_array:
        raise ValueError(_ends(path, text, at))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_lines(text: str, at: int) -> bool:
    """Whether a file that begins with [ has a JSON value in each line instead of one array."""
    end = text.find("\n", at)
    end = end if end >= 0 else len(text)
    try:
        value = json.loads(text[at:end])
    except ValueError:
        return False
    example = len(value) == 2 and isinstance(value[0], str)  # [text, annotations], all of a file with one line
    return example or bool(text[end:].strip())


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _WHITE:
        at += 1
    return at


def _what(error: ValueError, place: str, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            return f"{place}: invalid JSON: the file ends inside this value; it may be truncated: export it again"
        return f"{place}: invalid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    return f"{place}: invalid JSON: {error}"


def _ends(path: str, text: str, at: int) -> str:
    place = f"{path}:{text.count(chr(10), 0, at) + 1}"
    if at >= len(text):
        return f"{place}: invalid JSON: the file ends inside its array; it may be truncated: export it again"
    return f"{place}: invalid JSON: a comma or ] must follow, got {text[at : at + 20]!r}"
