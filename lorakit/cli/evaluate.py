"""`lorakit evaluate`: the scores of a fine-tuned model on a split of a corpus."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit._files import check_not_read, write_text
from lorakit.cli.config import add_config_flag
from lorakit.cli.corpora import add_corpus_flags, read_corpus
from lorakit.cli.flags import (
    add_decode_flag,
    add_device_flag,
    add_packing_flag,
    add_precision_flag,
    add_saved_flags,
    check_writable,
    tag_names,
)
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.notes import Notes, describe_corpus
from lorakit.cli.parser import add_command, file_or_folder, input_errors, processes
from lorakit.data.ner_data import NerData
from lorakit.data.tags import in_labels_of, scheme_of_labels, spans, with_prefixes

if TYPE_CHECKING:
    from lorakit.report.errors import Tagged
    from lorakit.training.metrics import EntityScores, Scores

SPLITS = ("train", "validation", "test")
EXAMPLES = """
lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus
lorakit evaluate --model runs/mine/model --dataset path/to/corpus --split validation --json scores.json
lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus --errors errors.html
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `evaluate` to the commands."""
    about = "score a fine-tuned model on a corpus: seqeval's default and strict modes, and each entity type"
    parser = add_command(commands, "evaluate", about, EXAMPLES, run)
    add_config_flag(parser)
    add_saved_flags(parser)
    add_corpus_flags(parser, "corpus: a folder or file in any format of docs/corpora.md, or a hub id", required=True)
    about = "default: %(default)s, or all of a file and of a folder with one split"
    parser.add_argument("--split", choices=SPLITS, default="test", help=about)
    add_precision_flag(parser)
    add_device_flag(parser)
    add_packing_flag(parser)
    add_decode_flag(parser)
    add_json_flag(parser)
    about = (
        "also write what goes wrong: .html for a page, .json for the data: confusion by type and border, forms, seen "
    )
    about += "and unseen, worst sentences, suspected label errors, sentences in two splits"
    parser.add_argument("--errors", type=file_or_folder, metavar="FILE", help=about)


def run(arguments: argparse.Namespace) -> int:
    """Score and print; returns the exit status."""
    from lorakit.training.distributed import device, is_main
    from lorakit.training.evaluation import evaluate
    from lorakit.training.models import load_tagger

    with processes(arguments):
        with input_errors(arguments.parser):
            if arguments.json:
                check_writable(arguments.json.parent, "--json")
            if arguments.errors:
                check_writable(arguments.errors.parent, "--errors")
                if arguments.errors.suffix.lower() not in (".html", ".json"):
                    raise ValueError(f"--errors {arguments.errors} must end in .html, for a page, or .json")
            for flag, output in (("--json", arguments.json), ("--errors", arguments.errors)):
                check_not_read(output, arguments.dataset, flag)
            data = read_corpus(arguments)
            split = split_of(arguments, data)
            sentences = getattr(data, split)
            labels, check_base = tag_names(arguments.labels), not arguments.no_check_base
            model, tokenizer = load_tagger(arguments.adapter, arguments.model, labels, check_base)
            model.to(device())
            describe_corpus(data, arguments.parser.prog, Notes(arguments.parser))
            scores = evaluate(
                model, tokenizer, sentences, arguments.precision, arguments.packing, decode=arguments.decode
            )
            tagged = tag_split_words(model, tokenizer, sentences, arguments) if arguments.errors else []
        if is_main():
            record = {
                "adapter": arguments.adapter,
                "model": arguments.model,
                "dataset": data.source,
                "split": split,
                "sentences": len(sentences),
                **scores.to_json(),
            }
            write_json(record, arguments.json, as_text(record, scores))
            if arguments.errors:  # after the scores, which a full disk does not take
                found = write_errors(arguments, data, split, tagged)
                print("" if str(arguments.json) == "-" else f"\n{found}", end="")
    return 0


def tag_split_words(
    model: Any, tokenizer: Any, sentences: Sequence[tuple[Sequence[str], Sequence[str]]], arguments: argparse.Namespace
) -> "list[Tagged]":
    """The sentences with their gold and predicted entities, at the scores that `predict` gives them.

    With several processes all have to call it.
    """
    from lorakit.report.errors import Tagged
    from lorakit.training.calibration_file import folder_of, load_calibration
    from lorakit.training.evaluation import label_names, tag_words

    labels, words = label_names(model), [words for words, _ in sentences]
    calibration = load_calibration(folder_of(arguments.adapter, arguments.model))
    found = tag_words(
        model,
        tokenizer,
        words,
        arguments.precision,
        arguments.packing,
        decode=arguments.decode,
        temperature=calibration.temperature if calibration else 1.0,
    )
    own = scheme_of_labels({"O", *(tag for _, tags in sentences for tag in tags)})
    scheme, tag_of = scheme_of_labels(labels) or "iob2", with_prefixes(labels)
    return [
        Tagged(
            row,
            spans([tag_of[tag] for tag in in_labels_of(gold, labels, own=own)], scheme),
            spans([tag_of[tag] for tag in tags], scheme),
            probabilities,
        )
        for (row, gold), tags, probabilities in zip(sentences, found.tags, found.probabilities, strict=True)
    ]


def write_errors(arguments: argparse.Namespace, data: NerData, split: str, tagged: "list[Tagged]") -> str:
    """Write the file of --errors; returns its main figures as text."""
    from lorakit.report.errors import find_errors
    from lorakit.report.errors_page import errors_page, errors_text

    tags = {tag for _, tags in data.train for tag in tags} | {"O"}
    scheme, tag_of = scheme_of_labels(tags) or "iob2", with_prefixes(tags)
    train = [(words, spans([tag_of[tag] for tag in row], scheme)) for words, row in data.train]
    errors = find_errors(
        tagged,
        train if split != "train" else None,
        {name: [words for words, _ in getattr(data, name)] for name in SPLITS},
    )
    arguments.errors.parent.mkdir(parents=True, exist_ok=True)
    title = f"{arguments.adapter or arguments.model} on the {split} set of {data.source}"
    if arguments.errors.suffix.lower() == ".json":
        write_text(arguments.errors, json.dumps(errors.to_json(), indent=1, ensure_ascii=False) + "\n")
    else:
        write_text(arguments.errors, errors_page(errors, tagged, title))
    return f"{errors_text(errors)}written: {arguments.errors}{_linked_by(arguments.errors)}\n"


def _linked_by(page: Path) -> str:
    """What makes the report of a run link to the page, where the page is in a run's folder."""
    for run in (page.parent, page.parent.parent):
        if page.match("errors*.html") and (run / "comparison.json").is_file():
            return f" (lorakit report {shlex.quote(str(run))} makes a report that links to it)"
    return ""


