"""Find named entities in raw texts, and tag sentences that are already split into words.

Both are handled as in training: words to subwords, packed batches, one tag per word. A raw text is first split into
words as the training corpus is (`lorakit.data.pretokenizer`, `lorakit.data.habits`), and their tags are then read as
entities with their place in the text.

Texts pass through in chunks. While the model computes one chunk, a thread splits and encodes the next, so at most two
chunks are in memory, however many texts there are. Weights are merged and cast once for all chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Lock, RLock
from typing import Any, NamedTuple, TypeVar, overload
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lorakit.adapters.adapter import unwrap
from lorakit.adapters.merging import merged_copies
from lorakit.data.decoding import decoder_of
from lorakit.data.habits import habits_of, split_like
from lorakit.data.pretokenizer import Word
from lorakit.data.subwords import check_tokenizer, kept_tokens
from lorakit.data.tags import scheme_of_labels, spans, with_prefixes
from lorakit.data.tokenization import split_by_sentence
from lorakit.training.evaluation import (
    EVALUATION_TOKENS,
    EncodedSplit,
    Tagged,
    Tokenizer,
    cast_once,
    encode_words,
    label_names,
    split_of,
    tag_split,
    tag_words,
)
from lorakit.training.layout import remembered_layout

TEXTS = 1024  # in a chunk, at most: enough to pack them well
CHARACTERS = 2**16  # in a chunk, unless it is a single text: about four batches
MANY = 4 * EVALUATION_TOKENS  # characters from which it pays to merge weights and to cast them: about a batch

T = TypeVar("T")
Words = Callable[[T], tuple[Any, Sequence[Sequence[str]]]]
"""A chunk to what is kept of it, and the words of each of its sentences; called in a thread."""


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


Found = tuple[list[Word], list[str], list[Entity]]
"""The words of a raw text, their tags and its entities."""


# Many texts -----------------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """A chunk that a thread has made ready."""

    kept: Any
    split: EncodedSplit


class Predictor:
    """A token classifier that tags chunk after chunk, with everything done once that can be.

    While active with `ready`, adapted layers compute with merged copies of their weights (`merged_copies`), and weights
    that autocast would cast in every batch are held in its type. Do not train, save or switch adapters meanwhile. Other
    threads that predict with the model wait until it is closed.

    Example:
        from lorakit.training.models import load_token_classifier
        from lorakit.training.prediction import Predictor, in_chunks
        model, tokenizer = load_token_classifier("examples/mini", ["O", "B-DNA", "I-DNA"])
        chunks = in_chunks([["IL-2", "gene"]], len)
        with Predictor(model, tokenizer, ready=True) as predictor:
            tags = [found.tags for _, found in predictor.tag(chunks, lambda chunk: (chunk, chunk))]
        len(tags[0][0])  # 2

    Args:
        model, tokenizer, precision, packing, decode, temperature: as for `lorakit.predict`.
        ready: whether to merge and cast; not for a few texts, which take less time than that.

    Raises:
        ValueError: as `lorakit.predict` raises it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        precision: str = "auto",
        packing: bool | str = "auto",
        decode: str = "auto",
        temperature: float = 1.0,
        ready: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.precision, self.ready = model, tokenizer, precision, ready
        self.options = {"decode": decoder_of(model, decode), "temperature": temperature}
        check_tokenizer(tokenizer)
        self.labels = label_names(model)
        with one_at_a_time(model):
            self.layout = remembered_layout(model, packing, precision)
        self.open = ExitStack()

    def __enter__(self) -> "Predictor":
        with ExitStack() as opened:  # closed here only if something raises
            opened.enter_context(one_at_a_time(self.model))
            opened.enter_context(merged_copies(self.model, self.ready and has_room(self.model)))
            wanted = self.ready and has_room(self.model)
            opened.enter_context(cast_once(self.model, self.layout, self.precision, wanted))
            self.open = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.open.close()

    def tag(self, chunks: Iterable[T], words_of: Words[T]) -> Iterator[tuple[Any, Tagged]]:
        """Tag the sentences of every chunk, in order; the next one is taken when a chunk is about to be computed.

        Chunks are taken in this thread, so that whatever they come from can be interrupted.

        Args:
            chunks: of anything.
            words_of: makes sentences of a chunk, in another thread.

        Yields:
            What `words_of` keeps of each chunk, and the tags of its sentences.
        """
        with ThreadPoolExecutor(1, "lorakit-tokenizer") as pool:
            source, failure = iter(chunks), None
            waiting = [pool.submit(self._prepare, chunk, words_of) for chunk in _next(source)]
            while waiting:
                kept, split = waiting.pop().result()
                try:
                    waiting = [pool.submit(self._prepare, chunk, words_of) for chunk in _next(source)]
                except Exception as error:
                    failure = error
                yield kept, self._compute(split)
                if failure:  # only now: what was read before it is tagged
                    raise failure

    def _prepare(self, chunk: T, words_of: Words[T]) -> Chunk:
        kept, sentences = words_of(chunk)
        encoded = encode_words(self.model, self.tokenizer, sentences)
        # on the host: another thread has no business on the device
        return Chunk(kept, replace(split_of(encoded, self.layout, torch.device("cpu")), **self.options))

    def _compute(self, split: EncodedSplit) -> Tagged:
        split = split.to(next(self.model.parameters()).device)
        classes, probabilities, _ = tag_split(self.model, split, self.precision)
        tags = [self.labels[number] for number in classes.tolist()]
        return Tagged(*(split_by_sentence(row, split.encoded) for row in (tags, probabilities.tolist())), None)


