"""From readings of one device to joules per window, with a bound on the error.

A device is read now and then: by the sampler, and at the edges of windows. Between two accepted readings lies an
*interval* with a known energy ΔJ. A window takes from each interval the share of time for which it was open. Where its
edge is itself a reading that share is 0 or 1 and nothing is guessed; where an edge lies inside, the energy is split by
time and the error is bounded by what the device's power limit leaves possible.

Let w_k be the share of interval k and J_k the counter at its ends. The sum Σ w_k (J_{k+1} − J_k) equals
Σ J_k (w_{k-1} − w_k), so an error of a reading matters only where the share *changes*: a window over a thousand
intervals carries the error of its two edges, not of a thousand readings. A counter shows its value of up to `lag_s`
ago, so each reading is too low by at most `max_w · lag_s`, and as w rises as much as it falls, half of Σ|Δw| counts.

One accumulator does it all, from its own last reading: wrap, reset, failed and frozen readings are told apart in one
place (`Ledger.sample`). A failed reading keeps the old baseline, for the counter went on counting.
"""

import errno
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

GAPS_KEPT = 32  # per device and window; more are counted, not listed
HOLD_S = 10.0  # a power sample is joined to the next only over this time, longer is a gap


class Source(Protocol):
    """One device that can be read: NVML, RAPL, an estimate's load counter and the tests' fakes all fit.

    Attributes:
        method: "counter" (`read` gives a running count), "sampled" (`read` gives watts) or "estimated" (a count that
            stands for energy by a model).
        unit_j: joules per count. modulus: counts at which the counter starts again at 0, None if it never does.
        max_w: power that the device cannot exceed, W. lag_s: age of the newest value, at most, s.
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
        """Raises OSError when there is no value now; with errno ENODEV when there never will be again."""
        ...

    def busy(self) -> bool | None:
        """Whether the device is working, None if unknown; asked only when a counter stands still."""
        ...


@dataclass(frozen=True)
class Gap:
    """A time without a trustworthy reading, in seconds since the meter's start."""

    device: str
    start_s: float
    duration_s: float
    reason: str


@dataclass(frozen=True)
class Total:
    """What one window has of one device.

    `joules` is None if nothing at all was measured. `uncertainty_j` bounds |joules − truth| over the covered time for a
    counter; for samples it is three standard errors where that is less than the bound (`uncertainty_kind`). `power_w`
    is the lowest and the highest power among the samples that `joules` was integrated from, None for a counter.
    """

    joules: float | None
    uncertainty_j: float
    uncertainty_kind: str
    covered_s: float
    wanted_s: float
    gaps: tuple[Gap, ...]
    gap_count: int
    power_w: tuple[float, float] | None = None


@dataclass
class _Share:
    """Running sums of one window on one device."""

    open: int = 0  # windows of this name that are open now
    since: float = 0.0  # time of the last change
    open_s: float = 0.0  # ∫ open dt over the interval that is being measured, to `since`
    low: int = 0  # least and greatest `open` in that interval
    high: int = 0
    weight: float = 0.0  # share of the interval before
    joules: float = 0.0
    covered_s: float = 0.0
    wanted_s: float = 0.0
    split_j: float = 0.0  # error bound of edges inside an interval, and of lost wraps
    turn_j: float = 0.0  # error bound of readings at which the share changed
    sample_j: float = 0.0  # error bound of integrating samples
    variance_j2: float = 0.0
    intervals: int = 0
    low_w: float = math.inf  # least and greatest power sample
    high_w: float = -math.inf
    gaps: list[Gap] = field(default_factory=list)
    gap_count: int = 0


