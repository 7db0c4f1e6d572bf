"""CodeCarbon 2.x's model of energy, kept to compare with published figures; never part of a measured total.

CodeCarbon 2.4 (`external/hardware.py`) gives RAM 3 W for each 8 GiB of installed memory, whatever the job uses, and a
CPU that it cannot read half of 85 W, whatever its load and the number of sockets. Both are multiplied by time. RAM is
timed before the GPUs are read and its clock set after, so it loses the reading time of every sample.
"""

import math
from dataclasses import dataclass

RAM_W_PER_GIB = 3 / 8
UNKNOWN_CPU_W = 85 * 0.5
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class LegacyEstimate:
    """What CodeCarbon 2.x would have reported: powers in W, energies in kWh; only the GPUs' is measured."""

    ram_w: float
    ram_kwh: float
    cpu_w: float
    cpu_kwh: float
    gpu_kwh: float | None

    @property
    def total_kwh(self) -> float:
        """CodeCarbon's total: a guess and a measurement added up."""
        return self.ram_kwh + self.cpu_kwh + (self.gpu_kwh or 0.0)

    def __str__(self) -> str:
        gpu = "unknown" if self.gpu_kwh is None else f"{self.gpu_kwh:.6f} kWh"
        return (
            f"CodeCarbon 2.x would have said (a guess, in no total here): "
            f"RAM {self.ram_kwh:.6f} kWh ({self.ram_w:g} W), "
            f"CPU {self.cpu_kwh:.6f} kWh ({self.cpu_w:g} W), GPUs {gpu}, total {self.total_kwh:.6f} kWh"
        )


def codecarbon_v2_model(
    duration_s: float,
    mem_total_bytes: int,
    cpu_w: float = UNKNOWN_CPU_W,
    gpu_kwh: float | None = None,
    gpu_read_s: float = 0.0,
    interval_s: float = 15.0,
) -> LegacyEstimate:
    """Energy by CodeCarbon 2.x's model.

    Args:
        duration_s: of the run.
        mem_total_bytes: installed memory as the kernel tells it (MemTotal).
        cpu_w: constant power of the CPU; half the TDP of one socket where CodeCarbon knew the model.
        gpu_kwh: energy of all GPUs of the machine by NVML's counters.
        gpu_read_s: time that reading all GPUs took, lost to RAM in each sample of `interval_s`.

    Raises:
        ValueError: a duration or size is negative.
    """
    if duration_s < 0 or mem_total_bytes < 0 or interval_s <= 0:
        raise ValueError(
            f"duration_s={duration_s!r} and mem_total_bytes={mem_total_bytes!r} must be 0 or more, "
            f"interval_s={interval_s!r} above 0"
        )
    ram_w = mem_total_bytes / 2**30 * RAM_W_PER_GIB
    ram_s = duration_s - math.floor(duration_s / interval_s) * gpu_read_s
    return LegacyEstimate(ram_w, ram_w * ram_s / JOULES_PER_KWH, cpu_w, cpu_w * duration_s / JOULES_PER_KWH, gpu_kwh)
