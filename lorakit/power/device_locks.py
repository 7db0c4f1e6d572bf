"""Each device counted by one process of a job, so that sums over ranks are right.

A process claims a device by locking a file (flock). The kernel releases the lock when the process ends, however it
ends. Processes that are not part of a job, and several meters in one process, do not exclude each other: measuring
needs no lock, only adding up does. The first local rank goes first, so that on a usual node it counts everything.
"""

import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LEADER_WAIT_S = 10.0  # the other ranks give the first one this long to lock the devices
LEADER = "leader"  # the lock that the first local rank takes last
_held: dict[Path, tuple[int, int]] = {}  # lock file -> (descriptor, number of meters in this process that use it)


@dataclass(frozen=True)
class Job:
    """A distributed job according to its launcher: a name that all its processes on this node share.

    `variable` is the one in which each process finds its rank, `is_named` tells whether the launcher gave the name.
    """

    name: str
    local_rank: int
    variable: str = "LOCAL_RANK"
    is_named: bool = True


LAUNCHERS = (
    # the variable of the local rank, and those of which one tells the number of ranks on the node or in the job
    ("LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")),  # torchrun, DeepSpeed, launchers like them
    ("OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    ("MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),  # Intel MPI, MPICH
    ("MV2_COMM_WORLD_LOCAL_RANK", ("MV2_COMM_WORLD_LOCAL_SIZE",)),  # MVAPICH2
    ("SLURM_LOCALID", ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS")),
)
REFUSED_FIX = "remove it, or set TMPDIR to a folder of your own for all ranks"
JOB_NAMES = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "MASTER_ADDR", "MASTER_PORT")


def find_job(environ: Mapping[str, str]) -> Job | None:
    """The job of which this process is a rank, by the variables of its launcher; None if alone, or if none are set."""
    for rank, sizes in LAUNCHERS:
        size = next((environ[name] for name in sizes if environ.get(name, "").isdigit()), None)
        if environ.get(rank, "").isdigit() and size is not None:
            if int(size) < 2:
                return None
            name = "-".join(environ[key] for key in JOB_NAMES if environ.get(key))
            return Job(_file_name(name or "job"), int(environ[rank]), rank, is_named=bool(name))
    return None


def locks_folder(job: Job, boot_id: str) -> Path:
    """Folder of a job's lock files: local to the node, one per user and boot."""
    return Path(tempfile.gettempdir()) / f"lorakit-energy-{os.getuid()}" / f"{boot_id}-{job.name}"


