"""Parquet files and datasets on disk, read through the library `datasets`: lists of words and of tags.

Integer tags are named by the dataset's own `ClassLabel`, which Parquet files of the hub hold too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_lines import TAG_COLUMNS, WORD_COLUMNS, read_record
from lorakit.data.formats.label_names import KEY
from lorakit.data.formats.record import Document, Reading, about_texts
from lorakit.data.tags import check_labels

_PARQUET = b"PAR1"


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


def read_parquet(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a Parquet file.

    Raises:
        ValueError: the file is broken, or its rows do not hold words and tags.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows = datasets.Dataset(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
    yield from read_rows(rows, reading, f"{path}")


def read_dataset(path: Path, reading: Reading) -> Iterator[Document]:
    """Yield the sentences of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        ValueError: the folder is broken, or its rows do not hold words and tags.
    """
    import datasets

    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # a foreign border: pyarrow, json and datasets errors share no other base class
        raise ValueError(f"{path}: not a dataset that can be read: {str(error).splitlines()[0]}") from error
    yield from read_rows(rows, reading, f"{path}")


def read_rows(rows: Any, reading: Reading, source: str) -> Iterator[Document]:
    """Yield the sentences of a `datasets.Dataset`.

    Args:
        rows: with a column of lists of words and one of lists of tags.
        reading: its `columns` name those two; `labels` name integer tags that the dataset itself does not name.
        source: for messages.

    Raises:
        ValueError: with the row, from 1: a column is missing, or words and tags are not lists of the same length
            that hold strings (tags: or numbers).
    """
    word = column_of("word", WORD_COLUMNS, rows, reading, source)
    tag = column_of("tag", TAG_COLUMNS, rows, reading, source)
    names = class_names(rows.features, tag)
    labels = reading.labels if names is None else names
    if names is not None:
        check_labels(names, source)
        if reading.agreed is not None:
            reading.agreed.setdefault(KEY, names)
    wanted = [name for name in (word, tag, "id") if name in rows.features]
    for number, row in enumerate(rows.select_columns(wanted), start=1):
        record = {"tokens": row[word], "tags": row[tag], "id": row.get("id")}
        yield read_record(record, labels, f"{source}:{number}")


def column_of(role: str, usual: Sequence[str], rows: Any, reading: Reading, source: str) -> str:
    """The name of the column of words or of tags.

    Raises:
        ValueError: there is no such column.
    """
    named = (reading.columns or {}).get(role)
    found = next((name for name in ([named] if named else usual) if name in rows.features), None)
    if found is None:
        wanted = f"column {named!r}" if named else f"column {' or '.join(map(repr, usual))}"
        raise ValueError(
            f"{source}: no {wanted}; the columns are {', '.join(rows.features)}: name it with --columns {role}=NAME"
        )
    return found


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
