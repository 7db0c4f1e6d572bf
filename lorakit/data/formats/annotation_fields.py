"""Which field of flat records holds the annotations: all records decide, and every other field that may is named.

A record is an object of a JSON file or a row of a table. Its annotations are one tag per word, or spans of its text.
Files often have several such fields: `entities` beside `ner_tags`, `spans` beside `label`, `ner_nested_tags` beside
`ner_tags`, most of the time with one of them empty. The one that holds something is read. Where two hold the same, one
of them is read and a note says so; where they differ, the user has to choose.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from lorakit._counts import counted
from lorakit.data.formats import field_names
from lorakit.data.formats.record import Note, Reading, as_argument
from lorakit.data.spelling import plain_tags, spelling_of
from lorakit.data.tags import spans

KEY = "annotation field"  # in Reading.agreed
_SPAN_NAMES = tuple(dict.fromkeys((*field_names.SPANS, *field_names.DOCCANO)))
_OTHER = "of objects or lists is not used"
_NESTED = re.compile(r"nested|inner|embedded", re.IGNORECASE)
_TAG_NAME = re.compile(r"(^|_)(tags?|labels?|ner|iob2?|bio)(_|$)", re.IGNORECASE)
_NER_NAME = re.compile(r"(^|_)(ner|iob2?|bio)(_|$)", re.IGNORECASE)
_OUTSIDE = ("O", 0, "0")
_PIECE_OF = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


class Choice(NamedTuple):
    """The field of the annotations.

    Attributes:
        format: the name of the format that reads it; None where no field holds annotations that can be read.
        evidence: how it was recognised.
        field: its name; None where it differs from record to record, and no record has two.
        layered: whether `Reading.layer` chose it.
        notes: what to know about the other fields.
    """

    format: str | None
    evidence: str
    field: str | None
    layered: bool
    notes: tuple[Note, ...]


@dataclass
class _Field:
    """What the records have in one field."""

    name: str
    kinds: set[str] = field(default_factory=set)  # of its values, as _kind names them, without "empty"
    records: int = 0
    full: int = 0  # records in which it holds an annotation
    tags: set[str] = field(default_factory=set)
    entities: int | None = 0  # of tags with prefixes; None where they cannot be counted
    types: set[str] = field(default_factory=set)  # of spans, unless their key is "entity"
    like_prodigy: bool = False

    @property
    def is_tags(self) -> bool:
        """Whether it may hold tags of words."""
        if self.kinds != {"tags"}:
            return False
        return bool(_TAG_NAME.search(self.name)) or self.is_spelled

    @property
    def is_spelled(self) -> bool:
        """Whether its values are tags with letters, such as B-PER, and not only O."""
        return bool(self.tags - {"O"}) and spelling_of(self.tags, bare=False) is not None

    @property
    def is_spans(self) -> bool:
        """Whether it holds spans of texts."""
        return bool(self.full) and self.kinds <= {"spans", "offsets", "triples"}

    @property
    def format(self) -> str:
        """The format that reads it."""
        if self.kinds == {"tags"}:
            return "tokens-jsonl"
        if self.kinds == {"spans"}:
            return "prodigy" if self.like_prodigy else "spans-jsonl"
        return "doccano"


@dataclass
class _Survey:
    """What all records have in their fields."""

    fields: dict[str, _Field] = field(default_factory=dict)
    words: str = ""  # the name of the field of words
    differ: dict[frozenset[str], str] = field(default_factory=dict)  # two full fields -> the first place
    apart: dict[frozenset[str], str] = field(default_factory=dict)  # one is full, the other is there and is not
    both: Counter[frozenset[str]] = field(default_factory=Counter)  # in how many records two fields are full
    first: str = ""
    has_text: bool = False


def choose_field(records: Iterable[tuple[str, Any]], reading: Reading, source: str) -> Choice | None:
    """Find the field of the annotations.

    Args:
        records: (place, record) of each record.
        reading: its `columns` and `layer` choose among several.
        source: the file, for messages.

    Returns:
        The choice; None where no field holds anything, or a value is not an object.

    Raises:
        ValueError: several fields hold annotations that differ, or a field that the user names holds none.
    """
    found = _survey(records, reading)
    if found is None:
        return None
    named = reading.columns or {}
    if "word" in named and not found.words:
        raise ValueError(
            f"{as_argument({'word': named['word']})}: no field {named['word']!r} of {source} holds lists of words; name"
            " one that does, or leave word out"
        )
    if "tag" in named:
        chosen, layered = _named(found, named, source), False
    else:
        chosen, layered = _chosen(found, reading, source)
    agreed = (reading.agreed or {}).get(KEY)
    if chosen is None:  # no annotation in this file; the training split may have told where they would be
        if agreed and agreed.field in found.fields:
            return agreed._replace(notes=())
        others = [one.name for one in found.fields.values() if "other" in one.kinds]
        notes = tuple(Note(f"field {name!r} {_OTHER}", found.first) for name in others)
        return Choice(None, "", None, False, notes) if others else None
    one = found.fields[chosen[0]]
    if one.format != "tokens-jsonl" and not found.has_text:
        return None
    if "word" in named and one.format != "tokens-jsonl":
        raise ValueError(
            f"{as_argument({'word': named['word']})}: {source} has spans of texts in {one.name!r}, which are read with"
            " the words of the text; leave word out"
        )
    if one.format != "tokens-jsonl":
        _check_types(one, source)
    notes = [Note(kind, found.first) for kind in _about_others(found, chosen)]
    if len(chosen) > 1:
        counts = ", ".join(f"{name!r} in {counted(found.fields[name].full, 'record')}" for name in chosen)
        notes.insert(0, Note(f"annotations are read from {counts}", found.first))
    alone = chosen[0] if len(chosen) == 1 else None
    choice = Choice(one.format, _evidence(one, found), alone, layered, tuple(notes))
    if reading.agreed is not None:
        reading.agreed.setdefault(KEY, choice)
    return choice


def _evidence(one: _Field, found: _Survey) -> str:
    if one.format == "tokens-jsonl":
        return f"each line is an object with {found.words} and {one.name}"
    if one.kinds == {"spans"}:
        return f"each object has a text, and {one.name} with start and end"
    shape = "of [start, end, label]" if "triples" in one.kinds else "with start_offset"
    return f"each object has a text, and {one.name} {shape}"


# What is there --------------------------------------------------------------------------------------------------------


def _survey(records: Iterable[tuple[str, Any]], reading: Reading) -> _Survey | None:
    survey = _Survey()
    named = (reading.columns or {}).get("word")
    for place, record in records:
        if not isinstance(record, Mapping):
            return None
        survey.first = survey.first or place
        survey.has_text |= any(isinstance(record.get(name), str) for name in field_names.TEXTS)
        words = next((name for name in ([named] if named else field_names.WORDS) if _are_words(record.get(name))), None)
        survey.words = survey.words or words or ""
        length = len(record[words]) if words else None
        held = {}
        for name, value in record.items():
            if name in field_names.WORDS or name == named:
                continue
            kind = _kind(name, value, length)
            if kind is None:
                continue
            one = survey.fields.setdefault(name, _Field(name))
            one.records += 1
            if kind == "empty":
                held[name] = False
                continue
            one.kinds.add(kind)
            held[name] = _add(one, kind, value, record)
        _compare(survey, held, record, words, place)
    return survey


def _are_words(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and set(map(type, value)) <= {str}


def _kind(name: str, value: Any, words: int | None) -> str | None:
    """What a value may hold: "tags", "spans", "offsets", "triples", "other" annotations, "empty" or None."""
    if isinstance(value, dict):
        return "other" if value and name in _SPAN_NAMES else None
    if not isinstance(value, list):
        return None
    if not value:
        return "empty"
    kinds = set(map(type, value))
    if kinds == {dict}:
        if any("start_offset" in item for item in value):
            return "offsets"
        typed = any(key in item for item in value for key in field_names.TYPES)
        return "spans" if typed and all({"start", "end"} <= item.keys() for item in value) else "other"
    if kinds == {list}:
        return "triples" if all(len(item) == 3 and isinstance(item[0], int) for item in value) else "other"
    return "tags" if words == len(value) and kinds in ({str}, {int}) else None


def _add(one: _Field, kind: str, value: list[Any], record: Mapping[str, Any]) -> bool:
    """Count a value of a field; returns whether it holds an annotation."""
    full = True
    if kind == "tags":
        full = any(tag not in _OUTSIDE for tag in value)
        if isinstance(value[0], str):
            one.tags.update(value)
            plain = plain_tags(value, "prefix") if one.entities is not None else {}
            is_plain = one.entities is not None and len(plain) == len(set(value))
            one.entities = one.entities + len(spans([plain[tag] for tag in value], "bioes")) if is_plain else None
        else:
            one.entities = None
    elif kind == "spans":
        keys = [next((key for key in field_names.TYPES if key in item), "entity") for item in value]
        one.types.update(str(item[key]) for item, key in zip(value, keys, strict=True) if key != "entity")
        tokens = record.get("tokens")
        objects = isinstance(tokens, list) and bool(tokens) and all(isinstance(token, dict) for token in tokens)
        own = any(key in record for key in field_names.PRODIGY)  # with "answer", which only Prodigy's reader knows
        one.like_prodigy |= own or one.name == "spans" and objects
    one.full += full
    return full


def _compare(survey: _Survey, held: dict[str, bool], record: Mapping[str, Any], words: str | None, place: str) -> None:
    """Note which fields of a record hold something else than each other."""
    for one, other in combinations(held, 2):
        pair = frozenset((one, other))
        if held[one] != held[other]:
            survey.apart.setdefault(pair, place)
        elif held[one]:
            survey.both[pair] += 1
            contents = [_content(survey.fields[name], record, words) for name in (one, other)]
            if contents[0] is None or contents[0] != contents[1]:
                survey.differ.setdefault(pair, place)


def _content(one: _Field, record: Mapping[str, Any], words: str | None) -> list[tuple[str, str]] | None:
    """The types of the annotations and the letters that they cover; None where they cannot be told."""
    value, found = record[one.name], []
    if "tags" in one.kinds:
        if not all(isinstance(tag, str) for tag in value) or (spelling := spelling_of(set(value))) is None:
            return None
        plain = plain_tags(value, spelling)
        for kind, start, end in spans([plain[tag] for tag in value], "bioes"):
            found.append((kind, "".join(record[words or ""][start:end])))
    else:
        text = record.get("text", record.get("data"))
        for item in value:
            if isinstance(item, dict):
                start, end = (item.get(name, item.get(f"{name}_offset")) for name in ("start", "end"))
                kind = next((item[key] for key in field_names.TYPES if key in item), None)
            else:
                start, end, kind = item if len(item) == 3 else (None, None, None)
            if not isinstance(text, str) or not isinstance(start, int) or not isinstance(end, int):
                return None
            found.append((str(kind), text[start:end]))
    return sorted((kind, "".join(letters.split())) for kind, letters in found)


# Which one ------------------------------------------------------------------------------------------------------------


def _named(found: _Survey, named: Mapping[str, str], source: str) -> list[str]:
    """The field that the user names.

    Raises:
        ValueError: it holds no annotations, or there is no field of words.
    """
    name = named["tag"]
    one = found.fields.get(name)
    able = [f.name for f in found.fields.values() if f.kinds and f.kinds <= {"tags", "spans", "offsets", "triples"}]
    if one is None or name not in able:
        listed = f"fields that do are {', '.join(able)}" if able else "and no other field does"
        raise ValueError(f"{as_argument({'tag': name})}: no field {name!r} of {source} holds annotations; {listed}")
    return [name]


def _chosen(found: _Survey, reading: Reading, source: str) -> tuple[list[str] | None, bool]:
    """The field of the annotations, or several that take turns; and whether `layer` chose it."""
    agreed = (reading.agreed or {}).get(KEY)
    if agreed and agreed.field in found.fields and found.fields[agreed.field].kinds:
        return [agreed.field], agreed.layered
    tags, layered = _tag_field(found, reading, source)
    pieces = [one.name for one in found.fields.values() if one.is_spans]
    if tags is not None and pieces and found.fields[tags].full:
        for name in pieces:
            pair = frozenset((tags, name))
            if place := found.differ.get(pair) or found.apart.get(pair):
                raise ValueError(_both(place, (tags, name)))
        return [tags], layered
    if tags is not None and not pieces:
        return [tags], layered
    for one, other in combinations(pieces, 2):
        if place := found.differ.get(frozenset((one, other))):
            raise ValueError(_both(place, (one, other)))
    return _in_turns(found, pieces, source), False


def _in_turns(found: _Survey, pieces: list[str], source: str) -> list[str] | None:
    """The field that is full wherever another one is; or else all, each of which is full where the others are not."""
    if not pieces:
        return None
    most = max(pieces, key=lambda name: found.fields[name].full)
    if all(found.fields[name].full == found.both[frozenset((name, most))] for name in pieces if name != most):
        return [most]
    formats = {found.fields[name].format for name in pieces}
    if len(formats) > 1 or any(name not in _SPAN_NAMES for name in pieces):
        listed = " and ".join(map(repr, pieces))
        raise ValueError(
            f"{source}: annotations are in {listed}, in different records; put all of them into one field, or choose"
            f" one with {as_argument({'tag': pieces[0]})}"
        )
    return pieces


def _both(place: str, pair: Sequence[str]) -> str:
    one, other = pair
    return (
        f"{place}: {one!r} and {other!r} both hold annotations, and they differ; choose one with"
        f" {as_argument({'tag': one})} or {as_argument({'tag': other})}"
    )


def _tag_field(found: _Survey, reading: Reading, source: str) -> tuple[str | None, bool]:
    """The field of tags, None if there is none; and whether `layer` chose it."""
    there = [one for one in found.fields.values() if one.is_tags]
    nested = [one for one in there if _NESTED.search(one.name)]
    rest = [one for one in there if one not in nested] or nested
    for able in (
        [one for one in rest if one.name in field_names.TAGS],
        [one for one in rest if one.is_spelled],
        [one for one in rest if _NER_NAME.search(one.name)],
    ):
        able = [one for one in able if one.is_spelled] or able
        if not able:
            continue
        for one, other in combinations(able, 2):
            pair = frozenset((one.name, other.name))
            if place := found.differ.get(pair) or found.apart.get(pair):
                raise ValueError(_both(place, (one.name, other.name)))
        if reading.layer and nested and able[0] not in nested:
            return (nested[0] if reading.layer == "inner" else able[0]).name, True
        return able[0].name, False
    return None, False


def _check_types(one: _Field, source: str) -> None:
    """Refuse spans whose types are the tags of words, B-ORG and I-ORG."""
    matches = [_PIECE_OF.fullmatch(kind) for kind in one.types]
    if not matches or not all(matches):
        return
    letters = {
        kind: {match[1] for match in matches if match and match[2] == kind} for kind in (m[2] for m in matches if m)
    }
    shared = next((kind for kind, there in letters.items() if len(there) > 1), None)
    if shared is not None:
        raise ValueError(
            f"{source}: the types of {one.name!r} are the tags of words, such as"
            f" {' and '.join(sorted(f'{letter}-{shared}' for letter in letters[shared])[:2])}: call their key 'entity',"
            " as transformers' pipelines do, and the pieces of each entity are joined"
        )


def _about_others(found: _Survey, chosen: Sequence[str]) -> list[str]:
    """What to say about each field that is not read."""
    said = []
    for one in found.fields.values():
        if one.name in chosen or one.name == "relations" and found.fields[chosen[0]].format in ("doccano", "prodigy"):
            continue
        if one.is_tags or one.is_spans:
            pair = frozenset((one.name, chosen[0]))
            same = one.full and pair not in found.differ and pair not in found.apart
            count = f", with {counted(one.entities, 'entity', 'entities')}," if one.is_spelled and one.entities else ""
            if same and one.records == found.fields[chosen[0]].records:
                said.append(f"field {one.name!r} holds the same annotations as {chosen[0]!r}, which is read")
            else:
                said.append(f"field {one.name!r}{count} is not used; {as_argument({'tag': one.name})} reads it instead")
        elif one.kinds - {"tags"}:
            said.append(f"field {one.name!r} {_OTHER}")
        elif not one.kinds and one.name in _SPAN_NAMES:
            said.append(f"field {one.name!r} is empty in every record, so {chosen[0]!r} is read")
    return said
