"""Block-diagonal attention on the CPU: only the scores inside the mask's blocks are computed.

A sentence packed in a row attends to itself only, so most of the row's scores are masked: more than two thirds for
sentences of 34 tokens in rows of 120. torch's attention computes all of them, and with dropout draws a random number
and keeps three values for each. Here sentences of similar length are batched, and for each score its probability and a
one-byte dropout mask are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.nn.blocks import Blocks, blocks_of, blocks_pay, give_back, take
from lorakit.nn.kernels import PLAIN, keep_mask, no_view, nothing_transforms, once

TYPES = (torch.float32, torch.bfloat16)  # of queries, keys and values
KINDS = 2  # of layers, with a mask each: full and sliding


@contextmanager
def faster_attention(model: nn.Module) -> Iterator["OwnAttention | None"]:
    """While active, this replaces transformers' "sdpa" attention on the CPU for block-diagonal masks.

    It computes in float32, also for bfloat16 and under its autocast: blocks are so small that casts cost less than what
    oneDNN builds for every new shape of a bfloat16 product. Results differ from torch's own by rounding only; with
    dropout, the same seed drops other values. Everything else stays torch's: other types and devices, other masks, long
    blocks, torch.compile, torch.func and forward-mode AD.

    Yields:
        The replacement for torch's attention; None on another device.
    """
    if next(model.parameters()).device.type != "cpu":
        yield None
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    plain = functions["sdpa"]
    if isinstance(plain, OwnAttention):  # an evaluation within training
        yield plain
        return
    functions["sdpa"] = own = OwnAttention(plain)
    try:
        yield own
    finally:
        del functions["sdpa"]
        if functions["sdpa"] is not plain:  # the user had registered one
            functions["sdpa"] = plain


class OwnAttention:
    """An attention function for transformers' AttentionInterface.

    Attributes:
        used: whether any attention was computed in blocks so far.
    """

    def __init__(self, plain: Any) -> None:
        self.plain, self.used = plain, False
        self.known: list[tuple[Tensor | None, tuple[int, ...], Blocks | None]] = []  # of the previous layers

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        blocks, given = None, (key, value)
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
        if query.dtype in TYPES and key.dim() == 4 and query.shape[1] % max(key.shape[1], 1) == 0:
            groups = query.shape[1] // key.shape[1]  # heads of queries that share a key and a value
            key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in given)
        if (
            nothing_transforms()
            and all(type(t) in PLAIN and t.dtype in TYPES and t.device.type == "cpu" for t in (query, key, value))
            and query.shape == key.shape == value.shape
            and (dtype in TYPES if autocast else query.dtype == key.dtype == value.dtype)
            and (attention_mask is not None or not causal)
            and all(more.get(name) is None for name in ("position_bias", "softcap", "cache"))
            and dropout < 1
        ):
            blocks = self.blocks(attention_mask, query.shape)
        if blocks is None or not blocks_pay(blocks, dropout):
            options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **more}
            return self.plain(module, query, *given, attention_mask, **options)
        self.used = True
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = (x.float() for x in (query, key, value))
        return attention(query, key, value, blocks, dropout, scale).to(dtype).transpose(1, 2), None

    def blocks(self, mask: Tensor | None, shape: torch.Size) -> Blocks | None:
        """The mask's blocks, cached because all layers of a kind get the same mask."""
        for known, known_shape, blocks in self.known:
            if known is mask and known_shape == shape:
                return blocks
        blocks = blocks_of(mask, *shape[:3])
        self.known = [(mask, shape, blocks), *self.known[: KINDS - 1]]
        return blocks


def attention(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, dropout: float, scale: float) -> Tensor:
    """softmax(scale · query·keyᵀ) · value within each block, with dropout of the probabilities.

    Differentiable once. Dropout is drawn from torch's default generator.

    Shape:
        query, key, value (batch, heads, width, head_dim) -> the same; in memory as (batch, width, heads, head_dim).
    """
    return _Attention.apply(query, key, value, blocks, dropout, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, dropout: float, scale: float) -> Tensor:
        q, k, v = (take(x, blocks) for x in (query, key, value))
        probabilities = q.new_empty(blocks.scores)
        for group in blocks.groups:
            queries, keys, mine = group.vectors(q), group.vectors(k), group.squares(probabilities)
            scores = torch.empty_like(mine).baddbmm_(queries, keys.mT, beta=0, alpha=scale)
            if group.bias is not None:
                scores.unflatten(0, (-1, group.heads)).add_(group.bias)
            torch.softmax(scores, -1, out=mine)
        mask, factor = keep_mask(probabilities, dropout) if dropout else (None, 1.0)
        kept = probabilities if mask is None else probabilities * mask
        out = torch.empty_like(q)
        for group in blocks.groups:
            group.vectors(out).baddbmm_(group.squares(kept), group.vectors(v), beta=0, alpha=factor)
        ctx.save_for_backward(q, k, v, probabilities, mask)
        ctx.blocks, ctx.factor, ctx.scale, ctx.shape = blocks, factor, scale, query.shape
        return no_view(give_back(out, blocks, query.shape))

    @staticmethod
    @once(
        "double backward (create_graph=True) through lorakit's attention: outside training and evaluation it is "
        "torch's, which can be differentiated again"
    )
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, mask = ctx.saved_tensors
        blocks, factor, scale = ctx.blocks, ctx.factor, ctx.scale
        need_q, need_k, need_v, *_ = ctx.needs_input_grad
        g = take(grad, blocks).index_fill_(0, blocks.padding, 0)
        dq, dk, dv = (torch.empty_like(g) if needed else None for needed in (need_q, need_k, need_v))
        if need_v:
            kept = probabilities if mask is None else probabilities * mask
            for group in blocks.groups:
                group.vectors(dv).baddbmm_(group.squares(kept).mT, group.vectors(g), beta=0, alpha=factor)
        if need_q or need_k:
            dprobabilities = torch.empty_like(probabilities)
            for group in blocks.groups:
                mine = group.squares(dprobabilities)
                mine.baddbmm_(group.vectors(g), group.vectors(v).mT, beta=0, alpha=factor)
            if mask is not None:
                dprobabilities.mul_(mask)
            for group in blocks.groups:
                mine, its = group.squares(probabilities), group.squares(dprobabilities)
                dscores = torch.ops.aten._softmax_backward_data(its, mine, -1, mine.dtype)
                if need_q:
                    group.vectors(dq).baddbmm_(dscores, group.vectors(k), beta=0, alpha=scale)
                if need_k:
                    group.vectors(dk).baddbmm_(dscores.mT, group.vectors(q), beta=0, alpha=scale)
        found = (None if x is None else give_back(x, blocks, ctx.shape) for x in (dq, dk, dv))
        return *found, None, None, None
