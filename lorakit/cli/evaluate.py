"""`lorakit evaluate`: the scores of a fine-tuned model on a split of a corpus."""

import argparse
from typing import TYPE_CHECKING, Any

from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import add_corpus_flags, add_precision_flag, add_saved_flags, check_writable, read_corpus
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import add_command, input_errors

if TYPE_CHECKING:
    from lorakit.training.metrics import EntityScores, Scores

SPLITS = ("train", "validation", "test")
EXAMPLES = """
lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus
lorakit evaluate --model runs/mine/model --dataset path/to/corpus --split validation --json scores.json
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `evaluate` to the commands."""
    about = "score a fine-tuned model on a corpus: seqeval's default and strict modes, and each entity type"
    parser = add_command(commands, "evaluate", about, EXAMPLES, run)
    add_config_flag(parser)
    add_saved_flags(parser)
    add_corpus_flags(parser, "corpus: a folder or file of CoNLL, IOB2 or JSON lines, or a hub id", required=True)
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    add_precision_flag(parser)
    add_json_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score and print; returns the exit status."""
    from lorakit.training.distributed import device, is_main, process_group
    from lorakit.training.evaluation import evaluate
    from lorakit.training.models import load_tagger

    with process_group():
        with input_errors(arguments.parser):
            if arguments.json:
                check_writable(arguments.json.parent, "--json")
            data = read_corpus(arguments)
            sentences = getattr(data, arguments.split)
            if not sentences:
                there = [name for name in SPLITS if getattr(data, name)]
                raise ValueError(f"{data.source} has no {arguments.split} set; it has {', '.join(there)}")
            model, tokenizer = load_tagger(arguments.adapter, arguments.model)
            model.to(device())
            scores = evaluate(model, tokenizer, sentences, arguments.precision)
        if is_main():
            record = {
                "adapter": arguments.adapter,
                "model": arguments.model,
                "dataset": data.source,
                "split": arguments.split,
                "sentences": len(sentences),
                **scores.to_json(),
            }
            write_json(record, arguments.json, as_text(record, scores))
    return 0


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
    return (
        f"{record['adapter'] or record['model']} on the {record['split']} set of {record['dataset']}"
        f" ({record['sentences']:,} sentences)\n\n{table}\n\n"
        f"words with the right tag: {scores.accuracy:.4f}; loss per word: {scores.loss:.4f}\n"
    )


def _cells(scores: "EntityScores | None") -> list[str]:
    return ["–"] * 3 if scores is None else [f"{v:.4f}" for v in (scores.precision, scores.recall, scores.f1)]
