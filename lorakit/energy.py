"""The energy meter: what a block of code cost on this machine's GPUs, CPUs and RAM.

    with EnergyMeter() as meter:
        with meter.window("epoch 1"):
            ...
    print(meter.reading)

Sensors (`lorakit.power.devices`) are read by one daemon thread every few seconds and at the edges of windows;
`lorakit.power.accumulator` turns the readings into energy. A window with `exact=False` costs its caller no sensor call
at all: its edges are put between the thread's readings afterwards. The meter never starts CUDA, and synchronises it at
exact edges only if it runs already.

In a distributed job each device is counted by one process (`lorakit.power.device_locks`), so that the sum over ranks is
the job's energy; on a usual node the first local rank counts everything. `EnergyMeter.gather` adds up the ranks.
"""

import json
import logging
import os
import platform
import random
import signal
import statistics
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorakit.power.accumulator import Books
from lorakit.power.clock import Clock, SystemClock
from lorakit.power.cuda import finish_cuda_work
from lorakit.power.device_locks import Claims, claims_folder, find_job
from lorakit.power.devices import KINDS, Instruments
from lorakit.power.journal import Journal
from lorakit.power.nvml import busy_cpu_s, process_tree_cpu_s
from lorakit.power.reading import Quantity, Reading, add_readings

WHOLE, IDLE = "", "/idle"  # the meter's own windows; users' names are not empty and hold no slash
LEADER_WAIT_S = 10.0  # so long other ranks let the first one claim the devices
ASLEEP_S = 0.5  # a smaller step of the boot-time clock is no suspension
MAIN_THREADS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
log = logging.getLogger("lorakit.energy")


