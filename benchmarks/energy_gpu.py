"""The meter against others on one GPU load. Not run on a GPU by us yet: only with the tests' fake NVML.

  python benchmarks/energy_gpu.py                  60 s of matrix products on the first GPU
  python benchmarks/energy_gpu.py --seconds 120

While the load runs, NVML's energy counter (EnergyMeter), the same NVML's power integrated at 10 Hz, and, where they are
installed, Zeus and CodeCarbon measure it at once. Their sensors are the same, so that what differs is the method. Then
the load runs with and without the meter in turns: products per second, and the CPU time of the meter's thread.
Prints one JSON object, and writes it to benchmarks/results/energy_gpu.json.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lorakit.energy import EnergyMeter
from lorakit.power.nvml import close_nvml, list_gpus, open_nvml

RESULT = Path(__file__).parent / "results" / "energy_gpu.json"


class PowerIntegral:
    """The power of all GPUs at 10 Hz, by trapezoids from edge to edge."""

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


class Others:
    """Zeus and CodeCarbon over the same block; the reason where one is missing or fails."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self._zeus = self._carbon = None

    def __enter__(self) -> "Others":
        try:
            from zeus.monitor import ZeusMonitor

            self._zeus = ZeusMonitor()
            self._zeus.begin_window("load")
        except Exception as error:  # whatever a foreign meter does must not end the comparison; it is in the result
            self.results["zeus"] = f"not measured: {error}"
            self._zeus = None
        try:
            from codecarbon import OfflineEmissionsTracker

            self._carbon = OfflineEmissionsTracker(country_iso_code="FRA", save_to_file=False, log_level="error")
            self._carbon.start()
        except Exception as error:
            self.results["codecarbon"] = f"not measured: {error}"
            self._carbon = None
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            if self._carbon is not None:
                self._carbon.stop()
                self.results["codecarbon"] = self._carbon.final_emissions_data.gpu_energy * 3.6e6
        except Exception as error:
            self.results["codecarbon"] = f"not measured: {error}"
        try:
            if self._zeus is not None:
                self.results["zeus"] = sum(self._zeus.end_window("load").gpu_energy.values())
        except Exception as error:
            self.results["zeus"] = f"not measured: {error}"


def compare(nvml: Any, load: Callable[[float], int], seconds: float, others: bool = True) -> dict[str, Any]:
    """Joules of one load by every method; `load(seconds)` works so long and returns how much it did."""
    session = open_nvml(nvml)
    with ExitStack() as stack:
        stack.callback(close_nvml, session)
        meter = EnergyMeter(nvml=nvml)
        gpus, _ = list_gpus(session)
        foreign = stack.enter_context(Others()) if others else Others()
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
    for _ in range(repeats):
        begun = time.monotonic()
        rates["without"].append(load(seconds) / (time.monotonic() - begun))
        with EnergyMeter(nvml=nvml):
            begun = time.monotonic()
            rates["with"].append(load(seconds) / (time.monotonic() - begun))
            shares.append(thread_cpu_s("lorakit-energy") / (time.monotonic() - begun))
    return {"work_per_s": rates, "sampler_cpu_share": shares}


def thread_cpu_s(name: str) -> float:
    """CPU time of this process's thread of that name, s (Linux)."""
    ident = next(thread.native_id for thread in threading.enumerate() if thread.name == name)
    on_cpu_ns = Path(f"/proc/self/task/{ident}/schedstat").read_text(encoding="ascii").split()[0]
    return int(on_cpu_ns) / 1e9


def products(seconds: float) -> int:
    """Matrix products on the first GPU, in bursts with pauses as a training loop has them."""
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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse(None)
    import torch

    if not torch.cuda.is_available():
        print("energy_gpu.py: there is no CUDA GPU here; this comparison needs one", file=sys.stderr)
        return 2
    products(5.0)  # clocks and caches
    result = {
        "machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cpus": os.cpu_count()},
        "comparison": compare(None, products, arguments.seconds),
        "overhead": overhead(None, products, arguments.seconds / 3),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
