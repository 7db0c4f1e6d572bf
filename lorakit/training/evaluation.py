"""Tag every word of pre-split sentences with a token classifier, and score the tags.

Sentences are encoded and batched as in training. Each word is tagged once, by the window in which it has most context.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit._counts import counted
from lorakit.adapters.adapter import unwrap
from lorakit.adapters.mixed import MixedAdapters
from lorakit.adapters.token_table import input_table
from lorakit.data.adapter_rows import batches_by_adapter, windows_of
from lorakit.data.decoding import decoder_of, transitions, viterbi
from lorakit.data.encoding import encode
from lorakit.data.packing import Layout, Plan, TokenTable, batch_count, plan_batch, sorted_batches
from lorakit.data.subwords import check_tokenizer
from lorakit.data.tags import in_labels_of, scheme_of_labels, scheme_of_sentences
from lorakit.data.tokenization import IGNORE, Encoded, split_by_sentence
from lorakit.nn.kernels import faster_products
from lorakit.training.distributed import all_sum, rank, world_size
from lorakit.training.dry_run import keep_modes
from lorakit.training.layout import first_position, layout_for, packed_attention, run_once
from lorakit.training.metrics import Scores, SentenceCounts, count_by_sentence, score_classes
from lorakit.training.precision import autocast_for, frozen_in_half

EVALUATION_TOKENS = 4096  # real tokens per batch

Between = Callable[[int, int], None]  # called after every batch with the number of batches done and of all


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    model_max_length: int

    def __call__(self, text: Any, **options: Any) -> Any: ...
    def convert_ids_to_tokens(self, number: int) -> str: ...
    def get_vocab(self) -> dict[str, int]: ...


class Tagged(NamedTuple):
    """A model's tags of sentences, word by word."""

    tags: list[list[str]]
    probabilities: list[list[float]]  # of each tag: its class' softmax, 0 to 1
    loss: float | None  # mean cross-entropy per word; None without gold tags


@dataclass(frozen=True)
class EncodedSplit:
    """Sentences made ready for a model, once for any number of evaluations.

    The batches are this rank's, and every rank has equally many. They are on the model's device with the corpus, about
    30 bytes per token, so an evaluation copies nothing to it.
    """

    encoded: Encoded
    layout: Layout
    table: TokenTable
    batches: list[Plan]
    starts: list[Tensor]  # where in a batch, flattened, a word starts
    scheme: str | None = None  # of the tags; None where they are of none
    around: Callable[[int], AbstractContextManager[Any]] = lambda number: nullcontext()  # of each batch's forward
    decode: str = "greedy"  # or "viterbi"
    temperature: float = 1.0  # divides the logits: changes probabilities, never tags

    def to(self, device: torch.device) -> "EncodedSplit":
        """The split on a device; its table moves in place."""
        batches = [replace(plan, source=plan.source.to(device)) for plan in self.batches]
        starts = [places.to(device) for places in self.starts]
        return replace(self, table=self.table.to(device), batches=batches, starts=starts)


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    precision: str = "auto",
    packing: bool | str = "auto",
    between: Between = lambda done, total: None,
    scheme: str | None = None,
    decode: str = "auto",
) -> Scores:
    """Score a token classifier on (words, tags) pairs; under torchrun the ranks share the work and all get the result.

    To score the same sentences many times, call `encode_split` once and `evaluate_split` each time.

    Example:
        import lorakit
        from lorakit.training.models import load_token_classifier
        data = lorakit.read_ner("examples/conll")
        model, tokenizer = load_token_classifier("examples/mini", data.labels)
        scores = lorakit.evaluate(model, tokenizer, data.validation)
        0 <= scores.f1 <= 1  # True

    Args:
        model: a token classifier whose `config.id2label` names the tags; its modes and weights stay as they are.
        tokenizer: the model's fast tokenizer, which takes pre-split words.
        sentences: pairs of as many words as tags, at least one.
        precision: "auto", "fp32", "bf16" or "fp16", as in TrainConfig.
        packing: "auto", "on" or "off", as in TrainConfig.
        between: called after every batch with the number of batches done and of all, equally often on every rank; it
            may end the evaluation by raising.
        scheme: of the model's tags, "iob2", "iob1" or "bioes"; None for the one that its labels and the sentences tell.
            Gold tags of another scheme are brought to the model's.
        decode: "auto", "viterbi" or "greedy", as in `predict`.

    Returns:
        Entity scores in seqeval's two modes, and the mean loss per word.

    Raises:
        ValueError: there is no sentence, a tag is unknown to the model, or the model cannot be batched.
    """
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    check_tokenizer(tokenizer)
    split = encode_split(model, tokenizer, sentences, layout_for(model, packing, precision), scheme, decode)
    with cast_once(model, split.layout, precision, wanted=len(split.batches) > 1):
        return evaluate_split(model, split, precision, between)


