"""Tag every word of pre-split sentences with a token classifier, and score the tags.

Sentences are encoded and batched as in training. Each word is tagged once, by the window in which it has most context.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.packing import Layout, Plan, TokenTable, batch_count, plan_batch, sorted_batches
from lorakit.data.tokenization import IGNORE, Encoded, check_tokenizer, encode, split_by_sentence
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import faster_products
from lorakit.training.distributed import all_sum, rank, world_size
from lorakit.training.dry_run import keep_modes
from lorakit.training.layout import first_position, layout_for
from lorakit.training.metrics import Scores, SentenceCounts, count_by_sentence, score_classes
from lorakit.training.precision import autocast_for

EVALUATION_TOKENS = 4096  # real tokens per batch

Between = Callable[[int, int], None]  # called after every batch with the number of batches done and of all


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    model_max_length: int

    def __call__(self, text: Any, **options: Any) -> Any: ...


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


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    precision: str = "auto",
    packing: bool = True,
    between: Between = lambda done, total: None,
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
        packing: put several sentences in a row; False pads each to the longest.
        between: called after every batch with the number of batches done and of all, equally often on every rank; it
            may end the evaluation by raising.

    Returns:
        Entity scores in seqeval's two modes, and the mean loss per word.

    Raises:
        ValueError: there is no sentence, a tag is unknown to the model, or the model cannot be packed.
    """
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    check_tokenizer(tokenizer)
    split = encode_split(model, tokenizer, sentences, layout_for(model, packing, precision))
    return evaluate_split(model, split, precision, between)


def encode_split(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    layout: Layout,
) -> EncodedSplit:
    """Make (words, tags) pairs ready for `evaluate_split`.

    Args:
        model: as for `evaluate`.
        tokenizer: the model's.
        sentences: as for `evaluate`.
        layout: how the model takes its batches, from `layout_for`.

    Raises:
        ValueError: there is no sentence, or a tag is unknown to the model.
    """
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    return _split(encode_tagged(model, tokenizer, sentences), layout, _device(model))


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
    return score_classes(*sides, loss / max(1, len(gold))), count_by_sentence(*sides)


def tag_words(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool = True,
    tags: Sequence[Sequence[str]] | None = None,
    between: Between = lambda done, total: None,
) -> Tagged:
    """Tag every word of pre-split sentences; with gold tags, also compute the loss.

    Under torchrun the ranks share the work and all get the result.
    """
    check_tokenizer(tokenizer)
    labels, layout = label_names(model), layout_for(model, packing, precision)
    encoded = encode(tokenizer, sentences, window_of(model, tokenizer), tags, labels)
    classes, probabilities, loss = tag_split(model, _split(encoded, layout, _device(model)), precision, between)
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
    device, class_count = _device(model), len(label_names(model))
    table = split.table.to(device)
    autocast, _ = autocast_for(precision, device)
    classes = torch.zeros(
        int(split.encoded.sentence_lengths.sum()),
        dtype=torch.uint8 if class_count <= 256 else torch.int32,
        device=device,
    )
    probabilities = torch.zeros(len(classes), device=device)
    loss = torch.zeros((), device=device, dtype=torch.float64)
    products, attention = faster_products(model), faster_attention(model)
    with products, attention, keep_modes(model), torch.no_grad():  # not inference_mode: FSDP2 could not gather
        model.eval()
        for done, (plan, places) in enumerate(zip(split.batches, split.starts, strict=True), start=1):
            batch, places = table.batch(plan), places.to(device)
            numbers, wanted = batch.words.flatten()[places], batch.labels.flatten()[places]
            with autocast():
                logits = model(**split.layout.inputs(batch))[0]
            logits = logits.flatten(0, 1).index_select(0, places).float()  # (words, classes)
            best = logits.argmax(-1)
            classes.index_copy_(0, numbers, best.to(classes.dtype))
            probabilities.index_copy_(0, numbers, logits.softmax(-1).gather(-1, best[:, None]).squeeze(-1))
            loss += F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum")
            between(done, len(split.batches))
    for values in (classes, probabilities, loss):  # each word is tagged by one rank, and is 0 on the others
        all_sum(values)
    return classes.cpu().numpy(), probabilities.cpu().numpy(), float(loss)


def label_names(model: nn.Module) -> list[str]:
    """The model's tags in the order of its classes."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def encode_tagged(
    model: nn.Module, tokenizer: Tokenizer, sentences: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> Encoded:
    """Encode (words, tags) pairs for this model's window and classes."""
    words, tags = [s[0] for s in sentences], [s[1] for s in sentences]
    return encode(tokenizer, words, window_of(model, tokenizer), tags, label_names(model))


def window_of(model: nn.Module, tokenizer: Tokenizer) -> int:
    """Tokens the model can read at once, special tokens included."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return min(tokenizer.model_max_length, 512)
    return min(tokenizer.model_max_length, positions - first_position(model))


def _split(encoded: Encoded, layout: Layout, device: torch.device) -> EncodedSplit:
    plans = list(sorted_batches(encoded, layout, EVALUATION_TOKENS, rank(), world_size()))
    if len(plans) < batch_count(encoded, EVALUATION_TOKENS, world_size()):
        # some ranks have one batch fewer, but a sharded model's forward needs all ranks
        plans.append(plan_batch(encoded, [0], layout, counts=False))
    begins = torch.from_numpy(np.append(encoded.words, -1) >= 0)
    # found on the host: on a device their number would have to be read back
    starts = [(begins[plan.source.flatten()] & plan.counts).nonzero() for plan in plans]
    return EncodedSplit(
        encoded,
        layout,
        TokenTable(encoded, layout, device),
        [replace(plan, source=plan.source.to(device)) for plan in plans],
        [places.flatten().to(device) for places in starts],
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
