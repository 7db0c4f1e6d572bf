"""Dropout with a mask of one byte a value, drawn fast on the CPU.

torch's CPU dropout draws one number a value, makes a float32 factor of it and keeps that for backward. On 2 CPU cores
this is a tenth of a training step at roberta-base's shape.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorakit.nn.autograd import PLAIN, nothing_transforms


@contextmanager
def faster_dropout(model: nn.Module) -> Iterator[None]:
    """Within it the model's `nn.Dropout` layers draw byte masks on the CPU; elsewhere, and at rest, they are torch's.

    The same seed then drops other values than torch's own layers would.
    """
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    plain = [module for module in model.modules() if type(module) is nn.Dropout and not module.inplace]
    for module in plain:
        module.__class__ = FasterDropout
    try:
        yield
    finally:
        for module in plain:
            module.__class__ = nn.Dropout


class FasterDropout(nn.Dropout):
    """What nn.Dropout is within `faster_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        takes = (
            self.training and 0 < self.p < 1 and x.device.type == "cpu" and type(x) in PLAIN and nothing_transforms()
        )
        return _Dropout.apply(x, self.p) if takes else super().forward(x)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        mask, ctx.factor = keep_mask(x, p)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.factor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        dropped = grad * mask
        return (dropped * ctx.factor if torch.is_grad_enabled() else dropped.mul_(ctx.factor)), None


def keep_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """A mask of 0 and 1, one byte per value of x, and the factor that makes up for what it drops.

    On the CPU torch draws one number after the other; here one 64-bit draw gives four values, three times as fast, with
    p rounded to 1/65536 (and the factor to match). Its bytes are numbers there, for with those a product is made twice
    as fast as with bools. Drawn from torch's default generator.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p), 1 / (1 - p)
    limit = min(round(p * 65536), 65535)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    mask = draws.view(torch.int16)[: x.numel()] >= limit - 32768
    return mask.view(torch.uint8).view(x.shape), 65536 / (65536 - limit)
