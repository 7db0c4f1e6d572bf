"""The fused path: a frozen linear layer and its low-rank update as one autograd Function.

*Branch.* Plain operations take five kernels forward and seven backward (`F.linear` twice, `* scaling`, `+`, and their
gradients), two of which are full passes over the (tokens, out) output. Here scaling and addition are part of one
`addmm`, dropout keeps a one-byte mask instead of a second copy of x, and the update's gradients have rank r throughout:
the (out, in) gradient of the weight is never formed.

*Sum.* With many tokens W + scaling·BA is cheaper than the update's own output (arXiv:2312.03415): 2·in·out·r operations
forward and again in backward, instead of 2·tokens·r·(in + out) and a pass over the output.
"""

import torch
from torch import Tensor, nn

from lorakit.nn.kernels import (
    PLAIN,
    add_matmul,
    keep_mask,
    linear,
    matmul,
    no_view,
    nothing_transforms,
    once,
    scaled_matmul,
    transposed_matmul,
)
from lorakit.nn.weights import HALF

SMALL = 2**18  # elements; 1 MiB in float32


def choose_path(layer: nn.Module, x: Tensor, weight: Tensor) -> str:
    """Decide how an adapted linear layer computes its output: "plain" operations, "branch" or "sum".

    Plain where something traces, transforms or replaces operations: torch.compile fuses them itself; torch.func and
    forward-mode AD differentiate them; quantized and sharded tensors bring operations of their own; a trained weight
    needs a gradient that the Functions here never form; and with DoRA. Otherwise the branch adds the update's output.
    The sum of weight and update is used while training in float32 without dropout, if that takes fewer operations: its
    bits differ from the branch's, and in bfloat16 a sum would round small updates away.

    Args:
        layer: a linear layer with an active update.
        weight: (out, in), the layer's own; Conv1D's as a transposed view.
    """
    A, kind = layer.lora_A, x.device.type
    if (
        layer.lora_magnitude is not None
        or weight.requires_grad
        or not (type(x) in PLAIN and type(weight) in PLAIN and type(A) in PLAIN)
        or not nothing_transforms()
        or not x.is_floating_point()
    ):
        return "plain"
    autocast = torch.is_autocast_enabled(kind)
    if autocast and x.dtype == torch.float64:  # which autocast leaves alone
        return "plain"
    summable = (
        layer.training
        and not autocast
        and torch.is_grad_enabled()
        and x.dtype == weight.dtype == A.dtype == torch.float32
    )
    if not summable:
        return "branch" if layer.lora_start_A is None else "plain"
    outputs, inputs = weight.shape
    return "sum" if not layer.lora_dropout and sum_pays(x.numel() // inputs, inputs, outputs) else "branch"


def fused_forward(layer: nn.Module, x: Tensor, weight: Tensor, path: str) -> Tensor:
    """The output of an adapted linear layer by the path that `choose_path` chose: "branch" or "sum".

    Without dropout the branch's bits are those of PEFT's operations.
    """
    dropout = layer.lora_dropout if layer.training else 0.0
    start = None if layer.lora_start_A is None else (layer.lora_start_A, layer.lora_start_B)
    A, B = layer.lora_A, layer.lora_B
    return lora_linear(x, weight, layer.bias, A, B, layer.scaling, dropout, layer.one_addmm, start, path == "sum")


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float = 0.0,
    one_addmm: bool = True,
    start: tuple[Tensor, Tensor] | None = None,
    merged: bool = False,
) -> Tensor:
    """Compute x·Wᵀ + b + scaling·(dropout(x)·Aᵀ)·Bᵀ; equal to the plain operations and their gradients up to rounding.

    Differentiable once in x, bias, A and B; the weight is a constant. Under autocast it computes in autocast's type, as
    the plain operations would.

    Args:
        dropout: probability in [0, 1) of zeroing an input of the update; drawn from torch's default generator, which
            gradient checkpointing restores when it reruns the forward.
        one_addmm: False scales and adds the update in separate passes, as PEFT does, where one addmm would give
            different bits.
        start: A₀ and B₀ that the update is counted from: scaling·B₀A₀ is subtracted from the weight; float32 only.
        merged: add weight and update first; float32 only (a sum in bfloat16 would round small updates away), and
            without dropout.

    Shape:
        x (..., in); weight (out, in); bias (out,); A (r, in); B (out, r) -> (..., out).
    """
    if merged:
        return _Merged.apply(x, weight, bias, A, B, scaling, *(start or (None, None)))
    return _Branch.apply(x, weight, bias, A, B, scaling, dropout, one_addmm, *(start or (None, None)))


def sum_pays(tokens: int, inputs: int, outputs: int) -> bool:
    """Whether forming BA, forward and backward, takes fewer operations than the update's output (start or not)."""
    return tokens * (inputs + outputs) > 2 * inputs * outputs


