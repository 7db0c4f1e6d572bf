"""What a run had cost when it reached an F1, against numbers worked out by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.report.costs import Cost, cost_of, cost_table, cost_to_reach, f1_goals
from lorakit.report.runs import COMPONENTS, EnergyPoint, Run, read_sources

METHODS = {"gpu": "counter", "cpu": "estimated", "ram": "unavailable"}


def part(kwh, method):
    return {"kwh": kwh, "mean_w": None, "method": method, "source": "x", "range_kwh": None}


def reading(seconds, gpu_w=100.0, cpu_w=10.0):
    """What a meter has read after so many seconds of constant power."""
    return {
        "gpu": part(gpu_w * seconds / 3.6e6, "counter"), "cpu": part(cpu_w * seconds / 3.6e6, "estimated"),
        "ram": part(None, "unavailable"), "duration_s": seconds,
    }  # fmt: skip


def write_run(folder, evaluations, *journal):
    """A run's files: F1 by wall time, and for each of its processes the start and the seconds of its readings."""
    folder.mkdir()
    lines = [
        {"event": "evaluation", "split": "validation", "epoch": epoch, "step": epoch, "f1": f1, "wall_s": wall_s}
        for epoch, (wall_s, f1) in enumerate(evaluations, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = []
    for number, (start_s, seconds) in enumerate(journal):
        run = {"schema": 1, "run": f"run {number}"}
        lines.append({"type": "start", **run, "wall_s": start_s})
        lines += [
            {"type": "reading", **run, "wall_s": start_s + s, "boottime_s": 0, "reading": reading(s)} for s in seconds
        ]
    (folder / "energy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"energy": {name: part(None, method) for name, method in METHODS.items()}}
    comparison = {"schema": 1, "modes": {"lora": record}}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return read_sources([folder])[0].runs[0]


def test_the_first_epoch_that_reaches_it_counts_and_energy_is_interpolated_between_two_readings(tmp_path):
    run = write_run(tmp_path / "x", [(1015, 0.5), (1036, 0.7), (1050, 0.6)], (1000, [10, 20, 40, 60]))
    assert cost_to_reach(run, 0.6) == Cost(2, 0.7, pytest.approx(36), pytest.approx(1.0), pytest.approx(0.1))
    assert cost_to_reach(run, 0.5).seconds == pytest.approx(15)
    assert cost_to_reach(run, 0.71) is None


def test_a_resumed_run_pays_for_all_its_processes_and_not_for_the_pause(tmp_path):
    run = write_run(tmp_path / "x", [(1018, 0.5), (5036, 0.7)], (1000, [10, 20]), (5000, [10, 40]))
    assert cost_to_reach(run, 0.7) == Cost(2, 0.7, pytest.approx(56), pytest.approx(56 / 36), pytest.approx(5.6 / 36))
    assert cost_to_reach(run, 0.5).seconds == pytest.approx(18)


def test_what_was_not_recorded_is_unknown_and_not_zero(tmp_path):
    late = write_run(tmp_path / "late", [(1015, 0.5)], (1000, [10]))  # the journal ends before the evaluation
    assert cost_to_reach(late, 0.5) == Cost(1, 0.5)
    side_by_side = write_run(tmp_path / "two", [(1015, 0.5)], (1000, [10, 20]), (1005, [10, 20]))
    assert cost_to_reach(side_by_side, 0.5) == Cost(1, 0.5)
    old = Run("x", "", {}, evaluations=({"epoch": 1, "f1": 0.5},))
    assert cost_to_reach(old, 0.5) == Cost(1, 0.5)


@given(
    powers=st.lists(st.floats(0, 1e3), min_size=2, max_size=8),
    share=st.floats(0, 1),
    width=st.floats(0.1, 1e4),
)
def test_a_later_moment_never_costs_less_and_the_ends_are_the_readings(powers, share, width):
    wh = [sum(powers[:i]) for i in range(len(powers))]
    points = tuple(
        EnergyPoint(i * width, i * width, {"gpu": wh[i], "cpu": None, "ram": None}, dict.fromkeys(COMPONENTS))
        for i in range(len(powers))
    )
    run = Run("x", "", {"energy": {"gpu": {"method": "sampled"}}}, energy=points)
    end_s = points[-1].wall_s

    def at(wall_s):
        return cost_of(run, {"epoch": 1, "f1": 0.5, "wall_s": wall_s})

    assert at(0.0).measured_wh == 0.0
    assert at(end_s).measured_wh == pytest.approx(wh[-1])
    assert at(share * end_s).measured_wh <= at(min(end_s, share * end_s + width / 3)).measured_wh + 1e-9
    assert at(share * end_s).seconds == pytest.approx(share * end_s)
    assert at(share * end_s).estimated_wh is None


def test_goals_are_shares_of_the_best_run_or_those_chosen():
    runs = [Run("a", "", {}, evaluations=({"f1": 0.4}, {"f1": 0.8})), Run("b", "", {}, evaluations=({"f1": 0.5},))]
    assert f1_goals(runs) == [(s * 0.8, s) for s in (0.9, 0.95, 1.0)]
    assert f1_goals(runs, [0.7, 0.6]) == [(0.6, None), (0.7, None)]
    assert f1_goals([Run("a", "", {})]) == []


def test_over_seeds_the_cost_is_the_mean_and_none_unless_all_reached_it(tmp_path):
    first = write_run(tmp_path / "a", [(1015, 0.5), (1036, 0.7)], (1000, [10, 20, 40, 60]))
    second = write_run(tmp_path / "b", [(1025, 0.6)], (1000, [10, 20, 40, 60]))
    both = Run("LoRA", "lora", {}, seeds=(first, second))
    assert cost_to_reach(both, 0.6) == Cost(1.5, *map(pytest.approx, (0.65, 30.5, 30.5 / 36, 3.05 / 36)))
    assert cost_to_reach(both, 0.7) is None and cost_to_reach(first, 0.7) is not None


def test_goals_that_cost_the_same_are_one_and_what_is_not_reached_is_said_once(tmp_path):
    fast = write_run(tmp_path / "fast", [(1015, 0.5), (1036, 0.7)], (1000, [10, 20, 40]))
    slow = write_run(tmp_path / "slow", [(1015, 0.5), (1036, 0.6)], (1000, [10, 20, 40]))
    groups = cost_table([fast, slow], []).groups
    assert [group.name for group in groups] == ["F1 0.6300 to 0.7000, 90% of the best to the best"]
    assert [[cell.text for cell in row.cells] for row in groups[0].rows[:2]] == [["2", "not reached"], ["36.0", "–"]]
    groups = cost_table([fast, slow], [0.4, 0.5, 0.55, 0.7]).groups
    assert [group.name for group in groups] == ["F1 0.4000 to 0.5000", "F1 0.5500", "F1 0.7000"]
