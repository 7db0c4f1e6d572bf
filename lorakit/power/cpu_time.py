"""CPU time of the machine and of a process tree.

On Linux both come from /proc directly, because a meter reads them at every edge of a window; elsewhere from psutil.
"""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BUSY = ("user", "nice", "system", "irq", "softirq")  # everything but idle and waiting for disks
BUSY_COLUMNS, STEAL_COLUMN = (0, 1, 2, 5, 6), 7  # the same in the first line of /proc/stat
CPU_COLUMNS = slice(11, 15)  # utime, stime, cutime, cstime in /proc/PID/stat, counted from the field after the name
HAS_PROC = hasattr(psutil, "PROCFS_PATH")  # not on macOS
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
RESCAN_S = 1.0  # a process tree is listed at most this often; what new children used is counted at the next listing
TICK_NOISE_S = 0.1  # a smaller step back of a tree's CPU time is rounding, a larger one a process that left the tree


@contextmanager
def procfs(root: Path) -> Iterator[None]:
    """Let psutil read another folder than /proc while active, such as a host's /proc mounted in a container.

    psutil has one such folder per process, so this changes nothing where it is the one in use already.
    """
    before = psutil.PROCFS_PATH if HAS_PROC else root
    if Path(before) == root:
        yield
        return
    psutil.PROCFS_PATH = str(root)
    try:
        yield
    finally:
        psutil.PROCFS_PATH = before


class MachineTimes:
    """CPU-seconds of the whole machine since boot.

    /proc/stat is kept open: a reading then costs 8 µs on two CPUs instead of 18.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._file: int | None = None

    def read(self) -> tuple[float, float | None]:
        """Seconds that the CPUs worked, and that a hypervisor kept from them (None if the system does not tell).

        Raises:
            OSError: the counts are missing or malformed.
        """
        if not HAS_PROC:
            times = psutil.cpu_times()
            return sum(getattr(times, name, 0.0) for name in BUSY), getattr(times, "steal", None)
        if self._file is None:
            self._file = os.open(self._proc / "stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            name, *columns = os.pread(self._file, 512, 0).split(b"\n", 1)[0].split()
            ticks = [int(column) for column in columns]
            busy = sum(ticks[column] for column in BUSY_COLUMNS)
        except (ValueError, IndexError) as error:
            raise OSError(errno.EIO, f"{self._proc}/stat does not hold the CPU times: {error}") from error
        steal_s = ticks[STEAL_COLUMN] / TICKS_PER_S if len(ticks) > STEAL_COLUMN else None
        return busy / TICKS_PER_S, steal_s

    def close(self) -> None:
        """Close /proc/stat."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def process_tree_cpu_s(root: int, proc: Path = Path("/proc"), tree: Iterable[int] = ()) -> float | None:
    """CPU-seconds of a process and all its descendants, None if it does not exist.

    A process's time contains that of its children that have ended and were waited for. So children that lived and died
    between two calls are counted.

    Args:
        root: id of the process.
        proc: the kernel's /proc.
        tree: what `process_tree` returned a moment ago; empty lists the tree now.
    """
    total_s = None
    for pid in tree or process_tree(root, proc):
        cpu_s = _process_cpu_s(pid, proc)
        if cpu_s is not None:
            total_s = (total_s or 0.0) + cpu_s
        elif pid == root:
            return None
    return total_s


def _process_cpu_s(pid: int, proc: Path) -> float | None:
    """CPU-seconds of a process and of its children that were waited for, None if it has ended."""
    if not HAS_PROC:
        try:
            return sum(psutil.Process(pid).cpu_times()[:4])
        except psutil.Error:
            return None
    fields = _stat_fields(pid, proc)
    return None if fields is None else sum(map(int, fields[CPU_COLUMNS])) / TICKS_PER_S


def _stat_fields(pid: int, proc: Path) -> list[bytes] | None:
    """The fields of /proc/PID/stat after the name, which may itself contain blanks and brackets."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:
            return file.read(1024).rpartition(b")")[2].split()
    except OSError:
        return None


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


def job_root(variable: str, proc: Path = Path("/proc")) -> int:
    """The process that started all ranks of this job on this machine, or this process if it cannot be found.

    It is the nearest ancestor whose environment lacks the launcher's variable, such as LOCAL_RANK: torchrun, mpirun or
    slurmstepd. A wrapper around one rank has the variable.
    """
    pid, name = os.getppid(), f"{variable}=".encode()
    while pid > 1:
        try:
            inside = any(entry.startswith(name) for entry in (proc / str(pid) / "environ").read_bytes().split(b"\0"))
        except OSError:  # another user's, so it belongs to the launcher
            inside = False
        if not inside:
            return pid
        fields = _stat_fields(pid, proc)
        if fields is None:
            return os.getpid()
        pid = int(fields[1])
    try:
        is_host = (proc / "2" / "comm").read_text(encoding="ascii").strip() == "kthreadd"
    except OSError:
        is_host = False
    return 1 if pid == 1 and not is_host else os.getpid()  # process 1 of a container is the launcher, of a host init


def spawner() -> int | None:
    """The process that started this one by `multiprocessing` as a rank of a torch.distributed job, None if none did."""
    parent = sys.modules["multiprocessing"].parent_process() if "multiprocessing" in sys.modules else None
    torch = sys.modules.get("torch")
    if parent is None or torch is None or not torch.distributed.is_available():
        return None
    return parent.pid if torch.distributed.is_initialized() else None


class TreeTime:
    """CPU-seconds of a process tree since this object was made, cheap enough to be read often.

    For this process without children it costs 3 µs. Time that was counted stays counted when a process leaves the tree
    without being waited for.

    Args:
        root: id of the tree's first process.
        proc: the kernel's /proc.
    """

    def __init__(self, root: int, proc: Path = Path("/proc")) -> None:
        self.root = root
        self._proc = proc
        self._is_this_process = root == os.getpid() and proc == Path("/proc") and hasattr(os, "waitid")
        self._tree: list[int] = []
        self._listed_at = float("-inf")
        self._reached_s = self._now_s(0.0)
        self._total_s = 0.0

    def read(self, now_s: float) -> float | None:
        """CPU-seconds so far, None if the process does not exist. `now_s` is the monotonic time."""
        reached_s = self._now_s(now_s)
        if reached_s is None or self._reached_s is None:
            self._reached_s = self._reached_s if reached_s is None else reached_s
            return None
        if reached_s > self._reached_s:
            self._total_s += reached_s - self._reached_s
            self._reached_s = reached_s
        elif reached_s < self._reached_s - TICK_NOISE_S:
            self._reached_s = reached_s
        return self._total_s

    def _now_s(self, now_s: float) -> float | None:
        if self._is_this_process and not _has_children():
            spent = os.times()
            return time.process_time() + spent.children_user + spent.children_system
        if not 0 <= now_s - self._listed_at < RESCAN_S:
            self._tree, self._listed_at = process_tree(self.root, self._proc), now_s
        return process_tree_cpu_s(self.root, self._proc, self._tree)


def _has_children() -> bool:
    """Whether this process has children, running or not yet waited for; it waits for none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


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
        self._times = MachineTimes(proc)
        self.unit_j = (high_w - low_w) / threads
        self.max_w = (high_w - low_w) * 4  # the kernel's ticks are not exact
        self.read()

    def read(self) -> float:
        """Busy CPU-seconds since boot."""
        return self._times.read()[0]

    def busy(self) -> bool | None:
        """False: an idle machine is not a fault."""
        return False

    def close(self) -> None:
        """Close what `read` keeps open."""
        self._times.close()
