"""`lorakit report`: one HTML page about runs, side by side."""

import argparse

from lorakit.cli.parser import add_co2_flag, add_command, add_sci_flags, file_or_folder, input_errors

EXAMPLES = """
lorakit report runs/bionlp                                  writes runs/bionlp/report.html
lorakit report runs/r8 runs/r32 --output ranks.html         two runs side by side
lorakit report runs/r8 runs/r32 --label "r = 8" --label "r = 32" --f1 0.7 0.75
lorakit report runs/bionlp --co2 400                        and the CO2 of what was measured, at 400 g/kWh
lorakit report runs/bionlp --co2 400 --embodied 120 --sci 1     and the SCI of ISO 21031, for one trained model
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `report` to the commands."""
    about = "write one HTML page about runs: scores, curves, energy"
    parser = add_command(commands, "report", about, EXAMPLES, run)
    add = parser.add_argument
    add("runs", nargs="+", type=file_or_folder, metavar="RUN", help="the output folder of a run")
    about = "default: report.html in the run's folder; for several runs, in the current folder"
    add("--output", type=file_or_folder, metavar="FILE", help=about)
    add("--label", action="append", default=[], metavar="NAME", help="a run's name; repeat it for each RUN")
    add_co2_flag(parser, "default: the factor that the run was given")
    add_sci_flags(parser)
    about = "also show what it cost to reach these validation F1 scores"
    add("--f1", nargs="+", type=_f1, default=[], metavar="X", help=about)


def run(arguments: argparse.Namespace) -> int:
    """Write the page; returns the exit status."""
    from lorakit.report.carbon import Carbon
    from lorakit.report.page import write_page

    with input_errors(arguments.parser):
        given = (arguments.co2, arguments.embodied, arguments.sci)
        carbon = None if given == (None, None, None) else Carbon(*given)
        path = write_page(arguments.runs, arguments.output, arguments.label, arguments.f1, carbon)
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
