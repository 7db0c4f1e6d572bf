"""The `lorakit` command: train, tune, score, predict, export, calibrate, corpora, params, energy, report, compare."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lorakit.cli.parser import Parser, in_words
from lorakit.cli.stopping import stoppable
from lorakit.cli.wording import in_flags

PACKAGE = Path(__file__).parents[1]

# Each is a file of this folder with `add_parser`. They are imported by name, as `lorakit` imports its public names, so
# the import graph ends in the commands: no layer is added on top of them by this table.
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "calibrate",
    "tune",
    "data",
    "params",
    "energy",
    "report",
    "compare",
)
EXAMPLES = """examples:
  lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
  lorakit evaluate --adapter runs/mine/adapter --dataset path/to/corpus
  lorakit predict --adapter runs/mine/adapter "IL-2 gene expression requires NF-kappa B."
  lorakit export runs/mine exported --to onnx     write it for other programs, proven equal
  lorakit calibrate --adapter runs/mine/adapter --dataset path/to/corpus     make its scores mean something
  lorakit tune --model roberta-base --dataset path/to/corpus --budget 20m    find its rate, rank and layers
  lorakit data show path/to/corpus          show how a corpus is read, its counts and notes; convert it
  lorakit params roberta-base --num-labels 11 --r 16 --target-modules query value
  lorakit energy run -- python train.py     measure what a command uses on this machine
  lorakit energy doctor                     show what can be measured here, and how to enable the rest
  lorakit energy merge node-*.jsonl         add up nodes or restarts
  lorakit report runs/bionlp                write an HTML page about a run, or about several side by side
  lorakit compare runs/bionlp               say whether LoRA is better, worse or equal, or that one cannot tell

lorakit COMMAND --help shows the flags of a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a folder's name may not be UTF-8
    return stoppable("lorakit", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions; this call answers and ends the process
        import argcomplete  # in the extra "completion"

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    arguments.argv = argv
    try:
        with own_warnings(getattr(arguments, "parser", parser)):
            return arguments.run(arguments)
    except BrokenPipeError:  # the reader of `lorakit … | head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell reports it
    except OSError as error:  # a full disk, for example, once the work has begun
        print(f"{arguments.parser.prog}: {in_words(error)}", file=sys.stderr)
        return 1


@contextmanager
def own_warnings(parser: Parser) -> Iterator[None]:
    """While active, a warning of this package is one line for a shell, without a place in the code."""
    usual = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], filename: str, *more: Any, **also: Any) -> str:
        if not Path(filename).is_relative_to(PACKAGE):
            return usual(message, category, filename, *more, **also)
        return f"{parser.prog}: warning: {in_flags(' '.join(str(message).split()), parser)}\n"

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = usual


def build_parser() -> Parser:
    """The parser of `lorakit` with all commands. It loads no torch, so --help and a mistyped flag answer at once."""
    parser = Parser(prog="lorakit", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"lorakit {sys.modules['lorakit'].__version__}")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"lorakit.cli.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
