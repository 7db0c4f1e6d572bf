"""The `lorakit` command: its subcommands, each owned by the file that does the work."""

import argparse
import sys
from collections.abc import Sequence

from lorakit.energy_cli import add_arguments, execute

EXAMPLES = """examples:
  lorakit energy run -- python train.py     what a command costs on this machine
  lorakit energy doctor                     what can be measured here, and how to enable what is missing
  lorakit energy merge node-*.jsonl         the sum over nodes or restarts
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lorakit", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="energy")
    add_arguments(commands.add_parser("energy", help="measure a command, diagnose sensors, add up runs"))
    return execute(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
