"""Which sentences are in a step, and how they are packed into batches.

*Order*: a permutation drawn from (seed, epoch) alone. Consecutive slices of it are the optimizer steps; a step is dealt
to ranks and micro-batches by load. So any number of ranks sees the same sentences in the same steps.

*Packing*: padding every sentence of a random batch of 32 to the longest costs 2.3 times the real tokens. Here sentences
are placed end to end in a few rows of nearly equal length, with about 3 % padding. Attention is kept inside a sentence
by a block-diagonal mask, and positions restart with each sentence, so each gets the output it would get alone.

*Shapes*: torch.compile and oneDNN build something for every shape of batch and cache it, so they need few shapes: rows
of about ROW_LENGTH tokens, a fixed number of them in training, and widths that are multiples of a unit.

*Parts*: memory for backward grows with the tokens that go through a model at once, and a CPU is as fast with a few
hundred of them as with thousands. There a batch is computed in parts, whose gradients add up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorakit._counts import counted
from lorakit.data.masks import Masks
from lorakit.data.tokenization import IGNORE, Encoded

MAX_PADDING = 0.05  # of the real tokens
ROW_LENGTH = 384  # tokens per row where few shapes are wanted: rounding the width up then adds little
SAMPLE = 64  # batches from which the number of rows is chosen


@dataclass(frozen=True)
class Plan:
    """Where each token of a batch comes from, and what the batch costs; made on the host.

    Shape:
        source (rows, width), int32: index of a token in the corpus' flat arrays; their length for padding.
    """

    source: Tensor
    tokens: int  # real tokens, special tokens included
    counts: bool = True  # False: it adds nothing to loss or scores, and only keeps a rank in step with the others

    @property
    def computed_tokens(self) -> int:
        """Tokens the model works on, padding included."""
        return self.source.numel()


@dataclass(frozen=True)
class Batch:
    """Rows of packed windows.

    Shape:
        input_ids, position_ids, segments, labels, words, source: all (rows, width), int64.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor  # number of the window a token belongs to, -1 for padding
    labels: Tensor
    words: Tensor
    source: Tensor  # index of a token in the corpus' flat arrays, -1 for padding


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimizer step."""

    micros: list[Plan]  # micro-batches, or parts of them, in the order they go through the model
    targets: float  # what the loss is divided by, over all ranks and micro-batches: the words that count in it


@dataclass(frozen=True)
class Layout:
    """How a model takes its batches, as `lorakit.training.layout` finds out.

    Attributes:
        first_position: position id of a sentence's first token: padding_idx + 1 = 2 in RoBERTa's family, otherwise 0.
        pad_token_id: the token that fills a row up.
        packing: False gives each window a row of its own.
        masks: what keeps attention inside a sentence.
        by_length: without packing, only windows of equal length share a batch, so that nothing is padded.
        shortest: the model cannot read fewer tokens than this at once.
        reason: why a model that was to be packed is not.
        rows: a packed batch has this many rows; None: as many as packing finds best.
        row_length: tokens a row should have; None: the shortest rows that packing finds.
        unit: a packed batch's width is a multiple of this many tokens.
        part_length: tokens per part in training; None: no parts.
        parts: a batch to train on is computed in this many parts.
    """

    first_position: int
    pad_token_id: int
    packing: bool = True
    masks: Masks = Masks()
    by_length: bool = False
    shortest: int = 1
    reason: str | None = None
    rows: int | None = None
    row_length: int | None = None
    unit: int = 1
    part_length: int | None = None
    parts: int = 1

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments for a batch."""
        if not self.packing:
            return {"input_ids": batch.input_ids, "attention_mask": (batch.segments >= 0).long()}
        masks = self.masks.inputs(batch.segments)
        return {"input_ids": batch.input_ids, **masks, "position_ids": batch.position_ids}


def check_lengths(encoded: Encoded, layout: Layout) -> None:
    """Refuse a corpus with a sentence that is too short for the model.

    Raises:
        ValueError: naming its length.
    """
    fewest = int(encoded.lengths.min(initial=layout.shortest))
    if fewest < layout.shortest:
        raise ValueError(
            f"a sentence has {counted(fewest, 'token')}, special tokens included, and this model takes at least"
            f" {layout.shortest}: leave out the shortest sentences, or join them to their neighbours"
        )


