"""Words to subwords and back, without losing a word.

A sentence becomes one *window* `<s> subwords </s>`, or several if it is longer than the model can read. The first
subword represents a word: it carries the word's label, and the word's prediction is read there. Three rules keep every
word in its place:

- a word for which the tokenizer finds nothing ("" or a lone control character) is encoded as the unknown token;
- text that looks like a special token ("<pad>") is encoded as text;
- long sentences are cut at word borders into overlapping windows, and each word belongs to the one window in which it
  has the most context. A word is therefore counted once in the loss and predicted once.
"""

from collections.abc import Iterable, Sequence
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


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot take pre-split words or that joins them.

    A byte-level tokenizer loaded without `add_prefix_space=True` would silently read ["IL-2", "gene"] as "IL-2gene".

    Raises:
        ValueError: with the tokenizer's class and the fix.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{type(tokenizer).__name__} cannot map subwords to words; load a fast tokenizer")
    split = tokenizer(["x", "gene"], is_split_into_words=True, add_special_tokens=False)
    running = tokenizer("x gene", add_special_tokens=False)["input_ids"]
    if split["input_ids"] != running[-len(split["input_ids"]) :]:
        raise ValueError(
            f"{type(tokenizer).__name__} reads the words ['x', 'gene'] as"
            f" {tokenizer.convert_ids_to_tokens(split['input_ids'])} but the text 'x gene' as"
            f" {tokenizer.convert_ids_to_tokens(running)};"
            " load it with AutoTokenizer.from_pretrained(..., add_prefix_space=True)"
        )


def encode(
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    window: int,
    tags: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] = (),
) -> Encoded:
    """Encode pre-split sentences, with their tags for training or without for prediction.

    Args:
        tokenizer: a fast tokenizer that `check_tokenizer` accepts.
        sentences: the words of each sentence.
        window: tokens that the model can read at once, special tokens included.
        tags: one tag per word, or None.
        labels: the tag of each class, in the model's order.

    Raises:
        ValueError: a tag is not among the labels, or a sentence has more or fewer tags than words.
    """
    before, after = _special_tokens(tokenizer)
    room = window - len(before) - len(after)
    if room < 1:
        raise ValueError(f"a window of {window} tokens leaves no room beside {len(before) + len(after)} special tokens")
    subwords = _subwords(tokenizer, (word for words in sentences for word in words))
    classes = {label: number for number, label in enumerate(labels)}
    ids: list[int] = []
    starts: list[int] = []  # per word: where its first subword is in ids,
    numbers: list[int] = []  # its number in the corpus,
    targets: list[int] = []  # and its class
    offsets, word_number = [0], 0
    for number, words in enumerate(sentences):
        wanted = _classes(words, tags[number], classes, number) if tags is not None else [IGNORE] * len(words)
        pieces = [subwords[word][:room] for word in words]  # no model could see more of a word than a full window
        for first, last, owned in cut_windows([len(piece) for piece in pieces], room):
            ids += before
            for i in range(first, last):
                if i in owned:
                    starts.append(len(ids))
                    numbers.append(word_number + i)
                    targets.append(wanted[i])
                ids += pieces[i]
            ids += after
            offsets.append(len(ids))
        word_number += len(words)
    word_at, label_at = np.full(len(ids), -1, np.int64), np.full(len(ids), IGNORE, np.int64)
    word_at[starts], label_at[starts] = numbers, targets
    return Encoded(
        ids=np.array(ids, np.int64),
        labels=label_at,
        words=word_at,
        offsets=np.array(offsets, np.int64),
        sentence_lengths=np.array([len(words) for words in sentences], np.int64),
    )


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


def _subwords(tokenizer: Any, words: Iterable[str]) -> dict[str, list[int]]:
    """The subword ids of every distinct word: pre-split words do not depend on their neighbours."""
    distinct = list(dict.fromkeys(words))
    if not distinct:
        return {}
    # split_special_tokens: "<pad>" in a text is five characters, not the padding token
    found = tokenizer(
        [[word] for word in distinct], is_split_into_words=True, add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    unknown = tokenizer.unk_token_id
    for word, ids in zip(distinct, found, strict=True):
        if not ids and unknown is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no subword for {word!r} and no unknown token to use instead"
            )
    return {word: ids or [unknown] for word, ids in zip(distinct, found, strict=True)}


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids the model expects before and after a sentence."""
    encoding = tokenizer(["x"], is_split_into_words=True)
    inside = [i for i, word in enumerate(encoding.word_ids()) if word is not None]
    return encoding["input_ids"][: inside[0]], encoding["input_ids"][inside[-1] + 1 :]


def _classes(words: Sequence[str], tags: Sequence[str], classes: dict[str, int], number: int) -> list[int]:
    if len(words) != len(tags):
        raise ValueError(f"sentence {number} has {len(words)} words and {len(tags)} tags")
    try:
        return [classes[tag] for tag in tags]
    except KeyError as error:
        raise ValueError(f"sentence {number} has the tag {error}; the model knows {', '.join(classes)}") from None
