"""Block-diagonal attention on the CPU: only the scores inside the mask's blocks are computed.

A sentence packed in a row attends to itself only, so most of the row's scores are masked: more than two thirds for
sentences of 34 tokens in rows of 120. torch's attention computes all of them, and with dropout draws a random number
and keeps three values for each. Here sentences of similar length are batched, and for each score its probability and a
one-byte dropout mask are kept.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorakit.nn.kernels import PLAIN, keep_mask, no_view, nothing_transforms, once

LONGEST = 256  # tokens in a block; beyond that torch's flash attention is as fast and keeps no scores
LOOSEST = 1.5  # longest block of a group over its shortest: at most 2.25 times a block's own scores are computed
SHORTEST = 16  # shorter blocks share one group: a call costs more than its matmuls


@contextmanager
def faster_attention(model: nn.Module) -> Iterator["OwnAttention | None"]:
    """While active, this replaces transformers' "sdpa" attention for float32 on the CPU and block-diagonal masks.

    Results differ from torch's own by rounding only; with dropout, the same seed drops other values. Everything else
    stays torch's: other types and devices, other masks, long blocks, autocast, torch.compile, torch.func and
    forward-mode AD.

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
        self.known: tuple[Tensor | None, tuple[int, ...], Blocks | None] = (None, (), None)  # from the previous layer

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
        blocks = None
        if (
            nothing_transforms()
            and all(
                type(t) in PLAIN and t.dtype == torch.float32 and t.device.type == "cpu" for t in (query, key, value)
            )
            and query.shape == key.shape == value.shape
            and not torch.is_autocast_enabled("cpu")
            and (attention_mask is not None or not causal)
            and all(more.get(name) is None for name in ("position_bias", "softcap", "cache"))
            and dropout < 1
        ):
            blocks = self.blocks(attention_mask, query.shape)
        if blocks is None or not blocks_pay(blocks, dropout):
            options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **more}
            return self.plain(module, query, key, value, attention_mask, **options)
        self.used = True
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attention(query, key, value, blocks, dropout, scale).transpose(1, 2), None

    def blocks(self, mask: Tensor | None, shape: torch.Size) -> "Blocks | None":
        """The mask's blocks, cached because all layers of a model get the same mask."""
        known, known_shape, blocks = self.known
        if known is not mask or known_shape != shape:
            blocks = blocks_of(mask, *shape[:3])
            self.known = (mask, shape, blocks)
        return blocks


@dataclass(frozen=True)
class Group:
    """Blocks of similar length, padded to the longest and computed in one batched matmul per head.

    Shape:
        bias (blocks, 1, 1, width): -inf where a block is shorter than the group, otherwise 0; None if none is shorter.
    """

    heads: int
    width: int
    rows: slice
    scores: slice
    bias: Tensor | None

    def vectors(self, all_rows: Tensor) -> Tensor:
        """The group's part of a (heads · slots, head_dim) tensor, as (blocks · heads, width, head_dim)."""
        return all_rows[self.rows].view(-1, self.width, all_rows.shape[-1])

    def squares(self, all_scores: Tensor) -> Tensor:
        """The group's part of a flat tensor of all scores, as (blocks · heads, width, width)."""
        return all_scores[self.scores].view(-1, self.width, self.width)


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a batch are and how they are grouped; a slot is a token's place in a group.

    Shape:
        take (heads · slots,): row of each head of each slot in a tensor of (batch · width · heads, head_dim).
        back (batch · width · heads,): the inverse of `take`.
        padding: positions in `take` that hold no token.
    """

    groups: tuple[Group, ...]
    take: Tensor
    back: Tensor
    padding: Tensor

    @property
    def longest(self) -> int:
        return self.groups[0].width

    @property
    def scores(self) -> int:
        """Number of scores in all groups and heads."""
        return self.groups[-1].scores.stop


def blocks_of(mask: Tensor | None, batch: int, heads: int, width: int) -> Blocks | None:
    """Find the blocks of consecutive tokens that attend to each other only; None if the mask is not block-diagonal.

    Shape:
        mask (batch, 1, width, width), bool, True where a query (row) attends to a key; None: every row is a block.
    """
    starts = np.zeros((batch, width), dtype=np.int64)  # a block is identified by its first token
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != (batch, 1, width, width):
            return None
        sees = mask[:, 0].numpy()
        starts = sees.argmax(-1)
        consecutive = (np.diff(starts) >= 0).all()
        if not consecutive or not np.array_equal(starts[:, :, None] == starts[:, None, :], sees):
            return None
    new = np.diff(starts, prepend=-1) > 0
    first = np.flatnonzero(new)  # token of the flattened batch
    lengths = np.diff(first, append=batch * width)

    groups, take, filled = [], [], []
    row = score = 0
    for members in _groups(lengths):
        longest = int(lengths[members[0]])
        shape = (len(members), heads, longest)
        place = np.arange(longest)
        there = place < lengths[members, None]  # (blocks, longest)
        token = first[members, None] + np.where(there, place, 0)
        take.append((token[:, None] * heads + np.arange(heads)[:, None]).ravel())
        filled.append(np.broadcast_to(there[:, None], shape).ravel())
        bias = None
        if not there.all():
            bias = torch.from_numpy(np.where(there, 0, -np.inf).astype(np.float32))[:, None, None]
        rows, scores = slice(row, row + math.prod(shape)), slice(score, score + math.prod(shape) * longest)
        groups.append(Group(heads, longest, rows, scores, bias))
        row, score = rows.stop, scores.stop
    taken, there = np.concatenate(take), np.concatenate(filled)
    back = np.empty(batch * width * heads, dtype=np.int64)
    back[taken[there]] = np.flatnonzero(there)
    return Blocks(tuple(groups), *map(torch.from_numpy, (taken, back, np.flatnonzero(~there))))


def blocks_pay(blocks: Blocks, dropout: float) -> bool:
    """Whether block-diagonal attention is faster than torch's."""
    return dropout > 0 or blocks.longest <= LONGEST


def _groups(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of the blocks in each group, longest first."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        longest = lengths[order[0]]
        least = longest / LOOSEST if longest > SHORTEST else 0
        size = int((lengths[order] >= least).sum())
        yield order[:size]
        order = order[size:]


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
        q, k, v = (_take(x, blocks) for x in (query, key, value))
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
        return no_view(_give_back(out, blocks, query.shape))

    @staticmethod
    @once(
        "double backward (create_graph=True) through lorakit's attention: outside training and evaluation it is "
        "torch's, which can be differentiated again"
    )
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, mask = ctx.saved_tensors
        blocks, factor, scale = ctx.blocks, ctx.factor, ctx.scale
        need_q, need_k, need_v, *_ = ctx.needs_input_grad
        g = _take(grad, blocks).index_fill_(0, blocks.padding, 0)
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
        found = (None if x is None else _give_back(x, blocks, ctx.shape) for x in (dq, dk, dv))
        return *found, None, None, None


def _take(x: Tensor, blocks: Blocks) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[-1]).index_select(0, blocks.take)


def _give_back(rows: Tensor, blocks: Blocks, shape: torch.Size) -> Tensor:
    batch, heads, width, dim = shape
    return rows.index_select(0, blocks.back).view(batch, width, heads, dim).transpose(1, 2)
