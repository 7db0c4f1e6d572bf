"""The parameter benchmark counts what the study counted and writes its table, figures and picture."""

import json
from pathlib import Path

import pytest

from tests.support.tiny import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import parameters

    return parameters


def test_table_figures_and_picture(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark, "RANKS", (16,))
    benchmark.main(["--output-dir", str(tmp_path), "--without-peft"])
    text = (tmp_path / "parameters.md").read_text()
    assert text == capsys.readouterr().out[:-1]
    assert "**700,427 of 124,653,323** (0.5619 %). PEFT prints 700,427 of 124,661,782" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| LoRA")]
    assert ["LoRA", "query, value (24)", "none", "598,283"] in rows
    assert "PEFT was not run" in text
    rows = json.loads((tmp_path / "parameters.json").read_text())["rows"]
    assert len(rows) == 1 + 12
    assert rows[0]["trainable"] == rows[0]["total"] == 124_063_499
    assert (tmp_path / "parameters.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("r", [4])
def test_the_published_table_is_what_the_code_counts(benchmark, r: int) -> None:
    published = json.loads((ROOT / "benchmarks" / "results" / "parameters.json").read_text())["rows"]
    for row in (row for row in published if row["r"] == r and row["method"] == "LoRA" and row["bias"] == "all"):
        options = {"r": r, "target_modules": benchmark.TARGETS[row["targets"]], "bias": "all"}
        found = benchmark.count(options, with_peft=False)
        assert (found["trainable"], found["total"]) == (row["trainable"], row["total"])
        assert row["peft_trainable"] == row["trainable"]
        assert row["peft_total"] == row["total"] + 8_459


def test_a_count_that_peft_does_not_share_stops_the_benchmark(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "peft_count", lambda options: (1, 2))
    with pytest.raises(RuntimeError, match=r"PEFT counts \(1, 2\) for .* lorakit \(700427, 124661782\)"):
        benchmark.count(benchmark.STUDY, with_peft=True)
