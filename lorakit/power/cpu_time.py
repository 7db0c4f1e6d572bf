"""CPU time of the machine and of a process tree, through psutil."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BUSY = ("user", "nice", "system", "irq", "softirq")  # everything but idle and waiting for disks


@contextmanager
def procfs(root: Path) -> Iterator[None]:
    """Let psutil read another folder than /proc while active, such as a host's /proc mounted in a container.

    psutil has one such folder per process, so this changes nothing where it is the one in use already.
    """
    before = getattr(psutil, "PROCFS_PATH", None)  # None where the system has no /proc, as on macOS
    if before is None or Path(before) == root:
        yield
        return
    psutil.PROCFS_PATH = str(root)
    try:
        yield
    finally:
        psutil.PROCFS_PATH = before


def busy_cpu_s(proc: Path = Path("/proc")) -> float:
    """CPU-seconds that the machine spent working since boot.

    Raises:
        OSError: the counts are missing or malformed.
    """
    with procfs(proc):
        try:
            times = psutil.cpu_times()
        except (ValueError, TypeError, IndexError) as error:
            raise OSError(errno.EIO, f"{proc}/stat does not hold the CPU times: {error}") from error
    return sum(getattr(times, name, 0.0) for name in BUSY)


def process_tree_cpu_s(root: int, proc: Path = Path("/proc")) -> float | None:
    """CPU-seconds of a process and all its descendants, None if it does not exist.

    A process's time contains that of its children that have ended and were waited for. So children that lived and died
    between two calls are counted.
    """
    total_s = None
    with procfs(proc):
        for pid in process_tree(root, proc):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:
                if pid == root:
                    return None
                continue  # it has ended since
            total_s = (total_s or 0.0) + times.user + times.system + times.children_user + times.children_system
    return total_s


def process_tree(root: int, proc: Path = Path("/proc")) -> list[int]:
    """Ids of a process and its descendants, parents first.

    The kernel lists the children of each thread. Reading these lists touches the tree only, while
    `psutil.Process.children` reads the parent of every process on the machine, which takes tens of milliseconds on a
    server with thousands of them. That is the fallback for kernels built without PROC_CHILDREN and for other systems.
    """
    found, listed = [root], False
    for pid in found:  # grows while we iterate
        try:
            threads = os.listdir(proc / str(pid) / "task")
        except OSError:
            continue  # it has ended
        for thread in threads:
            try:
                children = (proc / str(pid) / "task" / thread / "children").read_text(encoding="ascii")
            except OSError:
                continue
            listed = True
            found += map(int, children.split())
    if listed:
        return found
    with procfs(proc):
        try:
            return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
        except psutil.Error:
            return [root]


class ProcessShare:
    """This process tree's share of the machine's CPU time, from the moment of creation on."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._start = self._times()

    def _times(self) -> tuple[float, float] | None:
        """CPU-seconds of the tree and of the machine."""
        tree = process_tree_cpu_s(os.getpid(), self._proc)
        try:
            return None if tree is None else (tree, busy_cpu_s(self._proc))
        except OSError:
            return None

    def so_far(self) -> float | None:
        """The share, 0 to 1; None where it cannot be told."""
        now = self._times()
        if now is None or self._start is None or now[1] <= self._start[1]:
            return None
        return min(1.0, max(0.0, now[0] - self._start[0]) / (now[1] - self._start[1]))


class CpuLoad:
    """Busy CPU-seconds of the machine, as a counter that an estimate turns into energy.

    Its joules are the part above idle: (high − low)/CPUs per busy CPU-second. The constant low part is added later, for
    the time that a window lasted.

    Args:
        low_w: power of the idle CPUs, W. high_w: power under full load, W.
        source: what the two come from, for people.
        threads: logical CPUs.
        proc: the kernel's /proc.

    Raises:
        OSError: the machine does not tell its load.
    """

    kind = "cpu"
    id = "cpu-load"
    name = "CPU load"
    method = "estimated"
    scope = "node"
    unit_j: float
    modulus: int | None = None
    lag_s = 0.05

    def __init__(self, low_w: float, high_w: float, source: str, threads: int, proc: Path = Path("/proc")) -> None:
        self.source = source
        self._proc = proc
        self.unit_j = (high_w - low_w) / threads
        self.max_w = (high_w - low_w) * 4  # the kernel's ticks are not exact
        self.read()

    def read(self) -> float:
        """Busy CPU-seconds since boot."""
        return busy_cpu_s(self._proc)

    def busy(self) -> bool | None:
        """False: an idle machine is not a fault."""
        return False

    def close(self) -> None:
        """Nothing is kept open."""
