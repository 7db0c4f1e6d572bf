"""The meter beside others on one GPU load. Not yet run on a GPU, only with the tests' fake NVML.

  python benchmarks/energy_gpu.py                  60 s of matmuls on the first GPU
  python benchmarks/energy_gpu.py --seconds 120

Four meters measure one load at the same time: NVML's energy counter (EnergyMeter), NVML's power integrated at 10 Hz
and, where they are installed, Zeus and CodeCarbon. They read the same sensors, so only the methods differ. Then the
load runs with and without the meter in turns, which gives matmuls per second and the CPU time of the meter's thread.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

from provenance import RESULTS, BenchmarkParser, write_results
from timing import in_turns, thread_cpu_s

from lorakit.energy import EnergyMeter
from lorakit.sensors import close_nvml, list_gpus, open_nvml


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    import torch

    if not torch.cuda.is_available():
        print("energy_gpu.py: there is no CUDA GPU here; this comparison needs one", file=sys.stderr)
        return 2
    matmuls(5.0)  # clocks and caches
    found = {
        "comparison": compare(None, matmuls, options.seconds),
        "overhead": overhead(None, matmuls, options.seconds / 3),
    }
    write_results(options, found, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="energy_gpu.py", description=__doc__)
    parser.add_common(seconds=60.0, name="energy_gpu", output_dir=str(RESULTS))
    return parser.parse_args(arguments)


def report(summary: dict[str, Any]) -> list[str]:
    figures = json.dumps({key: summary[key] for key in ("comparison", "overhead")}, indent=1)
    return ["# The energy meter beside others on one GPU load", "", "```json", figures, "```"]


class PowerIntegral:
    """The power of all GPUs at 10 Hz, integrated by trapezoids over the whole block."""

    def __init__(self, nvml: Any, gpus: list[Any], period_s: float = 0.1) -> None:
        self.nvml, self.gpus, self.period_s = nvml, gpus, period_s
        self.joules, self.samples, self._last = 0.0, 0, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "PowerIntegral":
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self.period_s):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic()
        watts = sum(self.nvml.nvmlDeviceGetPowerUsage(gpu.handle) for gpu in self.gpus) / 1e3
        if self._last is not None:
            self.joules += (watts + self._last[1]) / 2 * (now - self._last[0])
        self._last, self.samples = (now, watts), self.samples + 1


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


class Others:
    """Other meters over the same block: joules by name, or why there are none."""

    def __init__(self, **starts: Callable[[], Callable[[], float]]) -> None:
        self.starts, self.results, self._stops = starts, {}, {}

    def __enter__(self) -> "Others":
        self._stops = self._attempt(self.starts)
        return self

    def __exit__(self, *_: Any) -> None:
        self.results |= self._attempt(self._stops)

    def _attempt(self, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        answers = {}
        for name, call in calls.items():
            try:
                answers[name] = call()
            except Exception as error:  # whatever another meter does must not end the comparison; the result says it
                self.results[name] = f"not measured: {error}"
        return answers


OTHERS = {"zeus": start_zeus, "codecarbon": start_codecarbon}


def compare(nvml: Any, load: Callable[[float], int], seconds: float, others: bool = True) -> dict[str, Any]:
    """Joules of one load by every method; `load(seconds)` works that long and returns how much work it did."""
    session = open_nvml(nvml)
    with ExitStack() as stack:
        stack.callback(close_nvml, session)
        meter = EnergyMeter(nvml=nvml)
        gpus, _ = list_gpus(session)
        foreign = stack.enter_context(Others(**(OTHERS if others else {})))
        with meter, meter.window("load"):
            counted = {device["id"] for device in meter.reading.gpu.devices if device["method"] != "unavailable"}
            with PowerIntegral(session, [gpu for gpu in gpus if gpu.uuid in counted]) as integral:
                work = load(seconds)
    gpu = meter.windows["load"].gpu
    return {
        "seconds": meter.windows["load"].duration_s,
        "work": work,
        "lorakit_j": None if gpu.wh is None else gpu.wh * 3600,
        "lorakit_method": gpu.method,
        "lorakit_uncertainty_j": None if gpu.uncertainty_wh is None else gpu.uncertainty_wh * 3600,
        "power_at_10_hz_j": integral.joules,
        "power_samples": integral.samples,
        **{f"{name}_j": result for name, result in foreign.results.items()},
        "conditions": meter.reading.conditions,
    }


def overhead(nvml: Any, load: Callable[[float], int], seconds: float, repeats: int = 3) -> dict[str, Any]:
    """Work per second with and without the meter, in turns, and its thread's share of a CPU."""
    rates: dict[str, list[float]] = {"without": [], "with": []}
    shares = []
    for _, kind in in_turns(list(rates), repeats):
        with EnergyMeter(nvml=nvml) if kind == "with" else nullcontext():
            begun = time.monotonic()
            rates[kind].append(load(seconds) / (time.monotonic() - begun))
            if kind == "with":
                shares.append(thread_cpu_s("lorakit-energy") / (time.monotonic() - begun))
    return {"work_per_s": rates, "sampler_cpu_share": shares}


def matmuls(seconds: float) -> int:
    """Matmuls on the first GPU, in bursts with pauses as in a training loop."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(10):
            a @ a
        torch.cuda.synchronize()
        time.sleep(0.01)
        done += 10
    return done


if __name__ == "__main__":
    sys.exit(main())