class Ledger:
    """Accumulates one source; every method expects times that do not decrease.

    Attributes:
        first: the first reading.
        joules: energy since the first reading, over the intervals without a gap.
        lost: the device is gone and is not read any more.
        trouble: why the newest reading was not taken, None if it was.
        failures: readings that failed. wrap_risks: intervals in which the counter may have gone round unseen.
        longest_s: the longest interval.
    """

    def __init__(self, source: Source, start_s: float) -> None:
        self.source = source
        self.start_s = start_s
        self.time = start_s  # of the last accepted reading
        self.value: float | None = None
        self.first: float | None = None
        self.slack_s = 0.0  # how far that reading may be from the edges that it stands for
        self._read_slack_s = 0.0  # half the time that it took
        self._interrupted: str | None = None
        self.moved_at = start_s  # when the counter last changed
        self.joules = 0.0
        self.measured_s = 0.0
        self.lost = False
        self.trouble: str | None = None
        self.failures = 0
        self.wrap_risks = 0
        self.longest_s = 0.0
        self._shares: dict[str, _Share] = {}
        self._active: dict[str, _Share] = {}  # those that this interval or the next concerns: old windows cost nothing

    def edge(self, name: str, change: int, time: float, exact: bool = False) -> None:
        """Open (+1) or close (−1) a window of this name.

        An edge that is `exact`, or that came in late, belongs to the newest reading; what its time differs from that
        reading's is kept as the reading's slack.
        """
        share = self._active.get(name)
        if share is None:
            share = self._active[name] = self._shares.setdefault(name, _Share())
            share.since = self.time
        if exact or time <= self.time:
            self.slack_s = max(self.slack_s, self._read_slack_s + abs(time - self.time))
            time = self.time
        time = max(time, share.since)
        share.open_s += share.open * (time - share.since)
        share.since = time
        share.open += change
        if time == self.time:  # nothing of the interval has passed
            share.low = share.high = share.open
        else:
            share.low = min(share.low, share.open)
            share.high = max(share.high, share.open)

    def fail(self, reason: str, lost: bool = False) -> None:
        """Note a reading that did not come; the old baseline stays."""
        self.failures += 1
        self.trouble = reason
        self.lost = self.lost or lost

    def interrupt(self, reason: str) -> None:
        """What happens until the next reading cannot be trusted (the machine slept): make it a gap."""
        self._interrupted = reason

    def sample(self, time: float, value: float, slack_s: float = 0.0) -> bool:
        """Take a reading; returns whether it closed an interval (a window's edge may then lie on it)."""
        if time <= self.time and self.value is not None:
            return time == self.time
        reason = self._interrupted or (self.value is None and (self.trouble or "no reading before this time"))
        if reason:
            self._close_gap(time, reason)
            self._rebase(time, value, slack_s)
            return True
        taken = self._sample_power if self.source.method == "sampled" else self._sample_counter
        return taken(time, value, slack_s)

    def _sample_power(self, time: float, watts: float, slack_s: float) -> bool:
        source, seconds, before = self.source, time - self.time, self.value
        if not 0.0 <= watts <= source.max_w:
            self.fail(f"{watts:.6g} W is outside 0 to {source.max_w:.6g} W")
            return False
        if seconds > HOLD_S:
            self._close_gap(time, self.trouble or f"no power sample for {seconds:.3g} s")
        else:
            joules = (before + watts) / 2 * seconds
            # Jittered samples of a fast signal are as good as independent; of a slow one the neighbours agree. The
            # difference of neighbours measures the variance in both cases; 1.2 is the cost of unequal intervals.
            spread = (watts - before) * seconds
            worst_j = max(joules, source.max_w * seconds - joules)
            self._close(time, joules, worst_j=worst_j, spread_j2=0.6 * spread**2, powers=(before, watts))
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
            self.fail(f"counter stands still at {value:.0f}")  # a live device always draws something
            return False
        whole_wraps = 0.0
        if source.modulus is not None:  # after a long stall nobody can say how often it went round
            range_j = source.modulus * source.unit_j
            whole_wraps = math.floor(max(0.0, possible_j - counts * source.unit_j) / range_j) * range_j
            self.wrap_risks += whole_wraps > 0
        self._close(time, counts * source.unit_j, lost_j=whole_wraps)
        moved_at = time if counts else self.moved_at
        self._rebase(time, value, slack_s)
        self.moved_at = moved_at
        return True

    def _rebase(self, time: float, value: float, slack_s: float) -> None:
        self.longest_s = max(self.longest_s, time - self.time)
        self.first = value if self.first is None else self.first
        self.time, self.value, self.moved_at = time, value, time
        self.slack_s = self._read_slack_s = slack_s
        self.trouble = self._interrupted = None

    def _close(
        self,
        time: float,
        joules: float,
        lost_j: float = 0.0,
        worst_j: float = 0.0,
        spread_j2: float = 0.0,
        powers: tuple[float, ...] = (),
    ) -> None:
        seconds, source = time - self.time, self.source
        self.joules += joules
        self.measured_s += seconds
        lag_j = source.max_w * source.lag_s
        for share in self._active.values():
            share.open_s += share.open * (time - share.since)
            mean = share.open_s / seconds
            if share.high != share.low:
                share.split_j += _split_error(joules, seconds, share, source.max_w) + (share.high - share.low) * lag_j
            self._turn(share, mean)
            share.joules += mean * joules
            share.split_j += share.high * lost_j
            share.sample_j += mean * worst_j
            share.variance_j2 += mean**2 * spread_j2
            share.intervals += mean > 0
            if powers and mean > 0:
                share.low_w, share.high_w = min((share.low_w, *powers)), max((share.high_w, *powers))
            share.covered_s += share.open_s
            self._begin(share, time)
        self._retire()

    def _close_gap(self, time: float, reason: str) -> None:
        for share in self._active.values():
            share.open_s += share.open * (time - share.since)
            self._turn(share, 0.0)
            if share.open_s > 0:
                share.gap_count += 1
                if len(share.gaps) < GAPS_KEPT:
                    share.gaps.append(Gap(self.source.id, self.time - self.start_s, time - self.time, reason))
            self._begin(share, time)
        self._retire()

    def _retire(self) -> None:
        self._active = {name: share for name, share in self._active.items() if share.open or share.weight}

    def _turn(self, share: _Share, weight: float) -> None:
        change = abs(weight - share.weight)
        share.turn_j += change * self.source.max_w * (self.source.lag_s / 2 + self.slack_s)
        share.weight = weight

    def _begin(self, share: _Share, time: float) -> None:
        share.wanted_s += share.open_s
        share.open_s, share.since = 0.0, time
        share.low = share.high = share.open

    def total(self, name: str, now: float) -> Total:
        """What the windows of this name have so far; time after the last accepted reading counts as not covered."""
        share = self._shares.get(name, _Share(since=now))
        waiting_s = share.open_s + share.open * max(0.0, now - share.since)
        gaps, gap_count = list(share.gaps), share.gap_count
        if waiting_s > 0:
            gap_count += 1
            reason = self.trouble or "not read yet"
            gaps.append(Gap(self.source.id, self.time - self.start_s, max(0.0, now - self.time), reason))
        edge_j = share.turn_j + share.weight * self.source.max_w * (self.source.lag_s / 2 + self.slack_s)
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


