"""What a run had cost when it first reached a given F1, from its evaluations and its energy journal."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lorakit.power.reading import MEASURED
from lorakit.report.cells import KINDS, UNKNOWN, Cell, Group, Row, Table, number, watt_hours
from lorakit.report.comparison import contention_note
from lorakit.report.means import mean_of
from lorakit.report.runs import COMPONENTS, Run
from lorakit.report.tables import MARK

SHARES = (0.9, 0.95, 1.0)  # of the best F1 of all runs


@dataclass(frozen=True)
class Cost:
    """Seconds and watt-hours up to and including an evaluation; None if not recorded. Of several seeds, the means.

    `measured_wh` and `estimated_wh` are also None if the run had no component of that kind.
    """

    epoch: float
    f1: float
    seconds: float | None = None
    measured_wh: float | None = None
    estimated_wh: float | None = None


def cost_to_reach(run: Run, f1: float) -> Cost | None:
    """The cost of the first epoch whose validation F1 is at least this; None if no epoch reached it.

    Over several seeds it is the mean of their costs; None unless all reached it.
    """
    if run.seeds:
        costs = [cost_to_reach(seed, f1) for seed in run.seeds]
        return None if None in costs else Cost(**mean_of([vars(cost) for cost in costs]))
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


def cost_table(runs: Sequence[Run], chosen: Sequence[float]) -> Table | None:
    """What each run had cost when it first reached some F1; None if no run was scored."""
    scored = [run for run in runs if run.evaluations]
    goals = f1_goals(scored, chosen)
    if not goals or not scored:
        return None
    shown = [kind for kind in KINDS if any(run.kind_of(name) == kind for run in scored for name in COMPONENTS)]
    groups = []
    for of_goals, costs in _merged(scored, goals):
        rows = [Row("Epoch", _reached(scored, costs, lambda cost: Cell(f"{cost.epoch:g}", str(cost.epoch))))]
        rows += [Row("Seconds", _marked(scored, _costs(costs, lambda cost: number(cost.seconds, 1))))]
        rows += [
            Row(f"Wh {kind}", _marked(scored, _costs(costs, partial(_spent, kind=kind))), kind=kind) for kind in shown
        ]
        groups.append(Group(_goal_name(of_goals), tuple(rows)))
    caption = "Cost up to the epoch that first reached a validation F1"
    return Table("cost-table", caption, "", tuple(run.label for run in scored), tuple(groups))


def _merged(
    runs: Sequence[Run], goals: Sequence[tuple[float, float | None]]
) -> list[tuple[list[tuple[float, float | None]], list[Cost | None]]]:
    """The goals with each run's cost; neighbours reached at the same epochs are merged, because they cost the same."""
    merged: list[tuple[list[tuple[float, float | None]], list[Cost | None]]] = []
    for goal in goals:
        costs = [cost_to_reach(run, goal[0]) for run in runs]
        if merged and merged[-1][1] == costs:
            merged[-1][0].append(goal)
        else:
            merged.append(([goal], costs))
    return merged


def _goal_name(goals: Sequence[tuple[float, float | None]]) -> str:
    """F1 0.7200 to 0.8000, 90% of the best to the best."""

    def share(of_best: float) -> str:
        return "the best" if of_best == 1 else f"{of_best:.0%} of the best"

    first, last = goals[0], goals[-1]
    if first == last:
        return f"F1 {first[0]:.4f}" + ("" if first[1] is None else f", {share(first[1])}")
    shares = "" if first[1] is None or last[1] is None else f", {share(first[1])} to {share(last[1])}"
    return f"F1 {first[0]:.4f} to {last[0]:.4f}{shares}"


def _costs(costs: Sequence[Cost | None], cell: Callable[[Cost], Cell]) -> tuple[Cell, ...]:
    """A cell per run, with a dash where the epoch's row says that the goal was not reached."""
    return tuple(Cell("–") if cost is None else cell(cost) for cost in costs)


def _reached(runs: Sequence[Run], costs: Sequence[Cost | None], cell: Callable[[Cost], Cell]) -> tuple[Cell, ...]:
    missed = [Cell("not reached by every seed" if run.seeds else "not reached") for run in runs]
    return tuple(no if cost is None else cell(cost) for no, cost in zip(missed, costs, strict=True))


def _marked(runs: Sequence[Run], cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells, with a mark behind numbers of runs during which others used the machine."""
    return tuple(
        replace(cell, text=cell.text + MARK) if cell.value is not None and contention_note(run.values) else cell
        for run, cell in zip(runs, cells, strict=True)
    )


def _spent(cost: Cost, kind: str) -> Cell:
    wh = cost.measured_wh if kind == "measured" else cost.estimated_wh
    return watt_hours(wh, "", UNKNOWN)
