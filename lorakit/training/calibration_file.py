"""What `lorakit calibrate` keeps beside the weights, calibration.json: the thresholds that follow from it.

A threshold for a precision is the least score from which right / (kept + 1) on validation is at least the precision:
the added 1 stands for the next entity, as in conformal prediction. Nothing is promised where the validation set does
not show that the precision can be reached: the threshold would then be a lucky one. Every second entity is asked that,
and the others give the threshold, because those that were lucky in the first question would be again in the second, and
the promise would be broken just where it is hardest to keep (`benchmarks/coverage.py`).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorakit._counts import counted
from lorakit._files import read_bounded, write_text
from lorakit.adapters.files import CALIBRATION, find_folder
from lorakit.training.checkpoint import hash_of

FILE, MOST_BYTES, SCHEMA = CALIBRATION, 1 << 26, 2  # 1 did not say the decoder
FEWEST, RISK = 50, 0.01  # of every second entity, so many must be kept and have the precision, at this risk of error
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

    # by score alone: entities of equal scores keep the order of the corpus, which does not depend on being right
    ranked = sorted(outcomes, key=lambda outcome: -outcome[0])
    _, kept, found, ends = _counts(ranked[::2])
    lowest = np.where(found > 0, betaincinv(np.maximum(found, 1), kept - found + 1, RISK), 0)  # Clopper and Pearson
    possible = (ends & (kept >= FEWEST) & (lowest >= precision)).any()
    scores, kept, found, ends = _counts(ranked[1::2])
    good = np.flatnonzero(ends & (found / (kept + 1) >= precision))
    if not possible or not len(good):
        raise ValueError(
            f"too few to promise a precision of {precision:g} for {kind}: of every second of its"
            f" {counted(len(ranked), 'entity', 'entities')} on the validation set, no score keeps {FEWEST} or more that"
            f" are so often right with {1 - RISK:.0%} confidence; ask for less, or calibrate on more sentences"
        )
    return float(scores[good[-1]])


def _counts(ranked: Sequence[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per entity, best score first: its score, how many are kept from it on, how many of those are right, and whether
    it is the last of its score, because a threshold keeps all entities of equal scores."""
    scores, right = np.array(ranked, float).reshape(-1, 2).T
    last = np.append(scores, -np.inf)[1:] < scores
    return scores, np.arange(1, len(scores) + 1), np.cumsum(right), last


def save_calibration(calibration: Calibration, folder: Path) -> Path:
    """Write it next to the weights it belongs to, atomically.

    Raises:
        ValueError: the folder has no weights.
        OSError: it cannot be written.
    """
    record = {"schema": SCHEMA, "weights": _digest(folder), **asdict(calibration)}
    write_text(folder / FILE, json.dumps(record) + "\n")
    return folder / FILE


def folder_of(adapter: str | None, model: str | None) -> Path:
    """Where the weights are that `load_tagger` loads: of a hub id the cache's folder.

    Args:
        adapter: a folder or hub id.
        model: without an adapter, a folder, or the hub id of a model that has been loaded, which is in the cache then.
            Nothing more is fetched, so its calibration is there only if all of it was (hf download).
    """
    if adapter:
        return find_folder(adapter)
    folder = Path(model or "")
    return folder if not model or folder.is_dir() else _cached(model) or folder


def _cached(hub_id: str) -> Path | None:
    """The folder of the hub's cache that a model was loaded from."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:  # a path of a folder that is not there
        return None
    return Path(found).parent if isinstance(found, str) else None


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
