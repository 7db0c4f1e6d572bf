"""The sweep trains every combination with every seed, continues where it was, and shows what it found."""

import json
import sys

import pytest

from lorakit.training import many
from lorakit.training.identity import OtherRunError
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import ROOT

SMALL = ["--sentences", "12", "--validation", "6", "--epochs", "1", "--batch-size", "6", "--targets", "query,value"]
SMALL += ["--ranks", "1", "2", "--learning-rates", "1e-3", "2e-3", "--at-once", "3", "--seeds", "0", "1"]


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """The module, whose folders are in tmp_path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "sweep", raising=False)
    import sweep

    monkeypatch.setattr(sweep, "RUNS", tmp_path / "runs")
    return lambda *words: sweep.main([*SMALL, "--output-dir", str(tmp_path), *words])


def grid(tmp_path):
    found = json.loads((tmp_path / "sweep.json").read_text())["grid"]
    return {
        (row["targets"][0], row["ranks"], row["learning_rates"]): [one["validation_f1"] for one in row["seeds"]]
        for row in found
    }


def test_every_combination_is_trained_with_every_seed_in_shared_steps(sweep, tmp_path, monkeypatch, capsys):
    step, sizes = StackedParameters.step, []
    monkeypatch.setattr(
        StackedParameters, "step", lambda self, *given: [sizes.append(len(self)), step(self, *given)][1]
    )
    assert sweep("--note", "A note.") == 0
    assert sizes == [3, 3, 1, 1] * 2  # two steps each; the fourth run waits for the first three
    found = grid(tmp_path)
    assert sorted(found) == [("query", r, rate) for r in (1, 2) for rate in (1e-3, 2e-3)]
    assert all(len(f1) == 2 for f1 in found.values())
    text = (tmp_path / "sweep.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    assert lines[:4:2] == ["# Rank, targets and learning rate: mini on embedded", "A note."]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| query, value")]
    assert [row[1:3] for row in rows] == [["1", "0.001"], ["2", "0.001"], ["1", "0.002"], ["2", "0.002"]]
    assert {row[3] for row in rows} == {"6,923", "11,019"} and any(row[-1] == "yes" for row in rows)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_sweep_continues_and_a_finished_one_trains_nothing(sweep, tmp_path, monkeypatch):
    sweep()
    whole, step, calls = grid(tmp_path), StackedParameters.step, []

    def counted(self, *given):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *given)

    (tmp_path / "runs").rename(tmp_path / "first")
    monkeypatch.setattr(StackedParameters, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep()
    sweep()
    assert grid(tmp_path) == whole and len(calls) == 6 + 4  # the second seed again, of which no epoch had ended
    sweep()
    assert grid(tmp_path) == whole and len(calls) == 10
    sweep("--seeds", "0", "1", "2")
    assert len(calls) == 14 and all(len(f1) == 3 for f1 in grid(tmp_path).values())
    with pytest.raises(OtherRunError, match="learning_rate = 0.001, now it is 0.003|among the runs"):
        sweep("--learning-rates", "3e-3", "2e-3")


def test_a_run_that_diverges_is_a_dash(sweep, tmp_path, monkeypatch):
    score = many.score_split

    def scores(*given):
        found, counts = score(*given)
        object.__setattr__(found, "loss", float("nan"))
        return found, counts

    monkeypatch.setattr(many, "score_split", scores)
    with pytest.warns(RuntimeWarning, match="validation loss is nan"):
        assert sweep("--ranks", "1", "--learning-rates", "1e-3", "--seeds", "0") == 0
    assert grid(tmp_path) == {("query", 1, 1e-3): [None]}
    assert "| query, value | 1 |         0.001 |" in (tmp_path / "sweep.md").read_text()
