"""AdamW, and its learning rate schedule."""

import math

import torch
from torch import nn


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW over what requires a gradient; matrices decay, biases and norms (one dimension) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=True)


def rate_of(step: int, steps: int, highest: float, warmup_ratio: float) -> float:
    """The learning rate of a step: a linear rise over the first steps, then a linear fall towards 0.

    Args:
        step: its number, from 0.
        steps: of the whole run.
        highest: the rate at the end of the rise.
        warmup_ratio: share of the steps in which the rate rises.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    return highest * (steps - step) / (steps - warmup)
