"""Training under an energy meter, and the exit status of a run that stopped early."""

import json

import pytest

from lorakit.cli.measured_training import exit_status, train_measured
from lorakit.data.corpus import NerData, Sentence
from lorakit.power.journal import read_journal
from lorakit.training.config import TrainConfig
from lorakit.training.preemption import Preempted
from tests.support.tiny import LABELS, make_tiny_model

SENTENCES = (Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA")), Sentence(("No", "entity"), ("O", "O")))
DATA = NerData(train=SENTENCES, validation=(), test=(), labels=LABELS, source="made here")


def run(tokenizer, folder, **options):
    config = TrainConfig(epochs=1, batch_size=2, output_dir=folder, progress=False, **options)
    return train_measured(make_tiny_model(), tokenizer, DATA, config)


def test_a_run_writes_its_journal_and_a_new_run_replaces_it(tokenizer, tmp_path):
    for _ in range(2):
        result, reading = run(tokenizer, tmp_path)
        (part,) = read_journal(tmp_path / "energy.jsonl")
        assert part.complete and part.reading["duration_s"] == pytest.approx(reading.duration_s, rel=1e-6)
    assert result.steps == 1
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("power_w" in line for line in log if line["event"] == "step")


def test_a_resumed_run_counts_what_the_runs_before_it_used(tokenizer, tmp_path):
    _, first = run(tokenizer, tmp_path)
    _, both = run(tokenizer, tmp_path, resume=True)
    assert len(read_journal(tmp_path / "energy.jsonl")) == 2
    assert both.duration_s > first.duration_s
    assert both.estimated_wh is None or both.estimated_wh > first.estimated_wh


@pytest.mark.parametrize(("stopped", "status"), [(Preempted(15, "runs/x"), 143), (FloatingPointError("nan"), 1)])
def test_a_run_that_stopped_says_why_and_has_its_status(stopped, status, capsys):
    assert exit_status(stopped, "lorakit train") == status
    assert capsys.readouterr().err == f"lorakit train: {stopped}\n"


def test_a_rank_without_memory_ends_at_once(capsys):
    with pytest.raises(SystemExit, match="1"):
        exit_status(MemoryError("out of memory on rank 1"), "lorakit train")
    assert capsys.readouterr().err == "lorakit train: out of memory on rank 1\n"