def split_of(arguments: argparse.Namespace, data: NerData) -> str:
    """The split to score: --split, or without it the test set, or the only split there is.

    Raises:
        ValueError: The corpus does not have it.
    """
    there = [name for name in SPLITS if getattr(data, name)]
    if arguments.split in there:
        return arguments.split
    if "split" not in arguments.given and len(there) == 1:
        return there[0]
    raise ValueError(f"{data.source} has no {arguments.split} set; it has {', '.join(there)}: choose one with --split")


def as_text(record: dict[str, Any], scores: "Scores") -> str:
    """The scores as a table, in seqeval's default and strict modes: all entities, then each type."""
    from lorakit.report.tables import markdown_table
    from lorakit.training.metrics import EntityScores

    everything = EntityScores(
        scores.precision, scores.recall, scores.f1, sum(t.support for t in scores.by_type.values())
    )
    rows = [("all", everything, scores.strict)]
    rows += [(name, row, scores.strict_by_type.get(name)) for name, row in scores.by_type.items()]
    header = ["entities", "precision", "recall", "F1", "strict precision", "strict recall", "strict F1", "in gold"]
    table = markdown_table(
        header, [[n, *_cells(default), *_cells(strict), str(default.support)] for n, default, strict in rows]
    )
    part = "all of" if Path(record["dataset"]).is_file() else f"the {record['split']} set of"
    return (
        f"{record['adapter'] or record['model']} on {part} {record['dataset']}"
        f" ({counted(record['sentences'], 'sentence')})\n\n{table}\n\n"
        f"words with the right tag: {scores.accuracy:.4f}; loss per word: {scores.loss:.4f}\n"
    )


def _cells(scores: "EntityScores | None") -> list[str]:
    return ["–"] * 3 if scores is None else [f"{v:.4f}" for v in (scores.precision, scores.recall, scores.f1)]
