"""Whose energy meter is right: six meters on forty machines whose joules are known.

  python benchmarks/meters.py                                        all, about 20 minutes: results/meters.{json,md}
  python benchmarks/meters.py --machine psys --tool zeus             one cell, printed with what the meter said
  python benchmarks/meters.py --tool lorakit --update                one meter again, in the results that are there
  python benchmarks/meters.py --list                                 the machines and the meters

A machine is a folder with the kernel's files and a fake NVML (`meter_lab/machines.py` describes the forty). Each meter
runs in a process of its own, in real time: `meter_lab/enter.py` mounts the machine over /sys and parts of /proc in a
mount namespace, and a `pynvml` that answers for the machine stands before the real one on the path. No line of a meter
is changed, and none knows. Its numbers are compared with the known joules of the block that it measured; a sensor that
it does not claim to read is not held against it. Needs Linux and leave to make namespaces: root, or a kernel that lets
users have their own. The other meters are installed at the versions below into a temporary folder.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provenance import ROOT, BenchmarkParser, write_results

from lorakit.report.tables import markdown_table

sys.path.insert(0, str(ROOT / "benchmarks" / "meter_lab"))

from drive import CLAIMS
from machines import MACHINES, NAMED, Machine
from sensors import Tree
from verdict import VERDICTS, Verdict, is_claimed, judge, worst

LAB = ROOT / "benchmarks" / "meter_lab"
PINS = {
    "codecarbon": ("codecarbon==3.3.2",),
    "zeus": ("zeus==0.16.0",),
    "pyjoules": ("pyJoules[nvidia]==0.5.1",),
    "carbontracker": ("carbontracker==2.4.7",),
    "perun": ("perun[nvidia]==1.0.0",),
}
SETTINGS = {
    "lorakit": "`EnergyMeter`, a reading every second (the default, 5 s, leaves two in the block)",
    "codecarbon": "`OfflineEmissionsTracker`, a measurement every second (the default, 15 s, is longer than the block)",
    "zeus": "`ZeusMonitor()`, windows without `sync_execution`, because there is no CUDA to wait for",
    "pyjoules": "`EnergyMeter` on all devices that it finds; package, dram and GPU domains",
    "carbontracker": "`CarbonTracker`, one epoch; its energy before the data centre's factor (PUE) of 1.58",
    "perun": "the `@perun()` decorator; energy by device from its callback",
}
TICK_S = 0.01
LATE_S = 0.1  # counters that stood still for longer spoil a cell: it is repeated
VAGUE = 0.05  # so does not knowing what the block was
IMPATIENT = "failed to start within"  # Zeus' helpers have ten seconds to start
TRIES = 3
PATIENCE_S = 150.0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{machine.name:17} {machine.what}" for machine in MACHINES), "\n\n", ", ".join(CLAIMS))
        return 0
    machines = [NAMED[name] for name in options.machine or NAMED]
    with tempfile.TemporaryDirectory() as folder:
        pythons = {tool: install(tool, Path(options.venvs or folder)) for tool in options.tool or CLAIMS}
        begun = time.monotonic()
        cells = run_all(machines, pythons, options.seconds, options.at_once)
        seconds = time.monotonic() - begun
    found = {"seconds": options.seconds, "took_s": round(seconds), "cells": cells}
    if options.update:
        found = updated(json.loads((Path(options.output_dir) / f"{options.name}.json").read_text()), found)
    elif options.machine or options.tool:
        print("\n\n".join(describe(cell) for cell in cells))
        return 0
    write_results(options, found, report)
    return 0


def parse(arguments: list[str] | None) -> Any:
    parser = BenchmarkParser(prog="meters.py", description=__doc__)
    parser.add_argument("--machine", nargs="+", choices=list(NAMED), metavar="NAME", help="only these; see --list")
    parser.add_argument("--tool", nargs="+", choices=list(CLAIMS), metavar="TOOL", help="only these; see --list")
    parser.add_argument("--list", action="store_true", help="the names of the machines and of the meters")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of the measured block (default: 12)")
    parser.add_argument("--at-once", type=int, default=6, help="processes at a time (default: 6)")
    parser.add_argument("--update", action="store_true", help="replace these cells in the results of an earlier run")
    parser.add_argument("--venvs", help="keep the meters' environments in this folder, and use those that are there")
    options = parser.parse_args(arguments)
    for flag in ("--venvs", "--output-dir"):  # where, not what
        options.command = re.sub(rf" {flag}[ =]\S+", "", options.command)
    if not options.seconds >= 10:
        raise SystemExit(f"--seconds {options.seconds}: something happens to some machines after 6 s; use 10 or more")
    return options


def updated(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The results of an earlier run with the cells of this one, and its command kept."""
    if before["seconds"] != found["seconds"]:
        raise SystemExit(f"the earlier run's blocks were {before['seconds']:g} s: use --seconds {before['seconds']:g}")
    new = {(cell["machine"], cell["tool"]): cell for cell in found["cells"]}
    cells = [new.get((cell["machine"], cell["tool"]), cell) for cell in before["cells"]]
    earlier = [*before.get("earlier", ()), {name: before[name] for name in ("command", "versions", "took_s")}]
    return {**found, "cells": cells, "earlier": earlier}