_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locks_change = Lock()


@contextmanager
def one_at_a_time(model: nn.Module) -> Iterator[None]:
    """While active, other threads that predict with the model wait: it has other modes, hooks and weights meanwhile."""
    with _locks_change:
        lock = _locks.setdefault(unwrap(model), RLock())
    with lock:
        yield


def in_chunks(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut items into chunks of at most TEXTS items and CHARACTERS characters; a larger item is a chunk of its own.

    Args:
        items: texts or sentences, read only as far as the next chunk.
        size_of: the characters of one.
    """
    chunk: list[T] = []
    room = CHARACTERS
    for item in items:
        size = size_of(item)
        if chunk and (size > room or len(chunk) == TEXTS):
            yield chunk
            chunk, room = [], CHARACTERS
        chunk.append(item)
        room -= size
    if chunk:
        yield chunk


def are_many(texts: Sequence[str]) -> bool:
    """Whether the first chunk of a stream is such that it pays to make a predictor ready."""
    return len(texts) == TEXTS or sum(map(len, texts)) > MANY


def has_room(model: nn.Module) -> bool:
    """Whether a second copy of the weights fits beside the first, with as much again for computing."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return True
    return torch.cuda.mem_get_info(device)[0] > 2 * sum(p.nbytes for p in model.parameters())


def _next(source: Iterator[T]) -> list[T]:
    """The next item, or nothing."""
    return [item for item in [next(source, _END)] if item is not _END]


_END: Any = object()


# Entities of raw texts, tags of sentences -----------------------------------------------------------------------------


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
    and work best on them. Under torchrun the ranks share the work and all get the result. With more than a few texts
    an adapter is merged into copies of its weights meanwhile; the model's own are not written to. Threads that share a
    model take turns, a call each.

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
    if any(raw):
        found = find_entities(model, tokenizer, texts, precision, packing, adapters, decode, temperature)
        return [entities for _, _, entities in found]
    if adapters is not None:
        with one_at_a_time(model):
            return tag_words(model, tokenizer, texts, precision, packing, adapters=adapters, decode=decode).tags
    ready = sum(map(_characters, texts)) > MANY
    with Predictor(model, tokenizer, precision, packing, decode, ready=ready) as predictor:
        chunks = predictor.tag(in_chunks(texts, _characters), lambda chunk: (None, chunk))
        return [tags for _, tagged in chunks for tags in tagged.tags]


def find_entities(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    precision: str = "auto",
    packing: bool | str = "auto",
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
) -> list[Found]:
    """The words of each raw text, their tags and their entities; see `predict`."""
    if adapters is None:
        ready = sum(map(len, texts)) > MANY
        with Predictor(model, tokenizer, precision, packing, decode, temperature, ready) as predictor:
            chunks = find_in_chunks(predictor, in_chunks(texts, len))
            return [row for _, found in chunks for row in found]
    reader = _Reader(model, tokenizer)
    words, pieces = reader.words(texts)
    options = {"adapters": adapters, "decode": decode, "temperature": temperature}
    with one_at_a_time(model):
        tagged = tag_words(model, tokenizer, pieces, precision, packing, **options)
    return reader.entities(texts, words, tagged)


def find_in_chunks(
    predictor: Predictor,
    chunks: Iterable[T],
    texts_of: Callable[[T], tuple[Any, Sequence[str]]] = lambda chunk: (chunk, chunk),
) -> Iterator[tuple[Any, list[Found]]]:
    """Find the entities of raw texts chunk by chunk, in bounded memory; see `Predictor.tag`.

    Args:
        predictor: of the model; its `ready` says whether weights are merged and cast once.
        chunks: of anything, such as lists of texts from `in_chunks`.
        texts_of: makes texts of a chunk, in another thread, and whatever is to be kept of it.

    Yields:
        What is kept of each chunk, and the words, tags and entities of each of its texts.
    """
    reader = _Reader(predictor.model, predictor.tokenizer)

    def words_of(chunk: T) -> tuple[Any, list[list[str]]]:
        kept, texts = texts_of(chunk)
        words, pieces = reader.words(texts)
        return (kept, texts, words), pieces

    for (kept, texts, words), tagged in predictor.tag(chunks, words_of):
        yield kept, reader.entities(texts, words, tagged)


class _Reader:
    """Raw texts to words, and tags to entities, as a model's labels and tokenizer want it."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        labels = label_names(model)
        self.keep, self.scheme = kept_tokens(tokenizer), _scheme(labels)
        self.tag_of, self.habits = with_prefixes(labels), habits_of(model)

    def words(self, texts: Sequence[str]) -> tuple[list[list[Word]], list[list[str]]]:
        words = [split_like(text, self.habits, self.keep) for text in texts]
        return words, [[word.text for word in row] for row in words]

    def entities(self, texts: Sequence[str], words: Sequence[list[Word]], tagged: Tagged) -> list[Found]:
        return [
            (row, tags, _entities(text, row, [self.tag_of[tag] for tag in tags], probabilities, self.scheme))
            for text, row, tags, probabilities in zip(texts, words, tagged.tags, tagged.probabilities, strict=True)
        ]


def _characters(words: Sequence[str]) -> int:
    return sum(map(len, words)) + len(words)


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
