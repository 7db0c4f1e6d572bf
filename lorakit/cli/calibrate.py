"""`lorakit calibrate`: scores that mean something, fitted on a validation set and saved beside the weights."""

import argparse
from pathlib import Path

from lorakit.cli.config import add_config_flag
from lorakit.cli.corpora import add_corpus_flags, read_corpus
from lorakit.cli.flags import (
    add_decode_flag,
    add_device_flag,
    add_precision_flag,
    add_saved_flags,
    check_writable,
    tag_names,
)
from lorakit.cli.parser import add_command, input_errors, processes

EXAMPLES = """
lorakit calibrate --adapter runs/mine/adapter --dataset path/to/corpus
lorakit predict "IL-2 gene" --adapter runs/mine/adapter --min-score DNA=0.8 --min-precision protein=0.95
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `calibrate` to the commands."""
    about = "fit the scores of a trained model on a validation set, for --min-score and --min-precision of predict"
    parser = add_command(commands, "calibrate", about, EXAMPLES, run)
    add_config_flag(parser)
    add_saved_flags(parser)
    add_corpus_flags(
        parser,
        "corpus, of which the validation set is taken, or a file, all of it: CoNLL, IOB2, JSON lines, or a hub id",
        required=True,
    )
    add_precision_flag(parser)
    add_decode_flag(parser)
    add_device_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate and say what came out; returns the exit status."""
    from lorakit.training.calibration import calibrate
    from lorakit.training.calibration_file import save_calibration
    from lorakit.training.distributed import device, is_main
    from lorakit.training.models import load_tagger

    with processes(arguments), input_errors(arguments.parser):
        folder = Path(arguments.adapter or arguments.model or "")
        if (arguments.adapter or arguments.model) and not folder.is_dir():
            raise ValueError(
                f"{folder} is not a folder, so the calibration cannot be saved beside its weights; download it first"
            )
        check_writable(folder, "--adapter" if arguments.adapter else "--model")
        data = read_corpus(arguments)
        alone = all(Path(name).is_file() for name in arguments.dataset)  # files have no splits: all is train
        sentences = data.validation or (data.train if alone else ())
        if not sentences:
            raise ValueError(f"{data.source} has no validation set; calibrate on one that training has not seen")
        labels, check_base = tag_names(arguments.labels), not arguments.no_check_base
        model, tokenizer = load_tagger(arguments.adapter, arguments.model, labels, check_base)
        model.to(device())
        found = calibrate(model, tokenizer, sentences, arguments.precision, arguments.decode)
        if is_main():
            path = save_calibration(found, folder)
            counts = ", ".join(f"{kind} {len(rows):,}" for kind, rows in sorted(found.outcomes.items()))
            print(f"{path}: temperature {found.temperature:.3f}; predicted entities: {counts}")
    return 0
