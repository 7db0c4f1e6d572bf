"""CodeCarbon 2.x's model of RAM and CPU energy, to compare with figures that were published with it.

    python examples/codecarbon2.py --duration-s 11399.38 --memory-bytes 540903927808

It measures nothing. CodeCarbon 2.4 (`external/hardware.py`) assumes 3 W of RAM per 8 GiB of installed memory, whatever
the job uses. For a CPU that it cannot read it assumes half of 85 W, whatever the load and the number of sockets. Both
are multiplied by time. RAM is timed before the GPUs are read and its clock set afterwards, so that it loses the reading
time of every sample. lorakit never adds such a figure to a measured one.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

RAM_W_PER_GIB = 3 / 8
UNKNOWN_CPU_W = 85 * 0.5
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Assumed:
    """The figures of CodeCarbon 2.x: powers in W, energies in kWh. Only the GPUs' energy is measured."""

    ram_w: float
    ram_kwh: float
    cpu_w: float
    cpu_kwh: float
    gpu_kwh: float | None

    @property
    def total_kwh(self) -> float:
        """CodeCarbon's total, which adds assumptions to a measurement."""
        return self.ram_kwh + self.cpu_kwh + (self.gpu_kwh or 0.0)

    def __str__(self) -> str:
        gpu = "unknown" if self.gpu_kwh is None else f"{self.gpu_kwh:.6f} kWh"
        return (
            f"CodeCarbon 2.x would have said (RAM and CPU assumed, not measured): "
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
) -> Assumed:
    """Energy by CodeCarbon 2.x's model.

    Args:
        duration_s: of the run, s.
        mem_total_bytes: installed memory as the kernel reports it (MemTotal).
        cpu_w: constant power of the CPU, W; half the TDP of one socket where CodeCarbon knew the model.
        gpu_kwh: energy of all GPUs of the machine by NVML's counters, kWh.
        gpu_read_s: time that reading all GPUs took, s, lost to RAM in each sample.
        interval_s: time between samples, s.

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
    return Assumed(ram_w, ram_w * ram_s / JOULES_PER_KWH, cpu_w, cpu_w * duration_s / JOULES_PER_KWH, gpu_kwh)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration-s", type=float, required=True, metavar="S", help="duration of the run")
    parser.add_argument("--memory-bytes", type=int, required=True, metavar="N", help="installed memory (MemTotal)")
    parser.add_argument(
        "--cpu-w",
        type=float,
        default=UNKNOWN_CPU_W,
        metavar="W",
        help="constant power of the CPU (default: %(default)s)",
    )
    parser.add_argument("--gpu-kwh", type=float, metavar="KWH", help="measured energy of all GPUs")
    arguments = parser.parse_args(argv)
    try:
        found = codecarbon_v2_model(arguments.duration_s, arguments.memory_bytes, arguments.cpu_w, arguments.gpu_kwh)
    except ValueError as error:
        parser.error(str(error))
    print(found)


if __name__ == "__main__":
    main()
