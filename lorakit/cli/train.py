"""`lorakit train`: fine-tune a base on a corpus, with LoRA, in full, or both to compare them.

For one mode OUTPUT_DIR holds metrics.jsonl, energy.jsonl, checkpoints/ and adapter/ (LoRA) or model/ (full); for both,
OUTPUT_DIR/lora and OUTPUT_DIR/full hold the same. comparison.{json,md,png} and report.html in OUTPUT_DIR hold scores,
energy and parameters.
"""

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import (
    add_corpus_flags,
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_training_flags,
    check_writable,
    lora_options,
    modes_of,
    read_corpus,
    train_config,
)
from lorakit.cli.parser import add_command, input_errors
from lorakit.data.corpus import NerData
from lorakit.training.config import DEFAULT_LEARNING_RATE, TrainConfig

EXAMPLES = """
lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
lorakit train --mode both --model roberta-base --dataset path/to/corpus    compare LoRA with full fine-tuning
lorakit train --config settings.yaml --epochs 3                            a flag overrides the file
torchrun --nproc-per-node 2 -m lorakit.cli train --config settings.yaml    on two processes
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `train` to the commands."""
    parser = add_command(commands, "train", "fine-tune a base on a corpus: LoRA, in full, or both", EXAMPLES, run)
    add_config_flag(parser)
    add_mode_flag(parser, default="lora")
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_ID", help="base model")
    add_corpus_flags(parser, "corpus: a folder or file of CoNLL, IOB2 or JSON lines, or a hub id", required=True)
    add_training_flags(parser)
    add = parser.add_argument
    about = "batches per optimizer step (default: %(default)s)"
    add("--accumulate", type=int, default=TrainConfig.accumulate, metavar="N", help=about)
    about = "on weight matrices only (default: %(default)s)"
    add("--weight-decay", type=float, default=TrainConfig.weight_decay, metavar="X", help=about)
    about = "share of the steps in which the learning rate rises (default: %(default)s)"
    add("--warmup-ratio", type=float, default=TrainConfig.warmup_ratio, metavar="X", help=about)
    about = "clip the gradient to this norm (default: %(default)s)"
    add("--max-grad-norm", type=float, default=TrainConfig.max_grad_norm, metavar="X", help=about)
    about = "stop after N epochs without a better validation F1 (default: never)"
    add("--patience", type=int, default=TrainConfig.patience, metavar="N", help=about)
    about = "save a checkpoint every N steps, besides the one after each epoch"
    add("--save-every", type=int, default=TrainConfig.save_every, metavar="N", help=about)
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/train")


def run(arguments: argparse.Namespace) -> int:
    """Train, save and compare; returns the exit status."""
    both = arguments.mode == "both"

    def folder_of(mode: str) -> Path:
        return arguments.output_dir / mode if both else arguments.output_dir

    command = shlex.join(["lorakit", *arguments.argv])
    return fine_tune(arguments, read_corpus, folder_of, command, arguments.model, keep_full=True)


def fine_tune(
    arguments: argparse.Namespace,
    read: Callable[[argparse.Namespace], NerData],
    folder_of: Callable[[str], Path],
    command: str,
    name: str,
    learning_rates: Mapping[str, float] = DEFAULT_LEARNING_RATE,
    keep_full: bool = False,
    study: bool = False,
) -> int:
    """Fine-tune in each mode of --mode, and compare: the body of `lorakit train` and of examples/bionlp.py.

    An error in the input, also one that only the files of the base can show, ends the program before anything is
    written.

    Args:
        arguments: What the flags of cli/flags.py set, and `parser`.
        read: Reads the corpus.
        folder_of: The output folder of a mode, inside --output-dir.
        command: The command line, for the record.
        name: The base's name, for the record.
        learning_rates: By mode, where --learning-rate is left out.
        keep_full: Save the model that was fine-tuned in full, and print how to use what was saved.
        study: Show the study's published figures beside ours.

    Returns:
        The exit status.
    """
    from lorakit.cli.building import TaggerBuilder
    from lorakit.cli.comparison import environment, print_comparison
    from lorakit.cli.measured_training import exit_status, saved_as, train_mode
    from lorakit.report.comparison import comparison_record
    from lorakit.report.output import write_comparison
    from lorakit.report.page import write_page
    from lorakit.training.distributed import is_main, process_group
    from lorakit.training.preemption import Preempted

    with process_group():
        with input_errors(arguments.parser):
            modes = modes_of(arguments)
            data = read(arguments)
            configs = {mode: train_config(arguments, mode, folder_of(mode), learning_rates) for mode in modes}
            check_writable(arguments.output_dir)
            options = (lora_options(arguments), arguments.seed, arguments.dropout, arguments.cache_prefix)
            builder = TaggerBuilder(modes, arguments.model, data.labels, *options)
        try:
            records = {mode: train_mode(mode, builder, data, configs[mode], keep_full) for mode in modes}
        except (Preempted, FloatingPointError, MemoryError) as stopped:
            return exit_status(stopped, arguments.parser.prog)
        if is_main():
            record = comparison_record(command, environment(), name, data.source, records, study=study)
            write_comparison(record, arguments.output_dir)
            write_page([arguments.output_dir])
            print_comparison(record, arguments.output_dir)
            for mode in modes if keep_full else ():
                saved = shlex.join(saved_as(mode, folder_of(mode)))
                print(f"try it: lorakit predict {saved} 'a sentence of yours'")
    return 0