class TokenTable:
    """An encoded corpus on a device, 24 bytes per token, and the batches taken from it.

    A batch is one small copy to the device (4 bytes per token), for which the host does not wait, and one look-up
    there.
    """

    def __init__(self, encoded: Encoded, layout: Layout, device: torch.device | str = "cpu") -> None:
        check_lengths(encoded, layout)
        lengths, count = encoded.lengths, len(encoded.ids)
        assert count < 2**31, "indices are int32"
        starts = np.repeat(encoded.offsets[:-1], lengths)
        columns = (  # in the order of Batch's fields: the values of tokens, the value of padding
            (encoded.ids, layout.pad_token_id),
            # padding gets the position before the first, which for RoBERTa is padding_idx
            (np.arange(count) - starts + layout.first_position, max(layout.first_position - 1, 0)),
            (np.repeat(np.arange(len(encoded)), lengths), -1),
            (encoded.labels, IGNORE),
            (encoded.words, -1),
            (np.arange(count), -1),
        )
        table = np.stack([np.append(values, padding).astype(np.int32) for values, padding in columns])
        self.values = torch.from_numpy(table).to(device)  # (6, tokens + 1)

    def to(self, device: torch.device) -> "TokenTable":
        """Move to a device, in place."""
        self.values = self.values.to(device)
        return self

    def batch(self, plan: Plan) -> Batch:
        """The batch of a plan, on the table's device."""
        batch = self.look_up(without_waiting(plan.source, self.values.device))
        if not plan.counts:
            batch.labels.fill_(IGNORE)
            batch.words.fill_(-1)
        return batch

    def look_up(self, source: Tensor) -> Batch:
        """The batch of the tokens at these indices, (rows, width), which are on the table's device."""
        return Batch(*self.values.index_select(1, source.flatten()).long().view(-1, *source.shape))


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device, without waiting for the work that runs there."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()  # a copy from other memory would wait
    return values.to(device, non_blocking=True)


# Packing -------------------------------------------------------------------------------------------------------------


