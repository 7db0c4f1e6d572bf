"""Runs that differ only in the seed form a side; runs on other sentences are refused with both names."""

import json

import pytest

from lorakit.report.run_comparison import compare_runs, comparison_text
from lorakit.report.tables import MARK
from lorakit.training.sentences import NAME
from tests.support.reports import change
from tests.support.sentence_runs import make_run

BOTH = {"full": 0.75, "lora": 0.6}


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of both modes."""
    return [make_run(tmp_path / f"seed-{seed}", BOTH, seed) for seed in range(3)]


def test_an_output_folder_of_both_modes_is_compared_lora_against_full(seeds):
    record = compare_runs(seeds[:1])
    assert [side["name"] for side in record["sides"]] == ["full", "LoRA"]
    (pair,) = record["comparisons"]
    assert pair["name"] == "LoRA − full"
    f1 = [side["f1"]["default"]["value"] for side in record["sides"]]
    assert pair["f1"]["default"]["value"] == pytest.approx(f1[1] - f1[0])
    assert (pair["f1"]["default"]["models"], pair["f1"]["default"]["verdict"]) == ("worse", "cannot tell")
    assert pair["f1"]["default"]["sentence"].endswith("Of these models: LoRA's is worse")


def test_runs_that_differ_only_in_the_seed_form_a_side(seeds):
    record = compare_runs(seeds, margin=0.005)
    assert [side["seeds"] for side in record["sides"]] == [[0, 1, 2]] * 2
    found = record["comparisons"][0]["f1"]["default"]
    assert (found["verdict"], found["paired"], found["seeds"]) == ("worse", True, [3, 3])
    assert found["sentence"] == "LoRA is worse than full"
    ratio = record["comparisons"][0]["ratios"]["train_tokens_per_s"]
    assert (ratio["verdict"], ratio["low"] > 1) == ("better", True)
    assert record["comparisons"][0]["ratios"]["estimated_wh"]["value"] == 1.0
    text = comparison_text(record)
    assert "LoRA is worse than full." in text and "±0.005" in text and "0, 1, 2" in text
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_folders_of_a_mode_give_what_their_output_folders_give(seeds):
    folders = [seed / mode for mode in BOTH for seed in seeds]
    whole, parts = compare_runs(seeds), compare_runs(folders)
    assert parts["comparisons"] == whole["comparisons"]
    assert parts["sides"][0]["runs"] == [str(seed / "full") for seed in seeds]


def test_the_same_settings_and_seeds_again_are_another_side(tmp_path):
    """So that a run can be compared with the same run after a change of the code."""
    folders = [make_run(tmp_path / name, {"lora": 0.6}, seed) for name, seed in (("a0", 0), ("a1", 1))]
    folders += [make_run(tmp_path / name, {"lora": 0.8}, seed) for name, seed in (("b0", 0), ("b1", 1))]
    record = compare_runs(folders)
    assert [side["seeds"] for side in record["sides"]] == [[0, 1], [0, 1]]
    assert record["sides"][1]["name"] == f"{tmp_path / 'b0' / 'lora'} and 1 more"


def test_every_later_side_is_compared_with_the_first(tmp_path):
    folders = [
        make_run(tmp_path / f"e{epochs}-{seed}", {"lora": share}, seed, settings={"epochs": epochs})
        for epochs, share in ((1, 0.5), (2, 0.7), (3, 0.9))
        for seed in range(3)
    ]
    record = compare_runs(folders)
    assert len(record["sides"]) == 3
    assert [pair["f1"]["default"]["verdict"] for pair in record["comparisons"]] == ["better", "better"]


def test_a_run_that_shared_the_machine_is_named_and_its_ratios_are_marked(seeds):
    assert MARK not in comparison_text(compare_runs(seeds))

    def contend(record):
        record["modes"]["lora"]["energy"]["contention"] = {"note": "other processes used 40 % of the CPUs"}

    change(seeds[1], contend)
    text = comparison_text(compare_runs(seeds))
    assert f"{MARK} {seeds[1] / 'lora'}: other processes used 40 % of the CPUs" in text
    assert f"training tokens/s, ratio{MARK}" in text


def refused(folders, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        compare_runs(folders, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_corpus_is_refused_with_both_names(seeds, tmp_path):
    other = make_run(tmp_path / "other", BOTH, digest="d2", sentences=300)
    message = refused([seeds[0], other], "their test sets differ .400 sentences with digest d1, 300 with d2.")
    assert str(seeds[0] / "full") in message and str(other / "full") in message


def test_a_split_that_a_run_lacks_is_refused(seeds):
    message = refused(seeds[:2], "was not scored on a validation set .it has: test.", split="validation")
    assert str(seeds[0] / "full") in message


@pytest.mark.parametrize(("key", "value"), [("schema", 2), ("metric", "words")])
def test_another_metric_or_schema_is_refused(seeds, key, value):
    path = seeds[1] / "lora" / NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = refused(seeds[:2], f"has {key} {value!r}, and this version of lorakit reads")
    assert str(path) in message and str(seeds[0] / "full") in message


def test_a_run_without_the_file_is_refused_with_the_name_of_one_that_has_it(seeds):
    (seeds[1] / "full" / NAME).unlink()
    message = refused(seeds[:2], f"has no {NAME}, which `lorakit train` writes at the end of a run")
    assert str(seeds[1] / "full") in message and str(seeds[0] / "full") in message


def test_a_file_of_another_run_than_the_scores_beside_it_is_refused(seeds):
    (seeds[0] / "full" / NAME).write_bytes((seeds[1] / "full" / NAME).read_bytes())
    refused(seeds[:1], "is of another run than the scores beside it: test F1 0.* and 0.*train the run again")


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, float("nan")])
def test_a_margin_out_of_range_is_refused(seeds, margin):
    refused(seeds, "it must be a difference of F1 above 0 and below 1", margin=margin)


def test_one_setting_alone_is_nothing_to_compare(seeds):
    refused([seed / "full" for seed in seeds], "nothing to compare")
    refused([seeds[0] / "full", seeds[0]], "a run is named twice")
