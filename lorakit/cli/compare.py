"""`lorakit compare`: whether one setting is better than another, or whether its runs cannot tell."""

import argparse
from pathlib import Path

from lorakit._files import check_not_read
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import add_command, input_errors

EXAMPLES = """
lorakit compare runs/bionlp                                   its two modes, LoRA against full
lorakit compare runs/seed-*/full runs/seed-*/lora             several seeds of each
lorakit compare runs/r8 runs/r32 --margin 0.005               equal if the difference of F1 is surely below 0.005
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `compare` to the commands."""
    about = "compare runs: intervals, and better, worse, equal or cannot tell"
    parser = add_command(commands, "compare", about, EXAMPLES, run)
    add = parser.add_argument
    about = "a run's folder, or an output folder with a run of each mode; runs that differ only in the seed form a side"
    add("runs", nargs="+", type=Path, metavar="RUN", help=about)
    add("--margin", type=float, metavar="X", help="call F1 equal if the interval of the difference is inside ±X")
    add("--split", choices=("test", "validation"), default="test", help="default: %(default)s")
    add_json_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; returns the exit status."""
    from lorakit.report.run_comparison import compare_runs, comparison_text

    with input_errors(arguments.parser):
        record = compare_runs(arguments.runs, arguments.split, arguments.margin)
        check_not_read(arguments.json, [Path(run, "comparison.json") for run in arguments.runs], "--json")
        write_json(record, arguments.json, comparison_text(record))
    return 0
