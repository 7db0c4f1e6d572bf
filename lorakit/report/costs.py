"""What a run had cost when it first reached a given F1, from its evaluations and its energy journal."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorakit.power.reading import MEASURED
from lorakit.report.runs import COMPONENTS, Run

SHARES = (0.8, 0.9, 0.95, 0.99, 1.0)  # of the best F1 of all runs


@dataclass(frozen=True)
class Cost:
    """Seconds and watt-hours up to and including an evaluation; None if not recorded.

    `measured_wh` and `estimated_wh` are also None if the run had no component of that kind.
    """

    epoch: int
    f1: float
    seconds: float | None = None
    measured_wh: float | None = None
    estimated_wh: float | None = None


def cost_to_reach(run: Run, f1: float) -> Cost | None:
    """The cost of the first epoch whose validation F1 is at least this; None if no epoch reached it."""
    found = next((line for line in run.evaluations if line["f1"] >= f1), None)
    return None if found is None else cost_of(run, found)


def cost_of(run: Run, evaluation: Mapping[str, float]) -> Cost:
    """What a run had cost at one of its evaluations."""
    return Cost(int(evaluation["epoch"]), evaluation["f1"], **spent_until(run, evaluation.get("wall_s")))


def spent_until(run: Run, wall_s: float | None) -> dict[str, float | None]:
    """What a run had cost at a moment, as arguments of `Cost`: interpolated between the two readings around it.

    Args:
        run: the run.
        wall_s: the moment, seconds since 1970.

    Returns:
        Nothing if the moment is unknown or outside the journal.
    """
    points = run.energy
    if wall_s is None or not points or not points[0].wall_s <= wall_s <= points[-1].wall_s:
        return {}
    after = max(1, bisect_left([point.wall_s for point in points], wall_s))
    left, right = points[after - 1], points[after]
    width = right.wall_s - left.wall_s
    share = (wall_s - left.wall_s) / width if width > 0 else 1.0

    def between(before: float | None, then: float | None) -> float | None:
        return None if before is None or then is None else before + share * (then - before)

    wh = {name: between(left.wh[name], right.wh[name]) for name in COMPONENTS}
    totals: dict[str, float | None] = {}
    for kind, is_kind in (("measured_wh", MEASURED), ("estimated_wh", ("estimated",))):
        parts = [wh[name] for name in COMPONENTS if (run.component(name) or {}).get("method") in is_kind]
        totals[kind] = sum(parts) if parts and None not in parts else None
    return {"seconds": between(left.elapsed_s, right.elapsed_s), **totals}


def f1_goals(runs: Sequence[Run], chosen: Sequence[float] = ()) -> list[tuple[float, float | None]]:
    """The F1 whose cost is shown: (F1, share of the best validation F1 of all runs).

    Args:
        runs: the runs.
        chosen: F1 to show instead of the SHARES of the best; their share is None.

    Returns:
        In ascending order; nothing if no run has a score.
    """
    if chosen:
        return [(f1, None) for f1 in sorted(chosen)]
    best = max((line["f1"] for run in runs for line in run.evaluations), default=0.0)
    return [(share * best, share) for share in SHARES] if best > 0 else []
