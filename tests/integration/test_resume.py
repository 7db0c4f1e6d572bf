"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

import lorakit
from lorakit.data.corpus import NerData
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.preemption import Preempted
from tests.support.resume_job import run_job
from tests.support.tiny import LABELS, ROOT
from tests.support.toy import quick, read_log, toy_data, toy_sentences, weights


@pytest.fixture(scope="module")
def data():
    return toy_data(64, 24, 24)


def make(tiny_model, mode):
    model = tiny_model(dropout=0.1)
    return lorakit.apply_lora(model, r=4, bias="all", lora_dropout=0.1) if mode == "lora" else model


def timeless(line):
    return {key: value for key, value in line.items() if key not in ("tokens_per_s", "wall_s")}


def same(result, other):
    keys = "validation test best_epoch epochs steps skipped_steps train_tokens computed_tokens history".split()
    return all(getattr(result, key) == getattr(other, key) for key in keys)


class Killed(Exception):
    pass


def run(model, tokenizer, data, folder, stop_after=None, **changes):
    """Train; die in the middle of step `stop_after`, as by SIGKILL: nothing is saved then."""
    seen = 0

    def die(module, inputs):
        nonlocal seen
        seen += module.training
        if seen == stop_after:
            raise Killed

    hook = model.register_forward_pre_hook(die)
    try:
        return lorakit.train(model, tokenizer, data, quick(epochs=3, log_every=3, output_dir=folder, **changes))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("mode", "precision", "save_every", "stops"),
    [
        ("lora", "fp32", None, [20]),
        ("full", "fp32", 5, [3, 4, 9]),
        ("lora", "bf16", 1, [12]),
        ("full", "fp16", 2, [13, 2]),
    ],
)
def test_killed_and_resumed_equals_never_stopped(
    tiny_model, tokenizer, data, tmp_path, mode, precision, save_every, stops
):
    model = make(tiny_model, mode)
    options = {"precision": precision, "save_every": save_every}
    expected = run(model, tokenizer, data, tmp_path / "whole", **options)
    resumed = None
    for stop_after in [*stops, None]:
        resumed = make(tiny_model, mode)
        try:
            result = run(resumed, tokenizer, data, tmp_path / "parts", stop_after, resume=True, **options)
        except Killed:
            torch.manual_seed(999)  # a new process would not have these either
    assert same(result, expected)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert [timeless(x) for x in read_log(tmp_path / "parts")] == [timeless(x) for x in read_log(tmp_path / "whole")]
    # fp16's scale is a power of 2 and leaves no trace in weights, until it grows 2,000 steps after it last shrank
    ended, whole = (load_checkpoint(tmp_path / name / "checkpoints").state["scaler"] for name in ("parts", "whole"))
    assert ended == whole and bool(whole) == (precision == "fp16")


def test_a_finished_run_that_is_resumed_gives_its_result_again(tiny_model, tokenizer, data, tmp_path):
    first = run(make(tiny_model, "lora"), tokenizer, data, tmp_path)
    again = run(make(tiny_model, "lora"), tokenizer, data, tmp_path, stop_after=1, resume=True)
    assert same(first, again)


def test_a_new_run_refuses_an_old_ones_folder_or_deletes_it_if_told_to(tiny_model, tokenizer, data, tmp_path):
    run(make(tiny_model, "lora"), tokenizer, data, tmp_path, seed=5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = r"holds another run \(checkpoints/step-0+16, .*sentences.json\); .* resume=True .* overwrite=True"
    with pytest.raises(ValueError, match=message):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(Killed):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path, stop_after=3, overwrite=True)
    assert list((tmp_path / "checkpoints").iterdir()) == [] and not (tmp_path / "sentences.json").exists()
    with pytest.raises(ValueError, match="resume continues the run .* give one of them"):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path, resume=True, overwrite=True)


def test_lora_checkpoints_hold_only_what_is_trained(tiny_model, tokenizer, data, tmp_path):
    model = make(tiny_model, "lora")
    run(model, tokenizer, data, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    from safetensors import safe_open

    with safe_open(newest / "tensors.safetensors", "pt") as file:
        names = {key.removeprefix("model/") for key in file.keys() if key.startswith("model/")}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, r"was written with learning_rate = 0.01, now it is 0.5"),
        ({"batch_size": 4}, r"sentences per step \(batch_size × accumulate × processes\) = 8, now it is 4"),
        ({"seed": 3}, "was written with seed = 0, now it is 3"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tiny_model, tokenizer, data, tmp_path, changes, message):
    with pytest.raises(Killed):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path, stop_after=12)
    with pytest.raises(ValueError, match=message):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path, resume=True, **changes)


