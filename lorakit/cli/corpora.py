"""The flags that say which corpus to read and how, and the corpus they stand for."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lorakit.cli.parser import file_or_folder, folder_or_id
from lorakit.data.corpus import as_sentences, read_written
from lorakit.data.formats.offsets import UNITS
from lorakit.data.formats.record import LAYERS
from lorakit.data.label_map import read_label_map
from lorakit.data.ner_data import NerData, join
from lorakit.data.schemes import SCHEME_NAMES
from lorakit.data.written import CorpusOptions

_UNCHANGED = asdict(CorpusOptions()) | {"sentences": None}


def add_corpus_flags(
    parser: argparse.ArgumentParser, about: str, required: bool = False, divisible: bool = False
) -> None:
    """Add --dataset and the flags that say how to read it.

    Args:
        about: What --dataset is, for --help.
        required: Whether it has to be given.
        divisible: Whether a corpus without splits may be divided with --split.
    """
    add = parser.add_argument
    about += "; several are read as one, with the union of their labels"
    add("--dataset", required=required, nargs="+", type=folder_or_id, metavar="FOLDER_OR_ID", help=about)
    add("--sentences", type=int, metavar="N", help="use only the first N sentences of each split")
    add_reading_flags(parser)
    if divisible:
        add_split_flags(parser)


def add_split_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that divide a corpus without splits."""
    add = parser.add_argument
    about = "divide a corpus without splits into train, validation and test, such as 80/10/10; documents stay whole"
    add("--split", metavar="SHARES", help=about)
    about = "shuffles the documents for --split (default: %(default)s)"
    add("--split-seed", type=int, default=CorpusOptions.seed, metavar="N", help=about)


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to read a corpus whose files do not tell."""
    add = parser.add_argument
    about = "how the tags are written (default: found from them)"
    add("--scheme", choices=SCHEME_NAMES, help=about)
    about = "the columns or fields of words and tags, from 1 or by name: word=2,tag=3 (default: found by their content)"
    add("--columns", metavar="ROLE=N", help=about)
    about = "which of nested entities to keep (default: outer)"
    add("--layer", choices=LAYERS, help=about)
    about = "how the annotation tool counts characters (default: found from the text beside the annotations, if any)"
    add("--offsets", choices=UNITS, help=about)
    about = (
        "rename, merge or drop entity types: a JSON object, or lines of the old type, a tab and the new one or nothing"
    )
    add("--label-map", type=file_or_folder, metavar="FILE", help=about)


def corpus_options(arguments: argparse.Namespace) -> CorpusOptions:
    """How to read the corpus, by the flags.

    Raises:
        ValueError: A flag has a value that it does not take.
    """
    divided = hasattr(arguments, "split_seed")  # evaluate's --split is the name of a split
    return CorpusOptions(
        scheme=arguments.scheme,
        columns=_columns(arguments.columns) if arguments.columns else None,
        layer=arguments.layer,
        offsets=arguments.offsets,
        label_map=read_label_map(arguments.label_map) if arguments.label_map else None,
        shares=arguments.split if divided else None,
        seed=arguments.split_seed if divided else CorpusOptions.seed,
    )


def read_corpus(arguments: argparse.Namespace) -> NerData:
    """The corpus of --dataset, cut to --sentences.

    Raises:
        ValueError: It cannot be read, or --sentences is below 1.
    """
    return _read(arguments.dataset, corpus_options(arguments), arguments.sentences)


def _read(sources: Sequence[str], options: CorpusOptions, sentences: int | None) -> NerData:
    corpora = read_written(list(sources), options)
    return first_sentences(join([as_sentences(corpus, name, options) for name, corpus in corpora]), sentences)


def reading_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the flags have the corpus read, for the run's record: what they change, with the label map itself."""
    if not hasattr(arguments, "label_map"):
        return {}  # a program of its own reads its corpus
    options = asdict(corpus_options(arguments)) | {"sentences": arguments.sentences}
    return {name: value for name, value in options.items() if value != _UNCHANGED[name]}


def read_again(sources: Sequence[str], reading: Mapping[str, Any], arguments: argparse.Namespace) -> NerData:
    """The corpora as a run read them, by its `reading_record`; flags that are given now count more.

    Raises:
        ValueError: They cannot be read, or the record is damaged.
    """
    merged = _UNCHANGED | dict(reading) | reading_record(arguments)
    if unknown := sorted(merged.keys() - _UNCHANGED.keys()):
        raise ValueError(
            f"the run's record of how it read them has {', '.join(unknown)}, which this lorakit does not know"
        )
    sentences = merged.pop("sentences")
    if not all(isinstance(merged[name], Mapping | None) for name in ("columns", "label_map")):
        raise ValueError("the run's record of how it read them is damaged: columns or label_map is no table")
    options = CorpusOptions(**merged)
    return _read(sources, options, sentences)


def first_sentences(data: NerData, count: int | None) -> NerData:
    """The first `count` sentences of each split; None keeps all.

    Raises:
        ValueError: `count` is below 1.
    """
    if count is None:
        return data
    if count < 1:
        raise ValueError(f"--sentences is {count}; it must be at least 1")
    return replace(data, train=data.train[:count], validation=data.validation[:count], test=data.test[:count])


def _columns(text: str) -> dict[str, str]:
    pairs: Sequence[tuple[str, str, str]] = [part.partition("=") for part in text.split(",")]
    if not all(role.strip() and number.strip() for role, _, number in pairs):
        raise ValueError(f"--columns {text}: give a number or a name for each role, such as word=1,tag=3")
    named = {role.strip(): number.strip() for role, _, number in pairs}
    if len(named) < len(pairs):
        raise ValueError(f"--columns {text}: a role is named twice; give each one column, such as word=1,tag=3")
    return named
