"""The output layer of a token classifier: a row of weights for each label, which goes where its label goes.

A checkpoint that was fine-tuned for entities has labels of its own. Loaded for a corpus with the same labels in another
order, its rows have to be reordered; for other labels they mean nothing, and the layer has to be new.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lorakit._counts import counted
from lorakit.adapters.targets import find_head
from lorakit.training.loading_report import LoadingReport

OUTSIDE = "O"  # shared by nearly all tag sets, so it alone says nothing


def place_rows(
    model: nn.Module,
    report: LoadingReport,
    own: Sequence[str],
    labels: Sequence[str],
    trained: Callable[[], nn.Module],
) -> str | None:
    """Give each label of a loaded model the checkpoint's row for it, and new rows to the labels it does not know.

    Args:
        model: loaded with `labels`; its output layer is changed in place.
        report: of the loading.
        own: the checkpoint's labels, in its order.
        labels: the labels of the model's classes, in order.
        trained: loads the checkpoint with its own labels.

    Returns:
        What was done, for the user; None for a base without a head and for a head with exactly these labels.

    Raises:
        ValueError: a part of the head is missing from the checkpoint.
    """
    name, layer = _output_layer(model)
    keys = {f"{name}.{key}" for key, _ in layer.named_parameters()}
    if report.missing >= keys:
        return None  # a base: its head is new, as everyone expects
    shared = [label for label in labels if label in own]
    if not set(shared) - {OUTSIDE}:
        _renew(layer, _deviation(model), range(len(labels)))
        return f"the head is new: the checkpoint's own was trained for other labels ({_listing(own)})"
    head = {f"{part}.{key}" for part in find_head(model) for key, _ in model.get_submodule(part).named_parameters()}
    if lost := sorted(head & report.missing):
        raise ValueError(f"the checkpoint has only a part of its head: {', '.join(lost)} is missing; save it again")
    if list(own) == list(labels):
        return None
    source = _output_layer(trained())[1] if report.mismatched else layer
    rows = {key: parameter.detach().clone() for key, parameter in source.named_parameters()}
    _renew(layer, _deviation(model), [i for i, label in enumerate(labels) if label not in shared])
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            for label in shared:
                parameter[labels.index(label)] = rows[key][own.index(label)]
    new, unused = ([x for x in mine if x not in theirs] for mine, theirs in ((labels, own), (own, labels)))
    told = f"the checkpoint's head is kept, each row with its label ({_listing(shared)})"
    told += f"; new rows: {_listing(new)}" if new else ""
    return told + (f"; rows without use: {_listing(unused)}" if unused else "")


def new_rows(model: nn.Module, labels: Sequence[str], seed: int) -> dict[str, Tensor]:
    """An output layer for other labels, drawn as `load_token_classifier` draws one; the model stays as it is.

    Args:
        model: a token classifier.
        labels: the tag of each class.
        seed: what the values depend on.

    Returns:
        The layer's parameters in float32, by their full names.
    """
    name, layer = _output_layer(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weight = torch.empty(len(labels), layer.in_features).normal_(std=_deviation(model))
    found = {f"{name}.weight": weight}
    return found if layer.bias is None else found | {f"{name}.bias": torch.zeros(len(labels))}


def _output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name and module of the last linear layer of the head with a row for each label."""
    found = [
        (f"{part}.{name}".rstrip("."), module)
        for part in find_head(model)
        for name, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear output layer with {counted(model.config.num_labels, 'row')}"
        )
    return found[-1]


def _renew(layer: nn.Linear, deviation: float, rows: Sequence[int]) -> None:
    """Draw these rows as transformers draws a new head, from torch's global generator."""
    with torch.no_grad():
        fresh = torch.empty_like(layer.weight).normal_(std=deviation)
        layer.weight[list(rows)] = fresh[list(rows)]
        if layer.bias is not None:
            layer.bias[list(rows)] = 0.0


def _deviation(model: nn.Module) -> float:
    return float(getattr(model.config, "initializer_range", 0.02))


def _listing(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (f", … {len(labels)} in all" if len(labels) > 8 else "")
