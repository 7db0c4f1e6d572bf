"""NER corpora: every usual layout is read into words and IOB2 tags.

    data = read_ner("corpus")      # data.train[0].words == ("IL-2", "gene"), .tags == ("B-DNA", "I-DNA")

A source is one of:
    a folder    train, valid (validation, dev, devel, val) and test files, in the folder or in its subfolder `dataset`;
                `label.json` beside them, {label: id}, is optional unless tags are numbers
    a file      one such file, all of which becomes `train`
    a hub id    "owner/name", a str that is not a local path: the only case that uses the network

The ending of a file tells its format (READERS): JSON lines (`formats.json_lines`) or columns (`formats.conll`).

Tags are always returned as IOB2; other schemes (`tags`) are converted. With `scheme=None` a scheme is accepted only if
*every* tag of all splits obeys it: bioes if E-, S-, L- or U- occurs in the tags or label.json; otherwise iob2 if no
entity begins with I-, or else iob1 if no B- is where iob1 needs I-. A corpus with an entity cannot obey both of the
last two. A corpus that obeys none is an error that names the first place. If the scheme is named, such a corpus is read
anyway, as seqeval reads it, and `notes` says how many tags broke the scheme.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.data.formats import hub
from lorakit.data.formats.conll import read_conll
from lorakit.data.formats.json_lines import TAG_COLUMNS, read_json_lines, read_labels, read_record
from lorakit.data.formats.text import Row
from lorakit.data.tags import SCHEMES, check_labels, irregular, split_tag, to_iob2

READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[Row]]] = {
    ".json": read_json_lines,
    ".jsonl": read_json_lines,
    ".tsv": read_conll,
    ".txt": read_conll,
    ".iob2": read_conll,
    ".conll": read_conll,
    ".bio": read_conll,
}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("valid", "validation", "dev", "devel", "val"),
    "test": ("test",),
}


class Sentence(NamedTuple):
    """Words and one IOB2 tag per word. A word may be empty or odd: it keeps its place.

    Example:
        from lorakit.data.corpus import Sentence
        sentence = Sentence(words=("IL-2", "gene"), tags=("B-DNA", "I-DNA"))
        sentence.words[0], sentence.tags[0]  # ('IL-2', 'B-DNA')

    Attributes:
        words: the words of one sentence.
        tags: as many tags: "O", or "B-" or "I-" and an entity type.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class NerData:
    """A corpus for named-entity recognition, as `read_ner` returns it.

    Example:
        from lorakit.data.corpus import NerData, Sentence
        sentence = Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA"))
        data = NerData(train=(sentence,), validation=(), test=(), labels=("O", "B-DNA", "I-DNA"), source="made here")
        len(data.train), data.notes  # (1, ())

    Attributes:
        train: the training sentences.
        validation: those that choose the best epoch; empty if the source has no such split.
        test: those that are scored once, at the end; empty if the source has no such split.
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


class Written(NamedTuple):
    """A corpus as its source has it.

    Attributes:
        splits: the rows of each split, by its name in NerData.
        labels: in the order of the source's ids and in its own scheme; None where tags are strings.
        notes: what to know about it.
    """

    splits: dict[str, list[Row]]
    labels: tuple[str, ...] | None
    notes: list[str]


def read_ner(source: str | os.PathLike[str], scheme: str | None = None) -> NerData:
    """Read a corpus from a folder, a file or the hub.

    A folder holds train, dev and test files (train.json, valid.tsv, ...), either JSON lines of tokens and tags or one
    word and its tag per line, with a blank line after each sentence. IOB2, IOB1 and BIOES or BILOU tags are recognised.

    Example:
        import lorakit
        data = lorakit.read_ner("examples/conll")
        len(data.train), len(data.validation)  # (84, 28)
        data.labels  # ('O', 'B-DOSE', 'I-DOSE', 'B-DRUG', 'I-DRUG')
        data.train[2].words[:4], data.train[2].tags[:4]  # ('The', 'dose', 'of', 'digoxin'), ('O', 'O', 'O', 'B-DRUG')

    Args:
        source: a path, or a hub id "owner/name" (a str; used only if no such path exists).
        scheme: how the tags are written: "iob2", "iob1" or "bioes". None detects it from the tags and raises if they
            obey no scheme.

    Returns:
        The corpus; `notes` says what was converted, repaired, dropped or missing.

    Raises:
        ValueError: with the file and the line: a missing or unreadable file, not UTF-8, invalid JSON, a line of one
            column, an unknown tag, different numbers of tokens and tags, an empty split, tags that obey no scheme. For
            a hub id: the answer of each route, and what to do without network.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; it is one of {', '.join(SCHEMES)}, or None to detect it")
    written = _read_source(source)
    used_scheme = scheme or _detect(written, str(source))
    splits, notes = _to_iob2(written, used_scheme)
    labels = _iob2_labels(written, {tag for rows in splits.values() for row in rows for tag in row.tags})
    if written.labels is not None and labels != written.labels:
        notes.append("label.json's ids do not fit iob2 and were renumbered")
    return NerData(
        train=splits.get("train", ()),
        validation=splits.get("validation", ()),
        test=splits.get("test", ()),
        labels=labels,
        source=str(source),
        notes=(*written.notes, *notes),
    )


# Sources -------------------------------------------------------------------------------------------------------------


