"""NER corpora: every usual layout is read into words and IOB2 tags.

    data = read_ner("corpus")      # data.train[0].words == ("IL-2", "gene"), .tags == ("B-DNA", "I-DNA")

A source is one of:
    a folder    train, valid (validation, dev, devel, val) and test files, in the folder or in its subfolder `dataset`
                (`split_files` has all names); `label.json` beside them, {label: id}, is needed where tags are numbers
    a file      one such file, or a folder that is one (brat), all of which becomes `train`
    a hub id    "owner/name", a str that is not a local path: the only case that uses the network

`formats.registry` finds the format by content. `schemes` brings tags to IOB2. `alignment` turns spans into tags and
accounts for every span that it moves or leaves out.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit._counts import counted
from lorakit._files import check_regular
from lorakit.data.alignment import tag_documents
from lorakit.data.formats import hub
from lorakit.data.formats.datasets import read_rows
from lorakit.data.formats.json_lines import read_labels
from lorakit.data.formats.label_names import FILES as LABEL_FILES
from lorakit.data.formats.label_names import KEY as CLASS_LABELS
from lorakit.data.formats.offsets import check_ends, check_starts
from lorakit.data.formats.record import Document, Note, Reading, as_argument
from lorakit.data.formats.registry import (
    ENDINGS,
    SPAN_READERS,
    Found,
    files_beside,
    format_named,
    format_of,
    recognised,
)
from lorakit.data.label_map import check_label_map
from lorakit.data.ner_data import NerData, Sentence, join
from lorakit.data.partition import parse_shares, partition
from lorakit.data.schemes import as_iob2, iob2_labels, rename_tags, scheme_named, used_tags
from lorakit.data.split_files import SPLIT_NAMES, SplitFiles, split_files
from lorakit.data.written import DEFAULTS, CorpusOptions, Read, Written, column_names, lines_of

MOST_BYTES = 1 << 32  # of a file, which is read into memory


def read_ner(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    scheme: str | None = None,
    *,
    columns: Mapping[str, str | int] | None = None,
    layer: str | None = None,
    label_map: Mapping[str, str | None] | None = None,
    shares: str | None = None,
    seed: int = 0,
    offsets: str | None = None,
) -> NerData:
    """Read a corpus from a folder, a file or the hub, or several corpora as one.

    A folder holds train, dev and test files (train.json, valid.tsv, eng.testa, ...). The format is found from their
    content: columns of words and tags, JSON lines of tokens and tags, Parquet, and those of annotation tools
    (docs/corpora.md lists all). IOB2, IOB1, BIOES, BILOU, BMES and tags without prefixes are recognised.

    Example:
        import lorakit
        data = lorakit.read_ner("examples/conll")
        len(data.train), len(data.validation)  # (84, 28)
        data.labels  # ('O', 'B-DOSE', 'I-DOSE', 'B-DRUG', 'I-DRUG')
        data.train[2].words[:4], data.train[2].tags[:4]  # ('The', 'dose', 'of', 'digoxin'), ('O', 'O', 'O', 'B-DRUG')

    Args:
        source: a path, or a hub id "owner/name" (a str; used only if no such path exists); or a list of them, whose
            splits are joined and whose labels are united.
        scheme: how the tags are written: "iob2", "iob1", "bioes" or another name of one of these ("bilou", "bmes",
            "io"). None detects it from the tags and raises if they obey no scheme.
        columns: where the words and tags are in a table: {"word": 2, "tag": 3}, counted from 1, or their names; of
            JSON, the names of the fields, such as {"tag": "fine_ner_tags"}.
        layer: "outer" or "inner": which of nested entities to keep, and which of two columns of tags to read.
        label_map: entity type -> its new name, or None to drop its entities.
        shares: "80/10/10": divide a corpus without splits into train, validation and test by these shares; sentences of
            one document stay together.
        seed: shuffles the documents for `shares`.
        offsets: how the annotation tool counts, where its files do not tell: "characters", "utf-16", "bytes",
            "inclusive" (characters, and an end is the last one of the entity), "from-one" or "from-one-inclusive" (the
            first character is 1).

    Returns:
        The corpus; `notes` says what was converted, repaired, dropped, left out or missing.

    Raises:
        ValueError: with the file and the line: a missing or unreadable file, not UTF-8, invalid JSON, a line of one
            column, an unknown tag, different numbers of tokens and tags, an empty split, tags that obey no scheme,
            columns that cannot be told apart. For a hub id: the answer of each route, and what to do without network.
    """
    options = CorpusOptions(scheme, column_names(columns), layer, label_map, shares, seed, offsets)
    return join([as_sentences(corpus, str(name), options) for name, corpus in read_written(source, options)])


def read_written(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], options: CorpusOptions = DEFAULTS
) -> list[tuple[str, Written]]:
    """The documents of each corpus, with tags in IOB2 and the types of the label map renamed.

    Raises:
        ValueError: as for `read_ner`.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise ValueError("no corpus is given; give a folder, a file or a hub id")
    corpora = [(os.fspath(one), _in_iob2(_read_source(one, options), os.fspath(one), options)) for one in sources]
    if options.label_map:
        check_label_map(options.label_map, {kind for _, corpus in corpora for kind in _types(corpus)})
        corpora = [(name, _renamed(corpus, options.label_map)) for name, corpus in corpora]
    return corpora


