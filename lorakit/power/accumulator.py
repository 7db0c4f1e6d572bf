"""From readings of one device to joules per window, with a bound on the error.

The sampler reads a device from time to time, and the edges of windows read it too. Two consecutive accepted readings
bound an *interval* with a known energy ΔJ. A window takes from each interval the share of time for which it was open.
Where its edge is itself a reading, that share is 0 or 1 and nothing is guessed. Where an edge falls inside an interval,
the energy is split by time, and the device's power limit bounds the error.

Let w_k be the share of interval k and J_k the counter at its ends. The sum Σ w_k (J_{k+1} − J_k) equals
Σ J_k (w_{k-1} − w_k), so an error of a reading matters only where the share *changes*: a window over a thousand
intervals carries the error of its two edges, not of a thousand readings. A counter shows its value of up to `lag_s`
ago, so each reading is too low by at most `max_w · lag_s`, and as w rises as much as it falls, half of Σ|Δw| counts.

`DeviceAccumulator.sample` tells wraps, resets and frozen readings apart, always against its own last reading. A failed
reading keeps the old baseline, because the counter kept counting.
"""

import errno
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from lorakit.power.machine_use import MachineUse
from lorakit.power.window_share import Gap, Interval, Total, WindowShare

HOLD_S = 10.0  # two power samples further apart than this are not joined: the time between them is a gap
WORKING_W = 0.5  # a GPU that computes, or a CPU that runs us, draws more; a sensor was seen to show 8 mW
WORKING_KINDS = ("cpu", "platform")  # what the machine's CPU time is spent on
TICK_S = 0.02  # by which the kernel's count of CPU time may be ahead
SUSPENDED_S = 0.5  # a smaller step of the boot-time clock is not a suspension


class Source(Protocol):
    """One device that can be read: NVML, RAPL, the load counter of an estimate and the tests' fakes all fit.

    Attributes:
        kind: "gpu", "cpu", "ram", "platform" (psys), "other", or "check" for a second opinion that enters no total.
        id: unique on the machine, such as a GPU's UUID or "intel-rapl:0". name: for people.
        method: "counter" (`read` gives a running count), "sampled" (`read` gives watts) or "estimated" (a running count
            that a model turns into energy).
        scope: what the number includes: "device", "socket", "module" or "node".
        source: the sensor or the model, for people.
        unit_j: joules per count. modulus: counts at which the counter starts again at 0, None if it never does.
        max_w: power that the device cannot exceed, W. lag_s: greatest age of the newest value, s.
    """

    kind: str
    id: str
    name: str
    method: str
    scope: str
    source: str
    unit_j: float
    modulus: int | None
    max_w: float
    lag_s: float

    def read(self) -> float:
        """Raises OSError when there is no value now; with errno ENODEV when there never will be one again."""
        ...

    def busy(self) -> bool | None:
        """Whether the device is working, None if unknown; asked only when its energy or power is near zero."""
        ...

    def close(self) -> None:
        """Release what `read` keeps open."""
        ...