def install(tool: str, folder: Path) -> Path:
    """The interpreter of a meter's own environment."""
    if tool == "lorakit":
        return Path(sys.executable)
    place = folder / tool
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS[tool]], check=True)
        (place / "installed").touch()
    return python


# ---- the cells


def run_all(machines: list[Machine], pythons: dict[str, Path], seconds: float, at_once: int) -> list[dict[str, Any]]:
    """Every meter on every machine with sensors that it claims; in the order of the machines, then of the meters."""

    def cell(machine: Machine, tool: str) -> dict[str, Any]:
        if not is_claimed(tool, machine):
            return cell_of(machine, tool, "unclaimed")
        return run_cell(machine, tool, pythons[tool], seconds)

    with ThreadPoolExecutor(at_once, initializer=be_prompt) as pool:
        return [
            future.result() for future in [pool.submit(cell, machine, tool) for machine in machines for tool in pythons]
        ]


def run_cell(machine: Machine, tool: str, python: Path, seconds: float) -> dict[str, Any]:
    """One meter on one machine; repeated if this computer was too busy to tell."""
    attempts, late_s, vague, result = 0, LATE_S + 1, VAGUE + 1, {"raised": ""}
    while (late_s > LATE_S or vague > VAGUE or IMPATIENT in result["raised"]) and attempts < TRIES:
        result, late_s = run_once(machine, tool, python, seconds)
        vague, attempts = vagueness(machine, result), attempts + 1
    verdicts = judge(machine, result)
    print(f"{machine.name:17} {tool:14} {'; '.join(f'{v.part} {v.text()}' for v in verdicts)}", flush=True)
    about = {"attempts": attempts, "late_s": late_s, "vague": vague, "raised": result["raised"]}
    return cell_of(machine, tool, worst(verdicts), verdicts, **about, spans=result["spans"])


def cell_of(machine: Machine, tool: str, verdict: str, parts: Iterable[Verdict] = (), **about: Any) -> dict[str, Any]:
    parts = [{**asdict(part), "text": part.text()} for part in parts]
    return {"machine": machine.name, "tool": tool, "verdict": verdict, "parts": parts, **about}


def vagueness(machine: Machine, result: dict[str, Any]) -> float:
    """How much of the true energy depends on when exactly the block began and ended; 0 where there is no number."""
    if all(answer["joules"] is None for answer in result["answers"].values()):
        return 0.0
    least, most = sorted(machine.joules(machine.judged, *span) for span in result["spans"])
    return (most - least) / most if most else 0.0