def test_another_corpus_or_base_is_refused(tiny_model, tokenizer, data, tmp_path):
    with pytest.raises(Killed):
        run(make(tiny_model, "lora"), tokenizer, data, tmp_path, stop_after=12)
    other = NerData(toy_sentences(64, 9), data.validation, data.test, LABELS, "other")
    with pytest.raises(ValueError, match="training corpus"):
        run(make(tiny_model, "lora"), tokenizer, other, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"frozen weights \(hash\)"):
        run(make(lambda **more: tiny_model(seed=1, **more), "lora"), tokenizer, data, tmp_path, resume=True)


def test_a_full_disk_is_reported_and_does_not_end_the_training(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorakit.training.checkpoint.save_checkpoint", full)
    with pytest.warns(RuntimeWarning, match=r"checkpoint of step \d+ could not be written .*No space left.*continues"):
        result = run(make(tiny_model, "lora"), tokenizer, data, tmp_path)
    assert result.epochs == 3
    assert [line["event"] for line in read_log(tmp_path)].count("problem") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", [1, 11, "evaluation"])
def test_a_signal_saves_and_leaves_with_its_status(tiny_model, tokenizer, data, tmp_path, number, when):
    expected_model = make(tiny_model, "lora")
    expected = run(expected_model, tokenizer, data, tmp_path / "whole")
    model, before = make(tiny_model, "lora"), signal.getsignal(number)
    seen = []

    def ask(module, inputs):
        seen.append(module.training)
        probes = 4  # the proof of packing runs the model four times in evaluation mode
        if (when == "evaluation" and not module.training and True in seen) or seen.count(True) == when:
            if len(seen) > probes:
                signal.raise_signal(number)
                hook.remove()

    hook = model.register_forward_pre_hook(ask)
    with pytest.raises(Preempted, match=f"stopped by {signal.Signals(number).name}; the state is in") as caught:
        lorakit.train(model, tokenizer, data, quick(epochs=3, log_every=3, output_dir=tmp_path / "parts"))
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    model = make(tiny_model, "lora")
    assert same(run(model, tokenizer, data, tmp_path / "parts", resume=True), expected)
    for name, value in weights(expected_model).items():
        assert torch.equal(value, weights(model)[name]), name


def start(folder, batch_size, seconds_per_forward=0.0, die="", restarts=0):
    """Run the job on two ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    job = ["-m", "tests.support.resume_job", *map(str, (folder, batch_size, seconds_per_forward))]
    return subprocess.Popen(
        [sys.executable, *torchrun, *job],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DIE": die},
    )  # fmt: skip


def test_a_signal_to_one_of_two_ranks_stops_both_and_another_number_of_ranks_continues(tmp_path):
    pair = start(tmp_path / "parts", 4, 0.3)
    expected = run_job(tmp_path / "whole", 8)
    log = tmp_path / "parts" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"step"') >= 2):
        assert time.monotonic() < deadline and pair.poll() is None, pair.communicate()
        time.sleep(0.2)
    psutil.Process(pair.pid).children()[-1].terminate()
    asked = time.monotonic()
    pair.communicate(timeout=60)
    assert time.monotonic() - asked < 30  # ours and torchrun's own; the library's part is within 10 s
    assert pair.returncode != 0
    resumed = run_job(tmp_path / "parts", 8)
    assert resumed[1:] == expected[1:]
    assert resumed[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-4)


def test_torchrun_starts_again_by_itself_after_a_rank_has_died(tmp_path):
    results = []
    for name, die in (("whole", ""), ("parts", "01")):
        process = start(tmp_path / name, 4, die=die, restarts=1)
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-2000:]
        assert ("exitcode: 9" in err) == bool(die), err[-2000:]
        results.append(json.loads(out))
    assert results[0] == results[1]
    assert [timeless(x) for x in read_log(tmp_path / "parts")] == [timeless(x) for x in read_log(tmp_path / "whole")]
