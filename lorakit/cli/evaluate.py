"""`lorakit evaluate`: the scores of a fine-tuned model on a split of a corpus."""

import argparse
from typing import Any

from lorakit.cli.flags import check_writable, input_errors, read_corpus
from lorakit.cli.json_output import write_json
from lorakit.report.tables import markdown_table
from lorakit.training.distributed import device, is_main, process_group
from lorakit.training.evaluation import evaluate
from lorakit.training.metrics import EntityScores, Scores
from lorakit.training.models import load_tagger


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Score and show; returns the exit status."""
    with process_group():
        with input_errors(arguments.parser):
            if arguments.json:
                check_writable(arguments.json.parent, "--json")
            data = read_corpus(arguments)
            sentences = getattr(data, arguments.split)
            if not sentences:
                there = [name for name in ("train", "validation", "test") if getattr(data, name)]
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


def as_text(record: dict[str, Any], scores: Scores) -> str:
    """The scores for people: all, then each type, in seqeval's default and strict modes."""
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
        f"words with the right tag: {scores.accuracy:.4f}; loss a word: {scores.loss:.4f}\n"
    )


def _cells(scores: EntityScores | None) -> list[str]:
    return ["–"] * 3 if scores is None else [f"{v:.4f}" for v in (scores.precision, scores.recall, scores.f1)]