class DeviceAccumulator:
    """Accumulates the energy of one source; every method expects times that do not decrease.

    Attributes:
        first: the first reading.
        joules: energy since the first reading, over the intervals without a gap. measured_s: their total time, s.
        lost: the device is gone and is no longer read.
        trouble: why the newest reading was rejected, None if it was accepted.
        failures: readings that failed. wrap_risks: intervals in which the counter may have wrapped unseen.
        longest_s: the longest interval, s.
    """

    def __init__(self, source: Source, start_s: float) -> None:
        self.source = source
        self.start_s = start_s
        self.time = start_s  # of the last accepted reading
        self.value: float | None = None
        self.first: float | None = None
        self.slack_s = 0.0  # greatest distance of that reading from the edges that it represents
        self._read_slack_s = 0.0  # half the time that reading took
        self._interrupted: str | None = None
        self.moved_at = start_s  # when the counter last changed
        self._cpu_s = self._newest_cpu_s = math.nan  # CPU time at that reading and at the newest, s
        self.joules = 0.0
        self.measured_s = 0.0
        self.lost = False
        self.trouble: str | None = None
        self.failures = 0
        self.wrap_risks = 0
        self.longest_s = 0.0
        self._unconfirmed_j = 0.0  # energy that the newest interval lacks if the counter stopped in it
        self._shares: dict[str, WindowShare] = {}
        self._active: dict[str, WindowShare] = {}  # touched by this interval or the next, so old windows cost nothing

    def mark_edge(self, name: str, change: int, time: float, exact: bool = False) -> None:
        """Open (+1) or close (−1) a window of this name.

        An edge that is `exact`, or that arrives late, belongs to the newest reading. The time between the two becomes
        the reading's slack.
        """
        share = self._active.get(name)
        if share is None:
            share = self._active[name] = self._shares.setdefault(name, WindowShare())
            share.since = self.time
        if exact or time <= self.time:
            self.slack_s = max(self.slack_s, self._read_slack_s + abs(time - self.time))
            time = self.time
        share.mark_edge(change, max(time, share.since), self.time)

    def fail(self, reason: str, lost: bool = False) -> None:
        """Note a reading that failed; the old baseline stays."""
        self.failures += 1
        self.trouble = reason
        self.lost = self.lost or lost

    def interrupt(self, reason: str) -> None:
        """Make the time until the next reading a gap, for example because the machine was suspended."""
        self._interrupted = reason

    def sample(self, time: float, value: float, slack_s: float = 0.0, cpu_s: float = math.nan) -> bool:
        """Take a reading; returns whether it closed an interval, so that a window's edge may coincide with it.

        Args:
            time: when it was taken, s. slack_s: how much earlier or later that may have been, s.
            value: counts or watts.
            cpu_s: CPU time that the machine has spent so far, s; NaN if unknown.
        """
        self._newest_cpu_s = cpu_s
        if time <= self.time and self.value is not None:
            return time == self.time
        refused = self._refused(value) if self.source.method == "sampled" else None
        if refused:
            self.fail(refused)
            return False
        reason = self._interrupted or (self.value is None and (self.trouble or "no reading before this time"))
        if reason:
            self._close_gap(time, reason)
            self._rebase(time, value, slack_s)
            return True
        take = self._sample_power if self.source.method == "sampled" else self._sample_counter
        return take(time, value, slack_s)

    def _refused(self, watts: float) -> str | None:
        """Why a power cannot be right, None if it can."""
        if not 0.0 <= watts <= self.source.max_w:
            return f"{watts:.6g} W is outside 0 to {self.source.max_w:.6g} W"
        if watts >= WORKING_W:
            return None
        busy = self.source.busy()
        if busy is None:  # as a counter that stands still: no measurement rather than one that may be of nothing
            return f"{watts:.6g} W is too little unless the device is idle, and its driver does not tell"
        return f"{watts:.6g} W is too little: the device is working" if busy else None

    def _sample_power(self, time: float, watts: float, slack_s: float) -> bool:
        source, seconds, before = self.source, time - self.time, self.value
        if seconds > HOLD_S:
            self._close_gap(time, self.trouble or f"no power sample for {seconds:.3g} s")
        else:
            joules = (before + watts) / 2 * seconds
            # Jittered samples of a fast signal are as good as independent; those of a slow one resemble their
            # neighbours. The difference of neighbours measures the variance in both cases; 0.6 is the usual half, times
            # 1.2 for unequal intervals.
            spread = (watts - before) * seconds
            worst_j = max(joules, source.max_w * seconds - joules)
            interval = Interval(seconds, joules, worst_j=worst_j, spread_j2=0.6 * spread**2, powers=(before, watts))
            self._close(time, interval)
        self._rebase(time, watts, slack_s)
        return True

    def _sample_counter(self, time: float, value: float, slack_s: float) -> bool:
        source = self.source
        possible_j = source.max_w * (time - self.moved_at + source.lag_s + slack_s + self.slack_s) + 2 * source.unit_j
        counts = value - self.value
        if counts < 0 and source.modulus is not None and (counts + source.modulus) * source.unit_j <= possible_j:
            counts += source.modulus
        if counts < 0 or counts * source.unit_j > possible_j:
            what = "reset" if counts < 0 else "implausible jump"
            self._close_gap(time, f"counter {what}: {self.value:.0f} to {value:.0f} in {time - self.moved_at:.3g} s")
            self._rebase(time, value, slack_s)
            return True
        if counts == 0 and time - self.moved_at > 2 * source.lag_s and source.busy() is not False:
            self.fail(f"counter stands still at {value:.0f}")  # a working device always draws some power
            self._doubt()
            return False
        seconds = time - self.time
        if self._is_too_little(counts * source.unit_j, seconds):
            self.fail(f"{counts * source.unit_j / seconds:.3g} W is too little: the device is working")
            self._doubt()
            return False
        lost_j = 0.0
        if source.modulus is not None:  # after a long stall the number of wraps is unknown
            range_j = source.modulus * source.unit_j
            lost_j = math.floor(max(0.0, possible_j - counts * source.unit_j) / range_j) * range_j
            self.wrap_risks += lost_j > 0
        self._close(time, Interval(time - self.time, counts * source.unit_j, lost_j=lost_j))
        moved_at = time if counts else self.moved_at
        self._rebase(time, value, slack_s)
        self.moved_at = moved_at
        return True

    def _is_too_little(self, joules: float, seconds: float) -> bool:
        """Whether the device worked, or a CPU for part of the time, and cannot have used so little."""
        if joules >= WORKING_W * (seconds - 2 * self.source.lag_s):
            return False
        if self.source.busy():
            return True
        worked_s = min(self._newest_cpu_s - self._cpu_s, seconds)  # in this order NaN stays NaN
        floor_j = WORKING_W * (worked_s - TICK_S - 2 * self.source.lag_s)
        return self.source.kind in WORKING_KINDS and joules < floor_j

    def _rebase(self, time: float, value: float, slack_s: float) -> None:
        self.longest_s = max(self.longest_s, time - self.time)
        self.first = value if self.first is None else self.first
        self.time, self.value, self.moved_at = time, value, time
        self.slack_s = self._read_slack_s = slack_s
        self._cpu_s = self._newest_cpu_s
        self.trouble = self._interrupted = None

    def _close(self, time: float, interval: Interval) -> None:
        self.joules += interval.joules
        self.measured_s += interval.seconds
        max_w = self.source.max_w
        self._unconfirmed_j = max(0.0, max_w * interval.seconds - interval.joules)
        lag_j, reading_j = max_w * self.source.lag_s, self._reading_error_j()
        for share in self._active.values():
            share.advance(time)
            share.add(interval, max_w, lag_j, reading_j)
        self._retire()

    def _doubt(self) -> None:
        """The counter stopped, and that may have been at any time in the newest interval: its bound has to say so."""
        for share in self._active.values():
            share.doubt(self._unconfirmed_j)
        self._unconfirmed_j = 0.0

    def _close_gap(self, time: float, reason: str) -> None:
        gap = Gap(self.source.id, self.time - self.start_s, time - self.time, reason)
        self._unconfirmed_j = 0.0
        for share in self._active.values():
            share.advance(time)
            share.skip(gap, self._reading_error_j())
        self._retire()

    def _retire(self) -> None:
        self._active = {name: share for name, share in self._active.items() if share.open or share.weight}

    def _reading_error_j(self) -> float:
        """Error of the last reading as the edge of a window: half its lag and all of its slack, at full power."""
        return self.source.max_w * (self.source.lag_s / 2 + self.slack_s)

    def total(self, name: str, now: float) -> Total:
        """The energy of all windows of this name so far; time after the last accepted reading counts as not covered."""
        share = self._shares.get(name, WindowShare(since=now))
        waiting_s = share.open_s + share.open * max(0.0, now - share.since)
        gaps, gap_count = list(share.gaps), share.gap_count
        if waiting_s > 0:
            gap_count += 1
            reason = self.trouble or "not read yet"
            gaps.append(Gap(self.source.id, self.time - self.start_s, max(0.0, now - self.time), reason))
        edge_j = share.turn_j + share.weight * self._reading_error_j()
        kind, spread_j = "bound", share.sample_j
        sigma3_j = 3 * math.sqrt(share.variance_j2)
        if share.intervals >= 10 and sigma3_j < spread_j:
            kind, spread_j = "3 standard errors", sigma3_j
        return Total(
            joules=share.joules if share.covered_s > 0 else None,
            uncertainty_j=share.split_j + edge_j + spread_j,
            uncertainty_kind=kind,
            covered_s=share.covered_s,
            wanted_s=share.wanted_s + waiting_s,
            gaps=tuple(gaps),
            gap_count=gap_count,
            power_w=(share.low_w, share.high_w) if share.low_w <= share.high_w else None,
        )


