"""Power ranges for CPU and RAM without a sensor. Each names what it was computed from."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from lorakit.power.cpu_time import procfs


@dataclass(frozen=True)
class PowerRange:
    """An estimate: power between `low_w` and `high_w`, W; `source` names what it was computed from."""

    low_w: float
    high_w: float
    source: str


def estimate_cpu(tdp_w: float | None, threads: int) -> PowerRange:
    """CPU power between idle and full load.

    With the packages' TDP: 10 to 100 % of it. Without: 0.5 to 8 W per logical CPU, which spans laptops (28 W for 8),
    desktops (125 W for 16) and servers (280 W for 128).

    Args:
        tdp_w: long-term power limit of all packages together, W, None if unknown.
        threads: logical CPUs that the kernel shows.
    """
    if tdp_w is not None:
        return PowerRange(0.1 * tdp_w, tdp_w, f"10 to 100 % of {tdp_w:g} W (constraint_0_max_power_uw), by load")
    return PowerRange(0.5 * threads, 8.0 * threads, f"0.5 to 8 W for each of {threads} logical CPUs, by load")


def estimate_ram(total_bytes: int, dimms: int | None) -> PowerRange:
    """RAM power: 2 to 6 W per DIMM where their number is known, else 0.1 to 0.4 W per GiB."""
    if dimms:
        return PowerRange(2.0 * dimms, 6.0 * dimms, f"2 to 6 W for each of {dimms} DIMMs")
    gib = total_bytes / 2**30
    return PowerRange(0.1 * gib, 0.4 * gib, f"0.1 to 0.4 W for each of {gib:.1f} GiB")


def count_dimms(edac: Path) -> int | None:
    """DIMMs that the memory controllers list (servers with ECC only), None if there is no such list."""
    sizes = [_read(path) for path in Path(edac).glob("mc*/dimm*/size")]
    return sum(size not in ("", "0") for size in sizes) or None


def memory_bytes(proc: Path = Path("/proc")) -> int | None:
    """Installed memory less the kernel's reservation, None where it cannot be told."""
    try:
        with procfs(proc):
            return psutil.virtual_memory().total
    except (OSError, LookupError, ValueError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