def encode_split(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    layout: Layout,
    scheme: str | None = None,
    decode: str = "auto",
) -> EncodedSplit:
    """Make (words, tags) pairs ready for `evaluate_split`.

    Args:
        model: as for `evaluate`.
        tokenizer: the model's.
        sentences: as for `evaluate`.
        layout: how the model takes its batches, from `layout_for`.
        scheme: as for `evaluate`.
        decode: as for `evaluate`.

    Raises:
        ValueError: there is no sentence, or a tag is unknown to the model.
    """
    decode = decoder_of(model, decode)
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    labels = label_names(model)
    own = scheme_of_labels({"O", *(tag for _, tags in sentences for tag in tags)})
    sentences = [(words, in_labels_of(tags, labels, scheme, own)) for words, tags in sentences]
    split = split_of(encode_tagged(model, tokenizer, sentences), layout, _device(model))
    scheme = scheme or scheme_of_sentences(labels, (tags for _, tags in sentences))
    return replace(split, scheme=scheme, decode=decode)


def evaluate_split(
    model: nn.Module, split: EncodedSplit, precision: str = "auto", between: Between = lambda done, total: None
) -> Scores:
    """Score a token classifier on a split; see `evaluate`."""
    return score_split(model, split, precision, between)[0]


def score_split(
    model: nn.Module, split: EncodedSplit, precision: str = "auto", between: Between = lambda done, total: None
) -> tuple[Scores, SentenceCounts]:
    """Score a token classifier on a split, and count the entities of each sentence; see `evaluate`."""
    predicted, _, loss = tag_split(model, split, precision, between)
    encoded, starts = split.encoded, split.encoded.words >= 0
    gold = np.empty(len(predicted), np.int64)
    gold[encoded.words[starts]] = encoded.labels[starts]
    sides = (gold, predicted, encoded.sentence_lengths, label_names(model))
    scores = score_classes(*sides, loss / max(1, len(gold)), split.scheme)
    return scores, count_by_sentence(*sides, split.scheme)


def tag_words(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool | str = "auto",
    tags: Sequence[Sequence[str]] | None = None,
    between: Between = lambda done, total: None,
    adapters: Sequence[str] | None = None,
    decode: str = "auto",
    temperature: float = 1.0,
) -> Tagged:
    """Tag every word of pre-split sentences; with gold tags, also compute the loss.

    Under torchrun the ranks share the work and all get the result. With `adapters` each sentence has an adapter of its
    own, by name; "__base__" stands for none.
    """
    decode = decoder_of(model, decode)
    check_tokenizer(tokenizer)
    labels, layout = label_names(model), layout_for(model, packing, precision)
    encoded = encode_words(model, tokenizer, sentences, tags)
    split = split_of(encoded, layout, _device(model)) if adapters is None else _mixed(model, encoded, layout, adapters)
    split = replace(split, decode=decode, temperature=temperature)
    with cast_once(model, layout, precision, wanted=len(split.batches) > 1):
        classes, probabilities, loss = tag_split(model, split, precision, between)
    return Tagged(
        split_by_sentence([labels[number] for number in classes.tolist()], encoded),
        split_by_sentence(probabilities.tolist(), encoded),
        loss / max(1, len(classes)) if tags is not None else None,
    )


def tag_split(
    model: nn.Module, split: EncodedSplit, precision: str, between: Between = lambda done, total: None
) -> tuple[np.ndarray, np.ndarray, float]:
    """The class of every word, its probability, and the summed loss of all words (0 for a text without tags).

    The host waits for the device once, at the end; until then classes stay there, one byte each where they fit.
    """
    found = _Words.empty(split, len(label_names(model)), _device(model))
    loss = read_words(model, split, precision, between, found.take)
    return *found.result(label_names(model)), loss


