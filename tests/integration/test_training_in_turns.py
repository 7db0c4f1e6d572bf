"""Two models that are trained in turns are, bit for bit, those trained one after the other."""

import itertools
import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lorakit
from lorakit.cli import measured_training
from lorakit.cli.measured_training import Contestant, RunMeter, train_in_turns
from lorakit.power.journal import merge_runs, read_journal
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.loop import PausableRun
from lorakit.training.preemption import Preempted
from lorakit.training.state import SinceLog
from tests.support.energy_world import FakeGpu, Profile, World
from tests.support.toy import killed_after, quick, read_log, toy_data, weights

MODES = ("full", "lora")
UNTIMED = "validation test best_epoch epochs steps skipped_steps train_tokens computed_tokens history".split()


@pytest.fixture(scope="module")
def data():
    return toy_data(64, 24, 24)


def make(tiny_model, mode):
    model = tiny_model(dropout=0.1)
    if mode == "lora":
        lorakit.apply_lora(model, r=4, lora_alpha=16, target_modules=None, bias="all", lora_dropout=0.1)
    return model


def untimed(folder):
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "wall_s", "power_w")} for line in folder]


def settings_of(mode, folder, changes):
    """The settings of one mode: `changes` for both, its own among them under its name."""
    shared = {name: value for name, value in changes.items() if name not in MODES}
    return quick(output_dir=folder / mode, **{"epochs": 3, "log_every": 3, **shared, **changes.get(mode, {})})


def in_turns(tiny_model, tokenizer, data, folder, **changes):
    """Train both modes in turns; returns results and models by mode."""
    contestants = {
        mode: Contestant(make(tiny_model, mode), tokenizer, data, settings_of(mode, folder, changes)) for mode in MODES
    }
    found = train_in_turns(contestants)
    return {mode: found[mode][0] for mode in MODES}, {mode: one.model for mode, one in contestants.items()}


def alone(tiny_model, tokenizer, data, folder, **changes):
    """The same, one run after the other."""
    results, models = {}, {mode: make(tiny_model, mode) for mode in MODES}
    for mode, model in models.items():
        results[mode] = lorakit.train(model, tokenizer, data, settings_of(mode, folder, changes))
    return results, models


