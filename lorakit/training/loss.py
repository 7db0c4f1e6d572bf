"""What a step minimises: the cross-entropy of its words, weighted by class or not, or the loss that the model computes.

A step's loss is summed over micro-batches and ranks and divided by one number, so that it does not depend on how the
step was cut: by its words, by the sum of their classes' weights (torch's weighted mean), or by its sentences, for a
model whose own loss is a mean over them. What a model's own loss is a mean over cannot be read from its code, so the
model is asked: the losses of three sentences, and of the three together.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lorakit._counts import counted
from lorakit.data.packing import Layout, collate
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.training.config import TrainConfig
from lorakit.training.dry_run import dry_run
from lorakit.training.engine import Objective, own_loss
from lorakit.training.layout import packed_attention, plain_layout
from lorakit.training.precision import autocast_for

ClassWeights = str | Sequence[float] | Mapping[str, float] | None  # as TrainConfig has them
Autocast = Callable[[], AbstractContextManager[Any]]

SAME = 1e-4  # relative difference up to which two losses are the same; rounding in float32 stays far below
SAME_IN_HALF = 2e-2  # the same where the model computes in bfloat16 or float16


def objective_for(
    model: nn.Module, layout: Layout, encoded: Encoded, labels: Sequence[str], config: TrainConfig, autocast: Autocast
) -> Objective:
    """What `config` asks a step to minimise.

    Args:
        model: on its device, not sharded; it is run on a few tokens and stays as it is.
        layout: how it takes its batches.
        encoded: the training corpus, whose words "balanced" weights count.
        labels: the tag of each class.
        config: the settings.
        autocast: the precision's context.

    Raises:
        ValueError: the model has a loss of its own that the settings would leave out, or none where they ask for it;
            or the class weights do not fit the labels.
    """
    takes_labels = "labels" in inspect.signature(model.forward).parameters
    if config.loss == "model":
        if not takes_labels:
            raise ValueError(
                f"loss is 'model', but {type(model).__name__}.forward takes no labels, so it computes no loss; train it"
                " with loss='cross_entropy'"
            )
        with dry_run(model), torch.no_grad(), autocast():
            return Objective(own=_unit_of_own_loss(model.eval(), layout))
    if config.loss == "auto" and takes_labels:
        with dry_run(model), torch.no_grad(), autocast():
            _refuse_to_skip_own_loss(model.eval(), layout)
    weights = weights_of_classes(config.class_weights, labels, encoded.labels)
    where = next(model.parameters()).device
    return Objective(None if weights is None else torch.tensor(weights, dtype=torch.float32, device=where))


def layout_of_loss(model: nn.Module, layout: Layout, config: TrainConfig) -> Layout:
    """The layout for a model's own loss: plain rows, and a line that says so, where a packed row would change it.

    Args:
        model: as for `objective_for`.
        layout: how the model takes its batches.
        config: the settings; only packing "auto" can fall back to plain rows.
    """
    if config.loss != "model" or config.packing != "auto" or not layout.packing:
        return layout
    autocast, _ = autocast_for(config.precision, next(model.parameters()).device)
    try:
        with packed_attention(model), dry_run(model), torch.no_grad(), autocast():
            _unit_of_own_loss(model.eval(), layout)
    except ValueError:
        reason = "its own loss of a packed row is not that of the row's sentences"
        return plain_layout(model, config.precision, reason)
    return layout


def weights_of_classes(given: ClassWeights, labels: Sequence[str], classes: np.ndarray) -> list[float] | None:
    """The weight of each class, as `TrainConfig.class_weights` describes.

    Args:
        given: that setting.
        labels: the tag of each class.
        classes: of the training words; `IGNORE` for what is not the start of a word.

    Raises:
        ValueError: the weights do not fit the labels.
    """
    check_weights_of_classes(given, labels)
    if isinstance(given, str):  # "balanced", as scikit-learn: every class that occurs has the same weight in sum
        counts = np.bincount(classes[classes != IGNORE], minlength=len(labels))
        present = np.count_nonzero(counts)
        return [float(counts.sum() / (present * n)) if n else 1.0 for n in counts]
    if isinstance(given, Mapping):
        return [float(given.get(label, 1.0)) for label in labels]
    return None if given is None else [float(weight) for weight in given]


def check_weights_of_classes(given: ClassWeights, labels: Sequence[str]) -> None:
    """Refuse weights of other classes than these.

    Raises:
        ValueError: it says which labels there are.
    """
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in labels]:
            raise ValueError(f"class_weights names {unknown[0]!r}; the labels are {', '.join(labels)}")
    elif given is not None and not isinstance(given, str) and len(given) != len(labels):
        raise ValueError(
            f"class_weights has {counted(len(given), 'value')} for {counted(len(labels), 'label')}; give one for each,"
            f" in this order: {', '.join(labels)}; or by label, such as"
            f" class_weights={{{labels[-1]!r}: 5.0}}"
        )


# The model's own loss -------------------------------------------------------------------------------------------------


def _refuse_to_skip_own_loss(model: nn.Module, layout: Layout) -> None:
    """Compare the model's own loss of a sentence, and its gradient, with those of the cross-entropy.

    The gradient tells losses apart that have one value, as weighted ones have where a new head gives every class alike.
    """
    # a row of its own, with a mask of padding: XLM-RoBERTa-XL's own loss takes no other
    layout = replace(layout, packing=False)
    batch = collate(_probe(model), [2], layout, device=next(model.parameters()).device)
    name, fix = type(model).__name__, "train on it with TrainConfig(loss='model'), or leave it out with"
    fix += " loss='cross_entropy'"
    with torch.enable_grad():
        try:
            loss, logits = own_loss(model, layout.inputs(batch), batch.labels)
        except Exception as problem:
            raise ValueError(f"{name} computes a loss of its own, and failed to do so ({problem}): {fix}") from problem
        usual = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE)
        gradients = [
            torch.autograd.grad(value, logits, retain_graph=True, allow_unused=True)[0]
            for value in ((loss, usual) if loss.requires_grad and logits.requires_grad else ())
        ]
    if not torch.isfinite(usual):
        return  # nothing can be compared, and the loop ends such a run with a message
    same = _same(float(loss), float(usual), model)
    if same and gradients and gradients[0] is not None:
        same = float((gradients[0] - gradients[1]).abs().max()) <= 100 * SAME * float(gradients[1].abs().max())
    if not same:
        values = f"{float(loss):.4g}, where the cross-entropy is {float(usual):.4g}"
        raise ValueError(f"{name} computes a loss of its own ({values}): {fix}")


def _unit_of_own_loss(model: nn.Module, layout: Layout) -> str:
    """What the model's own loss is a mean over, judged by three sentences alone and together."""
    probe, where = _probe(model, padded=layout.by_length), next(model.parameters()).device

    def loss_of(layout: Layout, *windows: int) -> float:
        batch = collate(probe, windows, layout, device=where)
        try:
            return float(own_loss(model, layout.inputs(batch), batch.labels)[0])
        except Exception as problem:  # of a model's own code
            other = "packing='off'" if layout.packing else "loss='cross_entropy'"
            raise ValueError(
                f"{type(model).__name__} failed to compute its own loss ({problem}); train it with TrainConfig({other})"
            ) from problem

    alone, words = [loss_of(layout, i) for i in range(3)], probe.sentence_lengths
    # packed in one row and in two, because a mean over rows is none over what is in them
    together = [loss_of(replace(layout, rows=rows), 0, 1, 2) for rows in ((1, 2) if layout.packing else (None,))]
    expected = {
        "words": float(np.average(alone, weights=words)),
        "sentences": float(np.mean(alone)),
        "sum": float(np.sum(alone)),
    }
    for unit, value in expected.items():
        if all(_same(loss, value, model) for loss in together):
            return unit
    about = f"{type(model).__name__}'s own loss of three sentences is"
    about += f" {' or '.join(f'{loss:.4g}' for loss in together)}; from the loss of each it would be"
    about += f" {expected['words']:.4g} (mean over words), {expected['sentences']:.4g} (over sentences) or"
    about += f" {expected['sum']:.4g} (sum)"
    if layout.packing:
        raise ValueError(
            f"{about}: in a packed row it runs from one sentence into the next, as a CRF does; train with"
            " TrainConfig(packing='off')"
        )
    raise ValueError(f"{about}, so it cannot be added up over batches; train with loss='cross_entropy'")


