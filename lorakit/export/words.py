"""Entities from any runtime that turns token ids into logits: the loop that an export's README shows.

It uses none of lorakit's own encoding, so it is a second opinion: the tokenizer's own word ids, and each word's first
subword.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

AT_ONCE = 8  # sentences in a batch, so padding is part of the proof
Logits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids, mask), both (sentences, tokens) int64 -> (sentences, tokens, classes)."""


def in_torch(model: nn.Module) -> Logits:
    """The runtime of a model that takes ids and a mask as transformers' do."""

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()

    return logits


def tag_by_words(
    tokenizer: Any, labels: Sequence[str], logits: Logits, sentences: Sequence[Sequence[str]]
) -> Iterator[list[str]]:
    """The tag of every word of pre-split sentences; a word without a token gets the first label.

    Args:
        tokenizer: a fast one that reads pre-split words as the model's training did.
        labels: of the model's classes.
        logits: the runtime.
        sentences: each no longer than the model can read at once.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    for start in range(0, len(sentences), AT_ONCE):
        rows = [list(words) for words in sentences[start : start + AT_ONCE]]
        batch = tokenizer(rows, is_split_into_words=True, padding=True, return_tensors="np")
        ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        classes = logits(ids, mask).argmax(-1)
        for i, words in enumerate(rows):
            tags = [labels[0]] * len(words)
            for place, word in reversed(list(enumerate(batch.word_ids(i)))):  # the first subword is written last
                if word is not None:
                    tags[word] = labels[classes[i, place]]
            yield tags
