"""How much of the machine's memory a process tree uses."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from lorakit.power.cpu_time import HAS_PROC, procfs

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_in_use(tree: Iterable[int], proc: Path = Path("/proc")) -> tuple[float, float] | None:
    """Bytes of memory that a process tree uses, and that everything else on the machine uses; None if unknown.

    Args:
        tree: ids of the tree's processes.
        proc: the kernel's /proc.
    """
    own = [_resident_bytes(pid, proc) for pid in tree]
    known = [size for size in own if size is not None]
    try:
        with procfs(proc):
            memory = psutil.virtual_memory()
    except (OSError, LookupError, ValueError):
        return None
    if not known:
        return None
    return float(sum(known)), float(max(0, memory.total - memory.available - sum(known)))


def _resident_bytes(pid: int, proc: Path) -> int | None:
    """Resident memory of a process, None if it has ended."""
    try:
        if not HAS_PROC:
            return psutil.Process(pid).memory_info().rss
        return int((proc / str(pid) / "statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, psutil.Error, ValueError, IndexError):
        return None
