"""Merging: updates added to the weights for the base's speed, and removed again bit for bit."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import STATE, lora_layers, lora_state, refuse_parts, unwrap
from lorakit.adapters.names import named_parameters, plain_name, submodule
from lorakit.nn.master_weights import base_type
from lorakit.nn.token_rows import ROWS, has_rows
from lorakit.nn.weights import regather, whole


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: the base's speed, the same outputs up to rounding.

    The original weights are kept for `unmerge_lora`. While merged, transformers' `save_pretrained` writes a plain model
    with the merged weights. If FSDP2 has sharded the model every rank has to call this; each
    keeps its part of the originals.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        torch.nn.init.normal_(net[0].lora_B)
        x = torch.ones(1, 8)
        before = net(x)
        print(torch.allclose(lorakit.merge_lora(net)(x), before, atol=1e-5))  # True

    Args:
        model: an adapted model.

    Returns:
        The same object.

    Raises:
        ValueError: an adapted weight is tied to another module's, which would change too; the sum is not finite; or
            FSDP1 holds the parameters in parts.
    """
    plain = unwrap(model)
    refuse_parts(plain, "merge_lora")
    regather(plain)
    layers = dict(lora_layers(plain))
    owned = {id(layer.weight): name for name, layer in layers.items()}
    for name, parameter in named_parameters(plain, remove_duplicate=False):
        if owner := owned.get(id(parameter)):
            holder = submodule(plain, name.rpartition(".")[0])
            if holder is not layers[owner]:
                raise ValueError(
                    f"{owner}.weight is tied to {name}: merging would change both; run unmerged, or untie them first"
                )
    try:
        for layer in layers.values():
            layer.merge()
    except ValueError:
        unmerge_lora(plain)
        raise
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo `merge_lora`: the weights are again what they were, bit for bit.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        original = net[0].weight.clone()
        lorakit.unmerge_lora(lorakit.merge_lora(net))
        print(torch.equal(net[0].weight, original))  # True

    Args:
        model: an adapted model, merged or not.

    Returns:
        The same object.

    Raises:
        ValueError: the model has no LoRA.
    """
    plain = unwrap(model)
    regather(plain)
    for _, layer in lora_layers(plain):
        layer.unmerge()
    return model


@dataclass
class _Uses:
    """Who computes with a model's layers at the moment; only one kind does at a time."""

    merged: int = 0
    plain: int = 0
    layers: list[nn.Module] = field(default_factory=list)  # those that are merged


_uses: WeakKeyDictionary[nn.Module, _Uses] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def merged_copies(model: nn.Module, merge: bool = True) -> Iterator[bool]:
    """While active, adapted layers compute with merged copies of their weights, at the base's speed; not for training.

    Afterwards each layer has its own weight back: the same memory, which is never written to, so models that share a
    base keep sharing it. Unlike `merge_lora` this leaves layers alone whose copy would lose something or take much
    memory: quantized, sharded and half-precision weights, and those tied to another module.

    Several threads may be inside for one model. Those that come while it is merged compute merged, too; one that comes
    while another computes unmerged does not merge.

    Args:
        model: a model, adapted or not.
        merge: False merges nothing by itself, but keeps other threads from merging meanwhile.

    Yields:
        Whether any layer is merged.
    """
    plain = unwrap(model)
    with _lock:
        uses = _uses.setdefault(plain, _Uses())
        joins = uses.merged > 0
        if merge and not joins and not uses.plain:
            uses.layers = _merge_copies(plain)
            joins = bool(uses.layers)
        uses.merged += joins
        uses.plain += not joins
    try:
        yield joins
    finally:
        with _lock:
            uses.merged -= joins
            uses.plain -= not joins
            if not uses.merged:
                _give_back(uses.layers)
                uses.layers = []


@torch.no_grad()
def _merge_copies(model: nn.Module) -> list[nn.Module]:
    """Give layers a merged copy where that is possible; returns those layers."""
    if not hasattr(model, STATE) or lora_state(model).disabled:
        return []
    try:
        refuse_parts(model, "merged_copies")
    except ValueError:
        return []
    owners = Counter(id(parameter) for _, parameter in named_parameters(model, remove_duplicate=False))
    merged = []
    try:
        for _, layer in lora_layers(model):
            weight = layer.weight
            if layer.merged or type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
                continue
            if weight.dtype != torch.float32 or owners[id(weight)] > 1:
                continue
            copy = layer.merged_weight()
            if torch.isfinite(copy).all():
                layer.register_buffer("lora_original", weight.data, persistent=False)
                weight.data = copy
                merged.append(layer)
    except BaseException:  # out of memory, or stopped
        _give_back(merged)
        raise
    return merged


def _give_back(layers: list[nn.Module]) -> None:
    for layer in layers:
        layer.weight.data = layer.lora_original
        layer.register_buffer("lora_original", None, persistent=False)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a plain model with a merged model's weights.

    The model's own has the unmerged weights and the updates, which from_pretrained would leave out.
    """
    layers = dict(lora_layers(model))
    parameters = dict(named_parameters(model, remove_duplicate=False))
    found = {}
    for key, tensor in model.state_dict().items():
        owner, _, own = plain_name(key).rpartition(".")
        if own == ROWS or owner in layers and own.startswith("lora_"):
            continue
        if own == "weight" and has_rows(module := submodule(model, owner)):
            tensor = module.merged_table()
        tensor = layers[owner].weight.detach() if owner in layers and own == "weight" else tensor
        parameter = parameters.get(plain_name(key))
        dtype = tensor.dtype if parameter is None else base_type(model, parameter)
        found[plain_name(key)] = whole(tensor).to(dtype)
    return found
