"""benchmarks/prediction.py gives both the same texts and weights, compares entities, and divides times of one round."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def prediction(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")
    import prediction

    return prediction


def test_ratios_are_those_to_the_better_pipeline_of_a_round(prediction):
    times = [
        {way: {"wall_s": wall, "cpu_s": wall / 2} for way, wall in zip(("lorakit", *PIPELINES), row, strict=True)}
        for row in ((1, 2, 3), (2, 8, 6), (4, 4, 4))
    ]
    one, other = [("DNA", 0, 4)], [("DNA", 0, 5)]
    found = {"lorakit": [[one, []], [one, []], [one]]} | {way: [[one, []], [other, []], [one]] for way in PIPELINES}
    compared = prediction.compare([2, 2, 1], times, found)
    assert compared["reference"] == "pipeline-1" and compared["reference_entities"] == 3
    assert compared["ways"]["lorakit"] == {
        "sentences_per_cpu_s": 2.0,
        "wall_s_ratio": 2.0,  # of 2, 3 and 1
        "cpu_s_ratio": 2.0,
        "entities": 3,
        "same_entities": 2,
    }


PIPELINES = ("pipeline-1", "pipeline-32")


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_lorakit_with_an_adapter_finds_what_the_pipeline_finds_with_it_merged(prediction, tmp_path, capsys):
    options = ["--shape", "tiny", "--dataset", "embedded", "--sentences", "12", "--rounds", "2", "--layers", "1"]
    options += ["--name", "few"]
    assert prediction.main([*options, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "few.json").read_text())
    assert found["sentences"] == [6, 6] and len(found["rounds"]) == 2
    count = found["reference_entities"]
    assert count > 50
    assert all(way["entities"] == way["same_entities"] == count for way in found["ways"].values())
    assert (tmp_path / "few.md").read_text() in capsys.readouterr().out


def test_the_adapter_changes_what_the_model_computes(prediction):
    import torch

    import lorakit

    job = prediction.job_of(prediction.parse(["--shape", "tiny", "--dataset", "embedded"]), warmup=0)
    adapted, plain = prediction.adapted_and_merged(job)
    ids = torch.tensor([[0, 300, 400, 2]])
    with torch.no_grad():
        merged, own = plain(input_ids=ids).logits, adapted(input_ids=ids).logits
        with lorakit.disable_lora(adapted):
            base = adapted(input_ids=ids).logits
    assert torch.allclose(merged, own, atol=1e-4)
    assert (merged - base).abs().max() > 1e-2
