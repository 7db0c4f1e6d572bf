"""NER corpora: every usual layout read into words and IOB2 tags.

    data = read_ner("corpus")      # data.train[0].words == ("IL-2", "gene"), .tags == ("B-DNA", "I-DNA")

What a source may be:
    a folder    train, valid (validation, dev, devel, val) and test files, in the folder or in its subfolder `dataset`;
                `label.json` beside them, {label: id}, is optional unless tags are numbers
    a file      one such file: all of it becomes `train`
    a hub id    "owner/name", a str that does not exist locally: the only case that uses the network

What a file may be, by its ending:
    .json .jsonl                    JSON lines {"tokens": [str, ...], "tags" | "ner_tags" | "labels": [int or str, ...]}
    .tsv .txt .iob2 .conll .bio     a word a line, the word first and its tag last, columns divided by tabs or spaces, a
                                    blank line after each sentence; `-DOCSTART-` and `###MEDLINE:` lines are borders too

Schemes. Everything is handed on as IOB2: the first word of an entity is B-, the others I-. Other schemes are converted:
    iob1    B- only where an entity directly follows another of its type, I- otherwise
    bioes   E- closes an entity, S- is one of a single word (also called IOBES; BILOU says L- and U-)
Left to itself (`scheme=None`) the reader takes a scheme only if *every* tag of all splits obeys it: bioes if E-, S-, L-
or U- occur in tags or label.json, else iob2 if no entity begins with I-, else iob1 if no B- stands where iob1 wants I-.
A corpus with an entity cannot obey both of the last two. One that obeys none is an error that shows the place; naming
the scheme reads it all the same, as seqeval would, and `notes` says how many tags broke the scheme.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SCHEMES = ("iob2", "iob1", "bioes")


class Sentence(NamedTuple):
    """Words and as many IOB2 tags. A word may be empty or odd: it keeps its place."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class NerData:
    """A corpus.

    Attributes:
        train, validation, test: the sentences; empty only where the source has no such split.
        labels: every IOB2 label in the order of its id: label.json's order, else "O" and then B-X, I-X by sorted type.
        source: what was read, as the caller named it.
        notes: what to know about it: tags converted or repaired, splits missing, sentences without words dropped.
    """

    train: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]
    labels: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()


class Span(NamedTuple):
    """An entity: its type and the words [start, end)."""

    type: str
    start: int
    end: int


# Tags and schemes: pure functions ------------------------------------------------------------------------------------

_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_BILOU = {"L": "E", "U": "S"}
_PREFIXES = {"iob2": "BI", "iob1": "BI", "bioes": "BIES"}


@functools.cache
def _split_tag(tag: str) -> tuple[str, str]:
    """Letter and type: "B-DNA" -> ("B", "DNA"), "O" -> ("O", ""). L and U of BILOU become E and S."""
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"unknown tag {tag!r}; a tag is O or one of B I E S L U, a hyphen and the entity type")
    prefix, kind = match.groups()
    return _BILOU.get(prefix, prefix), kind


def _split_tags(tags: Sequence[str], scheme: str) -> list[tuple[str, str]]:
    parts = [_split_tag(tag) for tag in tags]
    for tag, (prefix, _) in zip(tags, parts, strict=True):
        if prefix != "O" and prefix not in _PREFIXES[scheme]:
            raise ValueError(f"tag {tag!r} does not exist in scheme {scheme!r}")
    return parts


