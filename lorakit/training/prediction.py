"""Find named entities in raw texts, and tag sentences that are already split into words.

Both are handled as in training: words to subwords, packed batches, one tag per word. A raw text is first split into
words as the training corpus is (`lorakit.data.pretokenizer`, `lorakit.data.habits`), and their tags are then read as
entities with their place in the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from torch import nn

from lorakit.data.habits import habits_of, split_like
from lorakit.data.pretokenizer import Word
from lorakit.data.subwords import kept_tokens
from lorakit.data.tags import scheme_of_labels, spans, with_prefixes
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
        first_word: the first word among those of `split_like(text, habits_of(model), kept_tokens(tokenizer))`, from 0.
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
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    precision: str = "auto",
    packing: bool | str = "auto",
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
) -> list[list[Entity]]: ...
@overload
def predict(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool | str = "auto",
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
) -> list[list[str]]: ...
def predict(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool | str = "auto",
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
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
        packing: "auto", "on" or "off", as in TrainConfig.
        adapters: the name of an adapter for each text, of `adapter_names(model)`, or "__base__" for none: all are
            computed together, at about the cost of one. None uses the active adapter for all.
        decode: "greedy" gives each word its most probable tag; "viterbi" each sentence its most probable sequence of
            tags in which no I- continues nothing. They differ only where the greedy one breaks the scheme. "auto" is
            what the model was trained with; greedy for a model that was not trained by lorakit.
        temperature: divides the logits, above 0: changes scores, never tags; from `lorakit calibrate`.

    Returns:
        For strings the entities of each, in order; for pre-split sentences one tag for every word of each.

    Raises:
        ValueError: `texts` is one string, mixes both kinds, or contains half a surrogate pair; the model's
            classes are not entity tags; or an adapter is unknown, or cannot share a batch (DoRA, adapted embeddings).
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
        return tag_words(model, tokenizer, texts, precision, packing, adapters=adapters, decode=decode).tags
    found = find_entities(model, tokenizer, texts, precision, packing, adapters, decode, temperature)
    return [entities for _, _, entities in found]


def find_entities(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    precision: str = "auto",
    packing: bool | str = "auto",
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
) -> list[tuple[list[Word], list[str], list[Entity]]]:
    """The words of each raw text, their tags and their entities; see `predict`."""
    labels, keep = label_names(model), kept_tokens(tokenizer)
    scheme, tag_of, habits = _scheme(labels), with_prefixes(labels), habits_of(model)
    words = [split_like(text, habits, keep) for text in texts]
    pieces = [[word.text for word in row] for row in words]
    found = tag_words(
        model, tokenizer, pieces, precision, packing, adapters=adapters, decode=decode, temperature=temperature
    )
    return [
        (row, tags, _entities(text, row, [tag_of[tag] for tag in tags], probabilities, scheme))
        for text, row, tags, probabilities in zip(texts, words, found.tags, found.probabilities, strict=True)
    ]


def merge_entities(answers: Sequence[Sequence[Entity]]) -> list[Entity]:
    """One list of what several taggers found in the same text: an earlier tagger's entities stay, whatever comes later.

    A later tagger's entity is left out where it overlaps one that is kept already, so another tagger for a new type
    changes nothing that was found before.

    Example:
        from lorakit.training.prediction import Entity, merge_entities
        gene = Entity("DNA", 4, 13, "IL-2 gene", 0.6, 1, 3)
        cytokine = Entity("drug", 4, 8, "IL-2", 0.9, 1, 2)
        merge_entities([[gene], [cytokine]]) == [gene]  # True

    Args:
        answers: the entities that each tagger found, in the order in which the taggers count.

    Returns:
        The entities in the order of the text.
    """
    kept: list[Entity] = []
    for entities in answers:
        kept += [e for e in entities if not any(e.start < other.end and other.start < e.end for other in kept)]
    return sorted(kept, key=lambda entity: (entity.start, entity.end))


def _entities(
    text: str, words: Sequence[Word], tags: Sequence[str], probabilities: Sequence[float], scheme: str
) -> list[Entity]:
    found = []
    for span in spans(tags, scheme):
        kind, first, end = span
        start, stop = words[first].start, words[end - 1].end
        found.append(Entity(kind, start, stop, text[start:stop], span.mean(probabilities), first, end))
    return found


def _scheme(labels: Sequence[str]) -> str:
    """The scheme of a model's tags; iob2 also reads iob1 as seqeval does.

    Raises:
        ValueError: a label is not an entity tag, as with a head for another task.
    """
    scheme = scheme_of_labels(labels)
    wrong = [label for label in labels if scheme_of_labels([label, "O"]) is None]
    bare = [label for label, tag in with_prefixes(labels).items() if label != tag]
    if scheme is None or bare and "O" not in labels:  # types without prefixes are tags only beside an O
        raise ValueError(
            f"the model's classes are not entity tags ({(wrong or bare)[0]!r} is none); its labels are"
            f" {', '.join(labels)}"
        )
    return scheme