def as_sentences(corpus: Written, source: str, options: CorpusOptions = DEFAULTS) -> NerData:
    """The tagged sentences of a corpus that `read_written` returned.

    Raises:
        ValueError: `shares` are given, but the corpus has splits; or a type has white space in its name.
    """
    check_types(corpus)
    corpus, divided = divide(corpus, source, options)
    notes: list[Note] = []
    splits: dict[str, list[Document]] = {}
    dropped = 0
    for split, documents in corpus.splits.items():
        sentences, found = tag_documents(documents, options.layer)
        notes += found
        splits[split] = [sentence for sentence in sentences if sentence.words]
        dropped += len(sentences) - len(splits[split])
    said = [*corpus.notes, *lines_of(notes)]
    said += [f"dropped: {counted(dropped, 'sentence')} without words"] if dropped else []
    said += divided
    labels = iob2_labels(splits, corpus.labels)
    if corpus.labels is not None and labels != corpus.labels:
        said.append("label.json's ids do not fit iob2 and were renumbered")
    parts = {split: tuple([Sentence(d.words, d.tags or ()) for d in there]) for split, there in splits.items()}
    return NerData(
        train=parts.get("train", ()),
        validation=parts.get("validation", ()),
        test=parts.get("test", ()),
        labels=labels,
        source=source,
        notes=tuple(said),
    )


def divide(corpus: Written, source: str, options: CorpusOptions) -> tuple[Written, list[str]]:
    """The corpus divided into splits, and a line that says so; as it is if `options.shares` is None.

    Raises:
        ValueError: `shares` are given, but the corpus has splits, or too few documents.
    """
    if options.shares is None:
        return corpus, []

    def in_sentences(document: Document) -> list[Document]:
        sentences, notes = tag_documents([document], options.layer)
        there = [sentence for sentence in sentences if sentence.words]
        return [sentence._replace(notes=() if i else tuple(notes)) for i, sentence in enumerate(there)]

    splits, about = partition(corpus.splits, parse_shares(options.shares), options.seed, source, in_sentences)
    notes = [note for note in corpus.notes if " split: " not in note and " is train: " not in note]
    return corpus._replace(splits=splits, notes=notes), [about]


# Sources -------------------------------------------------------------------------------------------------------------


def _read_source(source: str | os.PathLike[str], options: CorpusOptions) -> Written:
    if not os.fspath(source):
        raise ValueError("the name of the corpus is empty; give a folder, a file or a hub id")
    path = Path(source)
    if path.is_dir() and not recognised(path):
        return _read_folder(path, options)
    if path.exists():
        _check_kind(path)
        notes = [f"all of {path} is train: a {'folder of documents' if path.is_dir() else 'file'} has no splits"]
        return _read_files({"train": [path]}, _labels_beside(path.parent), notes, options)
    if isinstance(source, str) and _looks_like_hub_id(source):
        return read_hub(source, options=options)
    raise ValueError(
        f"{source}: no such file or folder, and no hub id, which has the form owner/name; give one of them"
    )