class EnergyMeter:
    """Measures GPU, CPU and RAM energy of a `with` block and of named windows in it.

    Args:
        powercap: the kernel's powercap folder.
        nvml: a module with pynvml's functions; None imports pynvml when the meter starts.
        clock: time, see `lorakit.power.clock.Clock`.
        out: a journal to append to (JSON lines, see `lorakit.power.journal`): what was measured survives a killed
            process.
        out_every_s: time between its lines, s.
        period_s: mean time between readings, s; jittered by half, so that it cannot beat with the training step. GPUs
            without an energy counter are read once a second.
        idle_s: measure the idle machine for so long before the block, s; 0 does not.
        idle: the `idle` of another meter, in place of measuring again.
        proc, edac: where the kernel tells load, memory and DIMMs.
        environ: the environment that names the visible GPUs and the rank.
        claims: folder of the job's lock files; None is the system's temporary folder.
        thread: False leaves the readings to `sample`.
        seed: of the jitter.

    Attributes:
        idle: device id -> its idle power and that power's standard error, W.

    Raises:
        ValueError: `period_s` is not above 0 and at most 30 (RAPL counters could wrap unseen), or `idle_s` is negative.
    """

    def __init__(
        self,
        powercap: str | Path = "/sys/class/powercap",
        nvml: Any = None,
        clock: Clock | None = None,
        *,
        out: str | Path | None = None,
        out_every_s: float = 10.0,
        period_s: float = 5.0,
        idle_s: float = 0.0,
        idle: Mapping[str, tuple[float, float]] | None = None,
        proc: str | Path = "/proc",
        edac: str | Path = "/sys/devices/system/edac/mc",
        environ: Mapping[str, str] | None = None,
        claims: str | Path | None = None,
        thread: bool = True,
        seed: int | None = None,
    ) -> None:
        if not 0 < period_s <= 30:
            raise ValueError(f"period_s={period_s!r} is not above 0 and at most 30 s; 5 is a good value")
        if not 0 <= idle_s < float("inf"):
            raise ValueError(f"idle_s={idle_s!r} is not a number of seconds, 0 or more; 30 is a good value")
        self._powercap, self._proc, self._edac = Path(powercap), Path(proc), Path(edac)
        self._nvml = nvml
        self._clock: Clock = clock or SystemClock()
        self._out, self._out_every_s = out, out_every_s
        self._period_s, self._use_thread, self._random = period_s, thread, random.Random(seed)
        self._idle_s = idle_s
        self.idle: dict[str, tuple[float, float]] = dict(idle or {})
        self._environ = os.environ if environ is None else environ
        self._claims_folder = claims
        self._claims: Claims | None = None
        self._settled = True  # whether it is known which devices this process counts
        self._books = Books(self._clock.monotonic)
        self._instruments: Instruments | None = None
        self._notes: list[str] = []
        self._conditions: dict[str, Any] = {}
        self._cpu_start: tuple[float, float] | None = None
        self._process_share: float | None = None
        self._journal: Journal | None = None
        self._lines: deque[tuple[str, dict[str, Any]]] = deque()
        self._state = "new"
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._path = threading.local()
        self._power_w: float | None = None
        self._last_tick: dict[str, tuple[float, float]] = {}

    # ---- the block

    def __enter__(self) -> "EnergyMeter":
        if self._state != "new":
            raise RuntimeError("this EnergyMeter was used already: make a new one for each block")
        self._pid = os.getpid()
        self._books.started, self._boot_started = self._clock.monotonic(), self._clock.boottime()
        self._asleep_s = self._boot_started - self._books.started
        self._instruments = Instruments(self._books, self._powercap, self._proc, self._edac, self._nvml, self._environ)
        self._notes += self._instruments.notes
        self._open_claims()
        self._state = "running"
        if self._idle_s > 0:
            self._measure_idle()
        self._conditions = {"driver": self._instruments.driver(), "start": self._instruments.conditions()}
        self._cpu_start = self._cpu_seconds()
        finish_cuda_work()
        self._books.edge(WHOLE, +1)
        self._open_journal()
        if self._use_thread:
            self._thread = threading.Thread(target=self._run, name="lorakit-energy", daemon=True)
            with _blocked_signals():
                self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if os.getpid() != self._pid:
            return  # a forked child leaves the block too; the meter is its parent's
        if error is None:
            finish_cuda_work()
        try:
            self._edge(WHOLE, -1, error=error is not None)
        finally:
            self._stop.set()
            if self._thread is not None:
                self._thread.join(timeout=10)
        with self._books.lock:
            self._settle_claims(force=True)
            self._ended, self._boot_ended = self._clock.monotonic(), self._clock.boottime()
            self._conditions["end"] = self._instruments.conditions()
            self._process_share = self._share_of_cpu()
            self._note_doubts()
            self._state = "finished"
            self._write_end(None if kind is None else kind.__name__)
            self._instruments.close()
            if self._claims is not None:
                self._claims.release()

    @contextmanager
    def window(self, name: str, *, exact: bool = True) -> Iterator[None]:
        """Measure a part of the block under a name; windows may nest, overlap and repeat.

        A window inside another is called "outer/inner"; one that is entered again adds up. In a forked child it does
        nothing.

        Args:
            name: not empty, without "/".
            exact: read the sensors at both edges (and wait for CUDA's queued work, if CUDA runs). False costs the
                caller nothing: use it for training steps.

        Raises:
            ValueError: the name is empty or has a "/".
            RuntimeError: the meter does not run.
        """
        if not name or "/" in name:
            raise ValueError(f"a window's name must not be empty nor hold a '/', got {name!r}")
        if self._state != "running":
            raise RuntimeError(f"the window {name!r} was opened outside `with EnergyMeter()`")
        if os.getpid() != self._pid:
            yield
            return
        mine = [name]  # an object of its own: of two windows with one name each leaves its own entry
        self._path.open = (*getattr(self._path, "open", ()), mine)
        path = "/".join(entry[0] for entry in self._path.open)
        if exact:
            finish_cuda_work()
        self._edge(path, +1, exact)
        failed = True
        try:
            yield
            failed = False
        finally:
            self._path.open = tuple(entry for entry in getattr(self._path, "open", ()) if entry is not mine)
            if os.getpid() == self._pid and self._state == "running":  # else the block ended before its window
                if exact and not failed:
                    finish_cuda_work()
                self._edge(path, -1, exact, failed)
                if exact and self._journal is not None:
                    with self._books.lock:
                        line = {"name": path, "reading": self._reading_of(path).to_json()}
                    self._lines.append(("window", line))

    # ---- what it found

    @property
    def reading(self) -> Reading:
        """The whole block; while it runs, up to now (this reads the sensors).

        Raises:
            RuntimeError: the meter has not started, or belongs to a parent process.
        """
        self._refresh()
        with self._books.lock:
            return self._reading_of(WHOLE)

    @property
    def windows(self) -> dict[str, Reading]:
        """All windows by name, in the order of their first entry; raises as `reading` does."""
        self._refresh()
        with self._books.lock:
            return {name: self._reading_of(name) for name in self._books.accounts if name not in (WHOLE, IDLE)}

    def gather(self) -> Reading:
        """The whole job: the sum over all ranks, where torch.distributed runs; else `reading`.

        Every rank must call it, and each gets the sum.
        """
        reading = self.reading
        torch = sys.modules.get("torch")
        if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return reading
        return add_readings([Reading.from_json(data) for data in _all_gather(torch, reading.to_json())])

    def power_w(self) -> float | None:
        """Measured power over the sampler's last interval, W; None before it and where nothing is measured."""
        return self._power_w

    def sample(self) -> None:
        """Take one reading of everything now; the meter's thread does so by itself."""
        if os.getpid() != self._pid:
            return
        with self._books.lock:
            self._collect()
            self._settle_claims()
            self._update_power()

    # ---- the idle machine, the process's share, doubts

    def _measure_idle(self) -> None:
        """Mean power and its standard error before the block, from readings about a second apart."""
        busy = self._instruments.busy_elsewhere()
        if busy:
            self._notes.append(f"not idle during the baseline: processes {busy} compute on the GPUs")
        rounds = max(3, round(self._idle_s))
        powers: dict[str, list[float]] = {}
        self._books.edge(IDLE, +1)
        for _ in range(rounds):
            before = self._books.progress()
            self._clock.wait(self._stop, self._idle_s / rounds)
            self._collect()
            for source, watts in _powers(before, self._books.progress()).items():
                powers.setdefault(source, []).append(watts)
        self._books.edge(IDLE, -1)
        now = self._clock.monotonic()
        for ledger in self._books.ledgers:
            if ledger.source.kind == "check":
                continue
            total, watts = ledger.total(IDLE, now), powers.get(ledger.source.id, [])
            if total.joules is not None and len(watts) >= 2:
                error = statistics.stdev(watts) / len(watts) ** 0.5
                self.idle[ledger.source.id] = (total.joules / total.covered_s, error)

    def _cpu_seconds(self) -> tuple[float, float] | None:
        """CPU-seconds of this process tree, and of the machine."""
        tree = process_tree_cpu_s(self._proc, os.getpid())
        try:
            return None if tree is None else (tree, busy_cpu_s(self._proc / "stat", os.sysconf("SC_CLK_TCK")))
        except (OSError, ValueError):
            return None

    def _share_of_cpu(self) -> float | None:
        now = self._cpu_seconds()
        if now is None or self._cpu_start is None or now[1] <= self._cpu_start[1]:
            return None
        return min(1.0, max(0.0, now[0] - self._cpu_start[0]) / (now[1] - self._cpu_start[1]))

    def _note_doubts(self) -> None:
        foreign = self._instruments.uncounted_cuda_gpus()
        if foreign and self._claims is None:
            self._notes.append(f"CUDA used GPUs that are not counted: {', '.join(foreign)}")
        implausible = self._instruments.implausible_dram()
        if implausible:
            self._notes.append(implausible)
        self._notes += self._instruments.disagreements(WHOLE, self._ended)

    # ---- readings

    def _run(self) -> None:
        sampled = any(ledger.source.method == "sampled" for ledger in self._instruments.measuring())
        period_s = min(self._period_s, 1.0) if sampled else self._period_s
        delay_s = min(1.0, period_s)  # a progress bar wants watts soon
        complained = False
        while not self._clock.wait(self._stop, delay_s):
            try:
                self.sample()
                self._write_reading()
            except Exception:  # the thread must never take the training down with it
                if not complained:
                    log.exception("the energy meter could not take a reading; it goes on trying")
                complained = True
            delay_s = period_s * self._random.uniform(0.5, 1.5)

    def _edge(self, path: str, change: int, exact: bool = True, error: bool = False) -> None:
        if exact:
            self._notice_sleep()
        self._books.edge(path, change, exact, error)

    def _collect(self) -> None:
        with self._books.lock:
            self._notice_sleep()
            self._books.collect()

    def _notice_sleep(self) -> None:
        """What is measured across a suspension becomes a gap."""
        with self._books.lock:
            asleep_s = self._clock.boottime() - self._clock.monotonic()
            if asleep_s - self._asleep_s > ASLEEP_S:
                for ledger in self._books.ledgers:
                    ledger.interrupt(f"the machine was suspended for {asleep_s - self._asleep_s:.3g} s")
                self._asleep_s = asleep_s

    def _update_power(self) -> None:
        powers = _powers(self._last_tick, self._books.progress())
        measured = [ledger.source.id for ledger in self._instruments.measuring()]
        watts = [powers[source] for source in measured if source in powers]
        self._last_tick = self._books.progress()
        self._power_w = sum(watts) if watts else None

    def _refresh(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"this EnergyMeter belongs to process {self._pid}; a forked child has no reading")
        if self._state == "new":
            raise RuntimeError("the meter has not run yet: use `with EnergyMeter() as meter:`")
        if self._state == "running":
            with self._books.lock:
                self._settle_claims(force=True)
                self._collect()

    def _reading_of(self, path: str) -> Reading:
        running = self._state == "running"
        now = self._clock.monotonic() if running else self._ended
        boot_now = self._clock.boottime() if running else self._boot_ended
        account = self._books.accounts[path]
        duration_s = account.duration_s(now)
        parts = {kind: self._quantity(kind, path, duration_s, now) for kind in KINDS}
        others = {"psys": self._quantity("platform", path, duration_s, now)} if self._books.of("platform") else {}
        whole = path == WHOLE
        return Reading(
            **parts,
            duration_s=duration_s,
            suspended_s=max(0.0, (boot_now - self._boot_started) - (now - self._books.started)) if whole else 0.0,
            count=account.count,
            errors=account.errors,
            others=others,
            process_share=(self._share_of_cpu() if running else self._process_share) if whole else None,
            conditions=self._conditions if whole else {},
            notes=tuple(self._notes) if whole else (),
        )

    def _quantity(self, kind: str, path: str, duration_s: float, now: float) -> Quantity:
        return self._instruments.quantity(kind, path, duration_s, now, self.idle)

    # ---- one count per node

    def _open_claims(self) -> None:
        job = find_job(self._environ)
        if job is None:
            return
        folder = Path(self._claims_folder) if self._claims_folder else claims_folder(job, boot_id(self._proc))
        try:
            self._claims = Claims(job, folder)
        except OSError as error:
            self._notes.append(f"ranks cannot tell each other what they count ({error}): do not add up their energies")
            return
        self._settled = False
        if job.local_rank == 0:
            self._settle_claims(force=True)
            self._take("leader")

    def _settle_claims(self, force: bool = False) -> None:
        """Keep the devices that no other process of the job counts; nothing is lost by deciding late."""
        if self._settled:
            return
        waited_s = self._clock.monotonic() - self._books.started
        if not (force or waited_s >= LEADER_WAIT_S or self._claims.leader_is_there()):
            return
        for device in self._instruments.claimable():
            if not self._take(device):
                self._instruments.give_up(device, f"counted by {self._claims.holder(device)}")
        self._settled = True

    def _take(self, device: str) -> bool:
        """Claim a device; where the file system refuses (full, read-only) count it and say so."""
        try:
            return self._claims.take(device)
        except OSError as error:
            note = f"ranks cannot tell each other what they count ({error.strerror}): do not add up their energies"
            self._notes += [note] if note not in self._notes else []
            return True

    # ---- the journal

    def _open_journal(self) -> None:
        self._last_line = self._clock.monotonic()
        if self._out is None:
            return
        node = boot_id(self._proc)
        self._journal = Journal(self._out, f"{node}-{os.getpid()}-{self._boot_started:.6f}")
        start = {"boot_id": node, "host": platform.node(), "pid": os.getpid(), **self._times()}
        self._journal.write("start", start)

    def _times(self) -> dict[str, float]:
        return {"boottime_s": self._clock.boottime(), "wall_s": self._clock.wall()}

    def _write_reading(self) -> None:
        """Append the energy so far, if it is time, and the windows closed since; called by the meter's thread."""
        if self._journal is None or self._clock.monotonic() - self._last_line < self._out_every_s or not self._settled:
            return
        self._last_line = self._clock.monotonic()
        with self._books.lock:
            if self._state != "running":
                return
            line = {"reading": self._reading_of(WHOLE).to_json(), **self._times()}
        while self._lines:
            self._journal.write(*self._lines.popleft())
        self._journal.write("reading", line)

    def _write_end(self, error: str | None) -> None:
        if self._journal is not None:
            windows = {name: reading.to_json() for name, reading in self.windows.items()}
            whole = self._reading_of(WHOLE).to_json()
            self._journal.write("end", {"reading": whole, "windows": windows, "error": error, **self._times()})


def boot_id(proc: Path = Path("/proc")) -> str:
    """What tells this machine, since its last start, from all others."""
    try:
        return (Path(proc) / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """A thread that starts in here takes no signal that is meant for the program's main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_THREADS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _powers(before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean power of each source between two looks at `Books.progress`, W; those that did not move on are left out."""
    powers = {}
    for source, (joules, seconds) in after.items():
        joules_before, seconds_before = before.get(source, (0.0, 0.0))
        if seconds > seconds_before:
            powers[source] = (joules - joules_before) / (seconds - seconds_before)
    return powers


def _all_gather(torch: Any, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's JSON, as bytes in tensors: torch's own object collectives would unpickle."""
    on_gpu = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    text = json.dumps(data).encode()
    size = torch.tensor([len(text)], device=device)
    sizes = [torch.zeros_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    longest = int(max(sizes))
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return [json.loads(part.cpu().numpy().tobytes()) for part in parts]
