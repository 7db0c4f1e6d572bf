"""Log lines, skipped steps and lack of memory; and that the host waits for the device at log lines only."""

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import lorakit
from lorakit.training import layout, loop
from lorakit.training.checkpoint import load_checkpoint
from lorakit.training.engine import LossSum
from lorakit.training.state import SinceLog
from tests.support.toy import quick, read_log, step_lines, toy_data, weights
from tests.support.waits import Waits


@pytest.fixture
def after_each_step(monkeypatch):
    """Register what to call at the end of each training step, before the log is written."""
    calls, add = [], SinceLog.add

    def add_and_tell(self, *args):
        add(self, *args)
        for call in calls:
            call()

    monkeypatch.setattr(SinceLog, "add", add_and_tell)
    return calls.append


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_host_waits_for_the_device_at_log_lines_only(
    tiny_model, tokenizer, data, after_each_step, monkeypatch, mode, precision
):
    monkeypatch.setattr(loop, "packed_attention", nullcontext)  # it runs on CPUs only, where nothing waits
    model = tiny_model(dropout=0.1)
    if mode == "lora":
        lorakit.apply_lora(model, r=4, lora_dropout=0.1, bias="all")
    counts, waits = [], Waits()
    after_each_step(lambda: counts.append(len(waits.seen)))
    config = quick(epochs=1, batch_size=4, accumulate=2, log_every=5, precision=precision)
    with waits:
        lorakit.train(model, tokenizer, data, config)
    waited = [after - before for before, after in zip(counts, counts[1:], strict=False)]
    assert [number for number, count in enumerate(waited, start=1) if count] == [5, 10]  # of 12 steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ["eager", "cuda_graphs"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_waited_for_at_log_lines_only(
    tiny_model, tokenizer, data, after_each_step, monkeypatch, precision, engine
):
    modes = iter(["default", "default", *["error"] * 6, *["default"] * 4])  # the first steps may allocate and wait
    after_each_step(lambda: torch.cuda.set_sync_debug_mode(next(modes)))
    config = quick(epochs=1, log_every=12, precision=precision, engine=engine)
    few = layout.with_few_shapes  # of one shape, so that none is recorded late
    monkeypatch.setattr(layout, "with_few_shapes", lambda *given: few(*given[:-1], 256))
    try:
        lorakit.train(lorakit.apply_lora(tiny_model(dropout=0.1), r=4), tokenizer, data, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_metrics_jsonl_has_a_line_per_log_step_and_evaluation(tiny_model, tokenizer, data, tmp_path):
    config = quick(log_every=5, output_dir=tmp_path / "new" / "folder")
    result = lorakit.train(tiny_model(), tokenizer, data, config, observe=lambda: {"power_w": 61.0})
    lines = read_log(tmp_path / "new" / "folder")
    assert [line.get("step") for line in lines if line["event"] == "step"] == [5, 10, 12, 17, 22, 24]
    assert set(lines[0]) == {
        "event", "epoch", "step", "loss", "learning_rate", "grad_norm", "skipped", "tokens_per_s", "power_w",
        "wall_s",
    }  # fmt: skip
    assert [line["split"] for line in lines if line["event"] == "evaluation"] == ["validation", "validation", "test"]
    assert lines[-1]["f1"] == result.test.f1


def test_steps_without_a_finite_gradient_are_skipped_counted_and_end_the_run(tiny_model, tokenizer, data, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"the last 20 steps up to step 20 had no finite gradient .*precision"):
        lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path, batch_size=4))
    assert [(line["loss"], line["skipped"]) for line in step_lines(tmp_path)] == [(None, 10), (None, 20)]
    assert all(torch.equal(p, before[name]) or name == "classifier.bias" for name, p in model.named_parameters())


def test_a_run_that_gives_up_leaves_the_state_before_the_bad_steps(tiny_model, tokenizer, data, tmp_path):
    """No checkpoint was due before; a run resumed from it that finds finite gradients again reaches its end."""
    model, calls = tiny_model(), []

    def spoil(module, inputs, output):
        calls.append(module.training)
        if module.training and calls.count(True) > 5:
            output.logits.mul_(float("inf"))

    hook = model.register_forward_hook(spoil)
    config = quick(output_dir=tmp_path, batch_size=2, log_every=5)
    with pytest.raises(FloatingPointError, match=r"the last 20 steps up to step 25 .*; the state before them is in"):
        lorakit.train(model, tokenizer, data, config)
    hook.remove()
    (only,) = (tmp_path / "checkpoints").iterdir()
    saved = load_checkpoint(tmp_path / "checkpoints").tensors
    assert only.name == "step-00000025"
    assert all(torch.equal(saved[f"model/{name}"], p) for name, p in model.named_parameters())
    result = lorakit.train(tiny_model(), tokenizer, data, replace(config, resume=True))
    assert (result.steps, result.skipped_steps) == (96, 20)
    steps = [line["step"] for line in step_lines(tmp_path)]
    assert steps == sorted(set(steps)) and steps[-1] == 96