def irregular(tags: Sequence[str], scheme: str) -> list[int]:
    """The positions at which a sentence's tags break their scheme, ascending.

    iob2: an I- that continues nothing. iob1: a B- that does not follow its own type. bioes: an I- or E- that continues
    nothing, and a B- or I- after which the entity stops without E-.

    Raises:
        ValueError: a tag whose letter the scheme does not have.
    """
    parts = _split_tags(tags, scheme)
    found = []
    for i, (prefix, kind) in enumerate(parts):
        before, kind_before = parts[i - 1] if i else ("O", "")
        after, kind_after = parts[i + 1] if i + 1 < len(parts) else ("O", "")
        follows = kind_before == kind and before != "O"
        if scheme == "iob2":
            broken = prefix == "I" and not follows
        elif scheme == "iob1":
            broken = prefix == "B" and not follows
        else:
            orphan = prefix in "IE" and not (follows and before in "BI")
            unclosed = prefix in "BI" and not (kind_after == kind and after in "IE")
            broken = orphan or unclosed
        if broken:
            found.append(i)
    return found


def spans(tags: Sequence[str], scheme: str = "iob2") -> list[Span]:
    """The entities of a sentence, in order.

    Where the tags break the scheme this is the reading of seqeval's default mode: an entity begins at B- or S-, after
    E- or S-, and wherever the type changes.

    Raises:
        ValueError: a tag whose letter the scheme does not have.
    """
    found: list[Span] = []
    before, kind_before = "O", ""
    for i, (prefix, kind) in enumerate(_split_tags(tags, scheme)):
        if prefix == "O":
            pass
        elif prefix in "BS" or before in "ES" or kind != kind_before:
            found.append(Span(kind, i, i + 1))
        else:
            found[-1] = found[-1]._replace(end=i + 1)
        before, kind_before = prefix, kind
    return found


def from_spans(entities: Iterable[Span], length: int) -> tuple[str, ...]:
    """The IOB2 tags of a sentence of `length` words; the inverse of `spans`. Entities must not overlap."""
    tags = ["O"] * length
    for kind, start, end in entities:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tuple(tags)


def to_iob2(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """A sentence's tags of another scheme as IOB2, with the same entities (those `spans` finds)."""
    return from_spans(spans(tags, scheme), len(tags))


# Rows: sentences as they stand in the source, with their place -------------------------------------------------------


class _Row(NamedTuple):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    place: str  # "train.tsv:17", for messages


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) for every line of a UTF-8 file, without its end (LF or CRLF) and without a byte-order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    # not splitlines(): it also breaks at U+0085 and U+2028, which occur inside words
    for number, line in enumerate(text.split("\n"), start=1):
        yield f"{path}:{number}", line.removesuffix("\r")


def _check_tag(tag: str, labels: Sequence[str] | None, place: str) -> None:
    if labels is not None and tag not in labels:
        raise ValueError(f"{place}: unknown tag {tag!r}; the labels are {', '.join(labels)}")
    try:
        _split_tag(tag)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _conll_rows(path: Path, labels: Sequence[str] | None) -> Iterator[_Row]:
    words: list[str] = []
    tags: list[str] = []
    first_place, columns = "", 0
    for place, line in _lines(path):
        if not line.strip(" \t") or line.startswith(("-DOCSTART-", "###MEDLINE:")):
            if words:
                yield _Row(tuple(words), tuple(tags), first_place)
                words, tags = [], []
            continue
        # only tabs and spaces divide: a no-break space may be part of a word
        fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        if len(fields) < 2:
            raise ValueError(f"{place}: broken line {line!r}: one column; a line holds a word, then its tag")
        columns = columns or len(fields)
        if len(fields) != columns:
            raise ValueError(f"{place}: broken line {line!r}: {len(fields)} columns, the lines before have {columns}")
        tag = fields[-1].strip(" ")
        _check_tag(tag, labels, place)
        first_place = first_place if words else place
        words.append(fields[0])
        tags.append(tag)
    if words:
        yield _Row(tuple(words), tuple(tags), first_place)


