"""Each device counted by one process of a job, so that sums over ranks are right.

A process claims a device by locking a file (flock), which the kernel releases when the process ends, however it ends.
Processes that are not part of a job, and meters within one process, claim nothing from each other: measuring needs no
lock, only adding up does. The first local rank goes first, so that on a usual node it holds everything.
"""

import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_held: dict[Path, tuple[int, int]] = {}  # lock file -> (descriptor, meters of this process that use it)


@dataclass(frozen=True)
class Job:
    """A distributed job as its launcher tells it: a name that all its processes on this node share."""

    name: str
    local_rank: int


def find_job(environ: Mapping[str, str]) -> Job | None:
    """The job that this process is a rank of, by the variables of torchrun, SLURM or Open MPI; None if it is alone."""
    ranks = [("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")]
    for rank, size in [*ranks, ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"), ("SLURM_LOCALID", "SLURM_NTASKS")]:
        if environ.get(rank, "").isdigit() and environ.get(size, "").isdigit():
            if int(environ[size]) < 2:
                return None
            keys = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")
            name = "-".join(environ[key] for key in keys if environ.get(key)) or "job"
            return Job(re.sub(r"[^A-Za-z0-9.-]", "_", name), int(environ[rank]))
    return None


class Claims:
    """The devices that this process counts for a job.

    Args:
        folder: where the lock files lie; local to the node.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self._since = job, Path(folder), time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mine: list[Path] = []

    def take(self, device: str) -> bool:
        """Claim a device; False if another process of the job counts it already."""
        path = self.folder / re.sub(r"[^A-Za-z0-9.-]", "_", device)
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
        # who is late to decide may find the device free again, but counted for a part of its own time
        if self._released_at(file) > self._since:
            os.close(file)
            return False
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {self.job.local_rank}\n".encode(), 0)
        except OSError:
            pass  # the disk is full: the lock counts, the text only names its holder
        _held[path] = (file, 1)
        self._mine.append(path)
        return True

    def holder(self, device: str) -> str:
        """Who counts a device, for people."""
        path = self.folder / re.sub(r"[^A-Za-z0-9.-]", "_", device)
        for _ in range(20):
            try:
                pid, rank = path.read_text(encoding="ascii").split()[:2]
            except (OSError, ValueError):
                time.sleep(0.01)  # it holds the lock and is about to write its name
                continue
            return f"process {pid} (local rank {rank})"
        return "another process of the job"

    def leader_is_there(self) -> bool:
        """Whether the first local rank has taken its claims and still runs."""
        try:
            file = os.open(self.folder / "leader", os.O_RDWR | os.O_CLOEXEC)
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
        """When the last holder let go, on the node's monotonic clock; long ago where nobody has."""
        words = os.pread(file, 200, 0).split()
        return float(words[2]) if len(words) == 3 else float("-inf")

    def release(self) -> None:
        """Give up all claims."""
        for path in self._mine:
            file, users = _held.pop(path)
            if users > 1:
                _held[path] = (file, users - 1)
            else:
                try:
                    os.ftruncate(file, 0)
                    os.pwrite(file, f"{os.getpid()} {self.job.local_rank} {time.monotonic()}\n".encode(), 0)
                except OSError:
                    continue  # without its time of release it must stay locked, until the process ends
                os.close(file)
        self._mine = []


def claims_folder(job: Job, boot_id: str) -> Path:
    """Where a job's lock files lie: node-local, per user and boot."""
    return Path(tempfile.gettempdir()) / f"lorakit-energy-{os.getuid()}" / f"{boot_id}-{job.name}"


def _forget() -> None:
    """In a forked child: let go of the parent's descriptors; otherwise its locks would outlive it."""
    for file, _ in _held.values():
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
