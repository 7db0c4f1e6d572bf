"""The energy meter: what a block of code costs on this machine's GPUs, CPUs and RAM.

`EnergyMeter` is what users create; a `Session` is one measurement from start to finish. The sensors
(`lorakit.power.devices`) are read by one daemon thread every few seconds and at the edges of windows, and
`lorakit.power.accumulator` turns the readings into energy. The meter never starts CUDA, and synchronises it at exact
edges only if this process uses it already.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lorakit.power.accumulator import EnergyAccumulator, mean_powers
from lorakit.power.clock import Clock, SystemClock, boot_id
from lorakit.power.cpu_time import job_root, process_tree, spawner
from lorakit.power.device_locks import SharedCounting, find_job, locks_folder
from lorakit.power.devices import NOTHING, Devices, find_devices
from lorakit.power.gather import gather_readings
from lorakit.power.hwmon import MACHINE
from lorakit.power.idle import measure_idle
from lorakit.power.journal import Journal, times
from lorakit.power.machine_use import MachineUse
from lorakit.power.memory_use import memory_in_use
from lorakit.power.plausibility import disagreements, implausible_dram, unseen_wraps
from lorakit.power.reading import BESIDE, JOULES_PER_WH, KINDS, Reading
from lorakit.power.sampler import Sampler
from lorakit.power.steadiness import PowerCourse, Steadiness, judge_steadiness
from lorakit.power.unmeasured import Unmeasured
from lorakit.power.windows import IDLE, WHOLE, WindowPaths, check_window_name, finish_cuda_work

LOOK_EVERY_S = 2.0  # how often at most to ask who computes on the GPUs and who uses the memory
USE_UNKNOWN = "who else used the machine is not fully known"
Answer = TypeVar("Answer")
log = logging.getLogger("lorakit.energy")


class EnergyMeter:
    """Measure the GPU, CPU and RAM energy of a `with` block and of named windows in it.

    Without sensors CPU and RAM are estimated, and every number says so. In a distributed job each device is counted by
    one process, so that the sum over ranks is the job's energy: on a usual node the first local rank counts everything.
    A meter that fails never ends the block: it logs one warning, and every energy is unknown, with the reason.

    Example:
        import lorakit

        with lorakit.EnergyMeter() as meter:
            with meter.window("sum"):
                sum(range(1_000_000))
        print(meter.reading)  # CPU: 6.5e-05 Wh, 9.1 W, estimated (0.5 to 8 W for each of 2 logical CPUs, by load), …
        print(meter.reading.measured_wh)  # None without a sensor
        print(meter.windows["sum"].count)  # 1

    Args:
        powercap: the kernel's powercap folder, for RAPL.
        nvml: a module with pynvml's functions; None imports pynvml when the meter starts.
        clock: the clocks to use, see `lorakit.power.clock.Clock`; None uses the machine's.
        out: a journal to append to (JSON lines, see `lorakit.power.journal`), which survives a killed process.
        out_every_s: time between the journal's lines, s.
        period_s: mean time between readings, s, above 0 and at most 30. Each interval is jittered by half, so that it
            cannot beat with the training step. GPUs without an energy counter are read once per second.
        idle_s: measure the idle machine for this long before the block, s; 0 does not.
        idle: the `idle` of another meter, instead of measuring again.
        proc: the kernel's /proc folder, for load, memory and process times.
        edac: the kernel's folder of memory controllers, for the number of DIMMs.
        hwmon: the kernel's folder of hardware monitors, for AMD's and Intel's GPUs, Grace CPUs and whole machines.
        events: the kernel's folder of perf event sources, for RAPL where powercap is closed.
        environ: the environment that names the visible GPUs and the rank; None uses this process's.
        claims: folder of the job's lock files; None uses the system's temporary folder.
        thread: False starts no thread: readings between the edges of windows are taken by calls of `sample`.
        seed: of the jitter.

    Attributes:
        idle: maps a device's id to its idle power and that power's standard error, W.

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
        hwmon: str | Path = "/sys/class/hwmon",
        events: str | Path = "/sys/bus/event_source/devices",
        environ: Mapping[str, str] | None = None,
        claims: str | Path | None = None,
        thread: bool = True,
        seed: int | None = None,
    ) -> None:
        if not 0 < period_s <= 30:
            raise ValueError(f"period_s={period_s!r} is not above 0 and at most 30 s; 5 is a good value")
        if not 0 <= idle_s < float("inf"):
            raise ValueError(f"idle_s={idle_s!r} is not a number of seconds, 0 or more; 30 is a good value")
        self._machine = Machine(
            powercap=Path(powercap),
            proc=Path(proc),
            edac=Path(edac),
            hwmon=Path(hwmon),
            events=Path(events),
            nvml=nvml,
            clock=clock or SystemClock(),
            environ=os.environ if environ is None else environ,
            locks=Path(claims) if claims else None,
        )
        self._out, self._out_every_s = out, out_every_s
        self._period_s, self._thread, self._seed, self._idle_s = period_s, thread, seed, idle_s
        self.idle: dict[str, tuple[float, float]] = dict(idle or {})
        self._session: Session | Unmeasured | None = None
        self._sampler: Sampler | None = None
        self._paths = WindowPaths()

    def __enter__(self) -> "EnergyMeter":
        if self._session is not None:
            raise RuntimeError("this EnergyMeter was used already: make a new one for each block")
        try:
            self._begin()
        except Exception as error:
            self._give_up(error)
        return self

    def _begin(self) -> None:
        self._session = session = Session(self._machine)
        if self._idle_s > 0:
            self.idle.update(session.measure_idle(self._idle_s))
        session.start(self.idle, self._out, self._out_every_s)
        if self._thread:
            period_s = min(self._period_s, 1.0) if session.samples_power() else self._period_s
            self._sampler = Sampler(self.sample, self._machine.clock, period_s, self._seed)
            self._sampler.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if not self._session.is_mine():
            return  # a forked child leaves the block too, but the meter is its parent's
        name = None if kind is None else kind.__name__
        try:
            if error is None:
                finish_cuda_work()
            try:
                self._session.end(failed=error is not None)
            finally:
                if self._sampler is not None:
                    self._sampler.stop()
            self._session.finish(name)
        except Exception as failure:
            self._give_up(failure)
            self._session.finish(name)

    def _give_up(self, error: Exception) -> None:
        """End the measurement, and not the work that is measured; the error may be any: a driver's surprise."""
        reason = f"{type(error).__name__}: {error}"
        log.warning("the energy meter failed: %s; the energy of this run is unknown, and the work continues", reason)
        failed, windows, journal = self._session, {}, None
        if isinstance(failed, Session):
            windows, journal = failed.accumulator.windows, failed.journal
            failed.close()
        self._session = Unmeasured(reason, self._machine.clock, windows, journal)

    @contextmanager
    def window(self, name: str, *, exact: bool = True) -> Iterator[None]:
        """Measure a part of the block under a name; windows may nest, overlap and repeat.

        A window inside another is called "outer/inner"; one that is entered again adds up. In a forked child it does
        nothing.

        Args:
            name: not empty, without "/".
            exact: read the sensors at both edges, and wait for CUDA's queued work if this process uses CUDA. False
                costs the caller no sensor call: the edges are placed between the thread's readings afterwards. Use it
                for training steps.

        Raises:
            ValueError: the name is empty or contains a "/".
            RuntimeError: the meter is not running.
        """
        check_window_name(name)
        session = self._session
        if session is None or session.finished:
            raise RuntimeError(f"the window {name!r} was opened outside `with EnergyMeter()`")
        if not session.is_mine():
            yield
            return
        with self._paths.entered(name) as path:
            try:
                session.open_window(path, exact)
            except Exception as error:
                self._give_up(error)
                self._session.open_window(path, exact)
            failed = True
            try:
                yield
                failed = False
            finally:
                try:
                    self._session.close_window(path, exact, failed)
                except Exception as error:
                    self._give_up(error)
                    self._session.close_window(path, exact, failed)

    @property
    def reading(self) -> Reading:
        """The whole block; while it runs, up to now, which reads the sensors.

        Raises:
            RuntimeError: the meter has not started, or belongs to a parent process.
        """
        return self._read(lambda session: session.reading(WHOLE))

    @property
    def windows(self) -> dict[str, Reading]:
        """All windows by name, in the order of their first entry; raises like `reading`."""
        return self._read(lambda session: session.windows())

    def _read(self, question: Callable[["Session | Unmeasured"], Answer]) -> Answer:
        """What the session answers when it is up to date, or what replaces it."""
        if self._session is None:
            raise RuntimeError("the meter has not run yet: use `with EnergyMeter() as meter:`")
        if not self._session.is_mine():
            pid = self._session.pid
            raise RuntimeError(f"this EnergyMeter belongs to process {pid}; a forked child has no reading")
        try:
            self._session.refresh()
            return question(self._session)
        except Exception as error:
            self._give_up(error)
            return question(self._session)

    def gather(self) -> Reading:
        """The whole job: the sum over all ranks where torch.distributed runs, else `reading`.

        Every rank must call it, and each gets the sum. A device that several ranks of a machine count, because their
        launcher did not tell them of each other, is in it once.
        """
        self._read(lambda session: session.reading(WHOLE))  # a failure here leaves the other ranks no gap to wait for
        return gather_readings(self._session, WHOLE)

    @property
    def steadiness(self) -> Steadiness | None:
        """How steady the measured power was: how long a window must be for 2 %, and how long the load warms up.

        None if nothing was measured, or there were too few samples (8).
        """
        if self._session is None:
            return None
        edges_wh = self.reading.measured_uncertainty_wh
        return None if edges_wh is None else judge_steadiness(self._session.course.points, edges_wh * JOULES_PER_WH)

    @property
    def course(self) -> list[tuple[float, float]]:
        """How the measured power went: seconds and mean W between one sample and the next; of a long run, joined."""
        return [] if self._session is None else list(self._session.course.points)

    def again(self) -> "EnergyMeter":
        """A new meter of the same sensors, without a journal, a baseline or a thread."""
        meter = EnergyMeter(thread=False)
        meter._machine = self._machine
        return meter

    def power_w(self) -> float | None:
        """Measured power over the sampler's last interval, W; None before it and where nothing is measured."""
        return None if self._session is None else self._session.power_w

    def sample(self) -> None:
        """Take one reading of everything now, and append to the journal if it is time; the thread does so by itself."""
        if self._session is not None and self._session.is_mine():
            self._session.sample()
            self._session.write_reading()