def _row(record: Mapping[str, Any], labels: Sequence[str] | None, place: str) -> _Row:
    """One record {"tokens": ..., "tags" | "ner_tags" | "labels": ...}, checked."""
    words = record.get("tokens")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{place}: 'tokens' must be a list of strings; the keys are {', '.join(record) or 'none'}")
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise ValueError(f"{place}: word {word!r} holds half a surrogate pair, which is no text")
    column = next((name for name in ("tags", "ner_tags", "labels") if name in record), None)
    if column is None:
        raise ValueError(f"{place}: no 'tags', 'ner_tags' or 'labels'; the keys are {', '.join(record)}")
    tags = record[column]
    if not isinstance(tags, list):
        raise ValueError(f"{place}: {column!r} must be a list, got {tags!r}")
    if len(tags) != len(words):
        raise ValueError(f"{place}: {len(words)} tokens but {len(tags)} {column}; each word has one tag")
    return _Row(tuple(words), tuple(_name(tag, labels, place) for tag in tags), place)


def _name(tag: Any, labels: Sequence[str] | None, place: str) -> str:
    """A tag as its label; numbers are ids."""
    if isinstance(tag, str):
        _check_tag(tag, labels, place)
        return tag
    if not isinstance(tag, int) or isinstance(tag, bool):
        raise ValueError(f"{place}: unknown tag {tag!r}; a tag is a string or a whole number")
    if labels is None:
        raise ValueError(f"{place}: tag {tag} is a number; put label.json, {{label: id}}, beside the file")
    if not 0 <= tag < len(labels):
        raise ValueError(f"{place}: unknown tag {tag}; the ids are 0 to {len(labels) - 1}")
    return labels[tag]


def _json_rows(path: Path, labels: Sequence[str] | None) -> Iterator[_Row]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: invalid JSON: {error}; the file holds one object a line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        yield _row(record, labels, place)


_READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[_Row]]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".tsv": _conll_rows,
    ".txt": _conll_rows,
    ".iob2": _conll_rows,
    ".conll": _conll_rows,
    ".bio": _conll_rows,
}


# Sources -------------------------------------------------------------------------------------------------------------

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("valid", "validation", "dev", "devel", "val"),
    "test": ("test",),
}


class _Corpus(NamedTuple):
    splits: dict[str, list[_Row]]
    labels: tuple[str, ...] | None  # as the source numbers them, in its own scheme
    notes: list[str]


