"""Build oneDNN's kernels before the first step, not in the middle of one."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lorakit.nn.kernels import uses_onednn
from lorakit.training.dry_run import dry_run


def make_kernels(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> None:
    """Run each kind of linear layer once, forward and backward, on batches of these shapes; leaves no other trace.

    oneDNN makes a kernel for each shape and keeps it. Kernels made in the middle of a step are allocated between the
    step's tensors and fragment what those free: LoRA's peak over 40 steps at roberta-base's shape was a tenth higher.
    Outside `faster_products` nothing is done.

    Args:
        model: inside `faster_products`.
        shapes: (rows, width) of batches.
    """
    kinds = {_kind(module): module for module in model.modules() if uses_onednn(module)}
    if not kinds:
        return
    with dry_run(model), torch.enable_grad():
        for shape in sorted(set(shapes), key=math.prod, reverse=True):
            for module in kinds.values():
                x = module.weight.new_zeros((*shape, module.in_features), requires_grad=True)
                y = type(module).forward(module, x)  # not the module itself: its hooks are for training
                torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], torch.zeros_like(y))


def _kind(module: nn.Linear) -> tuple[Any, ...]:
    return (type(module), *((name, p.shape, p.requires_grad) for name, p in module.named_parameters()))
