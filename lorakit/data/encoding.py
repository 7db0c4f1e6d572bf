"""Words to windows of subwords, without losing a word.

A sentence becomes one window `<s> subwords </s>`, or several. The first subword (the second, if the first is only the
space before the word) represents a word: it carries the word's label, and the word's prediction is read there. Three
rules keep every word in its place:

- a word for which the tokenizer finds nothing ("" or a lone control character) is encoded as the unknown token;
- text that looks like a special token ("<pad>") is encoded as text, unless the token was added for texts ("<URL>");
- a sentence that is too long becomes overlapping windows, and each word belongs to one of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorakit._counts import counted
from lorakit.data.subwords import subwords
from lorakit.data.tokenization import IGNORE, Encoded, cut_windows


def encode(
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    window: int,
    tags: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] = (),
) -> Encoded:
    """Encode pre-split sentences, with their tags for training or without for prediction.

    Args:
        tokenizer: a fast tokenizer that `lorakit.data.subwords.check_tokenizer` accepts.
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
        raise ValueError(
            f"a window of {counted(window, 'token')} leaves no room beside "
            f"{counted(len(before) + len(after), 'special token')}"
        )
    known = subwords(tokenizer, (word for words in sentences for word in words))
    classes = {label: number for number, label in enumerate(labels)}
    ids: list[int] = []
    starts: list[int] = []  # per word: where the subword that represents it is in ids,
    numbers: list[int] = []  # its number in the corpus,
    targets: list[int] = []  # and its class
    offsets, word_number = [0], 0
    for number, words in enumerate(sentences):
        wanted = _classes(words, tags[number], classes, number) if tags is not None else [IGNORE] * len(words)
        pieces = [known[word].ids[:room] for word in words]  # no model could see more of a word than a full window
        for first, last, owned in cut_windows([len(piece) for piece in pieces], room):
            ids += before
            for i in range(first, last):
                if i in owned:
                    starts.append(len(ids) + min(known[words[i]].first, len(pieces[i]) - 1))
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


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token ids the model expects before and after a sentence."""
    encoding = tokenizer(["x"], is_split_into_words=True)
    inside = [i for i, word in enumerate(encoding.word_ids()) if word is not None]
    return encoding["input_ids"][: inside[0]], encoding["input_ids"][inside[-1] + 1 :]


def _classes(words: Sequence[str], tags: Sequence[str], classes: dict[str, int], number: int) -> list[int]:
    if len(words) != len(tags):
        raise ValueError(f"sentence {number} has {counted(len(words), 'word')} and {counted(len(tags), 'tag')}")
    try:
        return [classes[tag] for tag in tags]
    except KeyError as error:
        raise ValueError(
            f"sentence {number} has the tag {error}; the model knows {', '.join(classes)}: rename other types, or leave"
            " them out, with a label map (label_map), or give a corpus of the model's types"
        ) from None
