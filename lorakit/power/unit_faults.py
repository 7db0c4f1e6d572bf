"""Energy units that a kernel has wrong for a CPU model.

Such a counter is consistent with itself: no bound on power and no test of plausibility sees that it counts a quarter.
What gives it away is its range, which is the unit times 2**32, beside the CPU's model.

Sources: drivers/powercap/intel_rapl_common.c and arch/x86/events/rapl.c; for Sapphire Rapids the kernel's commits
4c081324df56 (powercap) and 80275ca9e525 (perf), both "Use standard Energy Unit for SPR Dram RAPL domain", and the
comparison in likwid's pull request 643.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorakit.power.kernel_files import read_if_allowed
from lorakit.power.rapl import Zone

SERVER_DRAM_J = 15.3e-6  # the fixed unit of the DRAM counters from Haswell-X to Ice Lake-X
CPU_UNIT_J = 2.0**-14  # what the units register says on Intel's servers
RANGE_15_3 = 65_712_999_613  # µJ, 2**32 - 1 counts of 15.3 µJ
RANGE_61 = 262_143_328_850  # µJ, 2**32 - 1 counts of 61.035 µJ
RANGE_PSYS_1_J = 4_294_967_295_000_000  # µJ: a psys that counts whole joules, which only the table for SPR sets

SAPPHIRE_RAPIDS = frozenset({(6, 143), (6, 207)})  # and Emerald Rapids
FIXED_DRAM_UNIT = frozenset({(6, model) for model in (63, 79, 86, 85, 87, 106, 108, 133)})  # Haswell-X … Ice Lake-D
AVOTON = (6, 77)  # its manual gives the unit as 2**n µJ, the chip counts in 2**-n J (raplcap, issue 13)
PERF_FIX = (6, 1)  # the first release whose perf has Sapphire Rapids' unit right; some older ones were mended later
PERF_FACTOR = 4.0  # 2**-14 J, which the chip counts in, ÷ 2**-16 J, which the others took
MOST_RANGE_UJ = 10**12  # of a package: 2**32 counts of 233 µJ, far above every real unit


@dataclass(frozen=True)
class UnitFault:
    """What is wrong with a zone's unit: multiply its counts by `factor`, which is 1 where the right one is unknown."""

    factor: float
    note: str


def find_unit_faults(zones: Iterable[Zone], proc: Path = Path("/proc")) -> dict[str, UnitFault]:
    """The zones whose unit is known to be wrong, by key."""
    zones = list(zones)
    model = cpu_model(proc)
    ranges = {zone.key: read_if_allowed(zone.path / "max_energy_range_uj") for zone in zones}
    counts_joules = any(zone.role == "psys" and ranges[zone.key] == str(RANGE_PSYS_1_J) for zone in zones)
    found = {}
    for zone in zones:
        fault = _fault(zone, ranges[zone.key], model, counts_joules)
        if fault is not None:
            found[zone.key] = fault
    return found


def perf_dram_doubt(proc: Path = Path("/proc")) -> str | None:
    """A note if perf's DRAM events may show 1/`PERF_FACTOR` of the energy, None where they are right.

    Perf shows joules and no range, so nothing but the kernel's release tells whether it has the unit right.
    """
    if cpu_model(proc) not in SAPPHIRE_RAPIDS:
        return None
    release = re.match(r"(\d+)\.(\d+)", read_if_allowed(Path(proc) / "sys/kernel/osrelease"))
    if release and (int(release.group(1)), int(release.group(2))) >= PERF_FIX:
        return None
    return (
        "perf energy-ram: this kernel may show a quarter of Sapphire Rapids' DRAM energy (fixed by its commit "
        "80275ca9e525, in Linux 6.1); the bound holds the figure and four times as much"
    )


def _fault(zone: Zone, range_uj: str, model: tuple[int, int] | None, counts_joules: bool) -> UnitFault | None:
    if zone.role == "dram" and range_uj == str(RANGE_15_3) and (counts_joules or model in SAPPHIRE_RAPIDS):
        factor = CPU_UNIT_J / SERVER_DRAM_J
        return UnitFault(
            factor,
            f"{zone.key}: this kernel counts Sapphire Rapids' DRAM in 15.3 µJ instead of 61 µJ (fixed by its commit "
            f"4c081324df56); multiplied by {factor:.3f}",
        )
    if zone.role == "dram" and range_uj == str(RANGE_61) and model in FIXED_DRAM_UNIT:
        factor = SERVER_DRAM_J / CPU_UNIT_J
        return UnitFault(
            factor,
            f"{zone.key}: this CPU counts its DRAM in 15.3 µJ, but the kernel takes 61 µJ; multiplied by {factor:.3f}",
        )
    if model == AVOTON and range_uj.isdigit() and int(range_uj) > MOST_RANGE_UJ:
        return UnitFault(
            1.0, f"{zone.key}: the range of Atom C2000's counter is impossible; its unit is wrong, do not trust it"
        )
    return None


def cpu_model(proc: Path) -> tuple[int, int] | None:
    """An x86 CPU's family and model, None elsewhere."""
    text = read_if_allowed(Path(proc) / "cpuinfo")
    family = re.search(r"^cpu family\s*:\s*(\d+)", text, re.MULTILINE)
    model = re.search(r"^model\s*:\s*(\d+)", text, re.MULTILINE)
    return (int(family.group(1)), int(model.group(1))) if family and model else None
