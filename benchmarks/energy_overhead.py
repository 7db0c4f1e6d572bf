"""The energy meter itself: what it costs and, on a GPU, how it compares with other meters.

  python benchmarks/energy_overhead.py                 60 s on this machine, 60 s on a simulated server
  python benchmarks/energy_overhead.py --seconds 10

The meter's thread runs beside a process that sleeps, so that its CPU time (the kernel's count) is its own work:
readings every 5 s on average, a journal line every 10 s. The server is simulated: two packages with DRAM as files, and
eight GPUs of the tests' NVML, which answer at once; the time that a real driver takes to answer is not measured here.

With a GPU (not yet run on one), four meters measure one load at the same time: NVML's energy counter
(EnergyMeter), NVML's power integrated at 10 Hz and, where they are installed, Zeus and CodeCarbon. They read the same
sensors, so only the methods differ. Then the load runs with and without the meter in turns.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from provenance import ROOT, BenchmarkParser, write_results
from tables import at, table
from timing import in_turns

from lorakit.energy import EnergyMeter
from lorakit.power.nvml import close_nvml, list_gpus, open_nvml

sys.path.insert(0, str(ROOT))

from tests.support.energy_world import FakeGpu, FakeNvml, FakeZone, Profile

EDGES = 2000
TARGET = 1e-3  # of the wall time, and of the memory
SAMPLES = 1000  # before the memory is looked at: an hour and a half of a meter's life
START_UJ = 100_000_000_000
Load = Callable[[float], int]  # works for so many seconds and returns how much work it did


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="energy_overhead.py", description=__doc__)
    parser.add_common(seconds=60.0, note="")
    options = parser.parse_args(arguments)
    results = {"this machine": measure(EnergyMeter, options.seconds)}
    with tempfile.TemporaryDirectory() as folder, simulated_server(Path(folder)) as make:
        results["server with 8 GPUs, simulated"] = measure(make, options.seconds)
    found = {"seconds": options.seconds, "note": options.note, "results": results}
    if torch.cuda.is_available():
        matmuls(5.0)  # clocks and caches
        found["comparison"] = compare(None, matmuls, options.seconds)
        found["overhead"] = overhead(None, matmuls, options.seconds / 3)
    write_results(options, found, report)
    return 0


# What the meter costs -------------------------------------------------------------------------------------------------


@contextmanager
def simulated_server(folder: Path) -> Iterator[Callable[..., EnergyMeter]]:
    """Makes meters of two sockets, whose counters run, and eight GPUs."""
    zones = {}
    for socket in range(2):
        named = {f"intel-rapl:{socket}": (f"package-{socket}", 150), f"intel-rapl:{socket}:0": ("dram", 20)}
        for key, (name, watts) in named.items():
            zones[FakeZone(folder, key, name, start_uj=START_UJ).file] = watts
    gpus = [FakeGpu(f"GPU-{index}", Profile((0, 300.0))) for index in range(8)]
    stop, begun = threading.Event(), time.monotonic()

    def run_counters() -> None:
        while not stop.wait(0.2):
            for path, watts in zones.items():
                with path.open("r+b") as file:  # the numbers keep their length, so that nobody reads half of one
                    file.write(b"%d\n" % (START_UJ + watts * int(1e6 * (time.monotonic() - begun))))

    def make(**options: Any) -> EnergyMeter:
        nvml = FakeNvml(RealTime(), gpus)
        nvml.calls = deque(maxlen=0)  # what the fake notes is not the meter's memory
        return EnergyMeter(folder, nvml, **options)

    threading.Thread(target=run_counters, daemon=True).start()
    yield make
    stop.set()


class RealTime:
    """The clock of the simulated GPUs; that an answer takes time is left out."""

    now = property(lambda _self: time.monotonic(), lambda _self, _value: None)


def measure(make: Callable[..., EnergyMeter], seconds: float) -> dict[str, Any]:
    """CPU time of the meter's thread, and the cost of a window's edges."""
    with tempfile.TemporaryDirectory() as folder:
        meter, readings = make(out=Path(folder) / "energy.jsonl"), []
        take = meter.sample
        meter.sample = lambda: (readings.append(None), take())  # before the thread starts, which keeps what it is given
        with meter:
            begun, before_s = time.monotonic(), thread_cpu_s()
            time.sleep(seconds)
            cpu_s, wall_s, taken = thread_cpu_s() - before_s, time.monotonic() - begun, len(readings)
            edges_us = {f"{kind}_edge_us": 1e6 * edge_s(meter, kind == "exact") for kind in ("exact", "inexact")}
        methods = {kind: getattr(meter.reading, kind).method for kind in ("gpu", "cpu", "ram")}
    cost = {"sampler_cpu_s": cpu_s, "sampler_share": cpu_s / wall_s, "readings": taken, **memory_cost(make)}
    return {"methods": methods, "wall_s": wall_s, **cost, **edges_us}


def memory_cost(make: Callable[..., EnergyMeter]) -> dict[str, float]:
    """Memory that Python has allocated for a meter that is old, B, and its share of this machine's."""
    tracemalloc.start()
    try:
        with make(thread=False) as meter:
            for _ in range(SAMPLES):
                meter.sample()
            held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"memory_bytes": held, "memory_share": held / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))}


def thread_cpu_s() -> float:
    """CPU time of the meter's thread, s (Linux)."""
    ident = next(thread.native_id for thread in threading.enumerate() if thread.name == "lorakit-energy")
    on_cpu_ns = Path(f"/proc/self/task/{ident}/schedstat").read_text(encoding="ascii").split()[0]
    return int(on_cpu_ns) / 1e9