def sum_is_kept(inputs: int, outputs: int) -> bool:
    """Whether W + scaling·BA is kept for backward: for a small layer, recomputing it costs more than the memory."""
    return inputs * outputs <= SMALL


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])  # not view: a gradient need not be contiguous


_once = once(
    "double backward (create_graph=True) through a LoRA layer: its backward can be differentiated only as plain "
    "operations, which torch.func.grad and torch.compile use"
)


class _Branch(torch.autograd.Function):
    """The layer's output, with the update's added by one addmm."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        p: float,
        one_addmm: bool,
        A0: Tensor | None,
        B0: Tensor | None,
    ) -> Tensor:
        casts = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if casts else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            # without autocast, a weight of a wider type than x is the caller's mistake and raises as in nn.Linear
            frozen = weight.to(dtype) if casts or weight.dtype in HALF else weight
            frozen = frozen if A0 is None else _without_start(frozen, scaling, A0, B0)
            rows, A_, B_ = _rows(x.to(dtype)), A.to(dtype), B.to(dtype)
            y = linear(rows, frozen, None if bias is None else bias.to(dtype))
            inputs, mask, factor = rows, None, 1.0
            if p:
                mask, factor = keep_mask(rows, p)
                inputs = rows * mask
            xA = scaled_matmul(inputs, A_.T, factor)
            if one_addmm:
                y.addmm_(xA, B_.T, alpha=scaling)
            else:
                y.add_((xA @ B_.T).mul_(scaling))
        ctx.save_for_backward(rows, weight, A_, B_, xA, mask, A0, B0)
        ctx.scaling, ctx.factor, ctx.x_type, ctx.x_shape = scaling, factor, x.dtype, x.shape
        ctx.types = A.dtype, B.dtype, None if bias is None else bias.dtype
        return no_view(y.view(*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @_once
    def backward(ctx, grad: Tensor) -> tuple:
        rows, weight, A, B, xA, mask, A0, B0 = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        dtype, scaling, (A_type, B_type, bias_type) = rows.dtype, ctx.scaling, ctx.types
        dx = dbias = dA = dB = None
        with torch.autocast(grad.device.type, enabled=False):
            g = _rows(grad)
            gB = matmul(g, B) if need_A or need_x else None  # (tokens, r)
            if need_A:
                inputs = rows if mask is None else rows * mask
                dA = scaled_matmul(gB.T, inputs, scaling * ctx.factor).to(A_type)
            if need_B:
                dB = transposed_matmul(g, xA, scaling).to(B_type)
            if need_x:
                weight = weight.to(dtype)
                dx = matmul(g, weight if A0 is None else _without_start(weight, scaling, A0, B0))
                if mask is None:
                    dx.addmm_(gB, A, alpha=scaling)
                else:
                    dx.add_(matmul(gB, A).mul_(mask), alpha=scaling * ctx.factor)
                dx = dx.view(ctx.x_shape).to(ctx.x_type)
            if need_bias:
                dbias = g.sum(0).to(bias_type)
        return dx, None, dbias, dA, dB, None, None, None, None, None


class _Merged(torch.autograd.Function):
    """The output of the sum of weight and update; a large sum is recomputed in backward instead of kept."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        A0: Tensor | None,
        B0: Tensor | None,
    ) -> Tensor:
        total = _sum(weight, A, B, scaling, A0, B0)
        keep = ctx.needs_input_grad[0] and sum_is_kept(*weight.shape)
        ctx.save_for_backward(x, weight, A, B, A0, B0, total if keep else None)
        ctx.scaling = scaling
        return no_view(linear(x, total, bias))

    @staticmethod
    @_once
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, A, B, A0, B0, total = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        g, rows = _rows(grad), _rows(x)
        dx = dbias = dA = dB = None
        if need_A:
            dA = scaled_matmul(matmul(g, B).T, rows, ctx.scaling)
        if need_B:
            dB = transposed_matmul(g, matmul(rows, A.T), ctx.scaling)
        if need_x:
            total = _sum(weight, A, B, ctx.scaling, A0, B0) if total is None else total
            dx = matmul(g, total).view(x.shape)
        if need_bias:
            dbias = g.sum(0)
        return dx, None, dbias, dA, dB, None, None, None


def _without_start(weight: Tensor, scaling: float, A0: Tensor, B0: Tensor) -> Tensor:
    return _sum(weight, A0, B0, -scaling, None, None)


def _sum(weight: Tensor, A: Tensor, B: Tensor, scaling: float, A0: Tensor | None, B0: Tensor | None) -> Tensor:
    if not weight.is_contiguous():  # Conv1D's transposed view: give the sum the same memory layout
        transposed = (None, None) if A0 is None else (B0.T, A0.T)
        return _sum(weight.T, B.T, A.T, scaling, *transposed).T
    if A0 is not None:
        # BA - B₀A₀ as (B - B₀)A + B₀(A - A₀): one matmul, and exactly zero for a new update
        B, A = torch.cat([B - B0, B0], 1), torch.cat([A, A - A0])
    return add_matmul(weight, B, A, scaling)
