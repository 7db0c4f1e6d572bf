"""The names of integer tags, where a dataset of the Hugging Face hub or a model keeps them.

Files of JSON lines hold numbers only. The names are in one of these files of the folder, tried in this order:

    dataset_info.json, dataset_infos.json    written by `datasets`: features → ner_tags → names
    README.md                                the dataset card's dataset_info, in YAML between two lines of ---
    config.json                              a model's: id2label
    labels.txt                               one per line, in the order of the ids

https://huggingface.co/docs/datasets/dataset_card and https://huggingface.co/docs/datasets/about_dataset_features
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.data.formats.json_text import DECODER

KEY = "class labels"  # in Reading.agreed: the label of each id
FILES = ("dataset_info.json", "dataset_infos.json", "README.md", "config.json", "labels.txt")


def names_in(folder: Path, column: str) -> tuple[tuple[str, ...], str] | None:
    """The label of each id, and the file that has them; None where no file has.

    Args:
        folder: the one of the corpus' files.
        column: of the tags, such as "ner_tags".

    Raises:
        ValueError: a file is not JSON or YAML, its ids are not 0, 1, 2, ..., or it has several lists of names.
    """
    for name in FILES:
        path = folder / name
        if path.is_file() and (names := _read(path, column)):
            return names, name
    return None


def _read(path: Path, column: str) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.name == "labels.txt":
            return tuple(line.strip() for line in text.split("\n") if line.strip())
        value = _front_matter(text) if path.name == "README.md" else DECODER.decode(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: the names of the tags cannot be read from it: {str(error).splitlines()[0]}"
        ) from error
    if path.name == "config.json":
        names = value.get("id2label") if isinstance(value, dict) else None
        return _in_order(names, path) if names else ()
    found = list(dict.fromkeys(_in_order(names, path) for names in _class_labels(value, column) if names))
    if len(found) > 1:
        listed = " or ".join(f"{', '.join(names[:4])}{', …' if names[4:] else ''}" for names in found)
        raise ValueError(
            f"{path}: its configurations name the numbers of {column} differently: {listed}; put the names that this"
            " corpus has into label.json, {label: id}, beside its files"
        )
    return found[0] if found else ()


def _front_matter(text: str) -> Any:
    """The YAML at the top of a dataset card."""
    import yaml

    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        return yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _class_labels(value: Any, column: str) -> Iterator[Any]:
    """The names of every column of this name, however deep: each of the files nests them in its own way."""
    if isinstance(value, dict):
        inside = value.get(column) if column in value else value if value.get("name") == column else None
        if inside is not None:
            yield from _names(inside)
        for item in value.values():
            yield from _class_labels(item, column)
    elif isinstance(value, list):
        for item in value:
            yield from _class_labels(item, column)


def _names(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if isinstance(value.get("names"), list | dict):
            yield value["names"]
        for item in value.values():
            yield from _names(item)


def _in_order(found: list | dict, path: Path) -> tuple[str, ...]:
    """The names from a list, or from {id: name}."""
    if isinstance(found, list):
        return tuple(map(str, found))
    try:
        ids = {int(key): str(name) for key, name in found.items()}
    except ValueError:
        ids = {}
    if sorted(ids) != list(range(len(found))):
        raise ValueError(f"{path}: the ids of the tags are {', '.join(map(str, found))}; they must be 0, 1, 2, ...")
    return tuple(ids[number] for number in range(len(ids)))
