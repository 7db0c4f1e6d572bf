"""What a training step costs beside its arithmetic, in counts: waits for the device, kernels of the optimiser."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from lorakit.data import packing as batching
from lorakit.data.packing import UNIT
from lorakit.training import loop as training
from lorakit.training.logger import SinceLog
from tests.support.waits import Waits
from tests.training.test_loop import data as data
from tests.training.test_loop import quick


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
    monkeypatch.setattr(training, "faster_attention", nullcontext)  # it is for CPUs, where nobody waits
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
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_waited_for_at_log_lines_only(
    tiny_model, tokenizer, data, after_each_step, monkeypatch, precision, cuda_graphs
):
    modes = iter(["default", "default", *["error"] * 6, *["default"] * 4])  # the first steps may allocate and wait
    after_each_step(lambda: torch.cuda.set_sync_debug_mode(next(modes)))
    config = quick(epochs=1, log_every=12, precision=precision, cuda_graphs=cuda_graphs)
    one = batching.with_few_shapes  # of one shape, that none is recorded late
    monkeypatch.setattr(batching, "with_few_shapes", lambda *given: one(*given[:-1], 256))
    try:
        lorakit.train(lorakit.apply_lora(tiny_model(dropout=0.1), r=4), tokenizer, data, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Kernels(TorchDispatchMode):
    """Counts the operations on tensors, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_and_optimiser_are_the_same_few_operations_however_many_tensors(
    tiny_model, tokenizer, data, monkeypatch, precision
):
    """So a flat buffer for all that is trained would save nothing: each takes all tensors in one launch or a few."""
    counted = []

    def counting(function):
        def call(*args, **options):
            with Kernels() as kernels:
                result = function(*args, **options)
            counted.append(kernels.seen)
            return result

        return call

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counting(torch.nn.utils.clip_grad_norm_))
    monkeypatch.setattr(torch.optim.AdamW, "step", counting(torch.optim.AdamW.step))
    for layers in (1, 3):
        model = lorakit.apply_lora(tiny_model(num_hidden_layers=layers), r=4, target_modules="all-linear", bias="all")
        assert sum(p.requires_grad for p in model.parameters()) > 20 * layers
        lorakit.train(model, tokenizer, data, quick(epochs=1, precision=precision))
    clip, step = counted[2], counted[3]  # of the second step: the first makes the optimiser's state
    assert clip.count("_foreach_norm") == clip.count("_foreach_mul_") == 1
    assert step.count("_fused_adamw_") == 2  # groups: with and without weight decay
    assert len(clip) + len(step) <= 20
    assert counted[2:24] == counted[26:48]  # one layer and three


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of CPUs")
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"precision": "bf16"}, {"packing": False}], ids=["fp32", "2", "bf16", "plain"]
)
def test_kernels_are_made_once_for_every_shape_of_the_epoch_in_fp32_and_packed(
    tiny_model, tokenizer, data, monkeypatch, settings
):
    asked, met, units = [], set(), []
    few = batching.with_few_shapes
    monkeypatch.setattr(batching, "with_few_shapes", lambda *given: units.append(given[-1]) or few(*given))

    def remember(_module, _args, options):
        if torch.is_grad_enabled():
            met.add(tuple(options["input_ids"].shape))

    monkeypatch.setattr(training, "make_kernels", lambda _model, shapes: asked.append(set(shapes)))
    model = tiny_model()
    model.register_forward_pre_hook(remember, with_kwargs=True)
    lorakit.train(model, tokenizer, data, quick(epochs=1, **settings))
    long_rows = settings in ({}, {"accumulate": 2})
    assert asked == ([met] if long_rows else [])
    assert units == ([UNIT] if long_rows else [])
    lorakit.train(model, tokenizer, data, quick(epochs=2, **settings))
    assert len(asked) == (2 if long_rows else 0)  # once a run
