"""A token classifier at work on pre-split sentences: the tag of every word, its probability, and the score of all.

Training and prediction encode and batch sentences in the same way; each word is tagged once, by the window in which it
has most context.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from lorakit.batching import batch_count, collate, first_position, layout_for, sorted_batches
from lorakit.distributed import all_sum, rank, world_size
from lorakit.encoding import IGNORE, Encoded, check_tokenizer, encode, split_by_sentence
from lorakit.metrics import Scores, score

EVALUATION_TOKENS = 4096  # real tokens in a batch


class Tokenizer(Protocol):
    """What is needed of a Hugging Face fast tokenizer."""

    model_max_length: int

    def __call__(self, text: Any, **options: Any) -> Any: ...


class Tagged(NamedTuple):
    """What a model says of sentences, word by word."""

    tags: list[list[str]]
    probabilities: list[list[float]]  # of each tag: its class' softmax, 0 to 1
    loss: float | None  # mean cross-entropy a word; None without gold tags


def evaluate(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[tuple[Sequence[str], Sequence[str]]],
    precision: str = "auto",
    packing: bool = True,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score a token classifier on (words, tags) pairs; under torchrun the ranks share the work and all get the result.

    Args:
        between: called after every batch with the batches done and all of them, equally often on every rank; it may
            end the evaluation by raising.

    Raises:
        ValueError: there is no sentence, or a tag that the model does not know.
    """
    if not sentences:
        raise ValueError("there is no sentence to evaluate on")
    words, tags = [s[0] for s in sentences], [s[1] for s in sentences]
    found = tag_words(model, tokenizer, words, precision, packing, tags, between)
    return score(tags, found.tags, found.loss)


def tag_words(
    model: nn.Module,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    precision: str = "auto",
    packing: bool = True,
    tags: Sequence[Sequence[str]] | None = None,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> Tagged:
    """Tag every word of pre-split sentences in packed batches; with gold tags, also find the loss.

    Under torchrun the ranks share the work and all get the result.
    """
    check_tokenizer(tokenizer)
    labels, device = label_names(model), next(model.parameters()).device
    layout = layout_for(model, packing)
    encoded = encode(tokenizer, sentences, window_of(model, tokenizer), tags, labels)
    autocast, _ = precision_of(precision, device)
    classes = torch.zeros(int(encoded.sentence_lengths.sum()), dtype=torch.long, device=device)
    probabilities = torch.zeros(len(classes), device=device)
    loss = torch.zeros((), device=device, dtype=torch.float64)
    batches = sorted_batches(encoded, layout, EVALUATION_TOKENS, rank(), world_size())
    total = batch_count(encoded, EVALUATION_TOKENS, world_size())
    with _eval_mode(model), torch.no_grad():  # not inference_mode, in which FSDP2 cannot gather
        for done in range(1, total + 1):
            batch = next(batches, None)
            if batch is None:  # some ranks have one batch less, but a sharded model's forward needs all ranks
                batch = collate(encoded, [0], layout, counts=False)
            here = batch.to(device)
            with autocast():
                logits = model(**layout.inputs(here))[0].float()
            starts = here.words >= 0
            numbers, logits = here.words[starts], logits[starts]
            classes[numbers] = best = logits.argmax(-1)
            probabilities[numbers] = logits.softmax(-1).gather(-1, best[:, None]).squeeze(-1)
            loss += F.cross_entropy(logits, here.labels[starts], ignore_index=IGNORE, reduction="sum")
            between(done, total)
    for values in (classes, probabilities, loss):  # a word is tagged by one rank, the others hold 0
        all_sum(values)
    names = [labels[c] for c in classes.tolist()]
    return Tagged(
        split_by_sentence(names, encoded),
        split_by_sentence(probabilities.tolist(), encoded),
        float(loss) / max(1, len(names)) if tags is not None else None,
    )


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
    """Tokens the model can read at once, special ones included."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return min(tokenizer.model_max_length, 512)
    return min(tokenizer.model_max_length, positions - first_position(model))


def precision_of(precision: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], bool]:
    """The autocast context of a precision on a device, and whether gradients need scaling."""
    if precision == "auto":
        if device.type != "cuda":
            precision = "fp32"
        else:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp32":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype), precision == "fp16"


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