def test_the_last_checkpoint_before_bad_steps_is_kept_and_named(tiny_model, tokenizer, data, tmp_path):
    """Each checkpoint of the bad steps would push an earlier one out; so would those of a resumed run."""
    model, calls = tiny_model(), []

    def spoil(module, inputs, output):
        calls.append(module.training)
        if module.training and calls.count(True) > 5:
            output.logits.mul_(float("inf"))

    model.register_forward_hook(spoil)
    config = quick(output_dir=tmp_path, batch_size=2, log_every=5, save_every=4)
    message = "the state before them is in .*checkpoints/step-00000004$"
    with pytest.raises(FloatingPointError, match=message):
        lorakit.train(model, tokenizer, data, config)
    before = load_file(tmp_path / "checkpoints" / "step-00000004" / "tensors.safetensors")
    calls[:] = [True] * 10
    with pytest.raises(FloatingPointError, match=message):
        lorakit.train(model, tokenizer, data, replace(config, resume=True))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept[0] == "step-00000004" and len(kept) == 3
    assert all(torch.isfinite(value).all() for value in before.values())


@pytest.mark.parametrize(("splits", "named"), [((6, 4), "validation"), ((0, 4), "training"), ((0, 0), "training")])
def test_a_run_whose_loss_is_not_finite_ends_before_it_is_saved(tiny_model, tokenizer, tmp_path, splits, named):
    config = quick(output_dir=tmp_path, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=rf"the {named} loss is nan after epoch 1: training diverged .*1e\+30"):
        lorakit.train(tiny_model(), tokenizer, toy_data(16, *splits), config)
    assert not (tmp_path / "checkpoints").exists()


def spoil_evaluation(monkeypatch, number):
    """Make the loss of this evaluation of a run infinite."""
    calls, score = itertools.count(1), loop.score_split

    def spoiled(*given):
        scores, counts = score(*given)
        return (replace(scores, loss=math.inf, f1=0.99) if next(calls) == number else scores), counts

    monkeypatch.setattr(loop, "score_split", spoiled)


def test_a_test_loss_that_is_not_finite_ends_the_run(tiny_model, tokenizer, monkeypatch):
    spoil_evaluation(monkeypatch, 3)
    with pytest.raises(FloatingPointError, match="the test loss is inf after epoch"):
        lorakit.train(tiny_model(), tokenizer, toy_data(8, 4, 4), quick())


def test_a_later_epoch_whose_loss_is_not_finite_is_never_the_best(tiny_model, tokenizer, monkeypatch):
    spoil_evaluation(monkeypatch, 2)
    result = lorakit.train(tiny_model(), tokenizer, toy_data(8, 4, 4), quick())
    assert result.best_epoch == 1 and math.isinf(result.history[1].loss) and math.isfinite(result.test.loss)


def test_one_bad_step_is_skipped_and_the_run_continues(tiny_model, tokenizer, data, tmp_path):
    model = tiny_model()
    calls = []

    def spoil(module, inputs, output):
        if module.training:
            calls.append(1)
            if len(calls) == 3:
                output.logits.mul_(float("inf"))

    model.register_forward_hook(spoil)
    result = lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path, epochs=6))
    assert (result.skipped_steps, result.steps) == (1, 72)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert result.test.f1 > 0.9


def test_a_batch_that_does_not_fit_is_named_with_what_to_change(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    model = tiny_model()

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LossSum, "forward", full)
    with pytest.raises(
        MemoryError, match=r"in step 1 with \d rows? of \d+ tokens; run the same again with batch_size=4, accumulate=2"
    ):
        lorakit.train(model, tokenizer, data, quick(output_dir=tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]
    monkeypatch.setattr(layout, "PART_ELEMENTS", 32 * 10)
    with pytest.raises(MemoryError, match="in step 1 with 1 row of .* a smaller batch would not help"):
        lorakit.train(tiny_model(), tokenizer, data, quick())