def _same(a: float, b: float, model: nn.Module) -> bool:
    half = torch.is_autocast_enabled(next(model.parameters()).device.type) or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()
    )
    return abs(a - b) <= (SAME_IN_HALF if half else SAME) * max(abs(a), abs(b), 1e-3)


def _probe(model: nn.Module, padded: bool = False) -> Encoded:
    """Three sentences of 2, 5 and 9 words with every class; the second subword of every third word has no label.

    Args:
        model: whose classes and vocabulary they are of.
        padded: give all as many tokens, by subwords without a label, for a model that takes only such batches.
    """
    lengths, vocabulary = (2, 5, 9), getattr(model.config, "vocab_size", None) or 100
    labels: list[int] = []
    offsets = [0]
    for length in lengths:
        sentence = [IGNORE]  # as special tokens have
        for word in range(length):
            sentence.append((3 * word + length) % model.config.num_labels)
            sentence += [IGNORE] * (word % 3 == 2)
        sentence += [IGNORE] * (max(1, 14 - len(sentence)) if padded else 1)
        labels += sentence
        offsets.append(len(labels))
    classes = np.array(labels)
    counted = classes != IGNORE
    words = np.where(counted, np.cumsum(counted) - 1, -1)
    ids = np.arange(len(labels)) % max(vocabulary - 10, 1) + min(10, vocabulary - 1)
    return Encoded(ids, classes, words, np.array(offsets), np.array(lengths))
