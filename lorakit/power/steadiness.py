"""How steady a load's power was, and what follows for measuring it: how long to warm up, how long a window."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

GOOD = 0.02  # of a window's energy
MOST_POINTS = 2048  # beyond, neighbours are joined
FEWEST_POINTS = 8


class PowerCourse:
    """Mean measured power of each interval between two samples."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []  # length of the interval, s; mean power, W

    def add(self, seconds: float, watts: float) -> None:
        """Append an interval."""
        if seconds > 0:
            self.points.append((seconds, watts))
        if len(self.points) > MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [(a + b, (a * p + b * q) / (a + b)) for (a, p), (b, q) in pairs]


@dataclass(frozen=True)
class Steadiness:
    """What a measured run says about the next one.

    Example:
        from lorakit.power.steadiness import judge_steadiness

        warming = [(5.0, 100.0)] * 4 + [(5.0, 250.0), (5.0, 254.0)] * 10
        found = judge_steadiness(warming, edges_j=40.0)
        print(found.warm_up_s)  # 20.0
        print(round(found.edges_s, 1))  # 7.9

    Args:
        mean_w: mean power after the warm-up, W.
        warm_up_s: time until the power stays near that mean, s.
        edges_s: how long a window must be for its edges to matter less than 2 %, s.
        variation_s: how long for its mean to be within 2 % of the long-term mean at two standard errors, s.
    """

    mean_w: float
    warm_up_s: float
    edges_s: float
    variation_s: float

    @property
    def window_s(self) -> float:
        """The shortest window that is good to 2 % in both respects, s."""
        return max(self.edges_s, self.variation_s)

    def __str__(self) -> str:
        text = (
            f"for ±{GOOD:.0%}: windows of {self.window_s:.3g} s or more (the edges need {self.edges_s:.3g} s, the "
            f"load's variation {self.variation_s:.3g} s)"
        )
        return text + (f", after {self.warm_up_s:.3g} s of warm-up" if self.warm_up_s > 0 else "; no warm-up was seen")


def window_for_edges_s(edges_j: float, mean_w: float) -> float:
    """How long a window must be for its edges to matter less than 2 %, s.

    Args:
        edges_j: what the edges of a window can be wrong by, J; it does not grow with the window.
        mean_w: mean power, W.
    """
    return edges_j / (GOOD * mean_w)


def judge_steadiness(points: Sequence[tuple[float, float]], edges_j: float) -> Steadiness | None:
    """Judge the powers of a run; None if there are too few or none is above zero.

    The second half stands for the steady state. Neighbouring intervals resemble each other; their correlation lengthens
    the window, as for any mean of correlated values.

    Args:
        points: length, s, and mean power, W, of each interval in order.
        edges_j: what the edges of a window can be wrong by, J.
    """
    if len(points) < FEWEST_POINTS:
        return None
    late = [watts for _, watts in points[len(points) // 2 :]]
    middle_w = statistics.fmean(late)
    if middle_w <= 0:
        return None
    allowed_w = max(GOOD * middle_w, 3 * statistics.stdev(late))
    first = next(index for index, (_, watts) in enumerate(points) if abs(watts - middle_w) <= allowed_w)
    steady = points[first:]
    watts = [power for _, power in steady]
    mean_w = statistics.fmean(watts)
    interval_s = statistics.fmean(seconds for seconds, _ in steady)
    correlation = _lag_1(watts)
    variance = statistics.variance(watts) * (1 + correlation) / (1 - correlation)
    return Steadiness(
        mean_w=mean_w,
        warm_up_s=sum(seconds for seconds, _ in points[:first]),
        edges_s=window_for_edges_s(edges_j, mean_w),
        variation_s=4 * variance * interval_s / (GOOD * mean_w) ** 2,
    )


def _lag_1(values: Sequence[float]) -> float:
    """Correlation of neighbours, 0 to 0.95; negative ones would promise more than they can keep."""
    mean = statistics.fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    if total == 0:
        return 0.0
    along = sum((a - mean) * (b - mean) for a, b in zip(values, values[1:], strict=False))
    return min(0.95, max(0.0, along / total))
