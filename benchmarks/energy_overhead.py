"""What the meter itself costs: the CPU time of its thread, and what an edge of a window costs its caller.

  python benchmarks/energy_overhead.py                 60 s on this machine, 60 s on a pretended server
  python benchmarks/energy_overhead.py --seconds 10

The thread runs beside a process that sleeps, so that its CPU time (the kernel's count, /proc/self/task/*/schedstat) is
its own work: readings every 5 s on average, a journal line every 10 s. "This machine" is read as it is. The server is
pretended: two packages with DRAM as files, eight GPUs by the tests' NVML, which answer at once; a real driver's time
for an answer comes on top and is not measured here. Writes benchmarks/results/energy_overhead.md and .json.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from energy_gpu import thread_cpu_s
from seeds import machine

from lorakit.energy import EnergyMeter
from lorakit.report.tables import markdown_table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.energy_world import FakeGpu, FakeNvml, FakeZone, Profile  # noqa: E402  (its folder is on the path only now)

EDGES = 2000
TARGET = 1e-3  # of the wall time
START_UJ = 100_000_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    results = {"this machine": measure(EnergyMeter, arguments.seconds)}
    with tempfile.TemporaryDirectory() as folder:
        stop = threading.Event()
        results["server with 8 GPUs, pretended"] = measure(server(Path(folder), stop), arguments.seconds)
        stop.set()
    command = shlex.join(["python", "benchmarks/energy_overhead.py", *sys.argv[1:]])
    summary = {"schema": 1, "command": command, "machine": machine(), "seconds": arguments.seconds, "results": results}
    out = ROOT / "benchmarks" / "results" / "energy_overhead"
    out.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = report(summary)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def server(folder: Path, stop: threading.Event) -> Callable[..., EnergyMeter]:
    """Makes meters of two sockets, whose counters move until `stop`, and eight GPUs."""
    zones = {}
    for socket in range(2):
        named = {f"intel-rapl:{socket}": (f"package-{socket}", 150), f"intel-rapl:{socket}:0": ("dram", 20)}
        for key, (name, watts) in named.items():
            zones[FakeZone(folder, key, name, start_uj=START_UJ).file] = watts
    threading.Thread(target=draw_power, args=(zones, stop), daemon=True).start()
    clock = RealTime()
    gpus = [FakeGpu(f"GPU-{index}", Profile((0, 300.0))) for index in range(8)]
    return lambda **options: EnergyMeter(folder, FakeNvml(clock, gpus), **options)


def draw_power(zones: dict[Path, int], stop: threading.Event) -> None:
    """Let the counters run; the numbers keep their length, so that nobody reads half of one."""
    begun = time.monotonic()
    while not stop.wait(0.2):
        for path, watts in zones.items():
            with path.open("r+b") as file:
                file.write(b"%d\n" % (START_UJ + watts * int(1e6 * (time.monotonic() - begun))))


class RealTime:
    """The clock of the pretended GPUs; that an answer takes time is left out."""

    now = property(lambda _self: time.monotonic(), lambda _self, _value: None)


def measure(make: Callable[..., EnergyMeter], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with make(out=Path(folder) / "energy.jsonl") as meter:
            readings = count_readings(meter)
            begun, before_s = time.monotonic(), thread_cpu_s("lorakit-energy")
            threading.Event().wait(seconds)
            cpu_s, wall_s = thread_cpu_s("lorakit-energy") - before_s, time.monotonic() - begun
            taken = len(readings)
            edges = {kind: edge_s(meter, kind == "exact") for kind in ("exact", "inexact")}
        methods = {kind: getattr(meter.reading, kind).method for kind in ("gpu", "cpu", "ram")}
    return {
        "methods": methods,
        "wall_s": wall_s,
        "sampler_cpu_s": cpu_s,
        "sampler_share": cpu_s / wall_s,
        "readings": taken,
        **{f"{kind}_edge_us": 1e6 * cost for kind, cost in edges.items()},
    }


def count_readings(meter: EnergyMeter) -> list[None]:
    """Grows by one with each reading of the meter's thread."""
    seen: list[None] = []
    take = meter.sample

    def sample() -> None:
        seen.append(None)
        take()

    meter.sample = sample
    return seen


def edge_s(meter: EnergyMeter, exact: bool) -> float:
    """Time that one edge of a window costs its caller, the median over many."""
    costs = []
    for _ in range(EDGES // 20 if exact else EDGES):
        begun = time.perf_counter()
        with meter.window("exact" if exact else "step", exact=exact):
            pass
        costs.append((time.perf_counter() - begun) / 2)
    return statistics.median(costs)


def report(summary: dict[str, Any]) -> str:
    rows = []
    for name, result in summary["results"].items():
        rows.append(
            [
                name,
                f"{result['readings']} in {result['wall_s']:.0f} s",
                f"{1e3 * result['sampler_cpu_s']:.1f}",
                f"{result['sampler_share']:.4%}",
                f"{result['exact_edge_us']:.0f}",
                f"{result['inexact_edge_us']:.1f}",
            ]
        )
    header = ["meter on", "readings", "thread's CPU time (ms)", "of wall time", "exact edge (µs)", "inexact edge (µs)"]
    worst = max(result["sampler_share"] for result in summary["results"].values())
    verdict = "below" if worst < TARGET else "**not below**"
    lines = ["# What the energy meter itself costs", "", markdown_table(header, rows), ""]
    lines += [
        f"The thread's share is {verdict} 0.1 %. An edge's cost is its caller's, the median of many; exact edges read "
        "every sensor, inexact ones none. The pretended server's GPUs answer at once: what a real driver takes for an "
        "answer is not in here.",
        "",
    ]
    for name, result in summary["results"].items():
        methods = ", ".join(f"{kind.upper()} {method}" for kind, method in result["methods"].items())
        lines.append(f"- {name}: {methods}")
    lines += ["", f"Command: `{summary['command']}`", "", f"Machine: {summary['machine']}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
