"""`lorakit energy`: measure any command, tell what can be measured here, add up runs."""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from lorakit._files import write_text
from lorakit.cli.child_process import run_command
from lorakit.cli.config import add_config_flag
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import add_command
from lorakit.energy import EnergyMeter
from lorakit.power.journal import merge_runs, read_journal
from lorakit.power.nvml import SensorUnavailable, close_nvml, open_nvml
from lorakit.power.rapl import diagnose
from lorakit.power.reading import KINDS, MEASURED, Measurement, Reading, describe

EXAMPLES = """
lorakit energy run -- python train.py     measure what a command uses on this machine
lorakit energy doctor                     show what can be measured here, and how to enable the rest
lorakit energy merge node-*.jsonl         add up nodes or restarts
"""
RUN_EXAMPLES = """examples:
  lorakit energy run --json cost.json -- python train.py
  lorakit energy run --config site.yaml -- python train.py      co2, out, … from a file
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `energy` to the commands."""
    about = "measure a command, diagnose sensors, add up runs"
    add_arguments(add_command(commands, "energy", about, EXAMPLES, execute))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands run, doctor and merge; `execute` takes what the parser returns."""
    commands = parser.add_subparsers(dest="energy_command", required=True, metavar="run|doctor|merge")
    run = commands.add_parser(
        "run",
        help="measure a command: lorakit energy run -- python train.py",
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(parser=run)
    add_config_flag(run)
    run.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    run.add_argument("--out", type=Path, metavar="FILE", help="append readings here while it runs; survives a kill")
    about = "measure the idle machine first, for X seconds (default: not at all)"
    run.add_argument("--baseline", type=_at_least_0, default=0.0, metavar="X", help=about)
    about = "your grid's grams of CO2 per kWh; there is no default"
    run.add_argument("--co2", type=_at_least_0, metavar="X", help=about)
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    doctor = commands.add_parser(
        "doctor",
        help="what can be measured here, what is missing, how to enable it",
        epilog="examples:\n  lorakit energy doctor --seconds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = "how long to measure, s (default: %(default)s)"
    doctor.add_argument("--seconds", type=_at_least_0, default=1.0, metavar="X", help=about)
    about = "the kernel's folder, for example a host's (default: %(default)s)"
    doctor.add_argument("--proc", type=Path, default=Path("/proc"), metavar="DIR", help=about)
    merge = commands.add_parser(
        "merge",
        help="add up journals; a device is never counted twice",
        epilog="examples:\n  lorakit energy merge node-1.jsonl node-2.jsonl --json sum.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a journal that --out wrote")
    add_json_flag(merge)
    about = "the kernel's folder (default: %(default)s)"
    for command in (run, doctor):
        command.add_argument("--powercap", type=Path, default=Path("/sys/class/powercap"), metavar="DIR", help=about)


def execute(arguments: argparse.Namespace) -> int:
    """Run a subcommand; returns the exit status."""
    try:
        return {"run": _run, "doctor": _doctor, "merge": _merge}[arguments.energy_command](arguments)
    except (OSError, ValueError) as error:
        _say(f"lorakit energy {arguments.energy_command}: {error}")
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


def _at_least_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 0 or more")
    return value


# ---- run


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if str(arguments.json) == "-":
        raise ValueError("--json -: standard output belongs to the command; give a file")
    if not command:
        raise ValueError("no command is given: lorakit energy run -- python train.py")
    if arguments.json is not None and not (
        arguments.json.parent.is_dir() and os.access(arguments.json.parent, os.W_OK)
    ):
        raise ValueError(f"--json {arguments.json}: the folder {arguments.json.parent} cannot be written")
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
    _say(report(reading, arguments.co2))
    if arguments.json is not None:
        try:
            record = {"command": command, "exit_status": status, **reading.to_json()}
            write_text(arguments.json, json.dumps(record, indent=2, allow_nan=False) + "\n")
        except OSError as error:  # the command has run: its status is passed on even if the file fails
            _say(f"lorakit energy run: --json {arguments.json} was not written: {error}")
    return status


def report(reading: Reading, co2_g_per_kwh: float | None = None) -> str:
    """The reading for people: the three parts, then the measured and the estimated total."""
    lines = [f"energy over {reading.duration_s:.1f} s", *(f"  {line}" for line in str(reading).splitlines())]
    lines += [f"  {name}: {describe(part)} (in no measured total)" for name, part in reading.others.items()]
    measured = "nothing" if reading.measured_wh is None else f"{reading.measured_wh:.4g} Wh"
    if reading.above_idle_wh is not None:
        measured += f", {reading.above_idle_wh:.4g} Wh above idle"
    lines.append(f"  measured in total: {measured}")
    if reading.estimated_wh is not None:
        low, high = reading.estimated_range_wh
        lines.append(f"  estimated besides: {low:.3g} to {high:.3g} Wh")
    if reading.process_share is not None:
        lines.append(f"  the command's share of the machine's CPU time: {reading.process_share:.0%}")
    if reading.contention is not None:
        lines.append(f"  meanwhile: {reading.contention.describe()}")
    if co2_g_per_kwh is not None and reading.measured_wh is not None:
        lines.append(f"  CO2 of the measured part at {co2_g_per_kwh:g} g/kWh: {reading.co2_kg(co2_g_per_kwh):.4g} kg")
    lines += [f"  note: {note}" for note in reading.notes]
    return "\n".join(lines)


# ---- doctor


def _doctor(arguments: argparse.Namespace) -> int:
    meter = EnergyMeter(arguments.powercap, thread=False, proc=arguments.proc)
    with meter:
        threading.Event().wait(arguments.seconds)
    reading, access = meter.reading, diagnose(arguments.powercap, arguments.proc)
    lines = [f"GPU  {_state(reading.gpu)}"]
    if reading.gpu.method == "unavailable" and not reading.gpu.not_counted:
        lines += [f"     enable: {fix}" for fix in _gpu_fix()]
    lines.append(f"CPU  {_state(reading.cpu)}")
    if reading.cpu.method not in MEASURED:
        lines += [f"     {access.state}: {access.reason}", f"     enable: {access.fix}"]
    lines.append(f"RAM  {_state(reading.ram)}")
    if reading.ram.method != "counter":
        has_rapl = access.state == "measured"
        lines.append("     this CPU has no DRAM counter" if has_rapl else "     with RAPL, as for the CPU")
    for kind in KINDS:
        part = getattr(reading, kind)
        lines += [f"     counted: {one['id']} {one['name']}" for one in part.devices if one["kwh"] is not None]
        lines += [f"     not counted: {one['id']} {one['name']}: {one['why']}" for one in part.not_counted]
    lines += [f"note {note}" for note in reading.notes]
    print("\n".join(lines))
    return 0 if reading.measured_wh is not None else 1


def _gpu_fix() -> list[str]:
    """How to make GPUs visible, if NVML does not start."""
    try:
        close_nvml(open_nvml())
    except SensorUnavailable as error:
        return [error.fix]
    return []


def _state(part: Measurement) -> str:
    return ("measured: " if part.method in MEASURED else "") + describe(part)


# ---- merge


def _merge(arguments: argparse.Namespace) -> int:
    runs = [(path, run) for path in arguments.files for run in read_journal(path)]
    reading = merge_runs(runs)
    lines = []
    for path, run in runs:
        state = "complete" if run.complete else "incomplete: ended without its last line"
        lines.append(f"{path}: {run.start['host']}, process {run.start['pid']}, {state}")
    data = {"files": [str(path) for path in arguments.files], "complete": all(run.complete for _, run in runs)}
    write_json({**data, **reading.to_json()}, arguments.json, "\n".join([*lines, report(reading)]) + "\n")
    return 0
