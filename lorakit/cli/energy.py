"""`lorakit energy`: measure any command, tell what can be measured here, add up runs, calibrate an estimate."""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from lorakit._files import check_not_read, write_text
from lorakit.cli.child_process import run_command
from lorakit.cli.config import add_config_flag
from lorakit.cli.energy_doctor import doctor
from lorakit.cli.energy_report import append_csv, check_csv, csv_row, measured_kwh, report, write_prometheus
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import add_co2_flag, add_command, add_sci_flags, at_least_0, file_or_folder
from lorakit.cli.wording import in_flags
from lorakit.energy import EnergyMeter
from lorakit.power.calibration import calibrate, calibration_file, machine_name, save_calibration
from lorakit.power.journal import merge_runs, read_journal
from lorakit.power.reading import JOULES_PER_WH, KINDS
from lorakit.report.carbon import Carbon

EXAMPLES = """
lorakit energy run -- python train.py     measure what a command uses on this machine
lorakit energy doctor                     show what can be measured here, and how to enable the rest
lorakit energy merge node-*.jsonl         add up nodes or restarts
lorakit energy calibrate --idle 38 --load 92     replace the estimate by a wall-outlet meter's readings
"""
FILE_FLAGS = ("json", "out", "csv", "prometheus")
CALIBRATE_EXAMPLES = """examples:
  for i in $(seq $(nproc)); do timeout 60 sh -c 'while :; do :; done' & done     a full load, to read the meter
  lorakit energy calibrate --idle 38 38.4 --load 92
"""
RUN_EXAMPLES = """examples:
  lorakit energy run --json cost.json -- python train.py
  lorakit energy run --co2 400 --embodied 120 --sci 1000 -- python predict.py     g of CO2 per unit of 1000
  lorakit energy run --csv emissions.csv --prometheus run.prom -- python train.py
  lorakit energy run --config site.yaml -- python train.py      co2, out, … from a file
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `energy` to the commands."""
    about = "measure a command, diagnose sensors, add up runs, calibrate"
    add_arguments(add_command(commands, "energy", about, EXAMPLES, execute))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands run, doctor, merge and calibrate; `execute` takes what the parser returns."""
    commands = parser.add_subparsers(dest="energy_command", required=True, metavar="run|doctor|merge|calibrate")
    run = commands.add_parser(
        "run",
        help="measure a command: lorakit energy run -- python train.py",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_flag(run)
    run.add_argument("--json", type=file_or_folder, metavar="FILE", help="also write the result here")
    run.add_argument(
        "--out", type=file_or_folder, metavar="FILE", help="append readings here while it runs; survives a kill"
    )
    about = "measure the idle machine first, for X seconds (default: not at all)"
    run.add_argument("--baseline", type=at_least_0, default=0.0, metavar="X", help=about)
    add_co2_flag(run)
    add_sci_flags(run)
    run.add_argument("--csv", type=file_or_folder, metavar="FILE", help="append a row in CodeCarbon's columns")
    about = "write the result as Prometheus text, for the node exporter's textfile collector"
    run.add_argument("--prometheus", type=file_or_folder, metavar="FILE", help=about)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    about_doctor = commands.add_parser(
        "doctor",
        help="what can be measured here, what is missing, how to enable it",
        epilog="examples:\n  lorakit energy doctor --seconds 5\n  lorakit energy doctor --json -\n\n"
        "exit status: 0 if at least one part was measured, 1 if all are estimated or unavailable, 2 for a wrong flag",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = "how long to measure, s (default: %(default)s)"
    about_doctor.add_argument("--seconds", type=at_least_0, default=1.0, metavar="X", help=about)
    about = "the kernel's folder, for example a host's (default: %(default)s)"
    about_doctor.add_argument("--proc", type=file_or_folder, default=Path("/proc"), metavar="DIR", help=about)
    add_json_flag(about_doctor)
    merge = commands.add_parser(
        "merge",
        help="add up journals; a device is never counted twice",
        epilog="examples:\n  lorakit energy merge node-1.jsonl node-2.jsonl --json sum.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.add_argument("files", nargs="+", type=file_or_folder, metavar="FILE", help="a journal that --out wrote")
    add_json_flag(merge)
    calibration = commands.add_parser(
        "calibrate",
        help="give an estimate the readings of a wall-outlet meter",
        epilog=CALIBRATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = "what the meter shows of the idle machine; several readings are averaged"
    calibration.add_argument("--idle", type=at_least_0, nargs="+", required=True, metavar="W", help=about)
    about = "what it shows while all CPUs are busy"
    calibration.add_argument("--load", type=at_least_0, nargs="+", required=True, metavar="W", help=about)
    about = "the meter's own error (default: %(default)s %%)"
    calibration.add_argument("--error", type=at_least_0, default=2.0, metavar="PERCENT", help=about)
    for command in (run, about_doctor, merge, calibration):
        command.set_defaults(parser=command)
    about = "the kernel's folder (default: %(default)s)"
    for command in (run, about_doctor):
        command.add_argument(
            "--powercap", type=file_or_folder, default=Path("/sys/class/powercap"), metavar="DIR", help=about
        )


def execute(arguments: argparse.Namespace) -> int:
    """Run a subcommand; returns the exit status."""
    try:
        return {"run": _run, "doctor": doctor, "merge": _merge, "calibrate": _calibrate}[arguments.energy_command](
            arguments
        )
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        _say(f"lorakit energy {arguments.energy_command}: error: {reason}")
        return 2
    except ValueError as error:
        _say(f"lorakit energy {arguments.energy_command}: error: {in_flags(str(error), arguments.parser)}")
        return 2
    except KeyboardInterrupt:  # before or after the command; while it runs, signals are passed on to it
        return 128 + signal.SIGINT


def _say(text: object) -> None:
    """Print to stderr, or nowhere if it is closed: stdout is the command's, and print would fall back to it."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more; the command's status is what counts
        pass


