"""Which sentences meet in a step, and how they lie in a batch.

*Order*: a permutation drawn from (seed, epoch) alone. Consecutive slices of it are the optimiser steps; a step is dealt
to ranks and micro-batches by load. So any number of ranks sees the same sentences in the same steps.

*Packing*: padding every sentence of a random batch of 32 to the longest costs 2.3 times the real tokens. Here sentences
lie end to end in a few rows of nearly equal length, with about 3 % padding. Attention is kept inside a sentence by a
block-diagonal mask, and positions restart with each sentence, so the output is the one that each would get alone.

*Shapes*: who makes something for every shape of batch and keeps it, as torch.compile does, and oneDNN, is to meet few:
rows of about ROW_LENGTH tokens, a fixed number of them in training, and widths in steps.

*Parts*: what is kept for backward grows with the tokens that go through a model at a time, and a CPU is as fast with a
few hundred of them as with thousands. There a batch is computed in parts, whose gradients add up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.nn.attention import faster_attention

MAX_PADDING = 0.05  # of the real tokens
ROW_LENGTH = 384  # tokens in a row where shapes are to be few: a step of widths is then little of it
PART = 2**18  # numbers in a part's hidden states a thread: with fewer, calls take a share of the time
UNIT, COMPILED_UNIT = 16, 32  # steps of such widths, in tokens; to compile a shape takes long
SAMPLE = 64  # batches that show how many rows packing finds


@dataclass(frozen=True)
class Plan:
    """Where each token of a batch comes from, and what the batch costs; made on the host.

    Shape:
        source (rows, width), int32: place of a token in the corpus' flat arrays, their length for padding.
    """

    source: Tensor
    tokens: int  # real tokens, special ones included
    targets: int  # words that count in the loss
    counts: bool = True  # False: nothing in it does, it is only there for the other ranks

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
    source: Tensor  # place of a token in the corpus' flat arrays, -1 for padding


class TokenTable:
    """An encoded corpus on a device, 24 bytes a token, and the batches taken from it.

    A batch is one small copy to the device (4 bytes a token, of its plan), for which the host does not wait, and one
    look-up there.
    """

    def __init__(self, encoded: Encoded, layout: "Layout", device: torch.device | str = "cpu") -> None:
        lengths, count = encoded.lengths, len(encoded.ids)
        assert count < 2**31, "places are int32"
        starts = np.repeat(encoded.offsets[:-1], lengths)
        columns = (  # in the order of Batch's fields: what a token has, what padding has
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
        source = plan.source
        if self.values.is_cuda and not source.is_cuda:
            source = source.pin_memory()  # else the copy would wait for what the device is doing
        batch = self.look_up(source.to(self.values.device, non_blocking=True))
        if not plan.counts:
            batch.labels.fill_(IGNORE)
            batch.words.fill_(-1)
        return batch

    def look_up(self, source: Tensor) -> Batch:
        """The batch of the tokens at these places, (rows, width), which are on the table's device."""
        return Batch(*self.values.index_select(1, source.flatten()).long().view(-1, *source.shape))


@dataclass(frozen=True)
class Step:
    """One rank's part of an optimiser step."""

    micros: list[Plan]  # what goes through the model at a time
    targets: int  # words that count in the loss, of all ranks and micro-batches together


@dataclass(frozen=True)
class Layout:
    """How a model wants its batches.

    `first_position` is the position of a sentence's first token: RoBERTa's family counts from padding_idx + 1 = 2,
    others from 0. `additive_mask` is the dtype in which eager attention *adds* its mask (a bool there would be added as
    0 and 1); None for sdpa, which takes bools. Without `packing` each window has a row of its own. A packed batch has
    `rows` rows, or as many as packing finds best: the shortest rows, or rows of about `row_length` tokens. Its width is
    a multiple of `unit`. To train on, a batch is dealt to `parts`, of about `part_length` tokens where that is given.
    """

    first_position: int
    pad_token_id: int
    packing: bool = True
    additive_mask: torch.dtype | None = None
    rows: int | None = None
    row_length: int | None = None
    unit: int = 1
    part_length: int | None = None
    parts: int = 1

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's keyword arguments for a batch."""
        if not self.packing:
            return {"input_ids": batch.input_ids, "attention_mask": (batch.segments >= 0).long()}
        mask = (batch.segments[:, :, None] == batch.segments[:, None, :]).unsqueeze(1)  # (rows, 1, width, width)
        if self.additive_mask is not None:
            lowest = torch.finfo(self.additive_mask).min
            mask = torch.zeros(mask.shape, dtype=self.additive_mask, device=mask.device).masked_fill_(~mask, lowest)
        return {"input_ids": batch.input_ids, "attention_mask": mask, "position_ids": batch.position_ids}


