"""What decays, how the rate changes, and what a step of the optimizer costs in operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lorakit
from lorakit.training.optimizer import build_optimizer, rate_of
from tests.support.toy import quick


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model()
    optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=0.3)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[p] for name, p in model.named_parameters()} == {
        name: 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.3 for name, _ in model.named_parameters()
    }


def test_the_rate_rises_then_falls_towards_zero():
    rates = [rate_of(step, 10, highest=2.0, warmup_ratio=0.2) for step in range(10)]
    assert rates == pytest.approx([2 / 3, 4 / 3, 2.0, 14 / 8, 12 / 8, 10 / 8, 1.0, 6 / 8, 4 / 8, 2 / 8])


class Kernels(TorchDispatchMode):
    """Counts the operations on tensors, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_and_optimizer_are_the_same_few_operations_however_many_tensors(
    tiny_model, tokenizer, data, monkeypatch, precision
):
    """So one flat buffer for all trained parameters would save nothing: one or a few launches take all tensors."""
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
    clip, step = counted[2], counted[3]  # of the second step: the first creates the optimizer's state
    assert clip.count("_foreach_norm") == clip.count("_foreach_mul_") == 1
    assert step.count("_fused_adamw_") == 2  # groups: with and without weight decay
    assert len(clip) + len(step) <= 20
    assert counted[2:24] == counted[26:48]  # one layer and three
