"""From class probabilities to tags: the best class of each word, or the best sequence that keeps to the scheme.

"greedy" takes each word's best class, so an I- may continue nothing. "viterbi" takes the most probable sequence among
those that the scheme allows (Viterbi 1967); where the greedy sequence is allowed it is the most probable one, and is
kept as it is. "auto" is what the tagger was trained with: `train` takes "viterbi" where the labels are entity tags, and
its choice is stored in the model's configuration, under KEY, and with its adapter. A tagger that says nothing is read
greedily, because its labels do not tell whether it learned iob1 or iob2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lorakit.data.tags import DECODERS, scheme_of_labels, split_tag, with_prefixes

KEY = "lorakit_decode"  # in a model's configuration


class Transitions(NamedTuple):
    """Which tags a scheme allows where; every array is boolean.

    Attributes:
        start: (classes,), at the first word.
        follow: (classes, classes), `follow[a, b]` whether b may follow a.
        end: (classes,), at the last word.
    """

    start: np.ndarray
    follow: np.ndarray
    end: np.ndarray


def check_decode(decode: str) -> str:
    """Return the name of a decoder unchanged.

    Raises:
        ValueError: it is not one of DECODERS.
    """
    if decode not in DECODERS:
        raise ValueError(f"decode is {decode!r}; it must be one of {', '.join(DECODERS)}")
    return decode


def decoder_for(decode: str, labels: Sequence[str]) -> str:
    """What training decodes with: "auto" is "viterbi" for entity tags of which some sequence is allowed, else "greedy".

    Example:
        from lorakit.data.decoding import decoder_for
        decoder_for("auto", ["O", "B-DNA", "I-DNA"])  # 'viterbi'

    Raises:
        ValueError: the name is unknown, or "viterbi" is asked for and the labels do not allow it.
    """
    if check_decode(decode) == "greedy":
        return decode
    try:
        transitions(labels)
    except ValueError:
        if decode == "viterbi":
            raise
        return "greedy"
    return "viterbi"


def decoder_of(model: Any, decode: str = "auto") -> str:
    """What to decode a model's output with: "auto" is what it was trained with, "greedy" where nothing says so.

    Raises:
        ValueError: the name is unknown.
    """
    if check_decode(decode) != "auto":
        return decode
    stored = getattr(getattr(model, "config", None), KEY, None)
    return stored if stored == "viterbi" else "greedy"


def remember_decoder(model: Any, decode: str) -> None:
    """Write a decoder into a model's configuration; "greedy" leaves no trace."""
    config = getattr(model, "config", None)
    if config is None:
        return
    if decode == "viterbi":
        setattr(config, KEY, decode)
    elif hasattr(config, KEY):
        delattr(config, KEY)


def transitions(labels: Sequence[str], scheme: str | None = None) -> Transitions:
    """The transitions that the scheme of a tagger's labels allows.

    Example:
        from lorakit.data.decoding import transitions
        transitions(["O", "B-DNA", "I-DNA"]).follow[0].tolist()  # [True, True, False]

    Args:
        labels: of the tagger, in the order of its classes.
        scheme: one of `lorakit.data.tags.SCHEMES`; None for the one that the labels tell.

    Raises:
        ValueError: the labels are not entity tags, or no sequence of them is allowed.
    """
    scheme = scheme or scheme_of_labels(labels)
    if scheme is None:
        raise ValueError(
            f"decode='viterbi' needs entity tags (O, B-DNA, …), and the labels are {', '.join(labels)}; use 'greedy'"
        )
    parts = [split_tag(tag) for tag in with_prefixes(labels).values()]
    start = np.array([_may_begin(scheme, part, ("O", "")) for part in parts])
    follow = np.array([[_may_follow(scheme, one, other) for other in parts] for one in parts])
    end = np.array([scheme != "bioes" or prefix in "OES" for prefix, _ in parts])
    if not (start & end).any():
        raise ValueError(f"no label may stand alone in {scheme}: the labels are {', '.join(labels)}; use 'greedy'")
    return Transitions(start, follow, end)


def _may_begin(scheme: str, tag: tuple[str, str], before: tuple[str, str]) -> bool:
    """Whether a tag may come after one that it does not continue."""
    prefix, kind = tag
    if scheme == "bioes":
        return prefix in "OBS"
    if scheme == "iob2":
        return prefix in "OB"
    return prefix in "OI" or before[0] in "BI" and before[1] == kind  # iob1's B- separates two of a type


def _may_follow(scheme: str, before: tuple[str, str], tag: tuple[str, str]) -> bool:
    continues = tag[0] in "IE" and before[0] in "BI" and tag[1] == before[1]
    if scheme == "bioes" and before[0] in "BI":
        return continues
    return continues or _may_begin(scheme, tag, before)


def viterbi(log_probabilities: np.ndarray, lengths: np.ndarray, allowed: Transitions) -> np.ndarray:
    """The most probable allowed class of every word, sentence by sentence.

    Args:
        log_probabilities: (words, classes), of all sentences one after the other.
        lengths: (sentences,), in words; a sentence may be empty.
        allowed: from `transitions`.

    Returns:
        (words,) classes.
    """
    classes = log_probabilities.argmax(1)
    starts = np.cumsum(lengths) - lengths
    for first, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        part = slice(first, first + length)
        if length and not _is_allowed(classes[part], allowed):
            classes[part] = _best_path(log_probabilities[part].astype(np.float64), allowed)
    return classes


def _is_allowed(classes: np.ndarray, allowed: Transitions) -> bool:
    inside = allowed.follow[classes[:-1], classes[1:]].all()
    return bool(allowed.start[classes[0]] and inside and allowed.end[classes[-1]])


def _best_path(scores: np.ndarray, allowed: Transitions) -> np.ndarray:
    """The allowed sequence with the highest sum of scores, (words, classes)."""
    barred = np.where(allowed.follow, 0.0, -np.inf)
    best = scores[0] + np.where(allowed.start, 0.0, -np.inf)
    came_from = []
    for row in scores[1:]:
        paths = best[:, None] + barred
        came_from.append(paths.argmax(0))
        best = paths.max(0) + row
    path = [int((best + np.where(allowed.end, 0.0, -np.inf)).argmax())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return np.array(path[::-1])
