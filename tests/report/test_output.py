import json

import pytest

from lorakit.adapters.counting import ParameterCount
from lorakit.power.reading import Measurement, Reading
from lorakit.report.output import mode_record, write_comparison
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.metrics import EntityScores, Scores


def test_a_modes_record_has_what_was_trained_scored_and_used():
    scores = Scores(0.2, 0.7, 0.8, 0.746667, 0.95, EntityScores(0.7, 0.8, 0.75, 10), {})
    result = TrainResult(scores, None, 1, 2, 10, 0, 10_000, 10_100, 5.0, 0.0, 7.0, (scores, scores))
    unknown = Measurement("unavailable", source="no NVML")
    reading = Reading(gpu=unknown, cpu=Measurement("counter", wh=2.0, mean_w=20.0), ram=unknown, duration_s=7.0)
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=2e-3, seed=3)
    record = mode_record(result, ParameterCount(100, 1000), reading, config, {"r": 8})
    assert (record["trainable_parameters"], record["total_parameters"], record["adapter"]) == (100, 1000, {"r": 8})
    assert (record["validation"], record["test"]) == (scores.to_json(), None)
    assert [(row["epoch"], row["f1"]) for row in record["history"]] == [(1, 0.746667), (2, 0.746667)]
    assert (record["energy"]["cpu"]["kwh"], record["energy"]["gpu"]["kwh"]) == (0.002, None)
    assert record["train_tokens_per_s"] == 2000
    assert {key: record[key] for key in ("epochs", "best_epoch", "seed", "learning_rate", "batch_size", "steps")} == {
        "epochs": 2, "best_epoch": 1, "seed": 3, "learning_rate": 2e-3, "batch_size": 8, "steps": 10,
    }  # fmt: skip
    json.dumps(record, allow_nan=False)


def test_the_record_is_written_as_json_markdown_and_png(record, tmp_path):
    write_comparison(record, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "comparison.json", "comparison.md", "comparison.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == record
    assert (tmp_path / "new" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_behind_when_a_value_cannot_be_written(record, tmp_path):
    record["modes"]["full"]["train_seconds"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_comparison(record, tmp_path)
    assert list(tmp_path.iterdir()) == []