def layout_for(model: nn.Module, packing: bool = True, precision: str = "auto") -> Layout:
    """Find out how a model wants its batches, and prove it: packed output must equal the one-by-one output.

    Where attention is lorakit's own, in float32 on a CPU, the rows are long, for a row's length costs nothing there
    and few shapes save memory (`onednn`), as parts do. Elsewhere rows are short and a batch is trained on as a whole.

    Raises:
        ValueError: packing is asked for and the model's attention would mix the sentences of a row.
    """
    config = model.config
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    if not packing:
        return Layout(first_position(model), pad, packing=False)
    attention = config._attn_implementation
    way_out = "load the model with attn_implementation='sdpa', or train with packing off (TrainConfig(packing=False))"
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention {attention!r} cannot be packed; it can with sdpa and eager: {way_out}")
    if getattr(config, "sliding_window", None) or getattr(config, "local_attention", None):
        raise ValueError(
            f"{config.model_type} attends in a sliding window, which a packed mask would replace: {way_out}"
        )
    layout = Layout(first_position(model), pad, additive_mask=model.dtype if attention == "eager" else None)
    try:
        with faster_attention(model) as own:
            if own is not None:
                own.used = False  # where training has put it in place, another model may have used it
            error = _packing_error(model, layout)
    except (TypeError, IndexError, RuntimeError, ValueError) as problem:
        raise ValueError(f"{type(model).__name__} does not take a packed batch ({problem}): {way_out}") from problem
    if not error < 1e-2:
        raise ValueError(
            f"{type(model).__name__} with {attention!r} attention mixes packed sentences (outputs differ by {error:.1g}"
            f" of their size): {way_out}"
        )
    in_blocks = own is not None and own.used and precision in ("auto", "fp32")
    return in_long_rows(layout, getattr(config, "hidden_size", None)) if in_blocks else layout


def in_long_rows(layout: Layout, hidden_size: int | None) -> Layout:
    """The layout with long rows, and with parts that keep this process's threads busy.

    Args:
        hidden_size: The model's; None, where it names none, means no parts.
    """
    part_length = PART * torch.get_num_threads() // hidden_size if hidden_size else None
    return replace(layout, row_length=ROW_LENGTH, unit=UNIT, part_length=part_length)


def first_position(model: nn.Module) -> int:
    """The position id of a sentence's first token."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def with_few_shapes(layout: Layout, encoded: Encoded, batch_size: int, unit: int) -> Layout:
    """The layout with a fixed number of parts and of rows in each, as most batches of this size can be packed into.

    BioNLP2004's training split in batches of 8, 16, 32 and 64 then has 24, 18, 14 and 11 shapes in steps of 16 and 2.6
    to 3.4 % padding, or in parts of 683 tokens 24, 18, 22 and 21 shapes and 1.0 to 3.3 %. In steps of 32 it has 15, 11,
    9 and 7 shapes and 5.2 to 6.1 %; packed freely 316 to 125 and 2.3 to 3.9 %.
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


def training_layout(
    layout: Layout,
    encoded: Encoded,
    batch_size: int,
    compiled: bool = False,
    recorded: bool = False,
    whole: bool = False,
) -> Layout:
    """The layout of the batches to train on: of few shapes where something is made for each of them.

    Args:
        whole: A batch is not computed in parts, as one that is compiled, or recorded in a graph, is not.
    """
    if compiled or recorded or whole:
        layout = replace(layout, part_length=None)
    if compiled or recorded:
        return with_few_shapes(layout, encoded, batch_size, COMPILED_UNIT if compiled else UNIT)
    return with_few_shapes(layout, encoded, batch_size, layout.unit) if layout.row_length else layout


