"""benchmarks/tuning.py plays searches on the grid's scores, and adds up what they would train."""

from argparse import Namespace
from itertools import product
from pathlib import Path

import pytest

from lorakit.training import tuning as library
from lorakit.training.config import TrainConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EPOCHS = 4


@pytest.fixture
def tuning(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tuning

    return tuning


def grid_of(space):
    """F1 is best at the highest rate and rank, after every epoch."""
    return [
        {
            "learning_rates": rate,
            "ranks": rank,
            "targets": targets,
            "tokens": 400,
            "f1": [(rate * 100 + rank / 100) * (epoch + 1) / 10 for epoch in range(EPOCHS)],
            "loss": [1.0] * EPOCHS,
            "steps_per_epoch": 5,
            "operations_per_epoch": 100.0 + rank,
            "operators_per_step": 50,
        }
        for rate, rank, targets in product(space.learning_rates, space.ranks, space.targets)
    ]


@pytest.mark.skipif(library.find_spec("optuna") is None, reason="Optuna is not installed (pip install 'lorakit[tune]')")
def test_a_search_of_all_finds_the_best_and_trains_what_the_report_divides_by_the_grid(tuning):
    space = library.Space((1e-3, 2e-3, 3e-3), (2, 4), ("all-linear",))
    grid = grid_of(space)
    options = Namespace(trials=6, at_once=3)
    config = TrainConfig(epochs=EPOCHS)
    found = tuning.play(space, grid, config, options, factor=2, seed=0)
    assert found["best_f1"] == max(max(row["f1"]) for row in grid)
    assert 6 < found["epochs"] < 6 * EPOCHS and found["steps"] % 5 == 0
    assert 102 * found["epochs"] <= found["operations"] <= 104 * found["epochs"]
    job = {
        "trials": 6,
        "dataset": "toy",
        "sentences": 8,
        "validation": 4,
        "epochs": EPOCHS,
        "searches": 1,
        "at_once": 3,
    }
    operators = {"together": 60, "alone": {'"all-linear"': 50}}
    lines = "\n".join(tuning.report({"job": job, "grid": grid, "operators": operators, "searches": {"2": [found]}}))
    share = found["operations"] / (EPOCHS * sum(row["operations_per_epoch"] for row in grid))
    assert f"{share:.3f}" in lines and f"{found['steps'] * 60 / (EPOCHS * 6 * 5 * 50):.4f}" in lines
    assert "1 of 1" in lines