def edge_s(meter: EnergyMeter, exact: bool) -> float:
    """Time that one edge of a window costs its caller, the median over many."""
    costs = []
    for _ in range(EDGES // 20 if exact else EDGES):
        begun = time.perf_counter()
        with meter.window("exact" if exact else "step", exact=exact):
            pass
        costs.append((time.perf_counter() - begun) / 2)
    return statistics.median(costs)


# Other meters, on a GPU -----------------------------------------------------------------------------------------------


def start_zeus() -> Callable[[], float]:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor()
    monitor.begin_window("load")
    return lambda: sum(monitor.end_window("load").gpu_energy.values())


def start_codecarbon() -> Callable[[], float]:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(country_iso_code="FRA", save_to_file=False, log_level="error")
    tracker.start()
    return lambda: (tracker.stop(), tracker.final_emissions_data.gpu_energy * 3.6e6)[1]


OTHERS = {"zeus": start_zeus, "codecarbon": start_codecarbon}  # start; what they return stops and gives joules


def attempt(calls: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each call returned; and why others failed, which must not end the comparison."""
    answers, errors = {}, {}
    for name, call in calls.items():
        try:
            answers[name] = call()
        except Exception as error:
            errors[name] = f"not measured: {error}"
    return answers, errors


@contextmanager
def power_samples(nvml: Any, gpus: list[Any], period_s: float = 0.1) -> Iterator[list[tuple[float, float]]]:
    """(time in s, power of all GPUs in W) over a block, its edges included."""
    samples, stop = [], threading.Event()

    def sample() -> None:
        watts = sum(nvml.nvmlDeviceGetPowerUsage(gpu.handle) for gpu in gpus) / 1e3
        samples.append((time.monotonic(), watts))

    def run() -> None:
        while not stop.wait(period_s):
            sample()

    sample()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        sample()


def compare(nvml: Any, load: Load, seconds: float, others: bool = True) -> dict[str, Any]:
    """Joules of one load by every method."""
    session = open_nvml(nvml)
    try:
        meter = EnergyMeter(nvml=nvml)
        gpus, _ = list_gpus(session)
        stops, missing = attempt(OTHERS if others else {})
        with meter, meter.window("load"):
            counted = {device["id"] for device in meter.reading.gpu.devices if device["method"] != "unavailable"}
            with power_samples(session, [gpu for gpu in gpus if gpu.uuid in counted]) as samples:
                work = load(seconds)
        joules, failed = attempt(stops)
    finally:
        close_nvml(session)
    gpu = meter.windows["load"].gpu
    return {
        "seconds": meter.windows["load"].duration_s,
        "work": work,
        "lorakit_j": None if gpu.wh is None else gpu.wh * 3600,
        "lorakit_method": gpu.method,
        "lorakit_uncertainty_j": None if gpu.uncertainty_wh is None else gpu.uncertainty_wh * 3600,
        "power_at_10_hz_j": sum((w + before) / 2 * (t - then) for (then, before), (t, w) in pairwise(samples)),
        "power_samples": len(samples),
        **{f"{name}_j": result for name, result in {**missing, **joules, **failed}.items()},
        "conditions": meter.reading.conditions,
    }


def overhead(nvml: Any, load: Load, seconds: float, repeats: int = 3) -> dict[str, Any]:
    """Work per second with and without the meter, in turns, and its thread's share of a CPU."""
    rates: dict[str, list[float]] = {"without": [], "with": []}
    shares = []
    for _, kind in in_turns(list(rates), repeats):
        with EnergyMeter(nvml=nvml) if kind == "with" else nullcontext():
            begun = time.monotonic()
            rates[kind].append(load(seconds) / (time.monotonic() - begun))
            if kind == "with":
                shares.append(thread_cpu_s() / (time.monotonic() - begun))
    return {"work_per_s": rates, "sampler_cpu_share": shares}


def matmuls(seconds: float) -> int:
    """Matmuls on the first GPU, in bursts with pauses as in a training loop."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(10):
            a @ a
        torch.cuda.synchronize()
        time.sleep(0.01)
        done += 10
    return done


def report(summary: dict[str, Any]) -> list[str]:
    rows = [{"name": name, **result} for name, result in summary["results"].items()]
    worst = max(row[name] for row in rows for name in ("sampler_share", "memory_share"))
    on_gpu = {key: summary[key] for key in ("comparison", "overhead") if key in summary}
    return [
        "# What the energy meter itself costs",
        "",
        *[summary["note"], ""] * bool(summary["note"]),
        table(
            rows,
            ("meter on", "name", "{}"),
            ("readings", lambda row: f"{row['readings']} in {row['wall_s']:.0f} s", "{}"),
            ("thread's CPU time (ms)", at("sampler_cpu_s", scale=1e3), "{:.1f}"),
            ("of wall time", "sampler_share", "{:.4%}"),
            ("memory (KiB)", at("memory_bytes", scale=1 / 1024), "{:.0f}"),
            ("of the machine's", "memory_share", "{:.4%}"),
            ("exact edge (µs)", "exact_edge_us", "{:.0f}"),
            ("inexact edge (µs)", "inexact_edge_us", "{:.1f}"),
        ),
        "",
        f"Both shares are {'below' if worst < TARGET else '**not below**'} 0.1 %. Memory is what Python has allocated"
        f" for a meter after {SAMPLES:,} readings. The cost of an edge is what its caller pays, the median of many; "
        "exact edges read every sensor, inexact ones none. The simulated server's"
        " GPUs answer at once: the time that a real driver takes is not included.",
        "",
        *(f"- {row['name']}: {', '.join(f'{k.upper()} {m}' for k, m in row['methods'].items())}" for row in rows),
        *(["", "On one GPU load:", "", "```json", json.dumps(on_gpu, indent=1), "```"] if on_gpu else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
