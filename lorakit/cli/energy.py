"""`lorakit energy`: measure any command, say what can be measured here, add up runs."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit._files import write_text
from lorakit.cli.config import add_config_flag
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import Parser, add_command
from lorakit.energy import EnergyMeter
from lorakit.power.journal import Run, read_journal
from lorakit.power.legacy import codecarbon_v2_model
from lorakit.power.nvml import SensorUnavailable, close_nvml, memory_bytes, open_nvml
from lorakit.power.rapl import diagnose
from lorakit.power.reading import Quantity, Reading, add_readings, describe

EXAMPLES = """
lorakit energy run -- python train.py     measure what a command uses on this machine
lorakit energy doctor                     show what can be measured here, and how to enable the rest
lorakit energy merge node-*.jsonl         add up nodes or restarts
"""
RUN_EXAMPLES = """examples:
  lorakit energy run --json cost.json -- python train.py
  lorakit energy run --config site.yaml -- python train.py      your grid's co2, out, … from a file
"""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)  # a command expects them as the system has them
SI_KERNEL = 0x80  # si_code of Linux for a signal that no process sent
WAIT_S = 0.5  # between looks at the command and at what another thread was given


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
    run.add_argument("--out", type=Path, metavar="FILE", help="append readings here as they come; survives a kill")
    about = "measure the idle machine first, for so many s (default: not at all)"
    run.add_argument("--baseline", type=_at_least_0, default=0.0, metavar="X", help=about)
    about = "your grid's grams of CO2 per kWh; there is no default"
    run.add_argument("--co2", type=_at_least_0, metavar="X", help=about)
    run.add_argument("--codecarbon2", action="store_true", help="also print what CodeCarbon 2.x would have said")
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    doctor = commands.add_parser(
        "doctor",
        help="what can be measured here, what is missing, how to enable it",
        epilog="examples:\n  lorakit energy doctor --seconds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    about = "how long to measure (default: %(default)s)"
    doctor.add_argument("--seconds", type=_at_least_0, default=1.0, metavar="X", help=about)
    about = "the kernel's folder, such as a host's (default: %(default)s)"
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
    except KeyboardInterrupt:  # before or after the command; what comes while it runs is passed on to it
        return 128 + signal.SIGINT


def _say(text: object) -> None:
    """To stderr only: stdout is the command's, also where stderr is closed (print would then take stdout)."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it any more; the command's status counts
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m lorakit.cli.energy …`."""
    parser = Parser(prog="lorakit energy", description=__doc__)
    add_arguments(parser)
    return execute(parser.parse_args(argv))


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
        raise ValueError("--json -: standard output is the command's own; give a file")
    if not command:
        raise ValueError("no command is given: lorakit energy run -- python train.py")
    if arguments.json is not None and not (
        arguments.json.parent.is_dir() and os.access(arguments.json.parent, os.W_OK)
    ):
        raise ValueError(f"--json {arguments.json}: the folder {arguments.json.parent} cannot be written")
    if shutil.which(command[0]) is None:
        known = Path(command[0]).exists()
        _say(f"lorakit energy run: {command[0]}: {'permission denied' if known else 'not found'}")
        return 126 if known else 127  # as a shell says it
    meter = EnergyMeter(arguments.powercap, out=arguments.out, idle_s=arguments.baseline)
    try:
        with meter:
            status = run_command(command)
    except OSError as error:  # the kernel refuses it: a script whose interpreter is missing, another machine's binary
        _say(f"lorakit energy run: {command[0]} cannot be run: {error}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    reading = meter.reading
    _say(report(reading, arguments.co2))
    total_bytes = memory_bytes(Path("/proc"))
    if arguments.codecarbon2 and total_bytes is not None:
        gpu_kwh = None if reading.gpu.wh is None else reading.gpu.wh / 1e3
        _say(codecarbon_v2_model(reading.duration_s, total_bytes, gpu_kwh=gpu_kwh))
    if arguments.json is not None:
        try:
            record = {"command": command, "exit_status": status, **reading.to_json()}
            write_text(arguments.json, json.dumps(record, indent=2, allow_nan=False) + "\n")
        except OSError as error:  # the command has run: its status is passed through whatever becomes of the file
            _say(f"lorakit energy run: --json {arguments.json} was not written: {error}")
    return status


def run_command(command: Sequence[str]) -> int:
    """Run a command as a shell would; returns its exit status, 128 + n if signal n ended it.

    Its stdin, stdout and stderr are ours, untouched. Signals sent to us are passed on, but for a terminal's Ctrl-C,
    which it gets by itself. A signal that is ignored (nohup) stays so, for the command too.

    Raises:
        OSError: the kernel cannot start it.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS: what is sent to us alone does not reach the command
        return _exit_status(subprocess.call(list(command)))
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # the system would throw the status away
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    awaited, taken = ours | {signal.SIGCHLD}, []
    # a thread of a driver or library that does not block them may be given one, and its default action would end us
    handlers = {number: signal.signal(number, lambda number, _: taken.append(number)) for number in ours}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # they wait until we ask for them: none is lost
    try:
        early = list(_arrived(ours))
        child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=before, setsigdef=PYTHON_IGNORES)
        for info in early:  # also of the terminal: there was no command yet to get it
            os.kill(child, info.si_signo)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _exit_status(os.waitstatus_to_exitcode(status))
            while taken:
                if (number := taken.pop(0)) != signal.SIGINT or not os.isatty(0):  # a terminal's goes to both
                    os.kill(child, number)
            info = signal.sigtimedwait(awaited, WAIT_S)
            if info is not None and info.si_signo != signal.SIGCHLD and not _from_terminal(info):
                os.kill(child, info.si_signo)
    finally:
        list(_arrived(ours))  # what came for a command that has ended has nobody to go to
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _exit_status(code: int) -> int:
    return 128 - code if code < 0 else code


def _arrived(numbers: Iterable[int]) -> Iterator[signal.struct_siginfo]:
    """Signals of these numbers that wait already."""
    while (info := signal.sigtimedwait(numbers, 0)) is not None:
        yield info


def _from_terminal(info: signal.struct_siginfo) -> bool:
    """Whether this is a Ctrl-C, which the kernel sends to the whole foreground group, and not somebody's `kill`."""
    return info.si_signo == signal.SIGINT and info.si_code == SI_KERNEL


def report(reading: Reading, co2_g_per_kwh: float | None = None) -> str:
    """The reading for people: the three parts, then each total by what it holds."""
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
    if reading.cpu.method not in ("counter", "sampled"):
        lines += [f"     {access.state}: {access.reason}", f"     enable: {access.fix}"]
    lines.append(f"RAM  {_state(reading.ram)}")
    if reading.ram.method != "counter":
        has_rapl = access.state == "measured"
        lines.append("     this CPU has no DRAM counter" if has_rapl else "     with RAPL, as for the CPU")
    for quantity in (reading.gpu, reading.cpu, reading.ram):
        lines += [f"     counted: {part['id']} {part['name']}" for part in quantity.devices if part["kwh"] is not None]
        lines += [f"     not counted: {part['id']} {part['name']}: {part['why']}" for part in quantity.not_counted]
    lines += [f"note {note}" for note in reading.notes]
    print("\n".join(lines))
    return 0 if reading.measured_wh is not None else 1


def _gpu_fix() -> list[str]:
    """What would make GPUs seen, if they are not because NVML does not start."""
    try:
        close_nvml(open_nvml())
    except SensorUnavailable as error:
        return [error.fix]
    return []


def _state(quantity: Quantity) -> str:
    return ("measured: " if quantity.method in ("counter", "sampled") else "") + describe(quantity)


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


def merge_runs(runs: Sequence[tuple[Path, Run]]) -> Reading:
    """Sum runs of any nodes and times.

    The duration is the time in which at least one of them ran, and mean powers are over that.

    Raises:
        ValueError: a run has no reading, or a device is counted twice over the same time.
    """
    seen: dict[tuple[str, str], list[tuple[float, float, Path]]] = {}
    readings = []
    for path, run in runs:
        if run.reading is None or not run.start:
            raise ValueError(f"{path}: the run {run.run} ended before its first reading; leave it out")
        try:
            readings.append(Reading.from_json(run.reading))
            add_readings([readings[-1], readings[-1]])  # shows now, and by file, what cannot be added up
            counted = list(_counted(run.reading))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: the reading of run {run.run} is not lorakit's: {error!r}") from error
        begin, end = run.start["boottime_s"], run.boottime_s
        for device in counted:
            others = seen.setdefault((run.start["boot_id"], device), [])
            for other_begin, other_end, other in others:
                if begin < other_end and other_begin < end:
                    raise ValueError(
                        f"{device} of {run.start['host']} is counted in {other} and in {path} over the same "
                        f"{min(end, other_end) - max(begin, other_begin):.1f} s: merge only one of them"
                    )
            others.append((begin, end, path))
    total = add_readings(readings)
    duration_s = _union((run.start["wall_s"], run.wall_s) for _, run in runs)
    parts = {kind: _over(getattr(total, kind), duration_s) for kind in ("gpu", "cpu", "ram")}
    others = {name: _over(part, duration_s) for name, part in total.others.items()}
    return replace(total, **parts, others=others, duration_s=duration_s)


def _counted(reading: dict[str, Any]) -> Iterable[str]:
    for kind in ("gpu", "cpu", "ram"):
        if reading[kind]["method"] == "estimated":
            yield f"the {kind.upper()} (estimate)"
        yield from (part["id"] for part in reading[kind]["devices"] if part["kwh"] is not None)


def _over(quantity: Quantity, duration_s: float) -> Quantity:
    mean_w = quantity.wh * 3600 / duration_s if quantity.wh is not None and duration_s > 0 else None
    return replace(quantity, mean_w=mean_w)


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals, s."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    sys.exit(main())