@dataclass
class _Words:
    """What a model says about every word of a split, kept on its device until all is read."""

    split: EncodedSplit
    classes: Tensor  # (words,), unless decoding is left to the host
    probabilities: Tensor  # (words,), or (words, classes) for a decoder that needs them all

    @staticmethod
    def empty(split: EncodedSplit, class_count: int, device: torch.device) -> "_Words":
        count = int(split.encoded.sentence_lengths.sum())
        kind = torch.uint8 if class_count <= 256 else torch.int32
        shape = (count,) if split.decode == "greedy" else (count, class_count)
        return _Words(
            split, torch.zeros(count, dtype=kind, device=device), torch.zeros(shape, dtype=torch.float32, device=device)
        )

    def take(self, numbers: Tensor, logits: Tensor) -> None:
        """Keep the logits, (words, classes), of these words."""
        if self.split.temperature != 1:
            logits = logits / self.split.temperature
        if self.split.decode == "greedy":
            best = logits.argmax(-1)
            self.classes.index_copy_(0, numbers, best.to(self.classes.dtype))
            chances = logits.softmax(-1).gather(-1, best[:, None]).squeeze(-1)
        else:
            chances = logits.log_softmax(-1)
        self.probabilities.index_copy_(0, numbers, chances)

    def result(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The class of every word and its probability, on every rank."""
        for values in (self.classes, self.probabilities):  # each word is read by one rank, and is 0 on the others
            all_sum(values)
        if self.split.decode == "greedy":
            return self.classes.cpu().numpy(), self.probabilities.cpu().numpy()
        chances = self.probabilities.cpu().numpy()
        best = viterbi(chances, self.split.encoded.sentence_lengths, transitions(labels, self.split.scheme))
        return best, np.exp(np.take_along_axis(chances, best[:, None], 1)[:, 0])


@contextmanager
def cast_once(model: nn.Module, layout: Layout, precision: str, wanted: bool = True) -> Iterator[None]:
    """While active, weights that autocast would cast in every batch are held in its type; the bits are the same.

    Not where another program manages the weights: compiled models, FSDP.

    Args:
        model: the one that predicts.
        layout: how it takes its batches.
        precision: as in TrainConfig.
        wanted: False changes nothing, as for a single batch, which casts once anyway.
    """
    autocast, _ = autocast_for(precision, _device(model))
    if not wanted or unwrap(model) is not model or any(hasattr(p, "full_tensor") for p in model.parameters()):
        autocast = nullcontext

    def use() -> None:
        with faster_products(model), packed_attention(model):
            run_once(model, layout)

    with frozen_in_half(model, autocast, use, predicts=True):
        yield


def read_words(
    model: nn.Module, split: EncodedSplit, precision: str, between: Between, take: Callable[[Tensor, Tensor], None]
) -> float:
    """Hand the logits of all words to `take`, batch by batch; returns the summed loss."""
    device = _device(model)
    table = split.table.to(device)
    autocast, _ = autocast_for(precision, device)
    loss = torch.zeros((), device=device, dtype=torch.float64)
    products, attention = faster_products(model), packed_attention(model)
    with products, attention, keep_modes(model), torch.no_grad():  # not inference_mode: FSDP2 could not gather
        model.eval()
        for done, (plan, places) in enumerate(zip(split.batches, split.starts, strict=True), start=1):
            batch, places = table.batch(plan), places.to(device)
            numbers, wanted = batch.words.flatten()[places], batch.labels.flatten()[places]
            with split.around(done - 1), autocast():
                logits = model(**split.layout.inputs(batch))[0]
            logits = logits.flatten(0, 1).index_select(0, places).float()  # (words, classes)
            take(numbers, logits)
            loss += F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum")
            between(done, len(split.batches))
    return float(all_sum(loss))


def label_names(model: nn.Module) -> list[str]:
    """The model's tags in the order of its classes."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def encode_tagged(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    labels: Sequence[str] | None = None,
) -> Encoded:
    """Encode (words, tags) pairs for this model's window, and its classes or other `labels`."""
    return encode_words(model, tokenizer, [s[0] for s in sentences], [s[1] for s in sentences], labels)


