"""The `lorakit` command: fine-tune, score, predict, count parameters, measure energy, report."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lorakit.cli.config import add_config_flag, apply_config, parse_with_config
from lorakit.cli.energy import add_arguments as add_energy_arguments
from lorakit.cli.energy import execute as run_energy
from lorakit.cli.flags import (
    Parser,
    add_corpus_flags,
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_precision_flag,
    add_saved_flags,
    add_training_flags,
    input_errors,
)
from lorakit.cli.json_output import add_json_flag
from lorakit.cli.report import add_report_parser

ENERGY_EXAMPLES = """examples:
  lorakit energy run -- python train.py     what a command costs on this machine
  lorakit energy doctor                     what can be measured here, and how to enable what is missing
  lorakit energy merge node-*.jsonl         the sum over nodes or restarts
"""
EXAMPLES = f"""examples:
  lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
  lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus
  lorakit predict --adapter runs/mine/adapter "IL-2 gene expression requires NF-kappa B."
  lorakit params roberta-base --num-labels 11 --r 16 --target-modules query value
  lorakit report runs/bionlp                one HTML page about a run, or several side by side
{ENERGY_EXAMPLES.partition(chr(10))[2]}
lorakit COMMAND --help shows a command's flags.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="lorakit", description=__doc__, epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND", parser_class=Parser)
    configured = {
        "train": _add_train(commands),
        "evaluate": _add_evaluate(commands),
        "predict": _add_predict(commands),
        "params": _add_params(commands),
    }
    about = "measure a command, diagnose sensors, add up runs"
    energy = commands.add_parser("energy", help=about, description=f"{about}.", epilog=ENERGY_EXAMPLES)
    add_energy_arguments(energy)
    energy.set_defaults(run=run_energy)
    add_report_parser(commands)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next; it ends here
        import argcomplete  # the extra "completion"

        argcomplete.autocomplete(parser)
    if argv and argv[0] in configured:
        with input_errors(configured[argv[0]]):
            apply_config(configured[argv[0]], argv[1:])
    arguments = parser.parse_args(argv) if argv and argv[0] in configured else parse_with_config(parser, argv)
    arguments.argv = argv
    try:
        return arguments.run(arguments)
    except BrokenPipeError:  # `lorakit … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says it: 128 + SIGPIPE


# Each command's flags. Its body is loaded when it runs, so that --help need not wait for torch.


def _add(commands: argparse._SubParsersAction, name: str, about: str, examples: str, run: Callable) -> Parser:
    epilog = f"examples:\n{examples}"
    parser = commands.add_parser(name, help=about, description=f"{about}.", epilog=epilog, allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser)
    add_config_flag(parser)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> Parser:
    def run(arguments: argparse.Namespace) -> int:
        from lorakit.cli.train import run_train

        return run_train(arguments)

    examples = """  lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
  lorakit train --mode both --model roberta-base --dataset path/to/corpus    compare LoRA with full fine-tuning
  lorakit train --config settings.yaml --epochs 3                            a flag overrules the file
  torchrun --nproc-per-node 2 -m lorakit.cli train --config settings.yaml    on two processes
"""
    parser = _add(commands, "train", "fine-tune a base on a corpus: LoRA, in full, or both", examples, run)
    add_mode_flag(parser, default="lora")
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_ID", help="base model")
    add_corpus_flags(parser, "corpus: a folder or file of CoNLL, IOB2 or JSON lines, or a hub id", required=True)
    add_training_flags(parser)
    add = parser.add_argument
    add("--accumulate", type=int, default=1, metavar="N", help="batches a step (default: %(default)s)")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="on matrices only (default: %(default)s)")
    add("--warmup-ratio", type=float, default=0.06, metavar="X", help="share of the steps (default: %(default)s)")
    add("--max-grad-norm", type=float, default=1.0, metavar="X", help="default: %(default)s")
    add("--patience", type=int, metavar="N", help="stop after N epochs without a better validation F1")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints, besides the one after each epoch")
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/train")
    return parser


def _add_evaluate(commands: argparse._SubParsersAction) -> Parser:
    def run(arguments: argparse.Namespace) -> int:
        from lorakit.cli.evaluate import run_evaluate

        return run_evaluate(arguments)

    examples = """  lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus
  lorakit evaluate --model runs/mine/model --dataset path/to/corpus --split validation --json scores.json
"""
    about = "score a fine-tuned model on a corpus: default and strict mode, each entity type"
    parser = _add(commands, "evaluate", about, examples, run)
    add_saved_flags(parser)
    add_corpus_flags(parser, "corpus: a folder or file of CoNLL, IOB2 or JSON lines, or a hub id", required=True)
    choices = ("train", "validation", "test")
    parser.add_argument("--split", choices=choices, default="test", help="default: %(default)s")
    add_precision_flag(parser)
    add_json_flag(parser)
    return parser


def _add_predict(commands: argparse._SubParsersAction) -> Parser:
    def run(arguments: argparse.Namespace) -> int:
        from lorakit.cli.predict import run_predict

        return run_predict(arguments)

    examples = """  lorakit predict --adapter runs/mine/adapter "IL-2 gene expression requires NF-kappa B."
  lorakit predict --adapter runs/mine/adapter --file sentences.txt --output entities.jsonl
  cat sentences.txt | lorakit predict --model runs/mine/model --format conll
"""
    parser = _add(commands, "predict", "find the named entities of texts", examples, run)
    add_saved_flags(parser)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="best a sentence each; without any: --file, or standard input")
    add("--file", type=Path, help="a text a line, UTF-8; - is standard input")
    formats = ("table", "jsonl", "conll", "terminal", "html")
    about = "default: by --output's ending, else terminal on one with colours (NO_COLOR is honoured), else table"
    add("--format", choices=formats, help=about)
    add("--output", type=Path, metavar="FILE", help="write here instead of printing")
    add_precision_flag(parser)
    return parser


def _add_params(commands: argparse._SubParsersAction) -> Parser:
    def run(arguments: argparse.Namespace) -> int:
        from lorakit.cli.params import run_params

        return run_params(arguments)

    examples = """  lorakit params roberta-base --num-labels 11 --r 16 --target-modules query value --bias all
  lorakit params path/to/folder-with-config.json --r 8 --bias none
"""
    about = "count what full fine-tuning and LoRA would train; needs a configuration, no weights"
    parser = _add(commands, "params", about, examples, run)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with config.json, that file, or a hub id")
    tasks = ("token-classification", "sequence-classification", "causal-lm")
    add("--task", choices=tasks, default=tasks[0], help="the model's head (default: %(default)s)")
    add("--num-labels", type=int, metavar="N", help="classes of the head (default: the configuration's)")
    add_lora_flags(parser)
    add_json_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