class WindowTime:
    """How often and for how long the windows of one name were open."""

    def __init__(self) -> None:
        self.count = self.open = self.errors = 0
        self.seconds = self.since = 0.0

    def mark_edge(self, change: int, time: float) -> None:
        """Open (+1) or close (−1) a window."""
        self.seconds += self.open * (time - self.since)
        self.since = time
        self.open += change
        self.count += change > 0

    def duration_s(self, now: float) -> float:
        """Open time so far, s; windows of one name that overlap count twice."""
        return self.seconds + self.open * (now - self.since)


class EnergyAccumulator:
    """All devices of a meter and the windows over them.

    Exact edges are readings. Inexact ones are put in a queue, which costs their thread nothing, and take effect at the
    next reading. Every caller that reads holds `lock`.

    Args:
        now: the monotonic clock, s.
        boottime: the clock that also runs while the machine is suspended, s; without it no suspension is noticed.
        use: what else uses the machine, which is read with the devices and has the same windows.
    """

    def __init__(
        self, now: Callable[[], float], boottime: Callable[[], float] | None = None, use: MachineUse | None = None
    ) -> None:
        self.now = now
        self._boottime = boottime or now
        self.use = use
        self.started, self.boot_started = now(), self._boottime()
        self._ended: tuple[float, float] | None = None
        self._asleep_s, self._suspended_s = self.boot_started - self.started, 0.0
        self.devices: list[DeviceAccumulator] = []
        self.windows: dict[str, WindowTime] = {}
        self.lock = threading.RLock()
        self._waiting: deque[tuple[str, int, float]] = deque()

    def add(self, source: Source) -> DeviceAccumulator:
        """Start to accumulate a source."""
        self.devices.append(DeviceAccumulator(source, self.started))
        return self.devices[-1]

    def remove(self, device: DeviceAccumulator) -> None:
        """Stop accumulating a device and close its source."""
        self.devices.remove(device)
        device.source.close()

    def of_kind(self, kind: str) -> list[DeviceAccumulator]:
        """The devices of one kind."""
        return [device for device in self.devices if device.source.kind == kind]

    def time(self) -> float:
        """Now, s; after `finish` the moment of that call."""
        return self._ended[0] if self._ended else self.now()

    def suspended_s(self) -> float:
        """How long the machine has been suspended since the start, s."""
        now, boot_now = self._ended or (self.now(), self._boottime())
        return self._suspended_s + max(0.0, boot_now - now - self._asleep_s)

    def finish(self) -> None:
        """Stop the clock: what is asked for later is as of now."""
        self._ended = (self.now(), self._boottime())

    def mark_edge(self, name: str, change: int, exact: bool = True, error: bool = False) -> None:
        """Open (+1) or close (−1) a window now; `error` if an exception closes it."""
        if not exact and not error:
            self._waiting.append((name, change, self.now()))
            return
        with self.lock:
            before = self.now()
            read = self.collect() if exact else []
            if not exact:
                self._drain()
            time = self.now() if change > 0 else before  # the time that reading takes is not the window's
            self._mark_time(name, change, time, exact)
            for device in self.devices:
                device.mark_edge(name, change, time, exact=device in read)
            self.windows[name].errors += error

    def collect(self) -> list[DeviceAccumulator]:
        """Read every device; returns those that accepted the reading."""
        self._notice_suspension()
        if self.use is not None:
            self.use.read(self.now())
        values: list[tuple[DeviceAccumulator, float, float, float]] = []
        for device in self.devices:
            if device.lost:
                continue
            before = self.now()
            try:
                value = device.source.read()
            except OSError as error:
                device.fail(str(error.strerror or error), lost=error.errno == errno.ENODEV)
                continue
            except Exception as error:  # of whatever kind: it costs this device's reading, and no other's
                device.fail(f"{type(error).__name__}: {error}")
                continue
            after = self.now()
            values.append((device, (before + after) / 2, (after - before) / 2, value))
        late = self._drain({id(device): time for device, time, _, _ in values})
        cpu_s = math.nan if self.use is None else self.use.busy_s
        read = [device for device, time, slack, value in values if device.sample(time, value, slack, cpu_s)]
        for device, name, change, time in late:
            device.mark_edge(name, change, time)
        return read

    def _notice_suspension(self) -> None:
        """Make the interval across a suspension a gap.

        The boot-time clock may also step back, where a virtual machine is restored: that starts the comparison anew.
        """
        asleep_s = self._boottime() - self.now()
        step_s = asleep_s - self._asleep_s
        if abs(step_s) > SUSPENDED_S:
            self._asleep_s = asleep_s
        if step_s > SUSPENDED_S:
            self._suspended_s += step_s
            for device in self.devices:
                device.interrupt(f"the machine was suspended for {step_s:.3g} s")

    def _drain(self, times: Mapping[int, float] | None = None) -> list[tuple[DeviceAccumulator, str, int, float]]:
        """Apply the waiting edges; those after a device's coming reading are returned, to be applied after it."""
        edges, late = [], []
        while self._waiting:
            edges.append(self._waiting.popleft())
        for name, change, time in sorted(edges, key=lambda edge: edge[2]):
            self._mark_time(name, change, time)
            for device in self.devices:
                if times is not None and time > times.get(id(device), time):
                    late.append((device, name, change, time))
                else:
                    device.mark_edge(name, change, time)
        return late

    def _mark_time(self, name: str, change: int, time: float, exact: bool = False) -> None:
        self.windows.setdefault(name, WindowTime()).mark_edge(change, time)
        if self.use is not None:
            self.use.mark_edge(name, change, time, exact)

    def progress(self) -> dict[str, tuple[float, float]]:
        """Joules and measured seconds of each device so far, by id."""
        return {device.source.id: (device.joules, device.measured_s) for device in self.devices}