def balance(lengths: Sequence[int], bins: int) -> list[list[int]]:
    """Deal items to bins of nearly equal load: the longest first, always to the emptiest bin (Graham 1969, LPT).

    Returns:
        The items' numbers in each bin, ascending.
    """
    loads, dealt = [0] * bins, [[] for _ in range(bins)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        emptiest = loads.index(min(loads))
        loads[emptiest] += lengths[item]
        dealt[emptiest].append(item)
    return [sorted(items) for items in dealt]


def pack(lengths: Sequence[int], row_length: int | None = None, unit: int = 1) -> list[list[int]]:
    """Lay items into as many rows as MAX_PADDING allows: short rows make attention cheap, one row has no padding.

    Args:
        row_length: Tokens that a row should rather have; then there are no more rows than that gives.
        unit: What the rows' common length is a multiple of.
    """
    total, longest = sum(lengths), max(lengths)
    most = total // longest if row_length is None else min(total // longest, round(total / row_length))
    for rows in range(most, 1, -1):
        packed = balance(lengths, rows)
        if rows * _width(packed, lengths, unit) <= (1 + MAX_PADDING) * total:
            return packed
    return [list(range(len(lengths)))]


def _width(rows: list[list[int]], lengths: Sequence[int], unit: int) -> int:
    return -(-max(sum(lengths[i] for i in row) for row in rows) // unit) * unit


def plan_batch(encoded: Encoded, windows: Sequence[int], layout: Layout, counts: bool = True) -> Plan:
    """Lay these windows into rows.

    Args:
        counts: False makes a batch of weight 0, for a rank that has nothing to do in a step.
    """
    offsets, lengths = encoded.offsets, [int(encoded.offsets[w + 1] - encoded.offsets[w]) for w in windows]
    if not layout.packing:
        rows = [[i] for i in range(len(windows))]
    else:
        rows = balance(lengths, layout.rows) if layout.rows else pack(lengths, layout.row_length, layout.unit)
    width = _width(rows, lengths, layout.unit)
    source = torch.full((len(rows), width), len(encoded.ids), dtype=torch.int32)
    cells = source.numpy()  # the same memory
    targets = 0
    for row, items in enumerate(rows):
        places = np.concatenate(
            [np.arange(0), *(np.arange(offsets[windows[i]], offsets[windows[i] + 1]) for i in items)]
        )
        cells[row, : len(places)] = places
        targets += int((encoded.labels[places] != IGNORE).sum())
    tokens = sum(lengths)
    return Plan(source, *((tokens, targets) if counts else (0, 0)), counts)


def collate(
    encoded: Encoded, windows: Sequence[int], layout: Layout, counts: bool = True, device: torch.device | str = "cpu"
) -> Batch:
    """One batch of these windows; who needs many makes the corpus' `TokenTable` once."""
    return TokenTable(encoded, layout, device).batch(plan_batch(encoded, windows, layout, counts))


def steps_per_epoch(windows: int, batch_size: int, accumulate: int, world_size: int) -> int:
    """Optimiser steps in which every window is seen once."""
    return -(-windows // (batch_size * accumulate * world_size))


def epoch_order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch; the same for every rank and any number of them."""
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
) -> Iterator[Step]:
    """One rank's share of every optimiser step of an epoch; all ranks together see every window exactly once.

    Args:
        first_step: steps of the epoch that are done already, when a run goes on.
    """
    order, size = epoch_order(len(encoded), seed, epoch), batch_size * accumulate * world_size
    lengths = encoded.lengths
    targets = np.add.reduceat(encoded.labels != IGNORE, encoded.offsets[:-1])
    for start in range(first_step * size, len(order), size):
        chosen = order[start : start + size]
        shares = balance(lengths[chosen].tolist(), accumulate * world_size)
        mine = [chosen[share] for share in shares[rank * accumulate : (rank + 1) * accumulate]]
        micros = []
        for share in mine:
            if len(share):
                parts = balance(lengths[share].tolist(), min(layout.parts, len(share)))
                micros += [plan_batch(encoded, share[part], layout) for part in parts]
            else:
                micros.append(plan_batch(encoded, chosen[:1], layout, counts=False))
        yield Step(micros, targets=int(targets[chosen].sum()))


def sorted_batches(encoded: Encoded, layout: Layout, tokens: int, rank: int = 0, world_size: int = 1) -> Iterator[Plan]:
    """One rank's batches of all windows, longest first, each of at most `tokens` real tokens (or one window)."""
    for group in _sorted_groups(encoded, tokens)[rank::world_size]:
        yield plan_batch(encoded, group, layout)


def batch_count(encoded: Encoded, tokens: int, world_size: int = 1) -> int:
    """The most batches that any rank gets from `sorted_batches`."""
    return -(-len(_sorted_groups(encoded, tokens)) // world_size)


def _sorted_groups(encoded: Encoded, tokens: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for window in np.argsort(-encoded.lengths, kind="stable").tolist():
        length = int(encoded.lengths[window])
        if length > room:
            groups.append([])
            room = tokens
        groups[-1].append(window)
        room -= length
    return groups


@torch.no_grad()
def _packing_error(model: nn.Module, layout: Layout) -> float:
    """The largest relative difference between a packed pair of sentences and each alone."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    vocabulary = model.config.vocab_size
    ids = np.arange(24) % max(vocabulary - 10, 1) + min(10, vocabulary - 1)
    offsets = np.array([0, 5, 12, 24])
    nothing = np.full(24, -1)
    probe = Encoded(ids, np.full(24, IGNORE), nothing, offsets, np.array([1, 1, 1]))
    try:
        model.eval()
        packed = collate(probe, [0, 1, 2], Layout(layout.first_position, layout.pad_token_id), device=device)
        together = model(**layout.inputs(packed))[0]
        worst = 0.0
        for number in range(3):
            mine = (packed.segments == number).nonzero(as_tuple=True)
            alone = model(input_ids=packed.input_ids[mine][None])[0][0]
            worst = max(worst, float((together[mine] - alone).abs().max() / alone.abs().max().clamp_min(1e-9)))
        return worst
    finally:
        for module, training in modes.items():
            module.training = training
