"""benchmarks/many_adapters.py takes the same steps both ways, and divides tokens by seconds."""

import json
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