# ---- run


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if str(arguments.json) == "-":
        raise ValueError("--json -: standard output belongs to the command; give a file")
    if not command:
        raise ValueError("no command is given: lorakit energy run -- python train.py")
    given: dict[Path, str] = {}
    for flag in FILE_FLAGS:
        path = getattr(arguments, flag)
        _check_file(f"--{flag}", path)
        if path is not None and (other := given.setdefault(path.resolve(), flag)) != flag:
            raise ValueError(f"--{other} and --{flag} name the same file, {path}: give each its own")
    if arguments.csv is not None:
        check_csv(arguments.csv)
    carbon = Carbon(arguments.co2, arguments.embodied, arguments.sci)
    if shutil.which(command[0]) is None:
        known = Path(command[0]).exists()
        _say(f"lorakit energy run: {command[0]}: {'permission denied' if known else 'not found'}")
        return 126 if known else 127  # like a shell
    meter = EnergyMeter(arguments.powercap, out=arguments.out, idle_s=arguments.baseline)
    try:
        with meter:
            status = run_command(command)
    except OSError as error:  # the kernel refuses: a script whose interpreter is missing, a binary for another machine
        _say(f"lorakit energy run: {command[0]} cannot be run: {error}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    reading = meter.reading
    _say(report(reading, carbon))
    _say_advice(meter, arguments.baseline)
    record = {
        "command": command,
        "exit_status": status,
        **reading.to_json(),
        "carbon": carbon.to_json(measured_kwh(reading)),
    }
    _write("json", arguments.json, lambda path: write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n"))
    _write("csv", arguments.csv, lambda path: append_csv(path, csv_row(reading, Path(command[0]).name, carbon)))
    _write("prometheus", arguments.prometheus, lambda path: write_prometheus(path, reading, carbon))
    return status


def _write(flag: str, path: Path | None, write: Callable[[Path], object]) -> None:
    """Write a file, or say that it failed: the command has run, and its status is passed on anyway."""
    if path is None:
        return
    try:
        write(path)
    except Exception as error:  # of whatever kind
        reason = error if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        _say(f"lorakit energy run: --{flag} {path} was not written: {reason}")


def _say_advice(meter: EnergyMeter, baseline_s: float) -> None:
    """How long windows of this load must be, and how long to wait before the next run."""
    if meter.steadiness is not None:
        _say(f"  {meter.steadiness}")
    if baseline_s > 0 and meter.reading.measured_wh is not None:
        seconds = cool_down_s(meter, baseline_s)
        if seconds is None:
            _say(f"  cool-down: still above the idle power after {baseline_s:g} s; wait longer before the next run")
        else:
            _say(f"  cool-down: back at the idle power after {seconds:.0f} s; wait as long before the next run")


def cool_down_s(meter: EnergyMeter, most_s: float) -> float | None:
    """How long until the measured devices are at their idle power again, s; None if not within `most_s`.

    Idle is the baseline plus three of its standard errors, or 2 % if that is more.
    """
    known = {part["id"] for kind in KINDS for part in getattr(meter.reading, kind).devices if part["kwh"] is not None}
    idle = [meter.idle[device] for device in known if device in meter.idle]
    if not idle:
        return None
    allowed_w = sum(watts + max(3 * error, 0.02 * watts) for watts, error in idle)
    waited_s = joules = 0.0
    with meter.again() as second:  # one meter for all seconds: starting NVML anew may wake a GPU
        while waited_s < most_s:
            threading.Event().wait(1.0)
            reading, seen_s, seen_j = second.reading, waited_s, joules
            waited_s, joules = reading.duration_s, (reading.measured_wh or 0.0) * JOULES_PER_WH
            if reading.measured_wh is not None and joules - seen_j <= allowed_w * (waited_s - seen_s):
                return waited_s
    return None


def _check_file(flag: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the command runs, which may take hours. Creates nothing."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder; give a file")
    try:
        if path.exists():
            path.open("ab").close()
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = f"{error.strerror}; give a file in a folder that exists and that you may write to"
        raise ValueError(f"{flag} {path} cannot be written: {reason}") from error


# ---- calibrate


def _calibrate(arguments: argparse.Namespace) -> int:
    path = calibration_file(os.environ)
    if path is None:
        raise ValueError("neither XDG_CONFIG_HOME nor HOME is set: set one, the calibration is kept below it")
    found = calibrate(arguments.idle, arguments.load, arguments.error / 100, machine_name())
    save_calibration(path, found)
    low_j, high_j = found.range_j((found.load_w - found.idle_w) / 2, 1.0)
    at_half = f"at half load between {low_j:.3g} and {high_j:.3g} W"
    print(f"{path}: {found.machine}")
    print(f"  {found.source}, ±{found.error:.1%}; {at_half}")
    print("  it stands for CPU and RAM wherever this user measures on this machine and nothing better is found")
    print(f"  to go back to the generic estimate: rm {shlex.quote(str(path))}")
    return 0


# ---- merge


def _merge(arguments: argparse.Namespace) -> int:
    check_not_read(arguments.json, arguments.files, "--json")
    runs = [(path, run) for path in arguments.files for run in read_journal(path)]
    reading = merge_runs(runs)
    lines = []
    for path, run in runs:
        state = "complete" if run.complete else "incomplete: ended without its last line"
        lines.append(f"{path}: {run.start['host']}, process {run.start['pid']}, {state}")
    data = {"files": [str(path) for path in arguments.files], "complete": all(run.complete for _, run in runs)}
    write_json({**data, **reading.to_json()}, arguments.json, "\n".join([*lines, report(reading)]) + "\n")
    return 0
