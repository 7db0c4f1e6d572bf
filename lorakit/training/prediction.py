"""Find named entities in raw texts, and tag sentences that are already split into words.

Both are handled as in training: words to subwords, packed batches, one tag per word. A raw text is first split into
words (`lorakit.data.pretokenizer`), and their tags are then read as entities with their place in the text.
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
    """A named entity, `text[start:end]` of the raw text it was found in.

    Example:
        import lorakit
        entity = lorakit.Entity("DNA", start=4, end=13, text="IL-2 gene", score=0.9, first_word=1, end_word=3)
        "The IL-2 gene"[entity.start : entity.end]  # 'IL-2 gene'

    Args:
        type: of the entity, such as "DNA": its tags without B- and I-.
        start: the first character in the raw text.
        end: the character after the last.
        text: the characters in between.
        score: the mean probability (softmax) of its words' tags, 0 to 1, as in transformers' pipelines; unlike a
            product it does not fall with the entity's length.
        first_word: the first word among those of `split_words(text)`, from 0.
        end_word: the word after the last.
    """

    type: str
    start: int
    end: int
    text: str
    score: float
    first_word: int
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
    and work best on them. Under torchrun the ranks share the work and all get the result.

    Example:
        import lorakit
        from lorakit.training.models import load_token_classifier
        model, tokenizer = load_token_classifier("examples/mini", ["O", "B-DNA", "I-DNA"])  # its head is untrained
        tags = lorakit.predict(model, tokenizer, [["The", "IL-2", "gene"]])
        [len(row) for row in tags]  # [3]
        entities = lorakit.predict(model, tokenizer, ["The IL-2 gene."])  # a list of Entity for each text

    Args:
        model: a token classifier whose `config.id2label` names entity tags.
        tokenizer: the model's fast tokenizer, which takes pre-split words.
        texts: strings, or sentences split into words.
        precision: "auto", "fp32", "bf16" or "fp16", as in TrainConfig.
        packing: put several sentences in a row; False pads each to the longest.

    Returns:
        For strings the entities of each, in order; for pre-split sentences one tag for every word of each.

    Raises:
        ValueError: `texts` is one string, mixes both kinds, or contains half a surrogate pair; or the model's
            classes are not entity tags.
    """
    if isinstance(texts, str):
        raise ValueError(f"predict takes a list of texts; this is one string: write [{texts[:40]!r}]")
    raw = [isinstance(text, str) for text in texts]
    if any(raw) and not all(raw):
        raise ValueError(
            "predict takes strings, or sentences split into words, such as [['IL-2', 'gene']]; these texts are"
            f" both: number {raw.index(not raw[0])} is of another kind than number 0"
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
    """The scheme of a model's tags: bioes if any tag is of that, else iob2, which also reads iob1 as seqeval does.

    Raises:
        ValueError: a label is not an entity tag, as with a head for another task.
    """
    scheme = "bioes" if any(label[:2] in ("E-", "S-", "L-", "U-") for label in labels) else "iob2"
    try:
        spans(labels, scheme)
    except ValueError as error:
        raise ValueError(
            f"the model's classes are not entity tags ({error}); its labels are {', '.join(labels)}"
        ) from None
    return scheme
