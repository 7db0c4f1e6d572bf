"""The idle machine's power, measured before the work starts."""

import statistics
import threading

from lorakit.power.accumulator import EnergyAccumulator, mean_powers
from lorakit.power.clock import Clock
from lorakit.power.windows import IDLE


def measure_idle(accumulator: EnergyAccumulator, clock: Clock, seconds: float) -> dict[str, tuple[float, float]]:
    """Mean power of each device and its standard error, W, from readings about a second apart.

    Devices with fewer than two readings are left out.
    """
    rounds = max(3, round(seconds))
    powers: dict[str, list[float]] = {}
    accumulator.mark_edge(IDLE, +1)
    for _ in range(rounds):
        before = accumulator.progress()
        clock.wait(threading.Event(), seconds / rounds)
        with accumulator.lock:
            accumulator.collect()
        for device, watts in mean_powers(before, accumulator.progress()).items():
            powers.setdefault(device, []).append(watts)
    accumulator.mark_edge(IDLE, -1)
    found = {}
    for device in accumulator.devices:
        total, watts = device.total(IDLE, accumulator.time()), powers.get(device.source.id, [])
        if device.source.kind != "check" and total.joules is not None and len(watts) >= 2:
            error_w = statistics.stdev(watts) / len(watts) ** 0.5
            found[device.source.id] = (total.joules / total.covered_s, error_w)
    return found
