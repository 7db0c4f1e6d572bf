"""A small corpus that a tiny model learns in seconds, and what the training tests share."""

import itertools
import json
from contextlib import contextmanager
from unittest import mock

import numpy as np

from lorakit.data.corpus import NerData, Sentence
from lorakit.data.encoding import encode
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.training.config import TrainConfig
from lorakit.training.state import SinceLog
from tests.support.tiny import LABELS

NAMES = ["IL-2", "GATA-1", "NF-kappaB", "c-Fos", "Stat5", "TNF-alpha"]
PLAIN = ["the", "cells", "of", "activates", "in", "binding", "was", "increased", ".", ""]


def toy_sentences(count: int, seed: int) -> tuple[Sentence, ...]:
    """Half of the names are genes, mostly followed by that word; the others are proteins."""
    draw = np.random.default_rng(seed)
    sentences = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.integers(1, 6)):
            words.append(str(draw.choice(PLAIN)))
            tags.append("O")
            if draw.random() < 0.6:
                name = str(draw.choice(NAMES))
                dna = name in NAMES[:3]
                words += [name] + ["gene"] * dna
                tags += ["B-DNA", "I-DNA"] if dna else ["B-protein"]
        sentences.append(Sentence(tuple(words), tuple(tags)))
    return tuple(sentences)


def toy_data(train: int, validation: int, test: int) -> NerData:
    """A corpus with so many sentences in each split."""
    return NerData(toy_sentences(train, 0), toy_sentences(validation, 1), toy_sentences(test, 2), LABELS, "toy")


def quick(**changes):
    """The settings of a short run."""
    return TrainConfig(**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "progress": False, **changes})


@contextmanager
def killed_after(steps):
    """While active, a run is killed in the middle of a step, this many counted from now; None: it is not."""
    add, numbers = SinceLog.add, itertools.count(1)

    def die(self, *args):
        if next(numbers) == steps:
            raise KeyboardInterrupt
        add(self, *args)

    with mock.patch.object(SinceLog, "add", die):
        yield


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step_lines(folder):
    return [line for line in read_log(folder) if line["event"] == "step"]


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def corpus_of(lengths):
    """Sentences of one word, which is named by the sentence's number."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels, words = np.full(offsets[-1], IGNORE), np.full(offsets[-1], -1)
    labels[offsets[:-1]], words[offsets[:-1]] = 0, np.arange(len(lengths))
    return Encoded(np.full(offsets[-1], 7), labels, words, offsets, np.ones(len(lengths), int))


def encoded_sentences(tokenizer, shortest=1):
    """37 sentences of `shortest` to 29 words, all tagged O."""
    generator = np.random.default_rng(0)
    words = ["IL-2", "gene", "expression", "NF-kappaB", "activates", "of", "T", "cells", "."]
    sentences = [[words[i] for i in generator.integers(0, 9, generator.integers(shortest, 30))] for _ in range(37)]
    return encode(tokenizer, sentences, 512, [["O"] * len(sentence) for sentence in sentences], ["O"])
