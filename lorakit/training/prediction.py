"""Named entities in texts: raw ones, and sentences that are split into words.

Both go the same way as in training: words to subwords, packed batches, one tag for every word. A raw text is only split
into words first (`words.py`), and the tags of its words are read as entities with their place in the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import nn

from lorakit.data.pretokenizer import Word, split_words
from lorakit.data.tags import spans
from lorakit.training.evaluation import Tokenizer, label_names, tag_words


@dataclass(frozen=True)
class Entity:
    """A named entity: `text[start:end]` of the text it was found in, which are its words [first_word, end_word).

    `score` is the mean, over its words, of the probability of each word's tag (softmax), 0 to 1: as in transformers'
    pipelines, and unlike a product it does not fall with the entity's length.
    """

    type: str
    start: int  # in characters of the raw text
    end: int
    text: str
    score: float
    first_word: int  # in words of `split_words(text)`
    end_word: int


@overload
def predict(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], precision: str = "auto", packing: bool = True
) -> list[list[Entity]]: ...
@overload
def predict(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool = True,
) -> list[list[str]]: ...
def predict(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool = True,
) -> list[list[Entity]] | list[list[str]]:
    """Find the entities of raw texts, or the tag of every word of pre-split sentences.

    A text longer than the model can read goes through it in overlapping windows. Models are trained on single sentences
    and are best on such.

    Args:
        texts: strings, or sentences split into words.

    Returns:
        For strings the entities of each, in order; for pre-split sentences one tag for every word of each.

    Raises:
        ValueError: `texts` is one string, mixes both kinds, or holds half a surrogate pair; or the model's classes are
            not tags of entities.
    """
    if isinstance(texts, str):
        raise ValueError(f"predict takes a list of texts; this is one string: write [{texts[:40]!r}]")
    raw = [isinstance(text, str) for text in texts]
    if any(raw) and not all(raw):
        raise ValueError(
            "predict takes strings, or sentences split into words, such as [['IL-2', 'gene']]; these texts are"
            f" both: number {raw.index(not raw[0])} is another kind than number 0"
        )
    if not any(raw):
        return tag_words(model, tokenizer, texts, precision, packing).tags
    return [entities for _, _, entities in find_entities(model, tokenizer, texts, precision, packing)]


def find_entities(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], precision: str = "auto", packing: bool = True
) -> list[tuple[list[Word], list[str], list[Entity]]]:
    """The words of each raw text, their tags and their entities; see `predict`."""
    scheme, words = _scheme(label_names(model)), [split_words(text) for text in texts]
    found = tag_words(model, tokenizer, [[word.text for word in row] for row in words], precision, packing)
    return [
        (row, tags, _entities(text, row, tags, probabilities, scheme))
        for text, row, tags, probabilities in zip(texts, words, found.tags, found.probabilities, strict=True)
    ]


def _entities(
    text: str, words: Sequence[Word], tags: Sequence[str], probabilities: Sequence[float], scheme: str
) -> list[Entity]:
    found = []
    for kind, first, end in spans(tags, scheme):
        start, stop = words[first].start, words[end - 1].end
        score = sum(probabilities[first:end]) / (end - first)
        found.append(Entity(kind, start, stop, text[start:stop], score, first, end))
    return found


def _scheme(labels: Sequence[str]) -> str:
    """How a model's tags are written: bioes if any says so, else iob2, which also reads iob1 as seqeval does.

    Raises:
        ValueError: a label is not a tag, as with a head for something else.
    """
    scheme = "bioes" if any(label[:2] in ("E-", "S-", "L-", "U-") for label in labels) else "iob2"
    try:
        spans(labels, scheme)
    except ValueError as error:
        raise ValueError(
            f"the model's classes are not entity tags ({error}); its labels are {', '.join(labels)}"
        ) from None
    return scheme
