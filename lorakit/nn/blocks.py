"""The blocks of a packed batch's attention mask: consecutive tokens that attend to each other only.

Blocks of similar length are padded to the longest and computed together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LONGEST = 256  # tokens in a block; beyond that torch's flash attention is as fast and keeps no scores
LOOSEST = 1.5  # longest block of a group over its shortest: at most 2.25 times a block's own scores are computed
SHORTEST = 16  # shorter blocks share one group: a call costs more than its matmuls


@dataclass(frozen=True)
class Group:
    """Blocks of similar length, padded to the longest and computed in one batched matmul per head.

    Shape:
        bias (blocks, 1, 1 or width, width): -inf where a key is not seen, because the block is shorter than the group,
            or because of `Pattern`; otherwise 0; None if every query sees every key.
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


@dataclass(frozen=True)
class Pattern:
    """What a token sees inside its block.

    Attributes:
        causal: only itself and what is before it.
        reach: only tokens at most so far away.
    """

    causal: bool
    reach: int

    def seen(self, width: int) -> np.ndarray:
        """(width, width), True where a query (row) sees a key of its block."""
        back = np.arange(width)[:, None] - np.arange(width)
        return (np.abs(back) <= self.reach) & ((back >= 0) | (not self.causal))


def blocks_of(mask: Tensor | None, batch: int, heads: int, width: int) -> Blocks | None:
    """Find the blocks of consecutive tokens that attend to each other only; None if the mask is not block-diagonal.

    Inside its block a token sees all others, or those before it, and at most so far away.

    Shape:
        mask (batch, 1, width, width), bool, True where a query (row) attends to a key; None: every row is a block.
    """
    new = np.ones((batch, width), dtype=bool)  # where a block starts
    new[:, 1:] = False
    pattern = None
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != (batch, 1, width, width):
            return None
        sees = mask[:, 0].numpy()
        new[:, 1:] = ~np.diagonal(sees, -1, 1, 2)  # a token sees the one before it, unless that is in another block
        number = new.cumsum(-1)
        same = number[:, :, None] == number[:, None, :]
        if not np.array_equal(same, sees):
            pattern = _pattern(sees, width)
            if not np.array_equal(same & pattern.seen(width), sees):
                return None
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
        rows, scores = slice(row, row + math.prod(shape)), slice(score, score + math.prod(shape) * longest)
        groups.append(Group(heads, longest, rows, scores, _bias(there, pattern)))
        row, score = rows.stop, scores.stop
    taken, there = np.concatenate(take), np.concatenate(filled)
    back = np.empty(batch * width * heads, dtype=np.int64)
    back[taken[there]] = np.flatnonzero(there)
    return Blocks(tuple(groups), *map(torch.from_numpy, (taken, back, np.flatnonzero(~there))))


def _pattern(sees: np.ndarray, width: int) -> Pattern:
    """The only pattern that a mask may have."""
    queries, keys = np.nonzero(sees.any(0))
    return Pattern(causal=bool((keys <= queries).all()), reach=int(np.abs(queries - keys).max(initial=0)))


def _bias(there: np.ndarray, pattern: Pattern | None) -> Tensor | None:
    """A group's bias; `there` (blocks, width) is False where a block is shorter than the group."""
    seen = there[:, None, None]
    if pattern is not None:
        seen = seen & pattern.seen(there.shape[1])
        seen |= ~seen.any(-1, keepdims=True)  # a padding query that sees only padding: its softmax must not be NaN
    return None if seen.all() else torch.from_numpy(np.where(seen, 0, -np.inf).astype(np.float32))


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


def take(x: Tensor, blocks: Blocks) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[-1]).index_select(0, blocks.take)


def give_back(rows: Tensor, blocks: Blocks, shape: torch.Size) -> Tensor:
    batch, heads, width, dim = shape
    return rows.index_select(0, blocks.back).view(batch, width, heads, dim).transpose(1, 2)
