"""The energy meter: what a block of code cost on this machine's GPUs, CPUs and RAM.

    with EnergyMeter() as meter:
        with meter.window("epoch 1"):
            ...
    print(meter.reading)

Sensors are read by one daemon thread every few seconds and at the edges of windows; `lorakit.ledger` turns the readings
into energy. A window with `exact=False` costs its caller no sensor call at all: its edges are put between the
thread's readings afterwards. The meter never starts CUDA, and synchronises it only at exact edges if it already runs.
"""

import errno
import logging
import os
import random
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorakit.clock import Clock, SystemClock
from lorakit.devices import visible_gpus
from lorakit.ledger import Ledger, Total
from lorakit.rapl import RaplCounter, diagnose, find_zones, tdp_uw
from lorakit.readings import Quantity, Reading
from lorakit.sensors import (
    CpuLoad,
    Gpu,
    PowerRange,
    SensorUnavailable,
    close_nvml,
    count_dimms,
    estimate_cpu,
    estimate_ram,
    list_gpus,
    memory_bytes,
    open_gpu,
    open_nvml,
)

JOULES_PER_WH = 3600.0
WHOLE = ""  # the meter's own window
log = logging.getLogger("lorakit.energy")


class _Account:
    """A window name: how often and how long it was open."""

    def __init__(self) -> None:
        self.count = self.open = self.errors = 0
        self.seconds = 0.0
        self.since = 0.0

    def change(self, by: int, time: float) -> None:
        self.seconds += self.open * (time - self.since)
        self.since = time
        self.open += by
        self.count += by > 0

    def duration_s(self, now: float) -> float:
        return self.seconds + self.open * (now - self.since)


