"""Runs are read from what they left on disk."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from lorakit.report.page import make_page
from lorakit.report.runs import Run, read_sources
from tests.support.reports import figures_of
from tests.support.seed_runs import make_seeds


def test_a_folder_without_a_comparison_is_one_run_with_what_its_log_and_journal_hold(run):
    record = json.loads((run / "comparison.json").read_text())["modes"]["lora"]
    (run / "comparison.json").unlink()
    with (run / "lora" / "metrics.jsonl").open("a") as log:
        log.write('{"event": "step", "epo')  # a kill in the middle of a line
    (source,) = read_sources([run / "lora"])
    (only,) = source.runs
    assert (only.label, only.mode) == ("LoRA", "lora")
    assert only.scores("validation")["f1"] == record["validation"]["f1"]
    assert only.scores("test")["f1"] == record["test"]["f1"]
    assert only.component("cpu")["kwh"] == pytest.approx(record["energy"]["cpu"]["kwh"])
    page = make_page([source])
    assert figures_of(page, "parameter-table")["Parameters: Trained"] == [(None, "not recorded")]
    assert figures_of(page, "scores-test")["Default mode: F1"][0][0] == record["test"]["f1"]


def test_the_log_of_another_run_is_not_used(run):
    """`lorakit train --mode lora` logs in the output folder itself, where --mode both may have left lora/."""
    (run / "lora" / "metrics.jsonl").rename(run / "metrics.jsonl")
    (run / "lora" / "energy.jsonl").rename(run / "energy.jsonl")
    shutil.copy(run / "full" / "metrics.jsonl", run / "lora")
    full, lora = read_sources([run])[0].runs
    assert [line["f1"] for line in lora.evaluations] == [scores["f1"] for scores in lora.values["history"]]
    assert lora.energy and lora.steps and lora.steps != full.steps
    (run / "metrics.jsonl").unlink()
    lora = read_sources([run])[0].runs[1]
    assert (lora.energy, lora.steps) == ((), ())
    assert [line["f1"] for line in lora.evaluations] == [scores["f1"] for scores in lora.values["history"]]


def test_several_runs_are_side_by_side_under_distinct_names(run, tmp_path):
    other = Path(shutil.copytree(run / "lora", tmp_path / "other" / "lora"))
    sources = read_sources([run, run / "lora", other])
    labels = [r.label for source in sources for r in source.runs]
    assert labels == ["bionlp · full", "bionlp · LoRA", "bionlp/lora", "other/lora"]
    page = make_page(sources)
    assert len(figures_of(page, "scores-test")["Default mode: F1"]) == 4  # no difference of four
    assert "3 runs side by side" in page


def test_reading_and_showing_runs_changes_no_file(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sources = read_sources([run])
    kept = copy.deepcopy(sources)
    make_page(sources)
    assert sources == kept
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_kind_of_an_energy_is_measured_estimated_unavailable_or_not_recorded():
    energy = {"gpu": {"method": "sampled"}, "cpu": {"method": "estimated"}, "ram": {"method": "unavailable"}}
    run = Run("x", "", {"energy": energy})
    assert [run.kind_of(name) for name in ("gpu", "cpu", "ram")] == ["measured", "estimated", "unavailable"]
    assert Run("x", "", {}).kind_of("gpu") == "not recorded"


def test_labels_must_be_one_per_folder(run):
    with pytest.raises(ValueError, match="2 labels were given for 1 run; give one per run, in the same order"):
        read_sources([run], ["a", "b"])


def test_several_seeds_are_one_run_per_mode_whose_lines_are_means(tmp_path):
    folder = make_seeds(tmp_path / "x", {"full": 0.75, "lora": 0.6}, seeds=2)
    for seed, losses in ((0, (2.0, 1.0)), (1, (4.0, 2.0, 1.0))):  # the second one logged a step more
        lines = [{"event": "step", "step": 10 * i, "loss": loss} for i, loss in enumerate(losses, start=1)]
        log = folder / f"seed-{seed}" / "lora" / "metrics.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines) + log.read_text())
    (source,) = read_sources([folder])
    assert [(run.label, run.mode, len(run.seeds), run.folder) for run in source.runs] == [
        ("full", "full", 2, None), ("LoRA", "lora", 2, None)
    ]  # fmt: skip
    lora = source.runs[1]
    assert [(line["step"], line["loss"]) for line in lora.steps] == [(10, 3.0), (20, 1.5)]
    assert [run.folder for run in lora.seeds] == [str(folder / f"seed-{seed}" / "lora") for seed in (0, 1)]
    assert source.record["margin"] is None