def _read_folder(folder: Path, options: CorpusOptions) -> Written:
    found = _split_files(folder)
    for name in ("dataset", "data"):  # of a copy of a hub repository: of the tner family, and by the hub's convention
        if "train" not in found.splits and (folder / name).is_dir():
            inside = _split_files(folder / name)
            folder, found = (folder / name, inside) if "train" in inside.splits else (folder, found)
    if "train" not in found.splits:
        inside = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        folders = f", or one of its folders, such as {folder / inside[0]}," if inside else ""
        raise ValueError(
            f"{folder}: no train file (train.json, train.tsv, eng.train, ...); the folder holds {there}; rename the "
            f"training file, or give a file{folders} instead of the folder"
        )
    missing = [f"no {split} split: {folder} has no such file" for split in SPLIT_NAMES if split not in found.splits]
    written = _read_files(found.splits, _labels_beside(folder), [*missing, *found.notes], options)
    return written._replace(unused=(*found.unused, *written.unused))


def _labels_beside(folder: Path) -> tuple[str, ...] | None:
    if (folder / "label.json").exists():
        _check_kind(folder / "label.json")
    return read_labels(folder)


def _check_kind(path: Path) -> None:
    """Refuse, before it is opened, what cannot be a corpus: a pipe, a device, a folder of no format, a huge file.

    Raises:
        ValueError: with the path.
    """
    if path.is_dir() and recognised(path):
        return
    try:
        check_regular(path, MOST_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _split_files(folder: Path) -> SplitFiles:
    return split_files(folder, ENDINGS, lambda path: recognised(path) is not None)


def _read_files(
    files: Mapping[str, Sequence[Path]], labels: tuple[str, ...] | None, notes: list[str], options: CorpusOptions
) -> Written:
    """The documents of the files of each split; what the training files show holds for the others."""
    agreed: dict[str, Any] = {}
    reading = Reading(labels, options.columns, options.layer, agreed, options.offsets)
    splits: dict[str, list[Document]] = {}
    read: list[Read] = []
    unused: list[str] = []
    for split, paths in files.items():
        splits[split] = []
        for path in paths:
            _check_kind(path)
            try:
                found = format_of(path, reading, format_named(read[0].format) if read else None)
            except RecursionError as error:  # the readers look at the first JSON value of a file
                raise ValueError(f"{path}: invalid JSON: brackets are nested too deeply") from error
            form = found.format
            if read and form.name != read[0].format:
                raise ValueError(
                    f"{path}: is {form.about}, but {read[0].path} is {format_named(read[0].format).about}; a corpus has"
                    " one format: write one of them in the format of the other with lorakit data convert, and move the"
                    " original out of the folder"
                )
            beside = files_beside(path, form)
            unused += beside if len(paths) == len(files) == 1 else [f"{path.name}/{name}" for name in beside]
            notes += _unused_options(found, path, options)
            documents = list(form.read(path, found.reading))
            if options.offsets is None:
                check_ends(documents, str(path))
                check_starts(documents, str(path))
            if not any(document.words or document.text for document in documents):
                why = "; ".join(lines_of([note for document in documents for note in document.notes]))
                raise ValueError(f"{path}: empty: it holds no sentence{why and f': {why}'}")
            documents[0] = documents[0]._replace(notes=(*found.notes, *documents[0].notes))
            splits[split] += documents
            read.append(Read(str(path), split, form.name, found.evidence))
    return Written(splits, labels or agreed.get(CLASS_LABELS), notes, tuple(read), tuple(unused))


def _unused_options(found: Found, path: Path, options: CorpusOptions) -> list[str]:
    """A note for an option that says nothing about a format.

    Raises:
        ValueError: columns are named of a format without columns.
    """
    form = found.format
    if options.columns and not form.has_columns:
        named = as_argument(options.columns)
        raise ValueError(f"{named}: {path} has no columns, it is {form.about}; leave columns= out")
    if options.layer and not form.has_layers and not found.layered:
        return [f"layer={options.layer!r} has no effect: {path} is {form.about}, which has one layer"]
    return []


def read_hub(
    name: str,
    snapshot_download: Callable[..., str] | None = None,
    load_dataset: Callable[..., Mapping[str, Any]] | None = None,
    options: CorpusOptions = DEFAULTS,
) -> Written:
    """Read a corpus of the hub; `formats.hub.fetch` has the routes, the arguments and what is raised."""
    stems = ["label", *(stem for names in SPLIT_NAMES.values() for stem in names)]
    files = [*(f"{stem}{end}" for stem in stems for end in ENDINGS), *LABEL_FILES]
    patterns = [f"{folder}{file}" for folder in ("", "dataset/") for file in files]
    fetched = hub.fetch(name, patterns, _has_train_file, snapshot_download, load_dataset)
    return _read_folder(fetched, options) if isinstance(fetched, Path) else _read_splits(name, fetched, options)


def _has_train_file(folder: Path) -> bool:
    return any("train" in _split_files(path).splits for path in (folder, folder / "dataset") if path.is_dir())


def _read_splits(name: str, loaded: Mapping[str, Any], options: CorpusOptions) -> Written:
    """The splits of a `datasets.DatasetDict`, by all names that files may have."""
    names = {split: next((name for name in usual if name in loaded), None) for split, usual in SPLIT_NAMES.items()}
    if names["train"] is None:
        raise ValueError(f"{name}: no split 'train'; it has {', '.join(loaded)}")
    agreed: dict[str, Any] = {}
    reading = Reading(columns=options.columns, layer=options.layer, agreed=agreed, offsets=options.offsets)
    splits: dict[str, list[Document]] = {}
    for split, its_name in names.items():
        if its_name is not None:
            splits[split] = list(read_rows(loaded[its_name], reading, f"{name} {its_name}", SPAN_READERS))
            if options.offsets is None:
                check_ends(splits[split], f"{name} {its_name}")
                check_starts(splits[split], f"{name} {its_name}")
            if not any(document.words or document.text for document in splits[split]):
                raise ValueError(f"{name}: split {its_name!r} is empty")
    labels = agreed.get(CLASS_LABELS)
    notes = [f"no {split} split: {name} has none" for split in SPLIT_NAMES if split not in splits]
    unused = tuple(split for split in loaded if split not in names.values())
    if unused:
        notes.append(f"not read, since their names are of no split: {', '.join(unused)}")
    files = tuple(Read(f"{name} {names[split]}", split, "hub", "a dataset of the hub") for split in splits)
    return Written(splits, labels, notes, files, unused)


def _looks_like_hub_id(source: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)) and not source.endswith(ENDINGS)


