"""Encoded sentences: windows of subwords, with the word that starts at each.

A sentence becomes one *window*, or several if it is longer than the model can read. Long sentences are cut at word
borders into overlapping windows, and each word belongs to the one window in which it has the most context. A word is
therefore counted once in the loss and predicted once. `lorakit.data.encoding` makes the windows from words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

IGNORE = -100  # cross_entropy's default ignore_index


@dataclass(frozen=True)
class Encoded:
    """Encoded sentences as flat arrays; window w is the slice `offsets[w]:offsets[w + 1]` of the first three.

    Attributes:
        ids: (subwords,), token ids, special tokens included.
        labels: (subwords,), the class of the word that starts here, else IGNORE.
        words: (subwords,), the number of the word that starts here, counted over all sentences, else -1.
        offsets: (windows + 1,), where each window starts.
        sentence_lengths: (sentences,), in words.
    """

    ids: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    offsets: np.ndarray
    sentence_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of subwords in each window, special tokens included."""
        return np.diff(self.offsets)

    @property
    def cut(self) -> int:
        """How many sentences are in several windows."""
        places = np.flatnonzero(self.words >= 0)
        sentences = np.repeat(np.arange(len(self.sentence_lengths)), self.sentence_lengths)[self.words[places]]
        windows = np.searchsorted(self.offsets, places, side="right") - 1
        pairs = np.unique(np.stack([sentences, windows]), axis=1)
        return int((np.bincount(pairs[0]) > 1).sum())


def split_by_sentence(per_word: Sequence[Any], encoded: Encoded) -> list[list[Any]]:
    """Cut a list with one value per word of the corpus into one list per sentence."""
    ends = list(accumulate(encoded.sentence_lengths.tolist(), initial=0))
    return [list(per_word[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def cut_windows(sizes: Sequence[int], room: int) -> list[tuple[int, int, range]]:
    """Cut a sentence into windows: (first word, last word + 1, the words that belong to the window).

    Neighbouring windows share up to a quarter of their room. A shared word belongs to the window that shows more text
    on the side where the word has less.

    Args:
        sizes: subwords of each word, each at most `room`.
        room: subwords that fit into a window.
    """
    if sum(sizes) <= room:
        return [(0, len(sizes), range(len(sizes)))] if sizes else []
    ends = list(accumulate(sizes, initial=0))  # subwords before word i
    found, first = [], 0
    while True:
        last = first + 1
        while last < len(sizes) and ends[last + 1] - ends[first] <= room:
            last += 1
        found.append((first, last))
        if last == len(sizes):
            break
        first = next(i for i in range(first + 1, last + 1) if ends[last] - ends[i] <= room // 4)
    borders = [0]
    for (_, end), (start, _) in zip(found, found[1:], strict=False):
        # left of the middle of the shared text, the earlier window shows more on the right than the later on the left
        middle = (ends[start] + ends[end]) / 2
        borders.append(next(i for i in range(start, end + 1) if ends[i] >= middle or i == end))
    borders.append(len(sizes))
    return [(first, last, range(a, b)) for (first, last), a, b in zip(found, borders, borders[1:], strict=False)]
