"""Runs are read from what they left on disk."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from lorakit.report.page import make_page
from lorakit.report.runs import Run, read_sources
from tests.support.reports import figures_of


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
    with pytest.raises(ValueError, match="there are 2 labels for 1 runs; give one per run, in the same order"):
        read_sources([run], ["a", "b"])
