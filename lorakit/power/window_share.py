"""One window's share of one device's energy, and what is uncertain about it."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

GAPS_KEPT = 32  # per device and window; further gaps are counted but not listed


@dataclass(frozen=True)
class Gap:
    """A time without a trustworthy reading, in seconds since the meter's start."""

    device: str
    start_s: float
    duration_s: float
    reason: str


@dataclass(frozen=True)
class Total:
    """One device's energy in one window.

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


class Interval(NamedTuple):
    """The energy between two accepted readings, and what is uncertain about it.

    `lost_j` is the energy of wraps that may have passed unseen, `worst_j` the greatest error of joining two samples by
    a straight line, `spread_j2` that error's variance, and `powers` the two samples.
    """

    seconds: float
    joules: float
    lost_j: float = 0.0
    worst_j: float = 0.0
    spread_j2: float = 0.0
    powers: tuple[float, ...] = ()


@dataclass
class WindowShare:
    """Running sums of one window on one device."""

    open: int = 0  # windows of this name that are open now
    since: float = 0.0  # time of the last change
    open_s: float = 0.0  # ∫ open dt over the current interval, up to `since`
    low: int = 0  # least and greatest `open` in the current interval
    high: int = 0
    weight: float = 0.0  # share of the previous interval
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

    def advance(self, time: float) -> None:
        """Add up the open time until now."""
        self.open_s += self.open * (time - self.since)
        self.since = time

    def mark_edge(self, change: int, time: float, interval_start: float) -> None:
        """Open (+1) or close (−1) a window."""
        self.advance(time)
        self.open += change
        if time == interval_start:  # nothing of the interval has passed
            self.low = self.high = self.open
        else:
            self.low = min(self.low, self.open)
            self.high = max(self.high, self.open)

    def add(self, interval: Interval, max_w: float, lag_j: float, reading_j: float) -> None:
        """Take this window's share of an interval that `advance` has followed to its end.

        `lag_j` is the energy that the counter may not have shown yet, `reading_j` half of it plus what the distance
        between reading and edge allows.
        """
        mean = self.open_s / interval.seconds
        if self.high != self.low:
            self.split_j += self._split_error(interval, max_w) + (self.high - self.low) * lag_j
        self._turn(mean, reading_j)
        self.joules += mean * interval.joules
        self.split_j += self.high * interval.lost_j
        self.sample_j += mean * interval.worst_j
        self.variance_j2 += mean**2 * interval.spread_j2
        self.intervals += mean > 0
        if interval.powers and mean > 0:
            self.low_w, self.high_w = min((self.low_w, *interval.powers)), max((self.high_w, *interval.powers))
        self.covered_s += self.open_s
        self._begin()

    def doubt(self, missing_j: float) -> None:
        """Widen the bound by energy that the newest interval may lack."""
        self.split_j += self.weight * missing_j

    def skip(self, gap: Gap, reading_j: float) -> None:
        """Leave out an interval without trustworthy energy."""
        self._turn(0.0, reading_j)
        if self.open_s > 0:
            self.gap_count += 1
            if len(self.gaps) < GAPS_KEPT:
                self.gaps.append(gap)
        self._begin()

    def _turn(self, weight: float, reading_j: float) -> None:
        self.turn_j += abs(weight - self.weight) * reading_j
        self.weight = weight

    def _begin(self) -> None:
        """Start the next interval where the last one ended."""
        self.wanted_s += self.open_s
        self.open_s = 0.0
        self.low = self.high = self.open

    def _split_error(self, interval: Interval, max_w: float) -> float:
        """Greatest error of splitting an interval by time when the window was opened or closed inside it.

        The window certainly has `low` times the interval. Of the rest it has at most everything, and at most what
        `max_w` delivers in its open time; the closed time is bounded the same way.
        """
        span = self.high - self.low
        inside_s = self.open_s - self.low * interval.seconds
        outside_s = span * interval.seconds - inside_s
        guess = interval.joules * inside_s / interval.seconds
        most = min(span * interval.joules, max_w * inside_s)
        least = max(0.0, span * interval.joules - max_w * outside_s)
        return max(most - guess, guess - least, 0.0)
