"""Reads how busy the machine and this process tree are, and splits it by window.

Everything read is a running total, so a window needs the totals at its two edges only. Between readings a total is
taken to grow evenly; at an exact edge there is a reading, and nothing is guessed.
"""

import math
import os
from pathlib import Path

from lorakit.power.contention import Contention
from lorakit.power.cpu_time import MachineTimes, TreeTime

UNKNOWN = math.nan  # spreads through sums, so that a window without a reading at an edge is unknown
NO_LEVELS = (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)  # GPUs computing for us and for others; memory of ours and others
Totals = tuple[float, ...]  # time, busy, own, steal, pressure, s; then the integrals of the levels over time


class WindowUse:
    """Totals of the windows of one name: those at their ends minus those at their starts."""

    def __init__(self) -> None:
        self.open = 0
        self.totals: Totals = (0.0,) * (5 + len(NO_LEVELS))
        self.gpu_processes: int | None = None

    def mark_edge(self, change: int, totals: Totals) -> None:
        """Open (+1) or close (−1) a window."""
        self.open += change
        self.totals = tuple(mine - change * total for mine, total in zip(self.totals, totals, strict=True))

    def see_gpu_processes(self, count: int | None) -> None:
        """Note how many other processes compute on the GPUs now."""
        if count is not None:
            self.gpu_processes = max(count, self.gpu_processes or 0)


class MachineUse:
    """CPU time of the machine, of a process tree and of the hypervisor's other guests, and pressure stall, by window.

    Args:
        now_s: the monotonic time of the first reading, s.
        root: the process whose tree is "ours".
        machine: the machine's id.
        proc: the kernel's /proc.

    Attributes:
        tree: reads the process tree's CPU time.
    """

    def __init__(self, now_s: float, root: int, machine: str, proc: Path = Path("/proc")) -> None:
        self.tree = TreeTime(root, proc)
        self._machine, self._times = machine, MachineTimes(proc)
        self._pressure = _open_pressure(proc)
        self._windows: dict[str, WindowUse] = {}
        self._waiting: list[tuple[str, int, float]] = []  # edges after the newest reading
        self._gpu_processes: int | None = None
        self._levels, self._integrals, self._levels_at = NO_LEVELS, (0.0,) * len(NO_LEVELS), now_s
        self._latest = self._totals(now_s)
        self._before = self._latest

    def read(self, now_s: float) -> None:
        """Take a reading, and place the edges that waited for it."""
        self._before, self._latest = self._latest, self._totals(now_s)
        waiting, self._waiting = self._waiting, []
        for edge in waiting:
            self.mark_edge(*edge)

    @property
    def busy_s(self) -> float:
        """CPU time that the machine had spent at the newest reading, s; NaN if unknown."""
        return self._latest[1]

    def _totals(self, now_s: float) -> Totals:
        try:
            busy_s, steal_s = self._times.read()
        except OSError:
            busy_s, steal_s = UNKNOWN, None
        own_s = self.tree.read(now_s)
        return (
            now_s,
            busy_s,
            UNKNOWN if own_s is None else own_s,
            UNKNOWN if steal_s is None else steal_s,
            self._pressure_s(),
            *self._integrate(now_s),
        )

    def _integrate(self, now_s: float) -> tuple[float, ...]:
        """The levels' integrals; a level holds until the next is seen."""
        seconds, self._levels_at = now_s - self._levels_at, now_s
        self._integrals = tuple(
            total + level * seconds for total, level in zip(self._integrals, self._levels, strict=True)
        )
        return self._integrals

    def see_levels(self, now_s: float, gpus: tuple[float, float] | None, memory: tuple[float, float] | None) -> None:
        """Note what is used now, by us and by others: GPUs (1.0 is one GPU that computes all the time) and bytes.

        None stands for what cannot be told: the last level holds. Windows that opened before the first do not know it.
        """
        self._integrate(now_s)
        seen = (*(gpus or (UNKNOWN, UNKNOWN)), *(memory or (UNKNOWN, UNKNOWN)))
        pairs = list(zip(self._levels, seen, strict=True))
        starting = [math.isnan(level) and not math.isnan(new) for level, new in pairs]
        self._levels = tuple(level if math.isnan(new) else new for level, new in pairs)
        self._integrals = tuple(
            0.0 if starts else total for starts, total in zip(starting, self._integrals, strict=True)
        )

    def _pressure_s(self) -> float:
        if self._pressure is None:
            return UNKNOWN
        try:
            line = os.pread(self._pressure, 256, 0).split(b"\n", 1)[0]  # some avg10=0.00 … total=<µs>
            return int(line.rpartition(b"total=")[2]) / 1e6
        except (OSError, ValueError):
            return UNKNOWN

    def mark_edge(self, name: str, change: int, time_s: float, exact: bool = False) -> None:
        """Open (+1) or close (−1) a window of this name; an `exact` edge belongs to the newest reading."""
        if time_s > self._latest[0] and not exact:
            self._waiting.append((name, change, time_s))
            return
        window = self._windows.setdefault(name, WindowUse())
        window.mark_edge(change, self._latest if exact else self._at(time_s))
        if change > 0:
            window.see_gpu_processes(self._gpu_processes)

    def _at(self, time_s: float) -> Totals:
        """The totals at a time up to the newest reading."""
        begin_s, end_s = self._before[0], self._latest[0]
        if time_s >= end_s:
            return self._latest
        part = max(0.0, (time_s - begin_s) / (end_s - begin_s))
        return tuple(a + part * (b - a) for a, b in zip(self._before, self._latest, strict=True))

    def see_gpu_processes(self, count: int | None) -> None:
        """Note how many other processes compute on the GPUs now, None if it cannot be told."""
        self._gpu_processes = count
        for window in self._windows.values():
            if window.open:
                window.see_gpu_processes(count)

    def contention(self, name: str) -> Contention:
        """What the windows of this name hold up to the newest reading."""
        window = self._windows.get(name, WindowUse())
        totals = window.totals
        if window.open:
            totals = [mine + window.open * now for mine, now in zip(totals, self._latest, strict=True)]
        duration_s, busy_s, own_s, steal_s, pressure_s, *levels = (
            None if math.isnan(total) else max(0.0, total) for total in totals
        )
        own_gpu_s, others_gpu_s, own_bytes_s, others_bytes_s = levels
        return Contention(
            duration_s=duration_s,
            logical_cpus=os.cpu_count() or 1,
            own_cpu_s=own_s,
            others_cpu_s=None if busy_s is None or own_s is None else max(0.0, busy_s - own_s),
            steal_s=steal_s,
            pressure_s=pressure_s,
            gpu_processes=window.gpu_processes,
            machines=(self._machine,),
            own_gpu_s=own_gpu_s,
            others_gpu_s=others_gpu_s,
            own_memory_bytes=own_bytes_s / duration_s if own_bytes_s is not None and duration_s else None,
            others_memory_bytes=others_bytes_s / duration_s if others_bytes_s is not None and duration_s else None,
        )

    def close(self) -> None:
        """Close the kernel's files."""
        self._times.close()
        if self._pressure is not None:
            os.close(self._pressure)
            self._pressure = None


def _open_pressure(proc: Path) -> int | None:
    """The kernel's count of time in which a process waited for a CPU, None in kernels built or booted without it."""
    try:
        return os.open(proc / "pressure" / "cpu", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
