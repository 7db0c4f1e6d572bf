"""Batches for several adapters: every row holds sentences of one adapter only."""

from collections.abc import Iterator, Sequence

import numpy as np

from lorakit.data.packing import Layout, Plan, place_rows, plan_batch, round_up, sorted_groups
from lorakit.data.tokenization import Encoded

WIDER = (1, 2, 3, 4, 6, 8)  # widths that are tried, in longest sentences
STEPS = 8  # sizes per octave where few shapes are wanted: rounding up adds at most an eighth to rows and to width


def windows_of(encoded: Encoded, of_sentence: Sequence[int]) -> np.ndarray:
    """For each window the number that its sentence has in `of_sentence`; 0 for a window without words."""
    ends = np.cumsum(encoded.sentence_lengths)
    words = np.maximum.reduceat(encoded.words, encoded.offsets[:-1])
    sentences = np.searchsorted(ends, words, side="right")
    return np.where(words >= 0, np.asarray(of_sentence, np.int64)[np.minimum(sentences, len(ends) - 1)], 0)


def batches_by_adapter(
    encoded: Encoded, adapters: np.ndarray, layout: Layout, tokens: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Plan, np.ndarray]]:
    """One rank's batches of all windows, and the adapter of each of their rows.

    Args:
        encoded: the sentences.
        adapters: (windows,) the number of each window's adapter.
        layout: how the model takes its batches.
        tokens: real tokens in a batch, at most (or one window).
        rank, world_size: of this process.
    """
    for group in sorted_groups(encoded, layout, tokens)[rank::world_size]:
        yield plan_by_adapter(encoded, group, adapters[group], layout)


def plan_by_adapter(
    encoded: Encoded, windows: Sequence[int], adapters: np.ndarray, layout: Layout, few_shapes: bool = False
) -> tuple[Plan, np.ndarray]:
    """Place windows in rows of one adapter each.

    Args:
        encoded: the sentences.
        windows: their numbers; several adapters may read the same one.
        adapters: of each window.
        layout: how the model takes its batches.
        few_shapes: give packed rows a number and a width of which there are `STEPS` per octave, the width in units of
            the layout; the rows that this adds are empty, and the first row's adapter's.

    Returns:
        The plan, and the adapter of each of its rows.
    """
    if not layout.packing:
        return plan_batch(encoded, windows, layout), adapters
    windows = np.asarray(windows)
    lengths = encoded.lengths[windows]
    rows = rows_by_owner(lengths, adapters, layout.unit, few_shapes)
    unit = layout.unit
    if few_shapes:
        widest = round_up(max(int(lengths[row].sum()) for row in rows), unit) // unit
        unit *= one_of_few(widest)  # as all are narrower, this is the rows' width
        rows += [[]] * (one_of_few(len(rows)) - len(rows))
    owners = adapters[[row[0] if row else rows[0][0] for row in rows]]
    return place_rows(encoded, [windows[row] for row in rows], unit), owners


def one_of_few(size: int) -> int:
    """The next size of which there are `STEPS` per octave: all up to 16, then 18, …, 32, 36, …

    Example:
        from lorakit.data.adapter_rows import one_of_few
        [one_of_few(size) for size in (3, 15, 17, 33)]  # [3, 15, 18, 36]
    """
    step = 1
    while 2 * step * STEPS < size:
        step *= 2
    return round_up(size, step)


def rows_by_owner(lengths: np.ndarray, owners: np.ndarray, unit: int = 1, few_shapes: bool = False) -> list[list[int]]:
    """Deal items to rows that hold items of one owner each; of several widths, the one with the least padding.

    Args:
        lengths: tokens of each item.
        owners: of each item, a number.
        unit: the rows' common width is a multiple of this.
        few_shapes: count the padding of few sizes, as `plan_by_adapter` fills them up.

    Returns:
        The item numbers in each row, the rows of the lowest owner first.
    """
    order = np.lexsort((np.arange(len(lengths)), -lengths, owners))
    items = [(int(item), int(lengths[item]), int(owners[item])) for item in order]
    longest = round_up(int(lengths.max()), unit) // unit
    size = one_of_few if few_shapes else int
    best: tuple[int, list[list[int]]] | None = None
    for factor in WIDER:
        rows = _first_fit(items, unit * size(factor * longest))
        widest = round_up(max(int(lengths[row].sum()) for row in rows), unit) // unit
        cells = size(len(rows)) * unit * size(widest)
        if best is None or cells < best[0]:
            best = cells, rows
    return best[1]


def _first_fit(items: Sequence[tuple[int, int, int]], width: int) -> list[list[int]]:
    """Rows of at most this width: each item goes into the first row of its owner that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    first, before = 0, None  # first row of the present owner
    for item, length, owner in items:
        if owner != before:
            first, before = len(rows), owner
        number = next((n for n in range(first, len(rows)) if room[n] >= length), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(width)
        rows[number].append(item)
        room[number] -= length
    return rows
