"""Parquet files and datasets on disk, read through the library `datasets`: lists of words and of tags, or texts and
lists of spans, which are read as those of JSON files are.

Numbers of tags, and of the types of spans, are named by the dataset's own `ClassLabel`, which Parquet files of the hub
hold too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lorakit.data.formats import field_names
from lorakit.data.formats.annotation_fields import Choice, choose_field
from lorakit.data.formats.label_names import KEY
from lorakit.data.formats.record import Document, Note, Reading, about_texts, as_argument
from lorakit.data.formats.tagged_record import read_record
from lorakit.data.tags import check_labels

SpanReaders = Mapping[str, Callable[[Iterable[tuple[str, dict[str, Any]]], Reading], Iterator[Document]]]
_PARQUET = b"PAR1"
_NAMES = ("id", "doc_id")
_PLACES = ("start", "end", "start_offset", "end_offset")


def recognise_parquet(path: Path) -> str | None:
    """The evidence that a file is Parquet: its first four bytes."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return "it begins with PAR1" if file.read(4) == _PARQUET else None


def recognise_dataset(path: Path) -> str | None:
    """The evidence that a folder is one split that `Dataset.save_to_disk` wrote."""
    is_split = path.is_dir() and (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return "a dataset on disk: state.json and dataset_info.json" if is_split else None


def read_parquet(path: Path, reading: Reading, readers: SpanReaders) -> Iterator[Document]:
    """Yield the sentences or texts of a Parquet file; `readers` as for `read_rows`.

    Raises:
        ValueError: the file is broken, or its rows hold neither words and tags nor texts and spans.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = datasets.Dataset(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    yield from read_rows(rows, reading, f"{path}", readers)


def read_dataset(path: Path, reading: Reading, readers: SpanReaders) -> Iterator[Document]:
    """Yield the sentences or texts of a folder that `Dataset.save_to_disk` wrote; `readers` as for `read_rows`.

    Raises:
        ValueError: the folder is broken, or its rows hold neither words and tags nor texts and spans.
    """
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # a foreign border: pyarrow, json and datasets errors share no other base class
        raise ValueError(f"{path}: not a dataset that can be read: {str(error).splitlines()[0]}") from error
    yield from read_rows(rows, reading, f"{path}", readers)


def read_rows(rows: Any, reading: Reading, source: str, readers: SpanReaders) -> Iterator[Document]:
    """Yield the sentences or texts of a `datasets.Dataset`.

    Args:
        rows: with a column of lists of words and one of lists of tags, or one of texts and one of lists of spans.
        reading: its `columns` name those; `labels` name integer tags that the dataset itself does not name.
        source: for messages.
        readers: name of a format of texts and spans -> what reads its records.

    Raises:
        ValueError: with the row, from 1: a column is missing, words and tags are not lists of the same length that
            hold strings (tags: or numbers), or what the reader of spans refuses.
    """
    named = dict(reading.columns or {})
    word = _words_column(rows, named, source)
    choice = choose_field(_records(rows, word, source), reading, source)
    if choice and choice.format in readers:
        columns = {**named, **({"tag": choice.field} if choice.field else {})}
        read = readers[choice.format](_records(rows, word, source), reading._replace(columns=columns))
        for number, document in enumerate(read):
            yield document if number else document._replace(notes=(*choice.notes, *document.notes))
        return
    usual = next((name for name in field_names.TAGS if name in rows.features), None)
    is_chosen = choice is not None and choice.format is not None
    tag = choice.field if choice and is_chosen else named.get("tag", usual)  # read_record says what is wrong with it
    if word is None or tag is None or tag not in rows.features:
        _refuse(rows, named, choice, source)
    names = class_names(rows.features, tag)
    labels = reading.labels if names is None else names
    if names is not None:
        check_labels(names, source)
        if reading.agreed is not None:
            reading.agreed.setdefault(KEY, names)
    notes: tuple[Note, ...] = (*choice.notes, *_layer_notes(reading, choice, source)) if choice else ()
    wanted = [name for name in dict.fromkeys((word, tag, "id")) if name in rows.features]
    for number, row in enumerate(rows.select_columns(wanted), start=1):
        record = {"tokens": row[word], "tags": row[tag], "id": row.get("id")}
        document = read_record(record, labels, f"{source}:{number}")
        yield document._replace(notes=notes)
        notes = ()


def _words_column(rows: Any, named: Mapping[str, str], source: str) -> str | None:
    """The name of the column of words; None if there are texts instead.

    Raises:
        ValueError: there is neither.
    """
    usual = [named["word"]] if "word" in named else field_names.WORDS
    found = next((name for name in usual if name in rows.features), None)
    if found is None and ("word" in named or not any(name in rows.features for name in field_names.TEXTS)):
        _refuse(rows, named, None, source)
    return found


def _records(rows: Any, word: str | None, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row, without empty cells, with the names of class labels instead of their numbers."""
    names = {column: _names_of_classes(rows.features, column) for column in rows.features}
    wanted = (word, *field_names.TEXTS, *field_names.PRODIGY, *_NAMES)
    lists = [column for column, kind in rows.features.items() if column in wanted or _is_list(kind)]
    number = 0
    for batch in rows.select_columns(lists).iter(batch_size=1000):
        for values in zip(*(batch[column] for column in lists), strict=True):
            number += 1
            record = {
                column: _named(_objects(value), names[column])
                for column, value in zip(lists, values, strict=True)
                if value is not None
            }
            yield f"{source}:{number}", record


def _objects(value: Any) -> Any:
    """A list of objects where a cell has them as lists of their values, or has None for a key that one lacks."""
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [{key: one for key, one in item.items() if one is not None or key in _PLACES} for item in value]
    return value


def _named(value: Any, names: Mapping[str, Sequence[str]]) -> Any:
    """A list with the names of class labels: of its numbers (key ""), or of those that its objects have at a key."""
    if not names or not isinstance(value, list):
        return value
    if "" in names:
        there = names[""]
        return [there[i] for i in value] if all(isinstance(i, int) and 0 <= i < len(there) for i in value) else value
    return [
        {key: names[key][one] if key in names and one in range(len(names[key])) else one for key, one in item.items()}
        for item in value
    ]


def _is_list(feature: Any) -> bool:
    """Whether a column may hold lists; a list of objects is a mapping in datasets' older versions."""
    return isinstance(feature, list | dict) or hasattr(feature, "feature")


def _refuse(rows: Any, named: Mapping[str, str], choice: Choice | None, source: str) -> NoReturn:
    """Raise for a table without words or tags.

    Raises:
        ValueError: with the columns and what to do.
    """
    listed = ", ".join(rows.features)
    for role, name in named.items():
        if name not in rows.features:
            raise ValueError(
                f"{source}: no column {name!r}; the columns are {listed}: name it with {as_argument({role: 'NAME'})}"
            )
    if any(name in rows.features for name in field_names.TEXTS) and "word" not in named:
        raise ValueError(
            f"{source}: no column of annotations; the columns are {listed}: a text has them in a column of lists of"
            ' objects, such as \'spans\' of {"start": 0, "end": 4, "label": "TYPE"}, and words have as many tags'
        )
    missing = [
        (role, usual)
        for role, usual in (("word", field_names.WORDS), ("tag", field_names.TAGS))
        if role not in named and not any(name in rows.features for name in usual)
    ] or [("tag", field_names.TAGS)]
    role, usual = missing[0]
    wanted = " or ".join(map(repr, usual))
    raise ValueError(
        f"{source}: no column {wanted}; the columns are {listed}: name it with {as_argument({role: 'NAME'})}"
    )


def _layer_notes(reading: Reading, choice: Choice, source: str) -> list[Note]:
    """A note for a layer that was asked for and is the only one."""
    if not reading.layer or choice.layered or not choice.format:
        return []
    return [Note(f"layer={reading.layer!r} has no effect: the only tags are in {choice.field!r}", source)]


def _names_of_classes(features: Mapping[str, Any], column: str) -> dict[str, Sequence[str]]:
    """The names of the class labels in a column of lists: of its items (key ""), or of its objects' at each key."""
    if names := class_names(features, column):
        return {"": names}
    feature = features[column]
    parts = feature if isinstance(feature, dict) else getattr(feature, "feature", None)
    parts = parts if isinstance(parts, dict) else {}
    found = {key: getattr(getattr(part, "feature", part), "names", None) for key, part in parts.items()}
    return {key: names for key, names in found.items() if names}


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
    """The label of each id of a column of class labels; None for another column."""
    names = getattr(getattr(features.get(column), "feature", None), "names", None)
    return None if names is None else tuple(names)


def write_parquet(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a Parquet file of ids, tokens and tags; the tags are strings."""
    import pyarrow.parquet

    pyarrow.parquet.write_table(_table(documents), path)
    return about_texts(documents)


def write_dataset(documents: Sequence[Document], path: Path) -> list[str]:
    """Write a folder as `Dataset.save_to_disk` does."""
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(_table(documents)).save_to_disk(str(path))
    return about_texts(documents)


def _table(documents: Sequence[Document]) -> Any:
    import pyarrow

    words = pyarrow.list_(pyarrow.string())
    columns = {
        "id": pyarrow.array([document.id for document in documents], pyarrow.string()),
        "tokens": pyarrow.array([document.words for document in documents], words),
        "tags": pyarrow.array([document.tags or () for document in documents], words),
    }
    return pyarrow.table(columns)