def _split_error(joules: float, seconds: float, share: _Share, max_w: float) -> float:
    """Greatest error of giving a window its share of time of an interval in which it was opened or closed.

    The window surely has `low` times the interval; of the rest it has at most all, and at most what `max_w` delivers in
    its time; the other side of its edges is bounded the same way.
    """
    span = share.high - share.low
    inside_s = share.open_s - share.low * seconds
    outside_s = span * seconds - inside_s
    guess = joules * inside_s / seconds
    most = min(span * joules, max_w * inside_s)
    least = max(0.0, span * joules - max_w * outside_s)
    return max(most - guess, guess - least, 0.0)


class _Account:
    """A window's name: how often and how long it was open."""

    def __init__(self) -> None:
        self.count = self.open = self.errors = 0
        self.seconds = self.since = 0.0

    def change(self, by: int, time: float) -> None:
        self.seconds += self.open * (time - self.since)
        self.since = time
        self.open += by
        self.count += by > 0

    def duration_s(self, now: float) -> float:
        return self.seconds + self.open * (now - self.since)


class Books:
    """All ledgers of a meter and the windows over them.

    Exact edges are readings; inexact ones are put in a queue, which costs their thread nothing, and booked at the next
    reading. Whoever reads holds `lock`.

    Args:
        now: the monotonic clock, s.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.started = now()
        self.ledgers: list[Ledger] = []
        self.accounts: dict[str, _Account] = {}
        self.lock = threading.RLock()
        self._waiting: deque[tuple[str, int, float]] = deque()

    def add(self, source: Source) -> None:
        """Begin a ledger for a source."""
        self.ledgers.append(Ledger(source, self.started))

    def of(self, kind: str) -> list[Ledger]:
        """The ledgers of one kind of device."""
        return [ledger for ledger in self.ledgers if ledger.source.kind == kind]

    def edge(self, name: str, change: int, exact: bool = True, error: bool = False) -> None:
        """Open (+1) or close (−1) a window now; `error` if an exception closes it."""
        if not exact and not error:
            self._waiting.append((name, change, self.now()))
            return
        with self.lock:
            before = self.now()
            read = self.collect() if exact else []
            if not exact:
                self._drain()
            time = self.now() if change > 0 else before  # what reading costs is not the window's
            self._change(name, change, time)
            for ledger in self.ledgers:
                ledger.edge(name, change, time, exact=ledger in read)
            self.accounts[name].errors += error

    def collect(self) -> list[Ledger]:
        """Read every sensor and book it; returns the ledgers that took the reading."""
        values: list[tuple[Ledger, float, float, float]] = []
        for ledger in self.ledgers:
            if ledger.lost:
                continue
            before = self.now()
            try:
                value = ledger.source.read()
            except OSError as error:
                ledger.fail(str(error.strerror or error), lost=error.errno == errno.ENODEV)
                continue
            after = self.now()
            values.append((ledger, (before + after) / 2, (after - before) / 2, value))
        late = self._drain({id(ledger): time for ledger, time, _, _ in values})
        read = [ledger for ledger, time, slack, value in values if ledger.sample(time, value, slack)]
        for ledger, name, change, time in late:
            ledger.edge(name, change, time)
        return read

    def _drain(self, times: Mapping[int, float] | None = None) -> list[tuple[Ledger, str, int, float]]:
        """Book the waiting edges; those after a ledger's coming reading are returned for later."""
        edges, late = [], []
        while self._waiting:
            edges.append(self._waiting.popleft())
        for name, change, time in sorted(edges, key=lambda edge: edge[2]):
            self._change(name, change, time)
            for ledger in self.ledgers:
                if times is not None and time > times.get(id(ledger), time):
                    late.append((ledger, name, change, time))
                else:
                    ledger.edge(name, change, time)
        return late

    def _change(self, name: str, change: int, time: float) -> None:
        self.accounts.setdefault(name, _Account()).change(change, time)

    def progress(self) -> dict[str, tuple[float, float]]:
        """Joules and measured seconds of each source so far, by id."""
        return {ledger.source.id: (ledger.joules, ledger.measured_s) for ledger in self.ledgers}


def mirrored(ledgers: Iterable[Ledger]) -> list[Ledger]:
    """Die zones that show the register of another die: the same start and, since then, the same energy.

    Threadripper and first EPYCs do so; a sum would count the package once per die.
    """
    dies: dict[tuple[str, str], list[Ledger]] = {}
    for ledger in ledgers:
        package, _, die = ledger.source.name.partition("-die-")
        if die:
            dies.setdefault((ledger.source.kind, package), []).append(ledger)
    repeated: list[Ledger] = []
    for group in dies.values():
        for index, ledger in enumerate(group):
            if any(other not in repeated and _same_register(ledger, other) for other in group[:index]):
                repeated.append(ledger)
    return repeated


def _same_register(one: Ledger, other: Ledger) -> bool:
    if one.first is None or other.first is None:
        return False
    same_start = abs(one.first - other.first) * one.source.unit_j <= 1.0  # they are read microseconds apart
    return same_start and abs(one.joules - other.joules) <= 0.1 + 1e-4 * one.joules
