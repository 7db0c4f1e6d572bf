"""benchmarks/whole_run.py tells a run's parts apart; on times given to it, and once on a real tiny run."""

import json
import sys
from pathlib import Path

import pytest

from lorakit.report.runs import EnergyPoint

pytest.importorskip("peft")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def whole_run(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")
    import whole_run

    return whole_run


LINES = [
    {"event": "compile", "wall_s": 14.0, "seconds": 3.0},
    {"event": "step", "wall_s": 20.0},
    {"event": "evaluation", "wall_s": 22.0},
    {"event": "compile", "wall_s": 25.0, "seconds": 1.0},
    {"event": "step", "wall_s": 30.0},
    {"event": "evaluation", "wall_s": 31.5},
]


def test_every_second_of_a_run_belongs_to_one_part(whole_run):
    parts = whole_run.parts_of(LINES, began=4.0, ready=10.0, done=32.0, ended=33.0)
    assert parts == {
        "start-up": [(4.0, 10.0)],
        "compile": [(11.0, 14.0), (24.0, 25.0)],
        "evaluation": [(20.0, 22.0), (30.0, 31.5)],
        "training": [(10.0, 11.0), (14.0, 20.0), (22.0, 24.0), (25.0, 30.0), (31.5, 32.0)],
        "end": [(32.0, 33.0)],
    }
    assert sum(end - start for part in parts.values() for start, end in part) == 33.0 - 4.0


def test_energy_is_divided_by_the_readings_around_each_part(whole_run):
    """10 W on the GPU until second 20 and 40 W from then on; the CPU is an estimate, the RAM unknown."""
    points = [
        EnergyPoint(wall_s, wall_s - 4.0, {"gpu": gpu / 3600, "cpu": (wall_s - 4.0) / 3600, "ram": None}, {})
        for wall_s, gpu in ((4.0, 0.0), (20.0, 160.0), (33.0, 680.0))
    ]
    methods = {"gpu": {"method": "counter"}, "cpu": {"method": "estimated"}, "ram": {"method": "unavailable"}}
    run = whole_run.Run("", "lora", {"energy": methods}, energy=tuple(points))
    costs = whole_run.costs_of(run, whole_run.parts_of(LINES, began=4.0, ready=10.0, done=32.0, ended=33.0))
    joules = {name: 3600 * row["measured_wh"] for name, row in costs.items()}
    assert joules == pytest.approx(
        {"start-up": 60, "compile": 30 + 40, "evaluation": 80 + 60, "training": 10 + 60 + 80 + 200 + 20, "end": 40}
    )
    assert sum(joules.values()) == pytest.approx(680)
    for row in costs.values():
        assert 3600 * row["estimated_wh"] == pytest.approx(row["seconds"])  # 1 W


def test_a_tiny_run_is_measured_from_outside_and_written(whole_run, tmp_path, capsys):
    options = ["--shape", "tiny", "--dataset", "embedded", "--epochs", "2", "--sentences", "64", "--name", "run"]
    assert whole_run.main([*options, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "run.json").read_text())
    parts = {name: row["seconds"] for name, row in found["parts"].items()}
    assert sum(parts.values()) == pytest.approx(found["seconds"])
    assert min(parts[name] for name in ("start-up", "evaluation", "training", "end")) > 0 == parts["compile"]
    assert found["result"]["steps"] == 4
    for row in found["parts"].values():
        assert row["measured_wh"] is not None or row["estimated_wh"] is not None
    text = (tmp_path / "run.md").read_text()
    assert text in capsys.readouterr().out
    assert "compiling" not in text  # nothing was
    assert ("GPU energy: not measured" in text) == (found["energy"]["gpu"]["kwh"] is None)
    assert str(sys.executable) not in text