def _read_source(source: str | os.PathLike[str]) -> Written:
    if not os.fspath(source):
        raise ValueError("the name of the corpus is empty; give a folder, a file or a hub id")
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.exists():
        labels = read_labels(path.parent)
        return Written({"train": _read_file(path, labels)}, labels, [f"all of {path} is train: a file has no splits"])
    if isinstance(source, str) and _looks_like_hub_id(source):
        return read_hub(source)
    raise ValueError(f"{source}: no such file or folder (nor is it a hub id, which is a str 'owner/name')")


def _read_file(path: Path, labels: tuple[str, ...] | None) -> list[Row]:
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; a corpus file ends in {' '.join(READERS)}")
    rows = list(READERS[path.suffix.lower()](path, labels))
    if not any(row.words for row in rows):
        raise ValueError(f"{path}: empty: it holds no sentence")
    return rows


def _split_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in READERS and path.stem.lower() in names and path.is_file()
        )
        if len(files) > 1:
            listed = " and ".join(path.name for path in files)
            raise ValueError(f"{folder}: {listed} are all {split} files; keep one")
        if files:
            found[split] = files[0]
    return found


def _read_folder(folder: Path) -> Written:
    files = _split_files(folder)
    if not files and (folder / "dataset").is_dir():  # a copy of a hub repository of the tner family
        folder = folder / "dataset"
        files = _split_files(folder)
    if "train" not in files:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise ValueError(f"{folder}: no train file (train.json, train.tsv, ...); the folder holds {there}")
    labels = read_labels(folder)
    notes = [f"no {split} split: {folder} has no such file" for split in SPLIT_NAMES if split not in files]
    return Written({split: _read_file(path, labels) for split, path in files.items()}, labels, notes)


def read_hub(
    name: str,
    snapshot_download: Callable[..., str] | None = None,
    load_dataset: Callable[..., Mapping[str, Any]] | None = None,
) -> Written:
    """Read a corpus of the hub; `formats.hub.fetch` has the routes, the arguments and what is raised."""
    stems = ["label", *(stem for names in SPLIT_NAMES.values() for stem in names)]
    patterns = [f"{folder}{stem}{end}" for folder in ("", "dataset/") for stem in stems for end in READERS]
    fetched = hub.fetch(name, patterns, _has_train_file, snapshot_download, load_dataset)
    return _read_folder(fetched) if isinstance(fetched, Path) else _read_dataset(name, fetched)


def _has_train_file(folder: Path) -> bool:
    return any("train" in _split_files(path) for path in (folder, folder / "dataset") if path.is_dir())


def _read_dataset(name: str, loaded: Mapping[str, Any]) -> Written:
    if "train" not in loaded:
        raise ValueError(f"{name}: no split 'train'; it has {', '.join(loaded)}")
    features = loaded["train"].features
    column, labels = hub.tag_column(features, TAG_COLUMNS)
    if labels is not None:
        check_labels(labels, name)
    splits: dict[str, list[Row]] = {}
    for split in SPLIT_NAMES:
        if split in loaded:
            records = loaded[split].select_columns([key for key in ("tokens", column) if key in features])
            splits[split] = [
                read_record(record, labels, f"{name} {split}:{i}") for i, record in enumerate(records, start=1)
            ]
            if not any(row.words for row in splits[split]):
                raise ValueError(f"{name}: split {split!r} is empty")
    notes = [f"no {split} split: {name} has none" for split in SPLIT_NAMES if split not in splits]
    return Written(splits, labels, notes)


def _looks_like_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)) and not source.endswith(tuple(READERS))


# Schemes -------------------------------------------------------------------------------------------------------------


def _detect(written: Written, source: str) -> str:
    """The scheme that every tag of every split obeys (see the top of the file)."""
    rows = [row for split in written.splits.values() for row in split]
    used = {tag for row in rows for tag in row.tags}.union(written.labels or ())
    prefixes = {split_tag(tag)[0] for tag in used}
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
        f"{source}: the tags obey no scheme: {'; '.join(breaks)}. Name the scheme to read them anyway: "
        f"{' or '.join(f'scheme={scheme!r}' for scheme in candidates)}"
    )


def _to_iob2(written: Written, scheme: str) -> tuple[dict[str, tuple[Sentence, ...]], list[str]]:
    """The sentences of each split, and notes about what was converted, repaired and dropped."""
    splits: dict[str, tuple[Sentence, ...]] = {}
    broken = changed = dropped = 0
    for split, rows in written.splits.items():
        sentences = []
        for row in rows:
            if not row.words:
                dropped += 1
                continue
            try:
                tags = to_iob2(row.tags, scheme)
            except ValueError as error:
                raise ValueError(f"{row.place}: {error}; read with another scheme=") from error
            broken += len(irregular(row.tags, scheme))
            changed += sum(old != new for old, new in zip(row.tags, tags, strict=True))
            sentences.append(Sentence(row.words, tags))
        splits[split] = tuple(sentences)
    notes = []
    if scheme != "iob2":
        notes.append(f"read as {scheme}: {changed} tags converted to iob2")
    if broken:
        notes.append(f"repaired: {broken} tags broke scheme {scheme} and were read as seqeval reads them")
    if dropped:
        notes.append(f"dropped: {dropped} sentences without words")
    return splits, notes


def _iob2_labels(written: Written, used: set[str]) -> tuple[str, ...]:
    """The source's own order if its labels are IOB2 and hold every tag used; otherwise O and B-X, I-X by type."""
    own = written.labels or ()
    if own and used.issubset(own) and {split_tag(label)[0] for label in own} <= {"O", "B", "I"}:
        return own
    kinds = sorted({split_tag(label)[1] for label in used.union(own)} - {""})
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))