def encode_words(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]] | None = None,
    labels: Sequence[str] | None = None,
) -> Encoded:
    """Encode pre-split sentences for this model's window, and their tags, if any, for its classes or other `labels`."""
    encoded = encode(tokenizer, sentences, window_of(model, tokenizer), tags, labels or label_names(model))
    _check_table(model, tokenizer, encoded)
    return encoded


def check_table(model: nn.Module, tokenizer: Tokenizer, splits: Iterable[Sequence[tuple[Sequence[str], Any]]]) -> None:
    """Refuse sentences with a token that is not in the model's embedding table, because the table was not resized.

    Args:
        model: as for `evaluate`.
        tokenizer: the model's.
        splits: of (words, tags) pairs.

    Raises:
        ValueError: with the token and the fix.
    """
    if max(tokenizer.get_vocab().values()) < _table_rows(model):
        return
    for sentences in splits:
        _check_table(model, tokenizer, encode(tokenizer, [s[0] for s in sentences], window_of(model, tokenizer)))


def _check_table(model: nn.Module, tokenizer: Tokenizer, encoded: Encoded) -> None:
    rows, largest = _table_rows(model), int(encoded.ids.max(initial=0))
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        size = max(tokenizer.get_vocab().values()) + 1
        raise ValueError(
            f"the tokenizer has {size} tokens but the model's embedding table {rows} rows: there is none for {token!r}"
            f" (number {largest}); call model.resize_token_embeddings({size}) first"
        )


def _table_rows(model: nn.Module) -> float:
    """Rows of the token embeddings; no limit for a model without a table, such as CANINE."""
    weight = getattr(input_table(model), "weight", None)
    return math.inf if weight is None else weight.shape[0]


def window_of(model: nn.Module, tokenizer: Tokenizer) -> int:
    """Tokens the model can read at once, special tokens included."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return min(tokenizer.model_max_length, 512)
    return min(tokenizer.model_max_length, positions - first_position(model))


def _mixed(model: nn.Module, encoded: Encoded, layout: Layout, adapters: Sequence[str]) -> EncodedSplit:
    """The split for sentences with an adapter each; raises ValueError unless there is one name for each."""
    if isinstance(adapters, str) or len(adapters) != len(encoded.sentence_lengths):
        given = repr(adapters) if isinstance(adapters, str) else counted(len(adapters), "name")
        texts = counted(len(encoded.sentence_lengths), "text")
        raise ValueError(f"adapters has one name for each text; got {given} for {texts}")
    names = list(dict.fromkeys(adapters))
    mixed, device = MixedAdapters(model, names), _device(model)
    numbers = windows_of(encoded, [names.index(name) for name in adapters])
    batches = list(batches_by_adapter(encoded, numbers, layout, EVALUATION_TOKENS, rank(), world_size()))
    split = split_of(encoded, layout, device, [plan for plan, _ in batches])
    rows = [torch.from_numpy(rows).to(device) for _, rows in batches]
    # a batch that only keeps a rank in step may have any adapter
    rows += [torch.zeros(len(plan.source), dtype=torch.long, device=device) for plan in split.batches[len(rows) :]]
    return replace(split, around=lambda number: mixed.for_rows(rows[number]))


def split_of(encoded: Encoded, layout: Layout, device: torch.device, plans: list[Plan] | None = None) -> EncodedSplit:
    """This rank's batches of encoded sentences, on a device; `plans` None means all windows, longest first."""
    if plans is None:
        plans = list(sorted_batches(encoded, layout, EVALUATION_TOKENS, rank(), world_size()))
    if len(plans) < batch_count(encoded, layout, EVALUATION_TOKENS, world_size()):
        # some ranks have one batch fewer, but a sharded model's forward needs all ranks
        plans.append(plan_batch(encoded, [0], layout, counts=False))
    begins = torch.from_numpy(np.append(encoded.words, -1) >= 0)
    # found on the host: on a device their number would have to be read back
    starts = [(begins[plan.source.flatten()] & plan.counts).nonzero() for plan in plans]
    starts = [places.flatten() for places in starts]
    return EncodedSplit(encoded, layout, TokenTable(encoded, layout), plans, starts).to(device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
