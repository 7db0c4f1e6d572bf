"""Power ranges for CPU and RAM without a sensor. Each names what it was computed from."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from lorakit._counts import counted
from lorakit.power.cpu_time import procfs
from lorakit.power.kernel_files import read_text
from lorakit.power.power_limits import MachineLimit


@dataclass(frozen=True)
class PowerRange:
    """An estimate: power between `low_w` and `high_w`, W; `source` names what it was computed from."""

    low_w: float
    high_w: float
    source: str


def estimate_cpu(limit: MachineLimit, threads: int) -> PowerRange:
    """CPU power between idle and full load.

    With the packages' power limits: 10 to 100 % of them. Without: 0.5 to 8 W per logical CPU, which spans laptops (28 W
    for 8), desktops (125 W for 16) and servers (280 W for 128).

    Args:
        limit: what all packages together may draw, see `lorakit.power.power_limits`.
        threads: logical CPUs that the kernel shows.
    """
    if limit.watts is not None:
        high_w = limit.watts
        return PowerRange(0.1 * high_w, high_w, f"10 to 100 % of {high_w:g} W ({limit.source}), by load")
    each = "" if threads == 1 else "each of "
    source = f"0.5 to 8 W for {each}{counted(threads, 'logical CPU')}, by load"
    return PowerRange(0.5 * threads, 8.0 * threads, f"{source}; {limit.source}" if limit.source else source)


def estimate_ram(total_bytes: int, dimms: int | None) -> PowerRange:
    """RAM power: 2 to 6 W per DIMM where their number is known, else 0.1 to 0.4 W per GiB."""
    if dimms:
        each = "" if dimms == 1 else "each of "
        return PowerRange(2.0 * dimms, 6.0 * dimms, f"2 to 6 W for {each}{counted(dimms, 'DIMM')}")
    gib = total_bytes / 2**30
    return PowerRange(0.1 * gib, 0.4 * gib, f"0.1 to 0.4 W for each of {gib:.1f} GiB")


def count_dimms(edac: Path) -> int | None:
    """DIMMs that the memory controllers list (servers with ECC only), None if there is no list or part of it is closed.

    A list that can be read in part would give too few.
    """
    try:
        sizes = [read_text(path) or "0" for path in Path(edac).glob("mc*/dimm*/size")]
    except OSError:
        return None
    return sum(size != "0" for size in sizes) or None


def memory_bytes(proc: Path = Path("/proc")) -> int | None:
    """Installed memory less the kernel's reservation, None where it cannot be told."""
    try:
        with procfs(proc):
            return psutil.virtual_memory().total
    except (OSError, LookupError, ValueError):
        return None
