"""The speed benchmarks run whole on a tiny model, and count what they say they count. Nothing here looks at a time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("accelerate")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# transformers' own, of its Trainer
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "examples")


TINY = ["--shape", "tiny", "--dataset", "embedded", "--batch-size", "8", "--steps", "2", "--rounds", "1"]


def test_the_comparison_writes_table_figures_and_picture(benchmarks, tmp_path, capsys):
    import throughput

    throughput.main([*TINY, "--evaluate", "8", "--output-dir", str(tmp_path)], start=throughput.System)
    text = (tmp_path / "throughput.md").read_text()
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "throughput.json").read_text())
    medians = found["medians"]
    assert list(medians) == list(throughput.SYSTEMS)
    for name, row in medians.items():
        assert f"| {throughput.SYSTEMS[name][0]} " in text
        assert row["step_s"] > 0 and row["tokens_per_s"] > 0
        assert row["peak_bytes"] is None  # several systems in one process
        assert row["kernels"] is None  # no GPU is counted on a CPU
    assert medians["lorakit-lora"]["padding"] <= 1.05 < medians["trainer-peft"]["padding"]
    assert medians["lorakit-lora"]["operators"] < medians["loop-peft"]["operators"]
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_predicted_flops_are_those_counted(benchmarks, mode):
    import throughput
    from systems import Clock, by_loop, by_trainer, predict_cost

    name, run = {"full": ("trainer-full", by_trainer), "lora": ("loop-peft", by_loop)}[mode]
    job = throughput.job_of(throughput.parse(TINY))
    job = replace(job, train=(max(job.train, key=lambda sentence: len(sentence.words)),) * 24)  # no padding
    clock = Clock(job, counts=True)
    with clock.operations:
        real, computed = run(job, clock, mode)
    assert real == computed
    predicted = predict_cost(job, name)
    assert (predicted["padding"], predicted["real"]) == (1.0, real / job.steps)
    assert predicted["flops"] == pytest.approx(clock.cost()["flops"], rel=0.02)


def test_a_clock_that_missed_steps_says_so(benchmarks):
    import throughput
    from systems import Clock

    clock = Clock(throughput.job_of(throughput.parse(TINY)))
    clock.step()
    with pytest.raises(RuntimeError, match="the clock saw 1 of 3 steps"):
        clock.cost()
