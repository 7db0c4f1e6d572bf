"""Scores that mean something: a temperature fitted on validation, and thresholds that keep a promised precision.

A tagger's softmax is usually overconfident. Dividing the logits by one number, fitted so that the labels of a
validation set are most probable (Guo et al. 2017, arXiv:1706.04599), corrects that and changes no tag. A threshold for
a precision is the least score from which right / (kept + 1) on validation is at least the precision: the added 1
stands for the next entity, as in conformal prediction. Nothing is promised where the validation set does not show that
the precision can be reached: the threshold would then be a lucky one (`benchmarks/coverage.py`).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit._counts import counted
from lorakit._files import read_bounded, write_text
from lorakit.data.tags import in_labels_of, scheme_of_labels, spans, to_iob2, with_prefixes
from lorakit.training.checkpoint import hash_of
from lorakit.training.distributed import all_sum
from lorakit.training.evaluation import EncodedSplit, encode_split, label_names, read_words, tag_words
from lorakit.training.layout import layout_for

FILE, MOST_BYTES, SCHEMA = "calibration.json", 1 << 26, 2  # 1 did not say the decoder
FEWEST, RISK = 100, 0.01  # no precision is promised unless this many kept entities have it, at this risk of being wrong
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Calibration:
    """What a validation set says about a tagger's scores.

    Args:
        temperature: divides the logits, above 0; above 1 for an overconfident tagger.
        outcomes: type -> (score, whether the entity is right) of every entity predicted on the validation set.
        decode: "greedy" or "viterbi": the decoder that predicted them. The temperature is the same for both.
    """

    temperature: float
    outcomes: Mapping[str, Sequence[tuple[float, bool]]]
    decode: str = "greedy"

    def threshold(self, kind: str, precision: float) -> float:
        """The least score from which entities of a type are right with this probability.

        Args:
            kind: an entity type.
            precision: 0 to 1.

        Raises:
            ValueError: the validation set has too few entities of the type to promise it, or none scored high enough.
        """
        if not 0 < precision < 1:
            raise ValueError(f"the precision {precision:g} for {kind} must be between 0 and 1, such as 0.95")
        if kind not in self.outcomes:
            raise ValueError(
                f"no entity of type {kind!r} was predicted on the validation set; the types are"
                f" {', '.join(sorted(self.outcomes))}"
            )
        return threshold_of(self.outcomes[kind], kind, precision)


def threshold_of(outcomes: Sequence[tuple[float, bool]], kind: str, precision: float) -> float:
    """See `Calibration.threshold`.

    Raises:
        ValueError: as for `Calibration.threshold`.
    """
    from scipy.special import betaincinv  # heavy, so only where a threshold is asked for

    scores, right = (np.array(column, float) for column in zip(*sorted(outcomes, reverse=True), strict=True))
    kept, found = np.arange(1, len(scores) + 1), np.cumsum(right)
    ends = np.append(scores[1:] < scores[:-1], True)  # a threshold keeps all entities of equal scores
    lowest = np.where(found > 0, betaincinv(np.maximum(found, 1), kept - found + 1, RISK), 0)  # Clopper and Pearson
    if not (ends & (kept >= FEWEST) & (lowest >= precision)).any():
        raise ValueError(
            f"too few to promise a precision of {precision:g} for {kind}: of its"
            f" {counted(len(scores), 'entity', 'entities')} on the validation set, no score keeps {FEWEST} or more that"
            f" are so often right with {1 - RISK:.0%} confidence; ask for less, or calibrate on more sentences"
        )
    good = ends & (found / (kept + 1) >= precision)
    return float(scores[np.flatnonzero(good)[-1]])


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


def save_calibration(calibration: Calibration, folder: Path) -> Path:
    """Write it next to the weights it belongs to, atomically.

    Raises:
        ValueError: the folder has no weights.
        OSError: it cannot be written.
    """
    record = {"schema": SCHEMA, "weights": _digest(folder), **asdict(calibration)}
    write_text(folder / FILE, json.dumps(record) + "\n")
    return folder / FILE


def load_calibration(folder: Path) -> Calibration | None:
    """Read it from an adapter's or model's folder; None where there is none.

    Raises:
        ValueError: it is damaged, of an earlier version, or belongs to other weights than those now in the folder.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(read_bounded(path, MOST_BYTES))
        weights, temperature, decode = record["weights"], float(record["temperature"]), record.get("decode")
        outcomes = {
            str(kind): [(float(score), bool(right)) for score, right in rows]
            for kind, rows in record["outcomes"].items()
        }
        if not 0 < temperature < math.inf:
            raise ValueError(f"the temperature is {temperature}")
        if decode not in ("greedy", "viterbi", None):
            raise ValueError(f"the decoder is {decode!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it, or run lorakit calibrate again") from None
    if weights != _digest(folder):
        raise ValueError(f"{path} belongs to other weights than those now in its folder; run lorakit calibrate again")
    if decode is None:
        raise ValueError(
            f"{path} is of an earlier version and does not say which decoder it is for; run lorakit calibrate again"
        )
    return Calibration(temperature, outcomes, decode)


def _digest(folder: Path) -> str:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return hash_of(folder / name)[:16]
    raise ValueError(f"{folder} holds none of {', '.join(WEIGHTS)}; give a saved adapter or model")


def keep_above(entities: Iterable[Any], least: Mapping[str, float], default: float = 0.0) -> list[Any]:
    """The entities whose score is at least that of their type."""
    return [entity for entity in entities if entity.score >= least.get(entity.type, default)]
