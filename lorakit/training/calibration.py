"""Scores that mean something: a temperature fitted on validation, and which entities are right there at which score.

A tagger's softmax is usually overconfident. Dividing the logits by one number, fitted so that the labels of a
validation set are most probable (Guo et al. 2017, arXiv:1706.04599), corrects that and changes no tag.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.tags import in_labels_of, scheme_of_labels, spans, to_iob2, with_prefixes
from lorakit.training.calibration_file import Calibration
from lorakit.training.distributed import all_sum
from lorakit.training.evaluation import EncodedSplit, encode_split, label_names, read_words, tag_words
from lorakit.training.layout import layout_for


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    precision: str = "auto",
    decode: str = "auto",
) -> Calibration:
    """Fit the temperature on (words, tags) pairs, and note which entities are right at which score.

    Example:
        import lorakit
        from lorakit.training.calibration import calibrate
        from lorakit.training.models import load_token_classifier
        data = lorakit.read_ner("examples/conll")
        model, tokenizer = load_token_classifier("examples/mini", data.labels)
        calibrate(model, tokenizer, data.validation).temperature > 0  # True

    Args:
        model: a tagger.
        tokenizer: the model's.
        sentences: that the tagger was not trained on.
        precision: the number format, as in TrainConfig.
        decode: as in `predict`; the scores are those of this decoder.

    Raises:
        ValueError: as for `evaluate`.
    """
    split = encode_split(model, tokenizer, sentences, layout_for(model, "auto", precision), decode=decode)
    labels = label_names(model)
    gold = np.empty(int(split.encoded.sentence_lengths.sum()), np.int64)
    starts = split.encoded.words >= 0
    gold[split.encoded.words[starts]] = split.encoded.labels[starts]
    logits = torch.zeros(len(gold), len(labels), device=next(model.parameters()).device)
    read_words(model, split, precision, lambda done, total: None, partial(logits.index_copy_, 0))
    all_sum(logits)  # each word is read by one rank, and is 0 on the others
    temperature = fit_temperature(logits.cpu(), _in_the_taggers_scheme(gold, logits.cpu(), split, labels))
    tag_of, scheme = with_prefixes(labels), split.scheme or scheme_of_labels(labels)
    words = [words for words, _ in sentences]
    found = tag_words(model, tokenizer, words, precision, decode=decode, temperature=temperature)
    ends = np.cumsum(split.encoded.sentence_lengths)[:-1]
    outcomes: dict[str, list[tuple[float, bool]]] = {}
    for row, tags, chances in zip(np.split(gold, ends), found.tags, found.probabilities, strict=True):
        right = set(spans([tag_of[labels[number]] for number in row.tolist()], scheme))
        for entity in spans([tag_of[tag] for tag in tags], scheme):
            outcomes.setdefault(entity.type, []).append((entity.mean(chances), entity in right))
    return Calibration(temperature, outcomes, split.decode)


def _in_the_taggers_scheme(gold: np.ndarray, logits: Tensor, split: EncodedSplit, labels: Sequence[str]) -> Tensor:
    """The classes of the gold tags as the tagger would write them.

    The labels of iob1 and iob2 can be the same, so nothing but the tagger's own output tells which it learned. Tags of
    the other scheme would make a good tagger look overconfident wherever an entity begins.

    Args:
        gold: (words,) classes as the corpus has them.
        logits: (words, classes).
        split: the sentences.
        labels: of the classes.
    """
    wanted = torch.from_numpy(gold)
    if scheme_of_labels(labels) != "iob2":
        return wanted
    sentences = np.split(gold, np.cumsum(split.encoded.sentence_lengths)[:-1])
    tags = [[labels[number] for number in row.tolist()] for row in sentences]
    number_of = {label: number for number, label in enumerate(labels)}
    readings = [wanted]
    for written in (
        [to_iob2(row, "iob2") for row in tags],
        [in_labels_of(row, labels, "iob1", "iob2") for row in tags],
    ):
        if all(tag in number_of for row in written for tag in row):
            readings.append(torch.tensor([number_of[tag] for row in written for tag in row]))
    return min(readings, key=lambda reading: float(F.cross_entropy(logits, reading)))


def fit_temperature(logits: Tensor, wanted: Tensor) -> float:
    """The temperature at which the wanted classes are most probable: a golden-section search on its logarithm.

    Args:
        logits: (words, classes).
        wanted: (words,) classes.
    """

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_temperature), wanted))

    low, high, ratio = math.log(0.05), math.log(20), (math.sqrt(5) - 1) / 2
    while high - low > 1e-5:  # the loss is convex in 1/T, so it falls and then rises in log T
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, other) if loss(one) < loss(other) else (one, high)
    return math.exp((low + high) / 2)
