"""Entities from any runtime that turns token ids into logits: the loop that an export's README shows.

It uses none of lorakit's own encoding, so it is a second opinion: the tokenizer's own word ids, and each word's first
subword. From a sentence's logits to tags there is a way for each decoder: TO_TAGS are the lines that a README
shows. Greedy ones need nothing else; Viterbi needs to know what the scheme allows, which the file TRANSITIONS says.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lorakit.data.decoding import transitions

TRANSITIONS = "transitions.json"  # beside a model that was trained with Viterbi
# a README's lines from `model` and `tokenizer` on, in PyTorch
WORDS = """
import torch

labels = model.config.id2label
words = ["The", "IL-2", "gene", "(", "IL2", ")", "."]
batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0].numpy()
ids = batch.word_ids(0)
rows = logits[[ids.index(i) for i in range(len(words))]]  # a word's first subword counts
"""
GREEDY = """print([labels[i] for i in rows.argmax(-1)])
"""
VITERBI = """
# as in lorakit.predict: the most probable tags that keep to the scheme; rows.argmax(-1) would be the greedy ones
import json
from pathlib import Path

import numpy as np

rows, allowed = rows.astype(float), json.loads(Path("transitions.json").read_text())
start, follow, end = (np.where(allowed[name], 0, -np.inf) for name in ("start", "follow", "end"))
best, came_from = rows[0] + start, []
for row in rows[1:]:
    paths = best[:, None] + follow
    came_from.append(paths.argmax(0))
    best = paths.max(0) + row
path = [(best + end).argmax()]
for before in reversed(came_from):
    path.append(before[path[-1]])
print([labels[i] for i in reversed(path)])
"""
TO_TAGS = {"greedy": GREEDY, "viterbi": VITERBI}  # a README's lines from `rows`, (words, classes), and `labels` on
LONGER = """A sentence may have up to {window:,} tokens: `lorakit.predict` reads a longer one in several windows, \
and these lines do not."""
AT_ONCE = 8  # sentences in a batch, so padding is part of the proof
Logits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids, mask), both (sentences, tokens) int64 -> (sentences, tokens, classes)."""


def in_torch(model: nn.Module) -> Logits:
    """The runtime of a model that takes ids and a mask as transformers' do."""

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()

    return logits


def read_by_words(tokenizer: Any, logits: Logits, sentences: Sequence[Sequence[str]]) -> Iterator[np.ndarray]:
    """The logits, (words, classes), of each pre-split sentence; 0 for a word without a token.

    Args:
        tokenizer: a fast one that reads pre-split words as the model's training did.
        logits: the runtime.
        sentences: each no longer than the model can read at once.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    for start in range(0, len(sentences), AT_ONCE):
        rows = [list(words) for words in sentences[start : start + AT_ONCE]]
        batch = tokenizer(rows, is_split_into_words=True, padding=True, return_tensors="np")
        ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
        found = logits(ids, mask)
        for i, words in enumerate(rows):
            by_word = np.zeros((len(words), found.shape[-1]), found.dtype)
            for place, word in reversed(list(enumerate(batch.word_ids(i)))):  # the first subword is written last
                if word is not None:
                    by_word[word] = found[i, place]
            yield by_word


def write_transitions(decode: str, labels: Sequence[str], folder: Path) -> None:
    """Write what the labels' scheme allows, if the decoder is one that has to know."""
    if decode == "viterbi":
        record = {name: rule.tolist() for name, rule in transitions(labels)._asdict().items()}
        (folder / TRANSITIONS).write_text(json.dumps(record) + "\n", encoding="utf-8")