# Tags and types ------------------------------------------------------------------------------------------------------


def _in_iob2(written: Written, source: str, options: CorpusOptions) -> Written:
    scheme = options.scheme and scheme_named(options.scheme)
    splits, labels, notes = as_iob2(written.splits, written.labels, source, scheme)
    return written._replace(splits=splits, labels=labels, notes=[*written.notes, *notes])


def _types(written: Written) -> set[str]:
    types = {tag[2:] for tag in used_tags(written.splits).union(written.labels or ()) if tag != "O"}
    return types | {span.label for there in written.splits.values() for document in there for span in document.spans}


def _renamed(written: Written, table: Mapping[str, str | None]) -> Written:
    """The corpus with the types of the table renamed, or left out where the table has None."""
    counts = dict.fromkeys(table, 0)

    def rename(document: Document) -> Document:
        if document.tags is not None:
            for tag in document.tags:
                if tag[:2] == "B-" and tag[2:] in counts:
                    counts[tag[2:]] += 1
            return document._replace(tags=rename_tags(document.tags, table))
        kept = []
        for span in document.spans:
            if span.label in counts:
                counts[span.label] += 1
            new = table.get(span.label, span.label)
            kept += [] if new is None else [span._replace(label=new)]
        return document._replace(spans=tuple(kept))

    splits = {split: [rename(document) for document in there] for split, there in written.splits.items()}
    labels = written.labels and tuple(dict.fromkeys(rename_tags(written.labels, table)))
    notes = [
        f"label map: {count:,} {old} {'left out' if table[old] is None else f'renamed {table[old]}'}"
        for old, count in counts.items()
    ]
    return written._replace(splits=splits, labels=labels, notes=[*written.notes, *notes])


def check_types(written: Written) -> None:
    """Refuse a type with white space in its name, which no file of columns could hold.

    Raises:
        ValueError: with the place of the first, and the fix.
    """
    bad = {kind for kind in _types(written) if any(character.isspace() for character in kind)}
    for document in (document for there in written.splits.values() if bad for document in there):
        named = [(tag[2:], "") for tag in document.tags or ()] + [(span.label, span.id) for span in document.spans]
        for kind, name in named:
            if kind in bad:
                new = {one: "_".join(one.split()) for one in (kind, *sorted(bad - {kind}))}
                listed = ", and also ".join(f"from {one!r} to {other!r}" for one, other in new.items())
                raise ValueError(
                    f"{document.place}{name and f', {name}'}: the type {kind!r} has a space in its name; rename it with"
                    f" a label map (label_map) {listed}"
                )
