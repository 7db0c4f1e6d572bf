"""The evidence table: cells run once, final ones take turns, and the summary says what a hand calculation says."""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import lorakit
from lorakit.cli.corpora import first_sentences
from tests.support.tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # these scripts import each other by name

import evidence
from evidence_cells import FINAL, SCREEN, WHOLE
from evidence_report import draw, report, summary_of, table_of

BASE = str(ROOT / "examples" / "mini")


def columns(found, gold=2):
    """Test counts as a cell holds them: as many predicted as gold entities in each sentence."""
    wrong = ["".join(str(n) for n in found), str(gold) * len(found), str(gold) * len(found)]
    return {"digest": "x", "default": wrong, "strict": wrong}


def final_cell(mode, seed, found, flops, seconds, validation):
    f1 = sum(found) / (2 * len(found))
    scores = {"f1": f1, "strict_f1": f1, "by_type": {"DNA": f1, "RNA": f1 / 2}}
    lora = {"lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}} if mode == "lora" else {}
    energy = {part: {"wh": 1.0, "method": "estimated", "source": "a guess"} for part in ("gpu", "cpu", "ram")}
    return {
        "cell": {"mode": mode, "learning_rate": 1e-3, "batch_size": 16, "epochs": 2, "sentences": None, "test": True,
                 "seed": seed, **lora},
        "best_epoch": 2,
        "validation": [{"f1": 0.1, "strict_f1": 0.1}, {"f1": validation, "strict_f1": validation}],
        "test": scores,
        "test_sentences": columns(found),
        "flops_to_best_epoch": flops,
        "duration_s": seconds,
        "train_tokens_per_s": 100.0,
        "trained_parameters": 10,
        "in_turns_with": 1,
        "load_average_before": float(seed),
        "energy": {**energy, "estimated_wh": flops / 1e12},
    }  # fmt: skip


def cells(loss=(1, 1, 2, 2, 2, 2)):
    full = [final_cell("full", s, [2, 2, 2, 2, 2, 1 + s % 2], 10e12, 100.0 + s, 0.8) for s in range(5)]
    lora = [final_cell("lora", s, [*loss[:-1], 1 + s % 2], 4e12, 50.0 + s / 2, 0.79) for s in range(5)]
    return full, lora


def test_the_summary_compares_the_settings_that_are_best_on_validation():
    full, lora = cells()
    worse = [final_cell("lora", s, [2] * 6, 1e12, 1.0, 0.5) for s in range(5)]  # better on test, which must not choose
    for record in worse:
        record["cell"]["learning_rate"] = 7.0
    found = summary_of([*full, *lora, *worse])["summary"]
    assert found["seeds"] == 5
    assert found["test_f1_difference"] == pytest.approx(-2 / 12)
    assert found["operations_ratio"] == pytest.approx(0.4)
    assert found["time_ratio"] == pytest.approx(0.5)
    low, high = found["test_f1_interval"]
    assert low < -2 / 12 < high
    assert found["goal_reached"] is False


@pytest.mark.parametrize(("seeds", "counts"), [(2, False), (3, True)])
def test_only_runs_of_one_decoder_are_compared_and_the_best_full_one_makes_the_summary(seeds, counts):
    full, lora = cells()
    other = [final_cell(mode, s, [2] * 6, 1e12, 1.0, 0.9) for mode in ("full", "lora") for s in range(seeds)]
    for record in other:
        record["cell"]["config"] = {"decode": "viterbi"}
    found = summary_of([*full, *lora, *other])
    assert found["summary"] == summary_of(other if counts else [*full, *lora])["summary"]
    assert sorted((row["seeds"], round(row["operations_ratio"], 3)) for row in found["settings"]) == [
        (seeds, 1.0), (seeds, 1.0), (5, 0.4), (5, 1.0)
    ]  # fmt: skip
    assert len(summary_of([*full, *lora, *other[seeds:]])["settings"]) == 2, "LoRA's decoder has no full fine-tuning"


def test_another_base_has_a_table_of_its_own():
    full, lora = cells()
    other = [final_cell(mode, s, [2] * 6, 1e12, 1.0, 0.9) for mode in ("full", "lora") for s in range(5)]
    for record in other:
        record["cell"]["model"] = "examples/mini"
    together, alone = summary_of([*full, *lora, *other]), summary_of([*full, *lora])
    assert {**together, "other_bases": []} == alone
    text = "\n".join(report(together))
    assert text.index("over 5 seeds: **-0.1667**") < text.index("another base: examples/mini") < text.index(" 1.0000 |")


def test_only_runs_that_took_turns_are_timed_against_each_other():
    full, lora = cells()
    ratio = summary_of([*full, *lora])["summary"]["time_ratio"]
    lora[4] = {**lora[4], "in_turns_with": 0, "duration_s": 1000.0}
    lora[3] = {**lora[3], "load_average_before": 9.0, "duration_s": 1000.0}
    lora[2] = {**lora[2], "held_back": "by a lower priority", "duration_s": 1000.0}
    assert summary_of([*full, *lora])["summary"]["time_ratio"] == pytest.approx(ratio, rel=1e-2)


def test_without_a_pair_that_took_turns_the_time_is_unknown_and_no_goal_reached():
    full, lora = cells(loss=[2] * 6)
    found = summary_of([*full, *({**run, "in_turns_with": 0} for run in lora)])
    assert (found["summary"]["time_ratio"], found["summary"]["goal_reached"]) == (None, False)
    assert "its time is unknown, because these runs took no turns" in "\n".join(
        report(json.loads(json.dumps(found, allow_nan=False)))
    )


def test_a_better_full_fine_tuning_that_ran_alone_is_said():
    full, lora = cells(loss=[2] * 6)

    def alone(f1, **more):
        run = final_cell("full", 0, [2] * 6, 10e12, 100.0, f1)
        del run["test_sentences"], run["in_turns_with"]
        return {**run, "test": None, "cell": {**run["cell"], "test": False, **more}}

    same, better, part = alone(0.7), alone(0.75, learning_rate=5e-4), alone(0.9, sentences=100, learning_rate=5e-4)
    for others in ([same], [better], [same, alone(0.6, learning_rate=5e-4)], [same, part]):
        assert summary_of([*full, *lora, *others])["summary"]["better_full"] is None
    summary = summary_of([*full, *lora, same, better, part])
    assert summary["summary"]["better_full"]["cell"]["learning_rate"] == 5e-4
    text = "\n".join(report(json.loads(json.dumps(summary))))
    assert "a learning rate of 0.0005, batch 16 and 2 epochs have a validation F1 of 0.7500" in text
    assert "the setting above has 0.7000 there" in text


def test_the_goal_is_reached_only_with_all_three():
    full, lora = cells(loss=[2] * 6)
    assert summary_of([*full, *lora])["summary"]["goal_reached"] is True
    for record in lora:
        record["duration_s"] *= 1.4
    assert summary_of([*full, *lora])["summary"]["goal_reached"] is False


def test_a_seed_that_was_trained_again_replaces_the_old_one():
    full, lora = cells()
    again = {**full[0], "flops_to_best_epoch": 60e12}
    found = summary_of([*full, *lora, again])
    assert found["summary"]["seeds"] == 5
    assert found["summary"]["operations_ratio"] == pytest.approx(4 / 20)
    assert len(found["cells"]) == 10


def test_report_and_picture_show_every_setting():
    full, lora = cells()
    screen = {**lora[0], "cell": {**lora[0]["cell"], "sentences": 100, "test": False}, "cpu_seconds": 3.0}
    failed = {"cell": {**screen["cell"], "learning_rate": 9.0}, "error": "step 3: no finite gradient; lower it"}
    summary = summary_of([*full, *lora, screen, failed])
    text = "\n".join(report(json.loads(json.dumps(summary))))
    assert "over 5 seeds: **-0.1667**" in text and "**0.40** of its operations" in text
    assert "no finite gradient" in text
    assert "| RNA" in text
    figure = Figure()
    draw(summary, figure)
    assert [len(axes.lines) > 0 for axes in figure.axes] == [True] * 4


def test_seeds_of_unknown_energy_are_left_out_and_counted():
    full, lora = cells()
    lora[0]["energy"]["estimated_wh"] = None
    lora[1]["energy"]["estimated_wh"] += 2.0
    summary = summary_of([*full, *lora])
    [row] = [line for line in report(summary) if line.startswith("| mode")][0].splitlines()[3:]
    known = [run["energy"]["estimated_wh"] for run in lora[1:]]
    wanted = f"{statistics.mean(known):.2f} ± {statistics.stdev(known):.2f} (4 seeds)"
    assert [cell.strip() for cell in row.split("|")][-3:-1] == [wanted, "5"]
    figure = Figure()
    draw(summary, figure)
    assert [len(axes.containers) for axes in figure.axes] == [0, 0, 2, 2]


def test_a_setting_of_unknown_energy_is_a_dash_and_no_mark():
    full, lora = cells()
    for run in lora:
        run["energy"]["estimated_wh"] = None
    summary = summary_of([*full, *lora])
    [row] = [line for line in report(summary) if line.startswith("| mode")][0].splitlines()[3:]
    assert [cell.strip() for cell in row.split("|")][-3:-1] == ["–", "5"]
    figure = Figure()
    draw(summary, figure)
    assert [len(axes.containers) for axes in figure.axes] == [0, 0, 2, 1]


def test_settings_are_not_repeated():
    for stage in (SCREEN, WHOLE, FINAL):
        texts = [json.dumps(cell, sort_keys=True) for cell in stage]
        assert len(set(texts)) == len(texts)


def test_digits_give_the_counts_back():
    assert np.array_equal(table_of(["0z1", "1a0", "230"]), [[0, 1, 2], [35, 10, 3], [1, 0, 0]])


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The script on a few sentences and the embedded base, with its results in a folder of their own."""
    path = tmp_path / "cells.jsonl"
    monkeypatch.setattr(evidence, "CELLS", path)
    quick = {"batch_size": 4, "learning_rate": 2e-3}
    lora = {**quick, "mode": "lora", "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, "epochs": 2}
    full = {**quick, "mode": "full", "learning_rate": 5e-4, "frozen": ["embeddings"]}
    for stage in evidence.STAGES:
        monkeypatch.setitem(evidence.STAGES, stage, [lora, full])
    data = first_sentences(lorakit.read_ner(ROOT / "examples" / "conll"), 8)
    data = replace(data, test=data.validation)
    monkeypatch.setattr(evidence, "read_ner", lambda source: data)

    def call(*flags):
        assert evidence.main(["--model", BASE, "--dataset", "conll", "--epochs", "1", *flags]) == 0
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return call


def test_a_cell_runs_once_and_the_screen_never_reads_the_test_set(small):
    first = small("--stage", "screen", "--sentences", "6", "--at-most", "1")
    assert [record["cell"]["mode"] for record in first] == ["lora"]
    both = small("--stage", "screen", "--sentences", "6")
    assert both[0] == first[0] and [record["cell"]["mode"] for record in both] == ["lora", "full"]
    assert small("--stage", "screen", "--sentences", "6") == both
    assert all(record["test"] is None and record["flops_to_best_epoch"] > 0 for record in both)
    assert both[1]["trained_parameters"] < 0.6 * both[1]["all_parameters"]  # the embeddings are frozen


def test_parts_share_the_cells_without_overlap(small):
    small("--stage", "whole", "--part", "1", "2")
    assert [record["cell"]["mode"] for record in small("--stage", "whole", "--part", "2", "2")] == ["lora", "full"]


def test_final_cells_take_turns_and_hold_what_the_summary_needs(small, tmp_path):
    records = small("--stage", "final", "--seeds", "0", "1")
    order = [(record["cell"]["mode"], record["cell"]["seed"]) for record in records]
    assert order == [("lora", 0), ("full", 0), ("lora", 1), ("full", 1)]
    for record in records:
        found, predicted, gold = table_of(record["test_sentences"]["default"]).sum(0)
        assert record["test"]["f1"] == pytest.approx(2 * found / max(1, predicted + gold))
        assert record["in_turns_with"] == 1
    alone = lorakit.train(
        *evidence.build(records[0]["cell"], evidence.read_ner(""), BASE),
        evidence.read_ner(""),
        evidence.config_of(records[0]["cell"]),
    )
    assert [scores["loss"] for scores in records[0]["validation"]] == [scores.loss for scores in alone.history]
    evidence.main(["--report", "--output-dir", str(tmp_path)])
    found = json.loads(Path(tmp_path, "evidence.json").read_text())["summary"]
    assert found["seeds"] == 2 and found["operations_ratio"] > 0
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_flops_are_those_of_steps_alone_whatever_multiplies_them(mode, small, monkeypatch):
    options = {"lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}} if mode == "lora" else {}
    cell = {"mode": mode, "learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "precision": "fp32", "seed": 0,
            "sentences": None, "validation_sentences": None, "test": False, **options}  # fmt: skip
    data, counted = evidence.read_ner(""), []
    for onednn in "01":  # it builds its kernels before the first step, by multiplying
        monkeypatch.setenv("LORAKIT_ONEDNN", onednn)
        counted.append(evidence.count_flops(cell, data, BASE))
    model = evidence.build(cell, data, BASE)[0]
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    per_token = sum(2 * matrix.numel() for matrix in matrices) * (3 if mode == "full" else 2)
    assert counted[0] == pytest.approx(counted[1], rel=0.01)  # the widths of rows may differ
    assert per_token < counted[0] < 1.35 * per_token  # attention, padding and low-rank matrices