def _make_own(folder: Path) -> None:
    """Make a folder for lock files, or refuse one in which somebody else could decide what is counted.

    The system's folder for temporary files may be the parent: its sticky bit keeps users' folders apart.

    Raises:
        OSError: it or its parent is a link, belongs to another user, or others may write to it.
    """
    for path, owners, kept_apart in ((folder.parent, (0, os.getuid()), stat.S_ISVTX), (folder, (os.getuid(),), 0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        about = path.lstat()
        if not stat.S_ISDIR(about.st_mode):
            raise OSError(errno.ENOTDIR, f"{path} is not a folder: {REFUSED_FIX}")
        if about.st_uid not in owners or about.st_mode & stat.S_IWOTH and not about.st_mode & kept_apart:
            reason = f"{path} belongs to another user, or others can write to it: {REFUSED_FIX}"
            raise OSError(errno.EPERM, reason)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", text)


class DeviceLocks:
    """The devices that this process counts for a job.

    Args:
        folder: for the lock files; it must be local to the node.

    Raises:
        OSError: the folder cannot be created or written, or others than this user can write to it.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self._since = job, Path(folder), time.monotonic()
        _make_own(self.folder)
        self._mine: list[Path] = []

    def acquire(self, device: str) -> bool:
        """Claim a device; False if another process of the job counts it.

        Raises:
            OSError: the file system has no room for the lock file, or no locks.
        """
        path = self.folder / _file_name(device)
        if path in _held:
            file, users = _held[path]
            _held[path] = (file, users + 1)
            self._mine.append(path)
            return True
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        # A process that decides late may find the device free again, although it was counted for part of its own time.
        if self._released_at(file) > self._since:
            os.close(file)
            return False
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {self.job.local_rank}\n".encode(), 0)
        except OSError:
            pass  # the disk is full: the lock is what counts, the text only names its holder
        _held[path] = (file, 1)
        self._mine.append(path)
        return True

    def holder(self, device: str) -> str:
        """The process that counts a device, for people."""
        path = self.folder / _file_name(device)
        for _ in range(20):
            try:
                pid, rank = path.read_text(encoding="ascii").split()[:2]
            except (OSError, ValueError):
                time.sleep(0.01)  # it holds the lock and is about to write its name
                continue
            return f"process {pid} (local rank {rank})"
        return "another process of the job"

    def leader_is_running(self) -> bool:
        """Whether the first local rank has locked its devices and still runs."""
        try:
            file = os.open(self.folder / LEADER, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    @staticmethod
    def _released_at(file: int) -> float:
        """When the last holder released the lock, on the node's monotonic clock; −∞ if there was none."""
        words = os.pread(file, 200, 0).split()
        return float(words[2]) if len(words) == 3 else float("-inf")

    def release(self) -> None:
        """Release all devices."""
        for path in self._mine:
            file, users = _held.pop(path)
            if users > 1:
                _held[path] = (file, users - 1)
            else:
                try:
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"{os.getpid()} {self.job.local_rank} {time.monotonic()}\n".encode(), 0)
                except OSError:
                    continue  # without its time of release it must stay locked until the process ends
                os.close(file)
        self._mine = []


class Shareable(Protocol):
    """Devices of which each is to be counted by one process, such as `lorakit.power.devices.Devices`."""

    def shared_ids(self) -> list[str]:
        """Ids of everything that only one process should count."""
        ...

    def give_up(self, device: str, reason: str) -> None:
        """Stop counting a device."""
        ...


class SharedCounting:
    """Decides which devices this process counts: all of them alone, those that it locks first in a job.

    The decision may come late: readings are taken from the start, so nothing is lost by waiting for the first rank.

    Args:
        job: None outside a job. folder: for its lock files, needed in a job. now: the monotonic clock, s.

    Attributes:
        settled: whether the decision has been made.
        notes: remarks for the reader of the numbers.
    """

    def __init__(self, devices: Shareable, job: Job | None, folder: Path | None, now: Callable[[], float]) -> None:
        self._devices, self._now, self._started = devices, now, now()
        self._locks: DeviceLocks | None = None
        self.settled, self.notes = True, list[str]()
        if job is None:
            return
        try:
            self._locks = DeviceLocks(job, folder)
        except OSError as error:
            self._note(str(error))
            return
        self.settled = False
        if job.local_rank == 0:
            self.settle(force=True)
            self._acquire(LEADER)

    @property
    def in_job(self) -> bool:
        """Whether other processes may count devices that this one uses."""
        return self._locks is not None

    def settle(self, force: bool = False) -> None:
        """Keep the devices that no other process of the job counts, once the first rank has had its chance."""
        if self.settled:
            return
        waited_s = self._now() - self._started
        if not (force or waited_s >= LEADER_WAIT_S or self._locks.leader_is_running()):
            return
        for device in self._devices.shared_ids():
            if not self._acquire(device):
                self._devices.give_up(device, f"counted by {self._locks.holder(device)}")
        self.settled = True

    def _acquire(self, device: str) -> bool:
        """Lock a device; where the file system refuses (full, read-only), count it and say so."""
        try:
            return self._locks.acquire(device)
        except OSError as error:
            self._note(error.strerror)
            return True

    def _note(self, reason: str | None) -> None:
        note = f"ranks cannot tell each other what they count ({reason}): do not add up their energies"
        self.notes += [note] if note not in self.notes else []

    def release(self) -> None:
        """Let other processes count the devices."""
        if self._locks is not None:
            self._locks.release()


def _forget() -> None:
    """In a forked child: close the parent's descriptors; otherwise its locks would outlive it."""
    for file, _ in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