def _read_labels(folder: Path) -> tuple[str, ...] | None:
    """The labels of `label.json` in the order of their ids, None without such a file."""
    path = folder / "label.json"
    if not path.exists():
        return None
    try:
        ids = json.loads("\n".join(line for _, line in _lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: invalid JSON: {error.msg}") from error
    if not isinstance(ids, dict) or sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
        raise ValueError(f'{path}: must map labels to the ids 0, 1, 2, ..., such as {{"O": 0, "B-DNA": 1, "I-DNA": 2}}')
    labels = tuple(sorted(ids, key=ids.__getitem__))
    _check_labels(labels, str(path))
    return labels


def _check_labels(labels: Sequence[str], place: str) -> None:
    if "O" not in labels:
        raise ValueError(f"{place}: no label 'O'; the labels are {', '.join(labels) or 'none'}")
    for label in labels:
        _check_tag(label, None, place)


def _read_file(path: Path, labels: tuple[str, ...] | None) -> list[_Row]:
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; a corpus file ends in {' '.join(_READERS)}")
    rows = list(_READERS[path.suffix.lower()](path, labels))
    if not any(row.words for row in rows):
        raise ValueError(f"{path}: empty: not one sentence in it")
    return rows


def _split_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in _SPLIT_NAMES.items():
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _READERS and path.stem.lower() in names and path.is_file()
        )
        if len(files) > 1:
            listed = " and ".join(path.name for path in files)
            raise ValueError(f"{folder}: {listed} are all {split} files; keep one")
        if files:
            found[split] = files[0]
    return found


def _read_folder(folder: Path) -> _Corpus:
    files = _split_files(folder)
    if not files and (folder / "dataset").is_dir():  # a copy of a hub repository of the tner family
        folder = folder / "dataset"
        files = _split_files(folder)
    if "train" not in files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise ValueError(f"{folder}: no train file (train.json, train.tsv, ...); the folder holds {there}")
    labels = _read_labels(folder)
    notes = [f"no {split} split: {folder} has no such file" for split in _SPLIT_NAMES if split not in files]
    return _Corpus({split: _read_file(path, labels) for split, path in files.items()}, labels, notes)


def _read_hub(
    name: str,
    snapshot_download: Callable[..., str] | None = None,
    load_dataset: Callable[..., Mapping[str, Any]] | None = None,
) -> _Corpus:
    """A corpus of the hub, by the first of three routes that works.

    1. Its plain files in one of this module's layouts. The route for `tner/*`: datasets >= 4 refuses their loading
       scripts, and their numbers mean nothing without the repository's label.json.
    2. `datasets.load_dataset`.
    3. The hub's own parquet conversion of a dataset that has a script.
    """
    import datasets
    import huggingface_hub

    snapshot_download = snapshot_download or huggingface_hub.snapshot_download
    load_dataset = load_dataset or datasets.load_dataset
    failures: list[str] = []
    unreachable = False

    def attempt(route: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # a foreign border: httpx, hub and datasets errors share no other base class
            nonlocal unreachable
            unreachable = isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
            reason = str(error).strip().split("\n")[0]
            failures.append(f"{route}: {type(error).__name__}: {reason}")
            return None

    stems = ["label", *(stem for names in _SPLIT_NAMES.values() for stem in names)]
    patterns = [f"{folder}{stem}{end}" for folder in ("", "dataset/") for stem in stems for end in _READERS]
    got = attempt("files", lambda: snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    if got is not None:
        folder = Path(got)
        if any("train" in _split_files(path) for path in (folder, folder / "dataset") if path.is_dir()):
            return _read_folder(folder)
        failures.append("files: no train file in a known layout")
    loaded = None
    if not unreachable or huggingface_hub.constants.HF_HUB_OFFLINE:  # each route would retry a dead network for 25 s
        loaded = attempt("datasets", lambda: load_dataset(name))
        if loaded is None:
            loaded = attempt("parquet branch", lambda: load_dataset(name, revision="refs/convert/parquet"))
    if loaded is None:
        raise ValueError(
            f"{name!r} is no local file or folder, and the hub did not give it ({'; '.join(failures)}). "
            "Without network, give a local folder that holds train.json, valid.json, test.json and label.json"
        )
    return _from_datasets(name, loaded)


def _from_datasets(name: str, loaded: Mapping[str, Any]) -> _Corpus:
    """A `datasets.DatasetDict`, its numbers read by its ClassLabel names."""
    if "train" not in loaded:
        raise ValueError(f"{name}: no split 'train'; it has {', '.join(loaded)}")
    features = loaded["train"].features
    column = next((key for key in ("tags", "ner_tags", "labels") if key in features), "tags")
    names = getattr(getattr(features.get(column), "feature", None), "names", None)
    labels = None if names is None else tuple(names)
    if labels is not None:
        _check_labels(labels, name)
    splits: dict[str, list[_Row]] = {}
    for split in _SPLIT_NAMES:
        if split in loaded:
            records = loaded[split].select_columns([key for key in ("tokens", column) if key in features])
            splits[split] = [_row(record, labels, f"{name} {split}:{i}") for i, record in enumerate(records, start=1)]
            if not any(row.words for row in splits[split]):
                raise ValueError(f"{name}: split {split!r} is empty")
    notes = [f"no {split} split: {name} has none" for split in _SPLIT_NAMES if split not in splits]
    return _Corpus(splits, labels, notes)


def _looks_like_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)) and not source.endswith(tuple(_READERS))


# The whole: source -> IOB2 -------------------------------------------------------------------------------------------


def _detect(corpus: _Corpus, source: str) -> str:
    """The scheme that every tag of every split obeys (see the top of the file)."""
    rows = [row for split in corpus.splits.values() for row in split]
    used = {tag for row in rows for tag in row.tags}.union(corpus.labels or ())
    prefixes = {_split_tag(tag)[0] for tag in used}
    candidates = ("bioes",) if prefixes & {"E", "S"} else ("iob2", "iob1")
    breaks: list[str] = []
    for scheme in candidates:
        places = [(row, i) for row in rows for i in irregular(row.tags, scheme)]
        if not places:
            return scheme
        row, i = places[0]
        breaks.append(
            f"{len(places)} tags break {scheme}, the first at {row.place}, word {i + 1} of the sentence: "
            f"{row.words[i]!r} {row.tags[i]}"
        )
    raise ValueError(
        f"{source}: the tags obey no scheme: {'; '.join(breaks)}. Name the scheme to read them all the same: scheme= "
        f"{' or '.join(repr(scheme) for scheme in candidates)}"
    )


def _iob2_labels(corpus: _Corpus, used: set[str]) -> tuple[str, ...]:
    """The source's own order where it is one of IOB2 labels and holds every tag used; else O and B-X, I-X by type."""
    own = corpus.labels or ()
    if own and used.issubset(own) and {_split_tag(label)[0] for label in own} <= {"O", "B", "I"}:
        return own
    kinds = sorted({_split_tag(label)[1] for label in used.union(own)} - {""})
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


def read_ner(source: str | os.PathLike[str], scheme: str | None = None) -> NerData:
    """Reads a corpus from a folder, a file or the hub (see the top of the file for what each may look like).

    Args:
        source: a path, or a hub id "owner/name" (a str; used only where no such path exists).
        scheme: how the tags are written: "iob2", "iob1" or "bioes"; None detects it, and refuses where that is unsure.

    Raises:
        ValueError: with the file and the line: a missing or unreadable file, not UTF-8, invalid JSON, a line of one
            column, an unknown tag, tokens and tags of different number, an empty split, tags that obey no scheme. For a
            hub id: what each route answered, and what to do without network.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; it is one of {', '.join(SCHEMES)}, or None to detect it")
    if not os.fspath(source):
        raise ValueError("the corpus' name is empty; give a folder, a file or a hub id")
    path = Path(source)
    if path.is_dir():
        corpus = _read_folder(path)
    elif path.exists():
        labels = _read_labels(path.parent)
        corpus = _Corpus({"train": _read_file(path, labels)}, labels, [f"all of {path} is train: a file has no splits"])
    elif isinstance(source, str) and _looks_like_hub_id(source):
        corpus = _read_hub(source)
    else:
        raise ValueError(f"{source}: no such file or folder (and no hub id, which is a str 'owner/name')")

    notes = list(corpus.notes)
    written = scheme or _detect(corpus, str(source))
    splits: dict[str, list[Sentence]] = {}
    used: set[str] = set()
    broken = changed = dropped = 0
    for split, rows in corpus.splits.items():
        splits[split] = []
        for row in rows:
            if not row.words:
                dropped += 1
                continue
            try:
                tags = to_iob2(row.tags, written)
            except ValueError as error:
                raise ValueError(f"{row.place}: {error}; read with another scheme=") from error
            broken += len(irregular(row.tags, written))
            changed += sum(old != new for old, new in zip(row.tags, tags, strict=True))
            used.update(tags)
            splits[split].append(Sentence(row.words, tags))
    if written != "iob2":
        notes.append(f"read as {written}: {changed} tags converted to iob2")
    if broken:
        notes.append(f"repaired: {broken} tags broke scheme {written} and were read as seqeval reads them")
    if dropped:
        notes.append(f"dropped: {dropped} sentences without words")
    labels = _iob2_labels(corpus, used)
    if corpus.labels is not None and labels != corpus.labels:
        notes.append("label.json's ids do not fit iob2 and were renumbered")
    return NerData(
        train=tuple(splits.get("train", ())),
        validation=tuple(splits.get("validation", ())),
        test=tuple(splits.get("test", ())),
        labels=labels,
        source=str(source),
        notes=tuple(notes),
    )