def mean_powers(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Mean power of each device between two calls of `EnergyAccumulator.progress`, W; without those not read since."""
    powers = {}
    for device, (joules, seconds) in after.items():
        joules_before, seconds_before = before.get(device, (0.0, 0.0))
        if seconds > seconds_before:
            powers[device] = (joules - joules_before) / (seconds - seconds_before)
    return powers


def mirrored(devices: Iterable[DeviceAccumulator]) -> list[DeviceAccumulator]:
    """Die zones that show the register of another die: the same start and, since then, the same energy.

    Threadripper and the first EPYCs do so; a sum would count the package once per die.
    """
    dies: dict[tuple[str, str], list[DeviceAccumulator]] = {}
    for device in devices:
        package, _, die = device.source.name.partition("-die-")
        if die:
            dies.setdefault((device.source.kind, package), []).append(device)
    repeated: list[DeviceAccumulator] = []
    for group in dies.values():
        for index, device in enumerate(group):
            if any(other not in repeated and _same_register(device, other) for other in group[:index]):
                repeated.append(device)
    return repeated


def _same_register(one: DeviceAccumulator, other: DeviceAccumulator) -> bool:
    if one.first is None or other.first is None:
        return False
    same_start = abs(one.first - other.first) * one.source.unit_j <= 1.0  # they are read microseconds apart
    return same_start and abs(one.joules - other.joules) <= 0.1 + 1e-4 * one.joules