def run_once(machine: Machine, tool: str, python: Path, seconds: float) -> tuple[dict[str, Any], float]:
    """What the meter answered, and for how long at most the machine's counters stood still."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = Tree(machine, folder / "machine")
        make_nvidia_smi(machine, folder / "bin")
        path = [LAB / "shims", LAB, *([ROOT] if tool == "lorakit" else [])]
        environ = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": ":".join(map(str, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": name,
            "METER_CELL": name,
            "METER_MACHINE": machine.name,
            **machine.environ,
        }
        command = [sys.executable, LAB / "enter.py", tree.root, python, LAB / "drive.py", tool, str(seconds)]
        with (folder / "says").open("wb") as says:
            options = {"stdout": says, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=environ, cwd=name, start_new_session=True, **options)
        with suppress(OSError):  # its share of a busy computer while it imports; only root may
            Path(f"/proc/{process.pid}/autogroup").write_text("-10")
        try:
            late_s = turn_on(tree, process, folder, seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # and its helpers
            process.wait()
            tree.close()
        said = (folder / "says").read_text(encoding="utf-8", errors="replace").replace(name, "")
        said = said.replace(str(python.parent.parent), "").replace(str(ROOT), "")
        return read_answer(folder / "answer.json", process.returncode, said, seconds), late_s


def make_nvidia_smi(machine: Machine, folder: Path) -> None:
    """CodeCarbon looks for the program to know whether there is an NVIDIA GPU. It comes with the driver's package."""
    folder.mkdir()
    if machine.nvml_fault in (None, 9):
        (folder / "nvidia-smi").write_text("#!/bin/sh\n")  # its --help works without a driver, too
        (folder / "nvidia-smi").chmod(0o755)


def turn_on(tree: Tree, process: subprocess.Popen, folder: Path, seconds: float) -> float:
    """Switch the machine's power on when the meter is ready, and move its counters until the meter has answered.

    Returns:
        The longest time for which they stood still, s.
    """
    limit = time.monotonic() + PATIENCE_S
    while not (folder / "ready").exists():
        if process.poll() is not None or time.monotonic() > limit:
            return 0.0
        time.sleep(0.01)
    be_prompt(process.pid)
    start = time.monotonic() + 0.05
    (folder / "start.part").write_text(repr(start))
    (folder / "start.part").rename(folder / "start")
    late_s, before = 0.0, start
    while process.poll() is None and time.monotonic() < limit:
        now = time.monotonic()
        if now > start:
            tree.write(now - start)
            late_s = max(late_s, now - before) if now - start < seconds + 1 else late_s
            before = now
        time.sleep(TICK_S)
    return late_s


def be_prompt(group: int | None = None) -> None:
    """Let this thread, or all threads of a process group, run at once when they wake, whatever else runs here.

    A meter that sleeps for a second should not be judged by how busy this computer is. Only root may; without it more
    cells have to be repeated.
    """
    if group is None:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it may have ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[2]) == group:
                for thread in (status.parent / "task").iterdir():
                    os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))


def read_answer(path: Path, status: int, said: str, seconds: float) -> dict[str, Any]:
    if path.exists():
        return json.loads(path.read_text()) | {"says": said[-20_000:]}
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing was printed")
    raised = f"the meter ended the process with status {status}: {last}"
    return {"answers": {}, "raised": raised, "spans": [(0.0, seconds)] * 2, "says": said[-20_000:]}


# ---- the report


def describe(cell: dict[str, Any]) -> str:
    """One cell for people."""
    machine = NAMED[cell["machine"]]
    head = f"{cell['tool']} on {machine.name} ({machine.what}; {machine.source}): {cell['verdict']}"
    if cell["verdict"] == "unclaimed":
        return f"{head}: it does not claim to read such sensors"
    lines = [head]
    for part in cell["parts"]:
        number = "no number" if part["joules"] is None else f"{part['joules']:.1f} J"
        lines.append(f"  {part['part']}: {number}, true {part['true_j']:.1f} J: {part['text']}")
        lines += [f"  it says: {part['says']}"] * bool(part["says"])
    lines += [f"  it raised {cell['raised']}"] * bool(cell["raised"])
    return "\n".join(lines)