@dataclass(frozen=True)
class Machine:
    """Where a meter finds the machine; `EnergyMeter` explains the fields."""

    powercap: Path
    proc: Path
    edac: Path
    hwmon: Path
    events: Path
    nvml: Any
    clock: Clock
    environ: Mapping[str, str]
    locks: Path | None


class Session:
    """One measurement: the devices, their accumulators, and what a reading needs besides.

    Attributes:
        pid: the process that measures; a forked child has no reading.
        finished: the block has ended, and readings no longer change.
        journal: where the energy so far is written, None for nowhere.
        power_w: measured power over the last interval between samples, W.
        course: that power in every interval.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine, self._clock = machine, machine.clock
        self.pid = os.getpid()
        self._node = boot_id(machine.proc)
        job = find_job(machine.environ)
        root = job_root(job.variable, machine.proc) if job else spawner() or self.pid
        if job is not None and not job.is_named:  # two jobs of one user must not share their locks
            job = replace(job, name=f"{job.name}-{root}")
        self._use = MachineUse(self._clock.monotonic(), root, self._node, machine.proc)
        self.accumulator = EnergyAccumulator(self._clock.monotonic, self._clock.boottime, self._use)
        self._devices = self._find_devices()
        folder = machine.locks or (locks_folder(job, self._node) if job else None)
        self._sharing = SharedCounting(self._devices, job, folder, self._clock.monotonic)
        self._notes: list[str] = []
        self._idle: Mapping[str, tuple[float, float]] = {}
        self.journal: Journal | None = None
        self._progress: dict[str, tuple[float, float]] = {}
        self._sampled_at = self._clock.monotonic()
        self.course = PowerCourse()
        self.power_w: float | None = None
        self.finished = False

    def _find_devices(self) -> Devices:
        """What can be counted; a search that fails is a note, since the work to be measured matters more."""
        machine = self._machine
        try:
            return find_devices(
                self.accumulator,
                powercap=machine.powercap,
                proc=machine.proc,
                edac=machine.edac,
                hwmon=machine.hwmon,
                events=machine.events,
                nvml=machine.nvml,
                environ=machine.environ,
            )
        except Exception as error:  # of whatever kind: a driver's surprise
            for device in list(self.accumulator.devices):  # found before the failure; a part would pass for the whole
                self.accumulator.remove(device)
            devices = Devices(self.accumulator)
            reason = f"the search for sensors failed: {type(error).__name__}: {error}"
            devices.notes = [f"{reason}; please report this"]
            devices.missing = dict.fromkeys(KINDS, reason)
            return devices

    @property
    def tree_root(self) -> int:
        """The process whose tree is "ours"."""
        return self._use.tree.root

    def is_mine(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self.pid

    def samples_power(self) -> bool:
        """Whether a device has to be read often because it has no energy counter."""
        devices = (*self._devices.measured(), *self.accumulator.of_kind(MACHINE))
        return any(device.source.method == "sampled" for device in devices)

    def measure_idle(self, seconds: float) -> dict[str, tuple[float, float]]:
        """Idle power of each device and its standard error, W."""
        busy = self._devices.busy_elsewhere(self._our_processes(), self._machine.proc)
        if busy:
            self._notes.append(f"not idle during the baseline: processes {busy} compute on the GPUs")
        return measure_idle(self.accumulator, self._clock, seconds)

    def start(self, idle: Mapping[str, tuple[float, float]], out: str | Path | None, out_every_s: float) -> None:
        """Begin the block."""
        self._idle, self._out_every_s = idle, out_every_s
        self._conditions = {"driver": self._devices.driver(), "start": self._devices.conditions()}
        self._look_around()
        finish_cuda_work()
        self.accumulator.mark_edge(WHOLE, +1)
        self._last_line = self._clock.monotonic()
        if out is not None:
            self.journal = Journal(out, f"{self._node}-{self.pid}-{self.accumulator.boot_started:.6f}")
            start = {"boot_id": self._node, "host": platform.node(), "pid": self.pid, **times(self._clock)}
            self.journal.write("start", start)

    # ---- windows

    def open_window(self, path: str, exact: bool) -> None:
        """Open a window, at a reading if `exact`."""
        if exact:
            finish_cuda_work()
        self.accumulator.mark_edge(path, +1, exact)

    def close_window(self, path: str, exact: bool, failed: bool) -> None:
        """Close a window; does nothing in a forked child, or if the block ended before its window."""
        if not self.is_mine() or self.finished:
            return
        if exact and not failed:
            finish_cuda_work()
        self.accumulator.mark_edge(path, -1, exact, failed)
        if exact and self.journal is not None:
            with self.accumulator.lock:
                line = {"name": path, "reading": self.reading(path).to_json()}
            self.journal.queue("window", line)

    # ---- readings

    def sample(self) -> None:
        """Read every device."""
        with self.accumulator.lock:
            self.accumulator.collect()
            self._sharing.settle()
            progress = self.accumulator.progress()
            powers = mean_powers(self._progress, progress)
            watts = [powers[part.source.id] for part in self._devices.measured() if part.source.id in powers]
            self.power_w = sum(watts) if watts else None
            self._progress = progress
            now, before = self._clock.monotonic(), self._sampled_at
            self._sampled_at = now
            if watts and len(watts) == len(self._devices.measured()):
                self.course.add(now - before, self.power_w)
        if self._clock.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._look_around()

    def _look_around(self) -> None:
        """Note who computes on the counted GPUs now, and who uses the memory."""
        self._looked_at = self._clock.monotonic()
        others = gpus = memory = None
        try:
            ours, proc = self._our_processes(), self._machine.proc
            others = self._devices.busy_elsewhere(ours, proc, counted_only=True) if self._devices.gpus else None
            gpus = self._devices.gpus_in_use(ours, proc) if self._devices.gpus else None
            memory = memory_in_use(ours, proc)
        except Exception as error:  # of whatever kind; the energy is right without it
            note = f"{USE_UNKNOWN}: {type(error).__name__}: {error}"
            self._notes += [] if any(known.startswith(USE_UNKNOWN) for known in self._notes) else [note]
        with self.accumulator.lock:  # not while the driver answers: an edge of a window would wait for it
            if self._devices.gpus:
                self._use.see_gpu_processes(None if others is None else len(others))
            self._use.see_levels(self._clock.monotonic(), gpus, memory)

    def _our_processes(self) -> list[int]:
        return process_tree(self.tree_root, self._machine.proc)

    def refresh(self) -> None:
        """Bring the readings up to date."""
        if not self.finished:
            with self.accumulator.lock:
                self._sharing.settle(force=True)
                self.accumulator.collect()

    def reading(self, path: str, without: Mapping[str, str] = NOTHING) -> Reading:
        """The newest reading of a window; `without` maps devices to leave out to the reason."""
        with self.accumulator.lock:
            window = self.accumulator.windows[path]
            duration_s = window.duration_s(self.accumulator.time())
            parts = {kind: self._devices.measure(kind, path, duration_s, self._idle, without) for kind in KINDS}
            others = {}
            for name, kind in BESIDE.items():
                if self.accumulator.of_kind(kind):
                    others[name] = self._devices.measure(kind, path, duration_s, self._idle, without)
            contention = self._use.contention(path)
            reading = Reading(
                **parts,
                duration_s=duration_s,
                count=window.count,
                errors=window.errors,
                others=others,
                process_share=contention.own_share,
                contention=contention,
            )
            return self._of_the_whole(reading) if path == WHOLE else reading

    def _of_the_whole(self, reading: Reading) -> Reading:
        """The reading with what only the whole block has."""
        return replace(
            reading,
            suspended_s=self.accumulator.suspended_s(),
            conditions=self._conditions,
            notes=(*self._devices.notes, *self._sharing.notes, *self._notes),
        )

    def windows(self) -> dict[str, Reading]:
        """The newest reading of each window of the user."""
        with self.accumulator.lock:
            return {path: self.reading(path) for path in self.accumulator.windows if path not in (WHOLE, IDLE)}

    def write_reading(self) -> None:
        """Append the energy so far to the journal, if it is time, and the windows closed since the last line."""
        early = self._clock.monotonic() - self._last_line < self._out_every_s
        if self.journal is None or early or not self._sharing.settled:
            return
        self._last_line = self._clock.monotonic()
        with self.accumulator.lock:
            if self.finished:
                return
            line = {"reading": self.reading(WHOLE).to_json(), **times(self._clock)}
        self.journal.write("reading", line)

    # ---- the end

    def end(self, failed: bool) -> None:
        """Close the window of the whole block, with a reading; `failed` if an exception ended it."""
        self.accumulator.mark_edge(WHOLE, -1, error=failed)

    def finish(self, error: str | None) -> None:
        """End the block; `error` names the exception that ended it."""
        with self.accumulator.lock:
            self._sharing.settle(force=True)
            self.accumulator.finish()
            self._conditions["end"] = self._devices.conditions()
            self._notes += self._doubts()
            self.finished = True
            if self.journal is not None:
                windows = {path: reading.to_json() for path, reading in self.windows().items()}
                line = {"reading": self.reading(WHOLE).to_json(), "windows": windows, "error": error}
                self.journal.write("end", {**line, **times(self._clock)})
            self.close()

    def close(self) -> None:
        """Release sensors and locks; what cannot be released changes no reading, and goes with the process."""
        for part in (self._devices.close, self._use.close, self._sharing.release):
            with suppress(Exception):
                part()

    def _doubts(self) -> list[str]:
        """What makes a number doubtful."""
        foreign = self._devices.uncounted_cuda_gpus()
        notes = []
        if foreign and not self._sharing.in_job:
            notes.append(f"CUDA used GPUs that are not counted: {', '.join(foreign)}")
        zones = [part for part in self.accumulator.of_kind("ram") if part.source.method == "counter"]
        implausible = implausible_dram(zones)
        if implausible:
            notes.append(implausible)
        notes += unseen_wraps(self.accumulator.devices)
        return notes + disagreements(self._devices.checked(), WHOLE, self.accumulator.time())