class EnergyMeter:
    """Measures GPU, CPU and RAM energy of a `with` block and of named windows in it.

    Args:
        powercap: the kernel's powercap folder.
        nvml: a module with pynvml's functions; None imports pynvml when the meter starts.
        clock: time, see `lorakit.clock.Clock`.
        period_s: mean time between readings; it is jittered by half, so that it cannot beat with the training step.
            GPUs without an energy counter are read once a second.
        proc, edac: where the kernel tells load, memory and DIMMs.
        environ: the environment that names the visible GPUs.
        thread: False leaves the readings to `sample`.
        seed: of the jitter.

    Raises:
        ValueError: `period_s` is not above 0 or greater than 30 (RAPL counters could wrap unseen).
    """

    def __init__(
        self,
        powercap: str | Path = "/sys/class/powercap",
        nvml: Any = None,
        clock: Clock | None = None,
        *,
        period_s: float = 5.0,
        proc: str | Path = "/proc",
        edac: str | Path = "/sys/devices/system/edac/mc",
        environ: Mapping[str, str] | None = None,
        thread: bool = True,
        seed: int | None = None,
    ) -> None:
        if not 0 < period_s <= 30:
            raise ValueError(f"period_s={period_s!r} is not above 0 and at most 30 s; 5 is a good value")
        self._powercap, self._proc, self._edac = Path(powercap), Path(proc), Path(edac)
        self._nvml_given, self._nvml = nvml, None
        self._clock: Clock = clock or SystemClock()
        self._period_s, self._use_thread, self._random = period_s, thread, random.Random(seed)
        self._environ = os.environ if environ is None else environ
        self._lock = threading.RLock()
        self._events: deque[tuple[str, int, float]] = deque()
        self._accounts: dict[str, _Account] = {}
        self._ledgers: list[Ledger] = []
        self._missing: dict[str, str] = {}  # kind -> why it has no number
        self._ranges: dict[str, PowerRange] = {}
        self._notes: list[str] = []
        self._state = "new"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._path = threading.local()
        self._power_w: float | None = None
        self._tick_joules: dict[int, tuple[float, float]] = {}

    # ---- the block

    def __enter__(self) -> "EnergyMeter":
        if self._state != "new":
            raise RuntimeError("this EnergyMeter was used already: make a new one for each block")
        self._started, self._boot_started = self._clock.monotonic(), self._clock.boottime()
        self._open_gpus()
        self._open_rapl()
        self._open_estimates()
        self._state = "running"
        self._synchronize()
        self._edge(WHOLE, +1)
        if self._use_thread:
            self._thread = threading.Thread(target=self._run, name="lorakit-energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._synchronize()
        self._edge(WHOLE, -1, error=kind is not None)
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._ended = self._clock.monotonic()
        self._boot_ended = self._clock.boottime()
        self._state = "finished"
        for ledger in self._ledgers:
            ledger.source.close()
        if self._nvml is not None:
            close_nvml(self._nvml)

    @contextmanager
    def window(self, name: str, *, exact: bool = True) -> Iterator[None]:
        """Measure a part of the block under a name; windows may nest, overlap and repeat.

        A window inside another is called "outer/inner"; one that is entered again adds up.

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
        outer = getattr(self._path, "names", ())
        self._path.names = (*outer, name)
        path = "/".join(self._path.names)
        if exact:
            self._synchronize()
        self._edge(path, +1, exact)
        failed = True
        try:
            yield
            failed = False
        finally:
            self._path.names = outer
            if exact:
                self._synchronize()
            self._edge(path, -1, exact, error=failed)

    # ---- what it found

    @property
    def reading(self) -> Reading:
        """The whole block; while it runs, up to now (this reads the sensors)."""
        return self._read_window(WHOLE)

    @property
    def windows(self) -> dict[str, Reading]:
        """All windows by name, in the order of their first entry."""
        self._refresh()
        with self._lock:
            return {name: self._reading_of(name) for name in self._accounts if name != WHOLE}

    def power_w(self) -> float | None:
        """Measured power over the sampler's last interval, W; None before it and where nothing is measured."""
        return self._power_w

    def sample(self) -> None:
        """Take one reading of everything now; the meter's thread does so by itself."""
        with self._lock:
            self._collect()
            self._update_power()

    # ---- sensors

    def _open_gpus(self) -> None:
        try:
            self._nvml = open_nvml(self._nvml_given)
            gpus, notes = list_gpus(self._nvml)
        except SensorUnavailable as error:
            self._missing["gpu"] = str(error)
            return
        self._notes += notes
        visible = visible_gpus(self._environ, [(gpu.uuid, gpu.name) for gpu in gpus], cuda_uuids=_cuda_uuids())
        self._notes += visible.notes
        if visible.problem or not visible.uuids:
            self._missing["gpu"] = visible.problem or "; ".join(visible.notes) or "NVML lists no GPU"
        self._gpus = {gpu.uuid: gpu for gpu in gpus}
        uncounted = [gpu.uuid for gpu in gpus if gpu.uuid not in visible.uuids]
        if uncounted:
            self._notes.append(f"not counted, as CUDA does not show them: {', '.join(uncounted)}")
        for uuid in visible.uuids:
            self._open_gpu(self._gpus[uuid])

    def _open_gpu(self, gpu: Gpu) -> None:
        try:
            self._add(open_gpu(self._nvml, gpu))
        except SensorUnavailable as error:
            self._notes.append(str(error))
            self._missing["gpu"] = str(error)

    def _open_rapl(self) -> None:
        self._zones = find_zones(self._powercap)
        for zone in self._zones:
            if zone.counted or zone.role == "psys":
                try:
                    self._add(RaplCounter(zone))
                except (OSError, ValueError) as error:
                    self._notes.append(f"{zone.key} ({zone.name}) is not read: {error}")
        if not self._has("cpu"):
            access = diagnose(self._powercap, self._proc)
            self._missing["cpu"] = f"{access.state}: {access.reason}; {access.fix}"

    def _open_estimates(self) -> None:
        threads = os.cpu_count() or 1
        if not self._has("cpu"):
            if any(ledger.source.scope == "module" for ledger in self._ledgers):
                self._missing["cpu"] = "inside the GPU's counter, which holds the whole module"
            else:
                limits = [tdp_uw(zone) for zone in self._zones if zone.counted and zone.role == "package"]
                known = bool(limits) and None not in limits
                power = estimate_cpu(sum(limits) / 1e6 if known else None, threads)
                try:
                    self._add(CpuLoad(power, threads, self._proc))
                    self._ranges["cpu"] = power
                except (OSError, ValueError) as error:
                    self._missing["cpu"] += f"; no estimate either: {error}"
        if not self._has("ram"):
            total = memory_bytes(self._proc)
            if total is None:
                self._missing["ram"] = f"no DRAM counter, and {self._proc}/meminfo does not tell the size"
            else:
                self._ranges["ram"] = estimate_ram(total, count_dimms(self._edac))

    def _add(self, source: Any) -> None:
        self._ledgers.append(Ledger(source, self._started))

    def _has(self, kind: str) -> bool:
        return any(ledger.source.kind == kind for ledger in self._ledgers)

    # ---- readings

    def _edge(self, path: str, change: int, exact: bool = True, error: bool = False) -> None:
        if not exact:
            self._events.append((path, change, self._clock.monotonic()))
        else:
            with self._lock:
                before = self._clock.monotonic()
                read = self._collect()
                time = self._clock.monotonic() if change > 0 else before  # what reading costs is not the window's
                self._account(path, change, time)
                for ledger in self._ledgers:
                    ledger.edge(path, change, time, exact=ledger in read)
        if error:
            with self._lock:
                self._drain(self._ledgers)
                self._accounts[path].errors += 1

    def _collect(self) -> list[Ledger]:
        """Read every sensor and book it; returns the ledgers that took the reading."""
        values: list[tuple[Ledger, float, float, float | None]] = []
        for ledger in self._ledgers:
            if ledger.lost:
                continue
            before = self._clock.monotonic()
            value: float | None = None
            try:
                value = ledger.source.read()
            except OSError as error:
                ledger.fail(str(error.strerror or error), lost=error.errno == errno.ENODEV)
            after = self._clock.monotonic()
            values.append((ledger, (before + after) / 2, (after - before) / 2, value))
        times = {id(ledger): time for ledger, time, _, _ in values}
        late = self._drain(self._ledgers, times)
        read = [
            ledger for ledger, time, slack, value in values if value is not None and ledger.sample(time, value, slack)
        ]
        for ledger, path, change, time in late:
            ledger.edge(path, change, time)
        return read

    def _drain(self, ledgers: list[Ledger], times: Mapping[int, float] | None = None) -> list:
        """Book the waiting inexact edges; those after a ledger's coming reading are returned for later."""
        events, late = [], []
        while self._events:
            events.append(self._events.popleft())
        for path, change, time in sorted(events, key=lambda event: event[2]):
            self._account(path, change, time)
            for ledger in ledgers:
                if times is not None and time > times.get(id(ledger), time):
                    late.append((ledger, path, change, time))
                else:
                    ledger.edge(path, change, time)
        return late

    def _account(self, path: str, change: int, time: float) -> None:
        self._accounts.setdefault(path, _Account()).change(change, time)

    def _run(self) -> None:
        sampled = any(ledger.source.method == "sampled" for ledger in self._ledgers)
        period_s = min(self._period_s, 1.0) if sampled else self._period_s
        delay_s = min(1.0, period_s)  # a progress bar wants watts soon
        while not self._clock.wait(self._stop, delay_s):
            try:
                self.sample()
            except Exception:  # the thread must never take the training down with it
                log.exception("the energy meter could not take a reading")
            delay_s = period_s * self._random.uniform(0.5, 1.5)

    def _update_power(self) -> None:
        watts, known = 0.0, False
        for index, ledger in enumerate(self._ledgers):
            if ledger.source.kind in ("gpu", "cpu", "ram") and ledger.source.method != "estimated":
                joules_before, measured_before = self._tick_joules.get(index, (0.0, 0.0))
                seconds = ledger.measured_s - measured_before
                if seconds > 0:
                    watts, known = watts + (ledger.joules - joules_before) / seconds, True
            self._tick_joules[index] = (ledger.joules, ledger.measured_s)
        self._power_w = watts if known else None

    def _refresh(self) -> None:
        if self._state == "running":
            with self._lock:
                self._collect()

    def _read_window(self, path: str) -> Reading:
        if self._state == "new":
            raise RuntimeError("the meter has not run yet: use `with EnergyMeter() as meter:`")
        self._refresh()
        with self._lock:
            return self._reading_of(path)

    def _reading_of(self, path: str) -> Reading:
        running = self._state == "running"
        now = self._clock.monotonic() if running else self._ended
        boot_now = self._clock.boottime() if running else self._boot_ended
        account = self._accounts[path]
        duration_s = account.duration_s(now)
        parts = {kind: self._quantity(kind, path, duration_s, now) for kind in ("gpu", "cpu", "ram")}
        others = {"psys": self._quantity("platform", path, duration_s, now)} if self._has("platform") else {}
        return Reading(
            **parts,
            duration_s=duration_s,
            suspended_s=max(0.0, (boot_now - self._boot_started) - (now - self._started)),
            count=account.count,
            errors=account.errors,
            others=others,
            notes=tuple(self._notes),
        )

    def _quantity(self, kind: str, path: str, duration_s: float, now: float) -> Quantity:
        ledgers = [ledger for ledger in self._ledgers if ledger.source.kind == kind]
        totals = [(ledger, ledger.total(path, now)) for ledger in ledgers]
        if kind in self._ranges:
            busy_j = sum(total.joules or 0.0 for _, total in totals)
            return _estimate(self._ranges[kind], busy_j, duration_s)
        known = [(ledger, total) for ledger, total in totals if total.joules is not None]
        if not known:
            troubles = [f"{ledger.source.id}: {ledger.trouble or 'not read yet'}" for ledger in ledgers]
            reason = "; ".join(troubles) or self._missing.get(kind, "there is no sensor")
            return Quantity("unavailable", source=reason, devices=tuple(_device(*pair) for pair in totals))
        return _measured(totals, known, duration_s)

    # ---- CUDA

    def _synchronize(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the current device only: others may have no context, and must not get one


def _cuda_uuids() -> list[str] | None:
    """UUIDs of CUDA's devices if CUDA runs in this process already, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]


def _estimate(power: PowerRange, busy_j: float, duration_s: float) -> Quantity:
    low_j, high_j = power.low_w * duration_s, power.high_w * duration_s
    by_load = power.source.endswith("by load")
    joules = min(low_j + busy_j, high_j) if by_load else (low_j + high_j) / 2
    return Quantity(
        "estimated",
        wh=joules / JOULES_PER_WH,
        mean_w=joules / duration_s if duration_s > 0 else None,
        source=power.source,
        scope="node",
        range_wh=(low_j / JOULES_PER_WH, high_j / JOULES_PER_WH),
    )


def _measured(totals: list, known: list, duration_s: float) -> Quantity:
    joules = sum(total.joules for _, total in known)
    wanted_s = sum(total.wanted_s for _, total in totals)
    coverage = min(1.0, sum(total.covered_s for _, total in totals) / wanted_s)
    kinds = {total.uncertainty_kind for _, total in known}
    return Quantity(
        "sampled" if any(ledger.source.method == "sampled" for ledger, _ in known) else "counter",
        wh=joules / JOULES_PER_WH,
        mean_w=joules / (duration_s * coverage) if duration_s * coverage > 0 else None,
        source="; ".join(dict.fromkeys(ledger.source.source for ledger, _ in known)),
        scope=known[0][0].source.scope,
        devices=tuple(_device(*pair) for pair in totals),
        coverage=coverage,
        gaps=tuple(vars(gap) for _, total in totals for gap in total.gaps),
        gap_count=sum(total.gap_count for _, total in totals),
        uncertainty_wh=sum(total.uncertainty_j for _, total in known) / JOULES_PER_WH,
        uncertainty_kind=kinds.pop() if len(kinds) == 1 else "3 standard errors",
    )


def _device(ledger: Ledger, total: Total) -> dict[str, Any]:
    source, known = ledger.source, total.joules is not None
    return {
        "id": source.id,
        "name": source.name,
        "method": source.method if known else "unavailable",
        "source": source.source if known else ledger.trouble or "not read yet",
        "scope": source.scope,
        "kwh": total.joules / JOULES_PER_WH / 1e3 if known else None,
        "coverage": total.covered_s / total.wanted_s if total.wanted_s > 0 else None,
        "uncertainty_kwh": total.uncertainty_j / JOULES_PER_WH / 1e3 if known else None,
        "failed_readings": ledger.failures,
        "wrap_risks": ledger.wrap_risks,
    }
