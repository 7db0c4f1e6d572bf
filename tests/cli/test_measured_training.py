"""Training under an energy meter, and the exit status of a run that stopped early."""

import argparse
import json
import warnings

import pytest

from lorakit.cli.measured_training import RunMeter, exit_status, train_measured
from lorakit.cli.parser import Parser
from lorakit.cli.saving import save_or_rescue
from lorakit.data.corpus import NerData, Sentence
from lorakit.power.journal import read_journal
from lorakit.training.config import TrainConfig
from lorakit.training.preemption import Preempted
from tests.support.energy_world import FakeGpu, Profile, World
from tests.support.tiny import LABELS, make_tiny_model

SENTENCES = (Sentence(("IL-2", "gene"), ("B-DNA", "I-DNA")), Sentence(("No", "entity"), ("O", "O")))
DATA = NerData(train=SENTENCES, validation=(), test=(), labels=LABELS, source="made here")


def run(tokenizer, folder, **options):
    config = TrainConfig(epochs=1, batch_size=2, output_dir=folder, progress=False, **options)
    return train_measured(make_tiny_model(), tokenizer, DATA, config)


def test_a_run_writes_its_journal_and_a_new_run_replaces_it(tokenizer, tmp_path):
    for overwrite in (False, True):
        result, reading = run(tokenizer, tmp_path, overwrite=overwrite)
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


def test_a_run_whose_power_was_measured_says_how_long_a_window_of_it_must_be(tmp_path, monkeypatch):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0), (30, 250.0)))])
    monkeypatch.setattr("lorakit.cli.measured_training.EnergyMeter", lambda out: world.meter(out=out))
    meter = RunMeter(TrainConfig(output_dir=tmp_path / "run"))
    for _ in range(2):  # two turns of one run
        with meter.turn():
            world.run(meter._meter, 60)
    (note,) = [note for note in meter.reading.notes if note.startswith("to measure this load for ±2%: windows of ")]
    assert note.endswith("after 30 s of warm-up")
    assert meter.reading.gpu.wh * 3600 == pytest.approx(30 * 100 + 90 * 250, abs=50)
    assert meter.reading.notes.count(note) == 1


def command(overwrite=False):
    parser = Parser(prog="lorakit train")
    parser.add_argument("--resume", action="store_true")
    return argparse.Namespace(parser=parser, overwrite=overwrite)


@pytest.mark.parametrize(("stopped", "status"), [(Preempted(15, "runs/x"), 143), (OSError("full"), 1)])
def test_a_run_that_stopped_says_why_and_has_its_status(stopped, status, capsys):
    assert exit_status(stopped, command()) == status
    told = str(stopped).replace("resume=True", "--resume")
    assert capsys.readouterr().err == f"lorakit train: {told}\n"


def test_a_run_that_overwrote_another_does_not_overwrite_when_it_resumes(capsys):
    assert exit_status(Preempted(2, "runs/x"), command(overwrite=True)) == 130
    assert capsys.readouterr().err.endswith("the same again with --resume instead of --overwrite to continue\n")


def test_a_rank_without_memory_ends_at_once(capsys):
    with pytest.raises(SystemExit, match="1"):
        exit_status(MemoryError("out of memory on rank 1"), command())
    assert capsys.readouterr().err == "lorakit train: out of memory on rank 1\n"


@pytest.mark.parametrize("damage", ["cut", "overlapping", "foreign"])
def test_a_damaged_journal_costs_the_earlier_energy_and_not_the_run(tokenizer, tmp_path, damage):
    run(tokenizer, tmp_path)
    path = tmp_path / "energy.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "overlapping":
        path.write_text("".join(json.dumps({**line, "run": name}) + "\n" for name in "ab" for line in lines))
    else:
        for line in lines:
            if "reading" in line:
                line["reading"]["gpu"] = []
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result, reading = run(tokenizer, tmp_path, resume=True)
    assert result.steps == 1 and reading.duration_s > 0
    assert damage == "cut" or any("energy of the interrupted runs is not counted" in str(w.message) for w in said)


def test_what_cannot_be_saved_in_its_place_is_saved_elsewhere_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    config = TrainConfig(output_dir=tmp_path / "run")

    def save(place):
        if place.parent == tmp_path / "run":
            raise OSError(28, "No space left on device")
        place.mkdir()

    with pytest.raises(
        OSError, match=r"adapter could not be written .*No space left.*what was trained is in .*: move"
    ) as e:
        save_or_rescue(save, tmp_path / "run" / "adapter", config)
    (place,) = (tmp_path / "temporary").iterdir()
    assert str(place / "adapter") in str(e.value) and (place / "adapter").is_dir()


def test_where_nothing_can_be_saved_the_newest_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)

    def save(place):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="is in the newest checkpoint: make room, and run the same command with --resume"):
        save_or_rescue(save, tmp_path / "run" / "adapter", TrainConfig(output_dir=tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_journal_that_cannot_be_opened_costs_the_journal_and_not_the_run(tokenizer, tmp_path, caplog, resume):
    run(tokenizer, tmp_path)
    (tmp_path / "energy.jsonl").unlink()
    (tmp_path / "energy.jsonl").mkdir()  # as a closed file, but for root too
    said = "the energy of the interrupted runs is not counted" if resume else "energy is not kept there"
    with pytest.warns(UserWarning, match=said):
        result, reading = run(tokenizer, tmp_path, resume=resume, overwrite=not resume)
    assert result.validation is None and reading.duration_s > 0
    assert [record.message.partition(": ")[0] for record in caplog.records if record.name == "lorakit.energy"] == (
        [f"energy readings cannot be written to {tmp_path / 'energy.jsonl'}"] if resume else []
    )


@pytest.mark.parametrize("step", ["__init__", "start", "finish", "reading"])
def test_a_meter_that_fails_costs_the_energy_and_not_the_run(tokenizer, tmp_path, monkeypatch, step):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"lorakit.energy.Session.{step}", fails)
    result, reading = run(tokenizer, tmp_path)
    assert result.steps == 1
    assert (reading.measured_wh, reading.estimated_wh) == (None, None)
    assert reading.notes == ("the meter failed: OSError: [Errno 28] No space left on device",)
