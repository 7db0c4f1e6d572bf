"""Matrix products in float32 on CPUs where oneDNN computes them faster than MKL, which torch calls for them.

MKL runs its AVX2 code on every CPU that is not Intel's, also where there is AVX-512: half of what such a core can do.
oneDNN, which torch carries too, asks for the instructions instead of the maker. `benchmarks/cpu.py` shows the
difference on the machine at hand.
"""

import math
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.nn.autograd import PLAIN, nothing_transforms
from lorakit.training.dry_run import dry_run

SWITCH = "LORAKIT_ONEDNN"  # 1: always, 0: never; otherwise where it pays
LEAST_WORK = 32**3  # multiplications; below it the call costs more than the product

_open = 0  # contexts of faster_products in this process


@contextmanager
def faster_products(model: nn.Module) -> Iterator[None]:
    """Within it the model's linear layers, adapted or not, compute plain float32 products by oneDNN, where that pays.

    Forward and backward both belong inside. The results differ from torch's own in rounding only. All else stays
    torch's: other types and devices, autocast, small products, torch.compile, torch.func, forward AD.

    Raises:
        ValueError: LORAKIT_ONEDNN is wrong.
    """
    global _open
    if next(model.parameters()).device.type != "cpu" or not pays():
        yield
        return
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    for module in plain:
        module.__class__ = FasterLinear
    _open += 1
    try:
        yield
    finally:
        _open -= 1
        for module in plain:
            if type(module) is FasterLinear:  # what a sharding has made of it stays
                module.__class__ = nn.Linear


def make_kernels(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> None:
    """Run each kind of linear layer once, forward and backward, for batches of these shapes; leaves no other trace.

    oneDNN makes a kernel for every shape it meets, and keeps it. Made in the middle of a step they lie between the
    step's tensors, and what those leave free is in pieces: LoRA's peak over 40 steps at roberta-base's shape was a
    tenth higher. Outside `faster_products` there is nothing to do.

    Shape:
        shapes: (rows, width), of batches.
    """
    if not _open:
        return
    kinds = {_kind(module): module for module in model.modules() if _multiplies_here(module)}
    with dry_run(model), torch.enable_grad():
        for shape in sorted(set(shapes), key=math.prod, reverse=True):
            for module in kinds.values():
                x = module.weight.new_zeros((*shape, module.in_features), requires_grad=True)
                y = type(module).forward(module, x)  # without hooks: they are for training
                torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], torch.zeros_like(y))


def _multiplies_here(module: nn.Module) -> bool:
    """Whether a module is a linear layer that comes to `linear`: one taken over, or an adapted one."""
    adapted = isinstance(module, nn.Linear) and hasattr(module, "lora_A")
    return (type(module) is FasterLinear or adapted) and module.weight.dtype == torch.float32


def _kind(module: nn.Linear) -> tuple[Any, ...]:
    return (type(module), *((name, p.shape, p.requires_grad) for name, p in module.named_parameters()))


def pays() -> bool:
    """Whether float32 products go through oneDNN on this machine: MKL does not use what the CPU has, or it is wished.

    Raises:
        ValueError: LORAKIT_ONEDNN is neither 0, 1 nor empty, or 1 where this build of torch has no oneDNN.
    """
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is {wish!r}; it must be 1 (always), 0 (never) or empty (where it pays)")
    there = torch.backends.mkldnn.is_available() and hasattr(
        getattr(torch.ops.mkldnn, "_linear_pointwise", None), "binary"
    )
    if wish == "1" and not there:
        raise ValueError(f"{SWITCH} is 1, but this build of torch has no oneDNN; leave it empty")
    return wish == "1" or (not wish and there and _mkl_falls_short())


@cache
def _mkl_falls_short(cpuinfo: str = "/proc/cpuinfo") -> bool:
    maker = Path(cpuinfo).read_text() if Path(cpuinfo).exists() else platform.processor()
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.backends.mkl.is_available() and avx512 and "GenuineIntel" not in maker


class FasterLinear(nn.Linear):
    """What nn.Linear is within `faster_products`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN within `faster_products`.

    Shape:
        x (..., in); weight (out, in), also as a transposed view; bias (out,) -> (..., out).
    """
    if not (_open and _takes(x, weight, bias)):
        return F.linear(x, weight, bias)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    return _Linear.apply(x, weight, bias) if trained else _product(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two matrices, by oneDNN within `faster_products`."""
    return linear(a, b.T) if _open else a @ b


def scaled_matmul(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor · a @ b of two matrices, by oneDNN within `faster_products`; else in one kernel."""
    if _open or factor == 1:
        product = matmul(a, b)
        return product if factor == 1 else product.mul_(factor)
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=factor)  # what beta is 0 for is not read


def transposed_matmul(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """factor · aᵀ @ b of two tall matrices, b the narrower: within `faster_products` b is copied, not the wide one."""
    return scaled_matmul(b.T, a, factor).T.contiguous() if _open else scaled_matmul(a.T, b, factor)


def add_matmul(c: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """c + factor · a @ b of matrices, by oneDNN within `faster_products`."""
    if not (_open and type(c) in PLAIN and _takes(a, b.T, None)):
        return torch.addmm(c, a, b, alpha=factor)
    return torch.ops.mkldnn._linear_pointwise.binary(a * factor, c, b.T, None, "add")


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(type(t) in PLAIN and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and x.ndim >= 2
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and x.numel() * weight.shape[0] >= LEAST_WORK
        and not torch.is_autocast_enabled("cpu")
        and nothing_transforms()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        need_x, need_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        # a graph of the gradient is made of torch's own operations: they can be differentiated again
        product = F.linear if torch.is_grad_enabled() else _product
        dx = None if weight is None else product(grad, weight.T)
        dweight = None if x is None else product(rows.T, x.reshape(-1, x.shape[-1]).T)
        return dx, dweight, rows.sum(0) if ctx.needs_input_grad[2] else None
