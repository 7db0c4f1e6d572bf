"""Operators made fast on CPUs: float32 matmuls by oneDNN, and dropout with byte masks.

*Matmuls.* torch calls MKL for float32, and MKL runs its AVX2 code on every CPU that is not Intel's, even one with
AVX-512: half of what such a core can do. oneDNN, which torch ships too, looks at the instruction set instead of the
vendor. `benchmarks/cpu.py` shows the difference on the machine at hand.

*Dropout.* torch's CPU dropout draws one number per value, makes a float32 factor of it and keeps that for backward.
On 2 cores this takes a tenth of a training step at roberta-base's shape.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SWITCH = "LORAKIT_ONEDNN"  # 1: always, 0: never; otherwise where it pays
LEAST_WORK = 32**3  # multiplications; a smaller matmul costs less than the call

_open = 0  # active contexts of faster_products in this process


# What our autograd Functions share: when they may replace torch's operations, and what they return --------------------

PLAIN = (Tensor, nn.Parameter)  # tensor types that bring no operations of their own


def nothing_transforms() -> bool:
    """Whether operations run as written: outside torch.compile, torch.func and forward-mode AD."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def no_view(y: Tensor) -> Tensor:
    """Return y as a tensor that is not a view, without a copy: autograd refuses `y /= 2` on a Function's view."""
    return torch.ops.aten._unsafe_view(y, y.shape)


def once(message: str) -> Callable[[Callable[..., tuple]], Callable[..., tuple]]:
    """Decorate a backward that cannot be differentiated: it raises `message` when a graph of it is requested.

    torch's `once_differentiable` raises only if the second backward reaches it. `torch.autograd.grad` of a loss plus a
    gradient penalty reaches a weight through the loss, and the penalty's part would be silently lost.
    """

    def decorate(backward: Callable[..., tuple]) -> Callable[..., tuple]:
        @wraps(backward)
        def checked(ctx, *grads: Tensor) -> tuple:
            if torch.is_grad_enabled():
                raise RuntimeError(message)
            return backward(ctx, *grads)

        return checked

    return decorate


# Matmuls --------------------------------------------------------------------------------------------------------------


@contextmanager
def faster_products(model: nn.Module) -> Iterator[None]:
    """While active, the model's linear layers, adapted or not, run float32 matmuls by oneDNN where that pays.

    Both forward and backward belong inside. Results differ from torch's own by rounding only. Everything else stays
    torch's: other types and devices, autocast, small matmuls, torch.compile, torch.func, forward-mode AD.

    Raises:
        ValueError: LORAKIT_ONEDNN has an invalid value.
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
            if type(module) is FasterLinear:  # FSDP may have changed the class since: leave that alone
                module.__class__ = nn.Linear


def uses_onednn(module: nn.Module) -> bool:
    """Whether a module is a linear layer, plain or adapted, whose float32 matmuls go to oneDNN at the moment."""
    adapted = isinstance(module, nn.Linear) and hasattr(module, "lora_A")
    if not (_open > 0 and (type(module) is FasterLinear or adapted)):
        return False
    return type(module.weight) in PLAIN and module.weight.dtype == torch.float32  # a quantized one says float32 too


def pays() -> bool:
    """Whether oneDNN should run float32 matmuls here: MKL does not use what the CPU has, or the user asks for it.

    Raises:
        ValueError: LORAKIT_ONEDNN is not 0, 1 or empty; or it is 1 and this build of torch has no oneDNN.
    """
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is {wish!r}; it must be 1 (always), 0 (never) or empty (where it pays)")
    there = torch.backends.mkldnn.is_available() and hasattr(
        getattr(torch.ops.mkldnn, "_linear_pointwise", None), "binary"
    )
    if wish == "1" and not there:
        raise ValueError(f"{SWITCH} is 1, but this build of torch has no oneDNN; leave it empty")
    return wish == "1" or (not wish and there and mkl_falls_short())


@cache
def mkl_falls_short(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this CPU has AVX-512 that MKL, which looks for an Intel CPU, does not use."""
    vendor = Path(cpuinfo).read_text() if Path(cpuinfo).exists() else platform.processor()
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.backends.mkl.is_available() and avx512 and "GenuineIntel" not in vendor


class FasterLinear(nn.Linear):
    """What nn.Linear becomes while `faster_products` is active."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN while `faster_products` is active.

    Shape:
        x (..., in); weight (out, in), may be a transposed view; bias (out,) -> (..., out).
    """
    if not (_open and _takes(x, weight, bias)):
        return F.linear(x, weight, bias)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if not trained:
        return _product(x, weight, bias)
    # of a matrix, because oneDNN returns a view otherwise, and a function's view must not be changed in place (DeBERTa
    # and Longformer divide their queries so)
    return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for two matrices, by oneDNN while `faster_products` is active."""
    return linear(a, b.T) if _open else a @ b


def scaled_matmul(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor · a @ b for two matrices, by oneDNN while `faster_products` is active; otherwise in one kernel."""
    if _open or factor == 1:
        product = matmul(a, b)
        return product if factor == 1 else product.mul_(factor)
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=factor)  # with beta 0 the first argument is not read


def transposed_matmul(a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
    """factor · aᵀ @ b for two tall matrices, b the narrower; `faster_products` then copies b, not the wide one."""
    return scaled_matmul(b.T, a, factor).T.contiguous() if _open else scaled_matmul(a.T, b, factor)


def add_matmul(c: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """c + factor · a @ b for matrices, by oneDNN while `faster_products` is active."""
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
        # when a graph of the gradient is requested: torch's own operations can be differentiated again
        product = F.linear if torch.is_grad_enabled() else _product
        dx = None if weight is None else product(grad, weight.T)
        dweight = None if x is None else product(rows.T, x.reshape(-1, x.shape[-1]).T)
        return dx, dweight, rows.sum(0) if ctx.needs_input_grad[2] else None


# Dropout --------------------------------------------------------------------------------------------------------------


@contextmanager
def faster_dropout(model: nn.Module) -> Iterator[None]:
    """While active, the model's `nn.Dropout` layers draw byte masks on the CPU; elsewhere they stay torch's own.

    For one seed other values are dropped than by torch's own layers.
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
    """What nn.Dropout becomes while `faster_dropout` is active."""

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
    """Draw a mask of 0 and 1, one byte per value of x, and the factor that makes up for what it drops.

    Drawn from torch's default generator. On the CPU torch draws numbers one by one; here one 64-bit draw gives four
    values, which is three times as fast and rounds p to 1/65536 (the factor matches). The bytes are integers there,
    because multiplying by those is twice as fast as by bools.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p), 1 / (1 - p)
    limit = min(round(p * 65536), 65535)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    mask = draws.view(torch.int16)[: x.numel()] >= limit - 32768
    return mask.view(torch.uint8).view(x.shape), 65536 / (65536 - limit)