def assert_same(one, other, folders):
    for mode in MODES:
        for name in UNTIMED:
            assert getattr(one[0][mode], name) == getattr(other[0][mode], name), (mode, name)
        for name, value in weights(one[1][mode]).items():
            assert torch.equal(value, weights(other[1][mode])[name]), (mode, name)
        first, second = (folder / mode for folder in folders)
        assert untimed(read_log(first)) == untimed(read_log(second))
        states = [load_checkpoint(place / "checkpoints") for place in (first, second)]
        assert states[0].state["ranks"][0]["random"] == states[1].state["ranks"][0]["random"]
        assert states[0].tensors.keys() == states[1].tensors.keys()
        assert all(torch.equal(value, states[1].tensors[name]) for name, value in states[0].tensors.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_run_in_turns_equals_its_lone_run(tiny_model, tokenizer, data, tmp_path, precision):
    options = {"precision": precision, "save_every": 5}
    expected = alone(tiny_model, tokenizer, data, tmp_path / "alone", **options)
    found = in_turns(tiny_model, tokenizer, data, tmp_path / "turns", **options)
    assert_same(found, expected, (tmp_path / "turns", tmp_path / "alone"))


def test_turns_are_shorter_than_an_epoch_and_alternate(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    seen, add = [], SinceLog.add
    monkeypatch.setattr(SinceLog, "add", lambda self, *args: (seen.append(id(self.__class__)), add(self, *args)))
    turns, real = [], PausableRun.advance

    def advance(self):
        turns.append((self.folder.parent.name, self.step))
        real(self)

    monkeypatch.setattr(PausableRun, "advance", advance)
    in_turns(tiny_model, tokenizer, data, tmp_path, epochs=1)
    assert len(seen) == 16  # 8 steps of each
    assert turns[:4] == [("full", 0), ("lora", 0), ("lora", 1), ("full", 1)]


@pytest.mark.parametrize("stops", [[2], [7, 20], [44]])
def test_killed_in_turns_and_resumed_equals_lone_runs(tiny_model, tokenizer, data, tmp_path, stops):
    expected = alone(tiny_model, tokenizer, data, tmp_path / "alone")
    found = None
    for steps in [*stops, None]:  # counted over both runs
        torch.manual_seed(999)  # a new process would not have these numbers either
        with killed_after(steps):
            try:
                found = in_turns(tiny_model, tokenizer, data, tmp_path / "parts", resume=True, save_every=4)
            except KeyboardInterrupt:
                assert steps is not None
    assert_same(found, expected, (tmp_path / "parts", tmp_path / "alone"))


def signal_at(monkeypatch, step):
    """Send this process SIGTERM in that step, counted over both runs."""
    add, numbers = SinceLog.add, itertools.count(1)

    def add_and_send(self, *args):
        if next(numbers) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        add(self, *args)

    monkeypatch.setattr(SinceLog, "add", add_and_send)


@pytest.mark.parametrize("step", [1, 2, 11, 30])
def test_a_signal_saves_both_runs_at_their_step_and_both_continue(
    tiny_model, tokenizer, data, tmp_path, monkeypatch, step
):
    expected = alone(tiny_model, tokenizer, data, tmp_path / "alone")
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(Preempted, match="stopped by SIGTERM; the state is in .* and .*: run the same") as stopped:
            in_turns(tiny_model, tokenizer, data, tmp_path / "parts")
    assert all(str(tmp_path / "parts" / mode / "checkpoints") in str(stopped.value) for mode in MODES)
    saved = [load_checkpoint(tmp_path / "parts" / mode / "checkpoints").state["step"] for mode in MODES]
    assert sum(saved) == step
    torch.manual_seed(999)
    found = in_turns(tiny_model, tokenizer, data, tmp_path / "parts", resume=True)
    assert_same(found, expected, (tmp_path / "parts", tmp_path / "alone"))


def test_old_checkpoints_of_both_runs_are_gone_before_the_first_step(tiny_model, tokenizer, data, tmp_path):
    in_turns(tiny_model, tokenizer, data, tmp_path)
    with killed_after(1), pytest.raises(KeyboardInterrupt):
        in_turns(tiny_model, tokenizer, data, tmp_path, overwrite=True)
    assert [list((tmp_path / mode / "checkpoints").iterdir()) for mode in MODES] == [[], []]


def test_a_run_that_stops_early_leaves_the_other_to_continue(tiny_model, tokenizer, data, tmp_path):
    standstill = {"patience": 1, "learning_rate": 1e-30}  # no bit of the validation loss improves
    options = {"epochs": 4, "lora": standstill}
    expected = alone(tiny_model, tokenizer, data, tmp_path / "alone", **options)
    assert (expected[0]["full"].epochs, expected[0]["lora"].epochs) == (4, 2)
    found = in_turns(tiny_model, tokenizer, data, tmp_path / "turns", **options)
    assert_same(found, expected, (tmp_path / "turns", tmp_path / "alone"))


def test_nothing_global_is_left_between_turns(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_ONEDNN", "1" if torch.backends.mkldnn.is_available() else "0")
    attention, handler, seen = ALL_ATTENTION_FUNCTIONS["sdpa"], signal.getsignal(signal.SIGTERM), []
    real = RunMeter.turn

    @contextmanager
    def turn(self):
        with real(self):
            yield
        seen.append(ALL_ATTENTION_FUNCTIONS["sdpa"] is attention)

    monkeypatch.setattr(RunMeter, "turn", turn)
    _, models = in_turns(tiny_model, tokenizer, data, tmp_path, epochs=1)
    assert len(seen) > 10 and all(seen)
    kinds = {type(module) for model in models.values() for module in model.modules()}
    assert not {kind.__name__ for kind in kinds} & {"FasterLinear", "FasterDropout"} and nn.Linear in kinds
    assert signal.getsignal(signal.SIGTERM) is handler


def test_each_run_pays_for_its_own_turns_and_together_for_all_the_machine_used(tmp_path, monkeypatch):
    """In virtual time: the machine draws more and more, and 3 s of nobody's pass between two turns."""
    gpu = Profile(*((10.0 * k, 100.0 + 7 * k) for k in range(40)))
    cpu = Profile(*((7.0 * k, 50.0 + 3 * k) for k in range(60)))
    world = World(tmp_path, [FakeGpu("GPU-a", gpu, tick_s=0)], [("intel-rapl:0", "package-0", cpu)])
    monkeypatch.setattr(measured_training, "EnergyMeter", lambda out: world.meter(out=out))
    meters = {mode: RunMeter(quick(output_dir=tmp_path / mode)) for mode in MODES}
    truth = {mode: {"gpu": 0.0, "cpu": 0.0, "s": 0.0} for mode in MODES}
    nobodys = 0.0
    for mode, seconds in zip("full lora lora full full lora".split(), (12, 8, 9, 13, 11, 7), strict=True):
        began = world.time
        with meters[mode].turn():
            world.advance(seconds)
        for name, profile in (("gpu", gpu), ("cpu", cpu)):
            truth[mode][name] += profile.between(began, world.time)
        truth[mode]["s"] += seconds
        nobodys += gpu.between(world.time, world.time + 3)
        world.advance(3)
    for mode, expected in truth.items():
        reading = meters[mode].reading
        assert reading.gpu.wh * 3600 == pytest.approx(expected["gpu"], abs=0.01)
        assert reading.cpu.wh * 3600 == pytest.approx(expected["cpu"], abs=0.01)
        assert reading.duration_s == pytest.approx(expected["s"])
        assert reading.gpu.mean_w == pytest.approx(expected["gpu"] / expected["s"])
        assert [part["id"] for part in reading.gpu.devices] == ["GPU-a"]  # once, not once per turn
        journal = tmp_path / mode / "energy.jsonl"
        merged = merge_runs([(journal, run) for run in read_journal(journal)])
        assert merged.gpu.wh == pytest.approx(reading.gpu.wh)
    both = sum(meters[mode].reading.gpu.wh * 3600 for mode in MODES)
    assert both + nobodys == pytest.approx(gpu.joules(world.time), abs=0.05)
    journals = [(tmp_path / mode / "energy.jsonl") for mode in MODES]
    together = merge_runs([(path, run) for path in journals for run in read_journal(path)])  # they do not overlap
    assert together.gpu.wh * 3600 == pytest.approx(both)


def test_time_and_energy_of_a_run_are_those_of_its_turns(tiny_model, tokenizer, data, tmp_path):
    results, _ = in_turns(tiny_model, tokenizer, data, tmp_path)
    texts = {mode: (tmp_path / mode / "energy.jsonl").read_text() for mode in MODES}
    lines = {mode: [json.loads(line) for line in text.splitlines()] for mode, text in texts.items()}
    spans = []
    for mode in MODES:
        starts = [line["wall_s"] for line in lines[mode] if line["type"] == "start"]
        ends = [line["wall_s"] for line in lines[mode] if line["type"] == "end"]
        spans += zip(starts, ends, strict=True)
        open_s = sum(end - start for start, end in zip(starts, ends, strict=True))
        assert 0 < results[mode].train_seconds < results[mode].duration_s < open_s
    ordered = sorted(spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))
    whole_s = ordered[-1][1] - ordered[0][0]
    assert sum(result.duration_s for result in results.values()) < whole_s