def report(summary: dict[str, Any]) -> list[str]:
    cells = {(cell["machine"], cell["tool"]): cell for cell in summary["cells"]}
    tools = list(CLAIMS)
    columns = ["machine", "what it is", "report", *(name_of(tool) for tool in tools)]
    rows = [
        [machine.name, machine.what, machine.source, *(shown(cells[machine.name, tool]) for tool in tools)]
        for machine in MACHINES
    ]
    return [
        "# Whose meter is right",
        "",
        f"Six meters on {len(MACHINES)} machines whose joules are known: {summary['seconds']:g} s each, in real time, "
        "every meter in its own process and environment, unchanged, at its documented settings.",
        "",
        sums_table(summary["cells"]),
        "",
        *(f"- *{LABELS.get(name, name)}*: {text}" for name, text in reversed(VERDICTS.items())),
        "- *not claimed*: the meter does not say that it reads such a sensor, or it measures all GPUs of a node by "
        "design; not held against it",
        "",
        f"lorakit's numbers that are outside its own bound: {outside(summary['cells'])}.",
        "",
        "The meters differ in much that is not compared: CodeCarbon and carbontracker give CO2 by place and time, "
        "Zeus also tunes power limits and batch sizes, perun measures MPI jobs, pyJoules is small enough to be read in "
        "an afternoon. Several also read sensors that are not simulated: AMD's library, Apple's, Windows'. The "
        "machines were chosen by lorakit's authors, most of them from public reports about these meters and their "
        "sensors; another choice would give other sums.",
        "",
        markdown_table(columns, rows),
        "",
        "A percentage is how far the number is from what is true for the block; ± is the meter's own bound where it is "
        "wider than 2 %. One cell again, with what the meter printed: "
        "`python benchmarks/meters.py --machine NAME --tool TOOL`.",
        "",
        *(f"- {name_of(tool)}: {SETTINGS[tool]}" for tool in tools),
        f"- Cells that had to be repeated because this computer was busy: "
        f"{sum(cell.get('attempts', 1) > 1 for cell in summary['cells'])}; still unsure after {TRIES} tries: "
        f"{sum(unsure(cell) for cell in summary['cells'])}",
        f"- It took {summary['took_s'] / 60:.0f} minutes.",
        *(
            f"- Before that: `{run['command']}` at lorakit {run['versions']['lorakit']}, "
            f"{run['took_s'] / 60:.0f} minutes; the last command replaced some of its cells"
            for run in summary.get("earlier", ())
        ),
    ]


def name_of(tool: str) -> str:
    """With its version."""
    return f"{tool} {PINS[tool][0].split('==')[1]}" if tool in PINS else tool


def shown(cell: dict[str, Any]) -> str:
    if cell["verdict"] == "unclaimed":
        return "not claimed"
    several = len(cell["parts"]) > 1 and len({part["part"] for part in cell["parts"]}) > 1
    texts = dict.fromkeys(f"{part['part']} {part['text']}" if several else part["text"] for part in cell["parts"])
    return "; ".join(texts)


def sums_table(cells: list[dict[str, Any]]) -> str:
    rows = []
    for tool in CLAIMS:
        verdicts = [cell["verdict"] for cell in cells if cell["tool"] == tool]
        silent = [cell for cell in cells if (cell["tool"], cell["verdict"]) == (tool, "silent")]
        told = sum(all(part["says"] for part in cell["parts"] if part["joules"] is None) for cell in silent)
        counts = {name: str(verdicts.count(name)) for name in VERDICTS} | {"silent": f"{len(silent)} ({told})"}
        claimed = len(verdicts) - verdicts.count("unclaimed")
        rows.append([name_of(tool), str(claimed), *(counts[name] for name in reversed(VERDICTS))])
    return markdown_table(["meter", "claimed", *(LABELS.get(name, name) for name in reversed(VERDICTS))], rows)


LABELS = {"silent": "silent (says why)", "declined": "rightly no number"}


def outside(cells: list[dict[str, Any]]) -> int:
    return sum(part["in_bound"] is False for cell in cells if cell["tool"] == "lorakit" for part in cell["parts"])


def unsure(cell: dict[str, Any]) -> bool:
    return cell.get("late_s", 0.0) > LATE_S or cell.get("vague", 0.0) > VAGUE


if __name__ == "__main__":
    sys.exit(main())
