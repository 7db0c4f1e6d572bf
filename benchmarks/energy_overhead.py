"""What the meter itself costs: the CPU time of its thread, and what an edge of a window costs its caller.

  python benchmarks/energy_overhead.py                 60 s on this machine, 60 s on a simulated server
  python benchmarks/energy_overhead.py --seconds 10

The thread runs beside a process that sleeps, so that its CPU time (the kernel's count, /proc/self/task/*/schedstat) is
its own work: readings every 5 s on average, a journal line every 10 s. "This machine" is read as it is. The server is
simulated: two packages with DRAM as files, and eight GPUs of the tests' NVML, which answer at once; the time that a
real driver takes to answer is extra and not measured here.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import RESULTS, ROOT, BenchmarkParser, write_results
from tables import at, table
from timing import thread_cpu_s

from lorakit.energy import EnergyMeter

sys.path.insert(0, str(ROOT))

from tests.energy_world import FakeGpu, FakeNvml, FakeZone, Profile

EDGES = 2000
TARGET = 1e-3  # of the wall time
START_UJ = 100_000_000_000


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = {"this machine": measure(EnergyMeter, options.seconds)}
    with tempfile.TemporaryDirectory() as folder:
        stop = threading.Event()
        results["server with 8 GPUs, simulated"] = measure(server(Path(folder), stop), options.seconds)
        stop.set()
    write_results(options, {"seconds": options.seconds, "results": results}, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="energy_overhead.py", description=__doc__)
    parser.add_common(seconds=60.0, name="energy_overhead", output_dir=str(RESULTS))
    return parser.parse_args(arguments)


def server(folder: Path, stop: threading.Event) -> Callable[..., EnergyMeter]:
    """Makes meters of two sockets, whose counters run until `stop`, and eight GPUs."""
    zones = {}
    for socket in range(2):
        named = {f"intel-rapl:{socket}": (f"package-{socket}", 150), f"intel-rapl:{socket}:0": ("dram", 20)}
        for key, (name, watts) in named.items():
            zones[FakeZone(folder, key, name, start_uj=START_UJ).file] = watts
    threading.Thread(target=run_counters, args=(zones, stop), daemon=True).start()
    gpus = [FakeGpu(f"GPU-{index}", Profile((0, 300.0))) for index in range(8)]
    return lambda **options: EnergyMeter(folder, FakeNvml(RealTime(), gpus), **options)


def run_counters(zones: dict[Path, int], stop: threading.Event) -> None:
    """Let the counters run; their numbers keep their length, so that nobody reads half of one."""
    begun = time.monotonic()
    while not stop.wait(0.2):
        for path, watts in zones.items():
            with path.open("r+b") as file:
                file.write(b"%d\n" % (START_UJ + watts * int(1e6 * (time.monotonic() - begun))))


class RealTime:
    """The clock of the simulated GPUs; that an answer takes time is left out."""

    now = property(lambda _self: time.monotonic(), lambda _self, _value: None)


def measure(make: Callable[..., EnergyMeter], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with make(out=Path(folder) / "energy.jsonl") as meter:
            readings = count_readings(meter)
            begun, before_s = time.monotonic(), thread_cpu_s("lorakit-energy")
            time.sleep(seconds)
            cpu_s, wall_s = thread_cpu_s("lorakit-energy") - before_s, time.monotonic() - begun
            taken = len(readings)
            edges_us = {f"{kind}_edge_us": 1e6 * edge_s(meter, kind == "exact") for kind in ("exact", "inexact")}
        methods = {kind: getattr(meter.reading, kind).method for kind in ("gpu", "cpu", "ram")}
    cost = {"sampler_cpu_s": cpu_s, "sampler_share": cpu_s / wall_s, "readings": taken}
    return {"methods": methods, "wall_s": wall_s, **cost, **edges_us}


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


def report(summary: dict[str, Any]) -> list[str]:
    rows = [{"name": name, **result} for name, result in summary["results"].items()]
    worst = max(row["sampler_share"] for row in rows)
    return [
        "# What the energy meter itself costs",
        "",
        table(
            rows,
            ("meter on", "name", "{}"),
            ("readings", lambda row: f"{row['readings']} in {row['wall_s']:.0f} s", "{}"),
            ("thread's CPU time (ms)", at("sampler_cpu_s", scale=1e3), "{:.1f}"),
            ("of wall time", "sampler_share", "{:.4%}"),
            ("exact edge (µs)", "exact_edge_us", "{:.0f}"),
            ("inexact edge (µs)", "inexact_edge_us", "{:.1f}"),
        ),
        "",
        f"The thread's share is {'below' if worst < TARGET else '**not below**'} 0.1 %. The cost of an edge is what"
        " its caller pays, the median of many; exact edges read every sensor, inexact ones none. The simulated"
        " server's GPUs answer at once: the time that a real driver takes is not included.",
        "",
        *(f"- {row['name']}: {', '.join(f'{k.upper()} {m}' for k, m in row['methods'].items())}" for row in rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
