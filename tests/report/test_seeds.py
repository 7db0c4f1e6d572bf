"""Several seeds as one record, and a row for each: scores averaged, energies added, a busy seed named and marked."""

import json
import statistics

import pytest

from lorakit.report.run_comparison import compare_runs, verdict_text
from lorakit.report.seeds import mean_modes, seed_names, seeds_table
from tests.support.seed_runs import make_seeds

BOTH = {"full": 0.75, "lora": 0.6}


def record_in(folder):
    return json.loads((folder / "comparison.json").read_text())


def cells_of(table):
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]


def test_scores_are_means_and_times_and_energies_are_totals_with_their_method(tmp_path):
    record = record_in(make_seeds(tmp_path, BOTH))
    runs = [seed["modes"]["lora"] for seed in record["seeds"]]
    found = record["modes"]["lora"]
    assert found["test"]["f1"] == pytest.approx(statistics.fmean(run["test"]["f1"] for run in runs))
    assert found["test"]["strict"]["f1"] == pytest.approx(statistics.fmean(run["test"]["strict"]["f1"] for run in runs))
    for name in ("steps", "train_tokens", "train_seconds", "duration_s"):
        assert found[name] == pytest.approx(sum(run[name] for run in runs))
    assert found["train_tokens_per_s"] == pytest.approx(found["train_tokens"] / found["train_seconds"])
    energy = found["energy"]
    assert energy["cpu"]["kwh"] == energy["estimated_kwh"] == pytest.approx((1 + 2 + 3) / 1e3)
    assert (energy["cpu"]["method"], energy["cpu"]["range_kwh"]) == ("estimated", pytest.approx([0.003, 0.012]))
    assert (energy["gpu"]["method"], energy["gpu"]["kwh"], energy["measured_kwh"]) == ("unavailable", None, None)
    assert energy["cpu"]["mean_w"] == pytest.approx(6 * 3600 / 30)
    assert found["seed"] is None and found["adapter"] == {"r": 8}


def test_a_busy_seed_is_named_although_the_mean_over_all_would_be_quiet(tmp_path):
    record = record_in(make_seeds(tmp_path, BOTH, seeds=9, busy=1))
    found = record["modes"]["lora"]["energy"]["contention"]
    assert found["share"] < 0.05
    assert found["note"] == ("during seed 1 other processes used 40 % of the CPUs: times and energy are not comparable")
    assert record["modes"]["full"]["energy"]["contention"]["note"] is None
    rows = cells_of(seeds_table(record))
    marked = [row[0] for row in rows if any(cell.endswith("*") for cell in row)]
    assert marked == ["1", "mean, total"]


def test_each_seed_has_a_row_with_its_own_numbers(tmp_path):
    record = record_in(make_seeds(tmp_path, BOTH))
    header, _, *rows = cells_of(seeds_table(record))
    assert header[:4] == ["seed", "test F1 full", "LoRA", "difference"]
    assert [row[0] for row in rows] == ["0", "1", "2", "mean, total"]
    for row, seed in zip(rows, record["seeds"], strict=False):
        full, lora = (seed["modes"][mode]["test"]["f1"] for mode in BOTH)
        assert row[1:4] == [f"{full:.4f}", f"{lora:.4f}", f"{lora - full:+.4f}".replace("-", "−")]
    assert (header[-2], rows[-1][-1]) == ("Wh estimated full", "6.0000")
    assert seed_names(record["seeds"]) == "0, 1, 2"


def test_one_mode_has_no_difference_and_no_verdict(tmp_path):
    record = record_in(make_seeds(tmp_path, {"lora": 0.6}))
    assert "difference" not in seeds_table(record) and "None" not in seeds_table(record)
    text = verdict_text(record)
    assert "0, 1, 2" in text and "better" not in text and "cannot tell" not in text


def test_the_verdict_is_that_of_compare_and_says_how_to_add_seeds(tmp_path):
    apart = record_in(make_seeds(tmp_path / "a", BOTH))
    assert verdict_text(apart).endswith("F1: LoRA is worse than full.\nF1, strict IOB2: LoRA is worse than full.\n")
    equal = record_in(make_seeds(tmp_path / "b", {"full": 0.7, "lora": 0.7}, margin=0.5))
    assert "LoRA and full are equal within the margin." in verdict_text(equal)
    close = record_in(make_seeds(tmp_path / "c", {"full": 0.7, "lora": 0.705}, seeds=2))
    more = max(found["more_seeds"] or 0 for found in close["comparison"]["comparisons"][0]["f1"].values())
    assert more and verdict_text(close).endswith(
        f"To add seeds, run the same command with --seeds {2 + more} --resume.\n"
    )
    assert verdict_text({"seeds": [1], "comparison": {"why": "x"}}) == "The runs are not compared: x.\n"


def test_the_folder_of_all_seeds_is_compared_as_its_seeds_are(tmp_path):
    folder = make_seeds(tmp_path, BOTH, margin=0.01)
    assert compare_runs([folder], margin=0.01) == record_in(folder)["comparison"]


def test_no_seed_gives_no_modes():
    assert mean_modes([]) == {}
