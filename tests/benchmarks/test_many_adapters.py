"""benchmarks/many_adapters.py takes the same steps both ways, and divides tokens by seconds."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def many_adapters(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")
    import many_adapters

    return many_adapters


def test_speeds_are_medians_and_the_ratio_is_that_of_a_round(many_adapters):
    rounds = [
        {"together": {"tokens": 100, "seconds": s}, "one after the other": {"tokens": 100, "seconds": t}}
        for s, t in ((1, 2), (2, 6), (4, 4))
    ]
    found = many_adapters.speeds_of(rounds)
    assert found == {"tokens_per_s": {"together": 50.0, "one after the other": 25.0}, "ratio": 2.0}


def test_both_ways_train_the_same_tokens(many_adapters, tmp_path, capsys):
    options = ["--shape", "tiny", "--runs", "2", "--steps", "2", "--rounds", "1", "--name", "many"]
    assert many_adapters.main([*options, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "many.json").read_text())
    together, alone = found["rounds"][0].values()
    assert together["tokens"] == alone["tokens"] > 0 and together["seconds"] > 0
    assert (tmp_path / "many.md").read_text() in capsys.readouterr().out


def test_the_memory_of_both_ways_is_of_as_many_steps(many_adapters, tmp_path, monkeypatch):
    steps = {}

    def served(way, make, options):
        """Serve in this process."""
        return Namespace(ask=lambda name, *given: getattr(make(options), name)(*given), close=lambda: None)

    def counted(train):
        def run(job, data, runs):
            steps[train.__name__] = [(result.steps, result.train_tokens) for result in train(job, data, runs)]

        return run

    monkeypatch.setattr(many_adapters, "Worker", served)
    for name in ("together", "one_by_one"):
        monkeypatch.setattr(many_adapters, name, counted(getattr(many_adapters, name)))
    options = ["--shape", "tiny", "--runs", "2", "--steps", "2", "--memory", "--name", "memory"]
    assert many_adapters.main([*options, "--output-dir", str(tmp_path)]) == 0
    (one,) = steps["one_by_one"]
    assert one == (2, sum(tokens for _, tokens in steps["together"])) and [n for n, _ in steps["together"]] == [2, 2]
    peaks = json.loads((tmp_path / "memory.json").read_text())["peaks"]
    assert all(row["peak"] >= row["before"] > 0 for row in peaks.values())
    assert "times the peak of one run" in (tmp_path / "memory.md").read_text()
