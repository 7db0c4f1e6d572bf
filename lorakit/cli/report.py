"""`lorakit report`: one HTML page about any runs, side by side."""

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  lorakit report runs/bionlp                                  writes runs/bionlp/report.html
  lorakit report runs/r8 runs/r32 --output ranks.html         two runs side by side
  lorakit report runs/r8 runs/r32 --label "r = 8" --label "r = 32" --f1 0.7 0.75
"""


def add_report_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `report` to a parser's subcommands; `run_report` takes what the parser returns."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page about runs: scores, curves, energy",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's output folder")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the run's folder; for several runs, here"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME", help="a run's name, once for each RUN")
    parser.add_argument(
        "--f1", nargs="+", type=_f1, default=[], metavar="X", help="show the cost of reaching these validation F1"
    )
    parser.set_defaults(run=run_report)
    return parser


def run_report(arguments: argparse.Namespace) -> int:
    """Write the page; returns the exit status."""
    from lorakit.report.page import write_page  # loads what --help need not wait for

    try:
        path = write_page(arguments.runs, arguments.output, arguments.label, arguments.f1)
    except (OSError, ValueError) as error:
        print(f"lorakit report: error: {error}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


def _f1(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not an F1 above 0 and up to 1")
    return value
