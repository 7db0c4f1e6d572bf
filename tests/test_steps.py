"""What a training step costs beside its arithmetic, in counts: waits for the device, kernels of the optimiser."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from lorakit.training_log import SinceLog

from .test_training import data as data
from .test_training import quick
from .waits import Waits


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
    tiny_model, tokenizer, data, after_each_step, mode, precision
):
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
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_waited_for_at_log_lines_only(tiny_model, tokenizer, data, after_each_step, precision):
    modes = iter(["default", "default", *["error"] * 6, *["default"] * 4])  # the first steps may allocate and wait
    after_each_step(lambda: torch.cuda.set_sync_debug_mode(next(modes)))
    config = quick(epochs=1, log_every=12, precision=precision)
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