def balance(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Deal items to bins of nearly equal load: the longest first, always to the emptiest bin (Graham 1969, LPT).

    Returns:
        The item numbers in each bin, ascending.
    """
    loads, dealt = [0] * bins, [[] for _ in range(bins)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        emptiest = loads.index(min(loads))
        loads[emptiest] += lengths[item]
        dealt[emptiest].append(item)
    return [sorted(items) for items in dealt]


def pack(lengths: Sequence[int], row_length: int | None = None, unit: int = 1) -> list[list[int]]:
    """Pack items into as many rows as MAX_PADDING allows: short rows make attention cheap, one row has no padding.

    Args:
        lengths: tokens of each item.
        row_length: tokens a row should have; there are then at most as many rows as this gives.
        unit: the rows' common width is a multiple of this.

    Returns:
        The item numbers in each row.
    """
    total, longest = sum(lengths), max(lengths)
    most = total // longest if row_length is None else min(total // longest, round(total / row_length))
    for rows in range(most, 1, -1):
        packed = balance(lengths, rows)
        if rows * _width(packed, lengths, unit) <= (1 + MAX_PADDING) * total:
            return packed
    return [list(range(len(lengths)))]


def _width(rows: list[list[int]], lengths: Sequence[int], unit: int) -> int:
    return round_up(max(sum(lengths[i] for i in row) for row in rows), unit)


def round_up(length: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-length // unit) * unit


def with_few_shapes(layout: Layout, encoded: Encoded, batch_size: int, unit: int) -> Layout:
    """The layout with a fixed number of parts and of rows per part, into which most batches of this size can be packed.

    With a unit of 16, BioNLP2004's training split in batches of 8, 16, 32 and 64 has 24, 18, 14 and 11 shapes and 2.6
    to 3.4 % padding; in parts of 683 tokens, 24, 18, 22 and 21 shapes and 1.0 to 3.3 %. With a unit of 32 it has 15,
    11, 9 and 7 shapes and 5.2 to 6.1 %; packed freely, 316 to 125 shapes and 2.3 to 3.9 %.
    """
    order = epoch_order(len(encoded), seed=0, epoch=0)[: SAMPLE * batch_size]
    batches = [encoded.lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    parts = 1
    if layout.part_length:
        parts = max(1, round(float(np.median([batch.sum() for batch in batches])) / layout.part_length))
    dealt = [batch[part].tolist() for batch in batches for part in balance(batch.tolist(), parts) if part]
    row_length = ROW_LENGTH if parts == 1 else 2 * ROW_LENGTH  # parts even lengths out, as rows do
    rows = int(np.median([len(pack(lengths, row_length)) for lengths in dealt]))
    return replace(layout, rows=rows, unit=unit, parts=parts)


def plan_batch(encoded: Encoded, windows: Sequence[int], layout: Layout, counts: bool = True) -> Plan:
    """Place windows in rows.

    Args:
        encoded: the corpus.
        windows: their numbers in it.
        layout: the model's, from `lorakit.training.layout`.
        counts: False makes a batch of weight 0, for a rank that has nothing to do in a step.
    """
    lengths = [int(encoded.offsets[w + 1] - encoded.offsets[w]) for w in windows]
    if not layout.packing:
        rows = [[i] for i in range(len(windows))]
    else:
        rows = balance(lengths, layout.rows) if layout.rows else pack(lengths, layout.row_length, layout.unit)
    plan = place_rows(encoded, [[windows[i] for i in row] for row in rows], layout.unit)
    return plan if counts else Plan(plan.source, 0, counts)


def place_rows(encoded: Encoded, rows: Sequence[Sequence[int]], unit: int) -> Plan:
    """The plan of a batch with these windows in its rows, whose width is a multiple of `unit`."""
    offsets = encoded.offsets
    widths = [sum(int(offsets[w + 1] - offsets[w]) for w in row) for row in rows]
    source = torch.full((len(rows), round_up(max(widths), unit)), len(encoded.ids), dtype=torch.int32)
    for cells, row in zip(source.numpy(), rows, strict=True):  # the same memory
        indices = np.concatenate([np.arange(0), *(np.arange(offsets[w], offsets[w + 1]) for w in row)])
        cells[: len(indices)] = indices
    return Plan(source, sum(widths))


def collate(
    encoded: Encoded, windows: Sequence[int], layout: Layout, counts: bool = True, device: torch.device | str = "cpu"
) -> Batch:
    """One batch of these windows; for many batches, make the corpus' `TokenTable` once."""
    return TokenTable(encoded, layout, device).batch(plan_batch(encoded, windows, layout, counts))


# Steps of an epoch, batches of an evaluation --------------------------------------------------------------------------


def steps_per_epoch(windows: int, batch_size: int, accumulate: int, world_size: int) -> int:
    """Optimizer steps in which every window is seen once."""
    return -(-windows // (batch_size * accumulate * world_size))


def epoch_order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, the same on every rank and for any number of ranks."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def epoch_steps(
    encoded: Encoded,
    layout: Layout,
    batch_size: int,
    accumulate: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
    shares: np.ndarray | None = None,
) -> Iterator[Step]:
    """One rank's share of every optimizer step of an epoch; all ranks together see every window exactly once.

    Args:
        encoded: the training corpus.
        layout: of the batches, from `lorakit.training.layout.training_layout`.
        batch_size: sentences per micro-batch and rank.
        accumulate: micro-batches per step and rank.
        seed: with the epoch, decides the order.
        epoch: its number.
        rank: this process, from 0.
        world_size: processes that train together.
        first_step: steps of the epoch to skip, because a resumed run has done them.
        shares: what each window adds to a step's targets; None for the number of its words.
    """
    order, size = epoch_order(len(encoded), seed, epoch), batch_size * accumulate * world_size
    lengths = encoded.lengths
    targets = np.add.reduceat(encoded.labels != IGNORE, encoded.offsets[:-1]) if shares is None else shares
    for start in range(first_step * size, len(order), size):
        chosen = order[start : start + size]
        dealt = balance(lengths[chosen].tolist(), accumulate * world_size)
        mine = [chosen[share] for share in dealt[rank * accumulate : (rank + 1) * accumulate]]
        micros = []
        for share in mine:
            if len(share):
                micros += [plan_batch(encoded, share[part], layout) for part in _parts(lengths[share], layout)]
            else:
                micros.append(plan_batch(encoded, chosen[:1], layout, counts=False))
        yield Step(micros, targets=targets[chosen].sum().item())


def _parts(lengths: np.ndarray, layout: Layout) -> list[list[int]]:
    """The parts in which a micro-batch of windows of these lengths is computed."""
    if layout.by_length:
        return [np.flatnonzero(lengths == length).tolist() for length in np.unique(lengths)]
    return balance(lengths.tolist(), min(layout.parts, len(lengths)))


def sorted_batches(encoded: Encoded, layout: Layout, tokens: int, rank: int = 0, world_size: int = 1) -> Iterator[Plan]:
    """One rank's batches of all windows, longest first, each of at most `tokens` real tokens (or one window)."""
    for group in sorted_groups(encoded, layout, tokens)[rank::world_size]:
        yield plan_batch(encoded, group, layout)


def batch_count(encoded: Encoded, layout: Layout, tokens: int, world_size: int = 1) -> int:
    """The most batches that any rank gets from `sorted_batches`."""
    return -(-len(sorted_groups(encoded, layout, tokens)) // world_size)


def sorted_groups(encoded: Encoded, layout: Layout, tokens: int) -> list[list[int]]:
    """All windows, longest first, in groups of at most `tokens` real tokens (or one window)."""
    groups: list[list[int]] = []
    room = before = 0
    for window in np.argsort(-encoded.lengths, kind="stable").tolist():
        length = int(encoded.lengths[window])
        if length > room or layout.by_length and length != before:
            groups.append([])
            room = tokens
        groups[-1].append(window)
        room, before = room - length, length
    return groups
