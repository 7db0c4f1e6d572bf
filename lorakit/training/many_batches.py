"""Batches for several runs at once: every row holds sentences of one run, and the rows of all runs are one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lorakit.data.adapter_rows import plan_by_adapter
from lorakit.data.packing import Batch, Layout, Plan, Step, TokenTable, with_few_shapes, without_waiting
from lorakit.data.tokenization import Encoded


@dataclass(frozen=True)
class Corpora:
    """The corpora of all runs as one, on a device.

    Attributes:
        table: of all of them.
        encoded: likewise.
        begins: by corpus, as they are numbered, where its tokens begin.
        windows: the number of each token's window.
        layout: how the model takes its batches.
        few_shapes: whether batches have few shapes.
    """

    table: TokenTable
    encoded: Encoded
    begins: tuple[int, ...]
    windows: np.ndarray
    layout: Layout
    few_shapes: bool = False

    def batch(self, plans: Sequence[tuple[int, Plan] | None]) -> tuple[Batch, Tensor]:
        """One batch of what all runs read now, and the run of each of its rows, both on the device.

        Args:
            plans: of each run its corpus and what it reads of it; None where a run has nothing to do now.
        """
        items, owners = [], []
        for run, found in enumerate(plans):
            if found is None:
                continue
            corpus, plan = found
            source = plan.source.numpy()
            end = self.begins[corpus + 1] - self.begins[corpus]
            read = np.unique(self.windows[source[source < end] + self.begins[corpus]])
            items.append(read)
            owners.append(np.full(len(read), run))
        windows, owners = np.concatenate(items), np.concatenate(owners)
        plan, rows = plan_by_adapter(self.encoded, windows, owners, self.layout, self.few_shapes)
        return self.table.batch(plan), without_waiting(torch.from_numpy(rows), self.table.values.device)


def join_corpora(parts: Sequence[Encoded], layout: Layout, device: torch.device, few_shapes: bool = False) -> Corpora:
    """Put the corpora of all runs on a device."""
    begins = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[:-1] + begin for part, begin in zip(parts, begins, strict=False)]
    every = Encoded(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "labels", "words")),
        np.append(np.concatenate(offsets), begins[-1]),
        np.concatenate([part.sentence_lengths for part in parts]),
    )
    windows = np.repeat(np.arange(len(every)), every.lengths)
    return Corpora(TokenTable(every, layout, device), every, tuple(begins.tolist()), windows, layout, few_shapes)


def layout_of_many(layout: Layout, sizes: Sequence[tuple[Encoded, int]], at_once: int) -> Layout:
    """The layout by which each run's order is cut into batches; where these are computed in parts, a part is of all.

    Args:
        layout: the model's.
        sizes: of each run its corpus and its sentences per batch.
        at_once: runs that share a batch.
    """
    if not (layout.packing and layout.part_length):
        return replace(layout, part_length=None)
    short = replace(layout, part_length=max(1, layout.part_length // at_once))
    parts = max(with_few_shapes(short, encoded, size, layout.unit).parts for encoded, size in sizes)
    return replace(layout, parts=parts)


def micros(steps: Sequence[tuple[int, Step]]) -> Iterator[list[tuple[int, Plan] | None]]:
    """The plans of each run for one batch after another, until every run has had this rank's part of its step.

    A run's is None where it has nothing to do; there may be no batch at all, where other ranks have the whole steps.
    """
    found = [[(corpus, plan) for plan in step.micros if plan.counts] for corpus, step in steps]
    for number in range(max(map(len, found))):
        yield [plans[number] if number < len(plans) else None for plans in found]


def losses_by_run(losses: Tensor, rows: Tensor, runs: int) -> Tensor:
    """The sum of each run's losses: those of a batch's rows, and the run of each, to (runs,)."""
    return losses.new_zeros(runs).index_add(0, rows, losses)
