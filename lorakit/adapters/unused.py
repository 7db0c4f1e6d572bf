"""Layers and parameters that a model holds but does not use: found by running it, because no configuration says so.

A token classifier may compute a pooler for nothing (SqueezeBERT, FNet, CANINE), or hold a head of another task that it
never runs (ESM's contact head). Adapted or trained, they would get no gradient: weights that stay as they are, and an
error under DistributedDataParallel.

One sentence need not reach every layer or expert of a list. So of a layer or expert that was not reached at all, only
what no other of the list uses is unused. Of one that was reached, all that got no gradient is (the layout's values in
LiLT's last layer).
"""

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

TOKENS = 8  # in the one short sentence that goes through the model


def unused_layers(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Those of a model's layers that its output does not depend on.

    Args:
        model: the model, on any device, also on the meta device if it runs there; it stays as it is.
        names: full names of layers that return one tensor.

    Returns:
        Names; none where the model does not run on token ids alone, so that nothing can be known.
    """
    names = list(names)
    copied = _copy(model)
    if copied is None:
        return frozenset()
    # adding a zero shows whether the output depends on a layer, whatever its weights are made of
    zeros = {n: torch.zeros((), requires_grad=True, device=next(model.parameters()).device) for n in names}
    for name, zero in zeros.items():
        copied.get_submodule(name).register_forward_hook(_adding(zero))
    return _without_gradient(copied, zeros)


def unused_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that require a gradient and do not get one; the rest is as for `unused_layers`."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    copied = _copy(model)
    return frozenset() if copied is None else _without_gradient(copied, trained)


def in_every_layer(name: str) -> str:
    """The name without its number in a list of layers or experts, which is the same for all of the list."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _member(name: str) -> str:
    """The layer or expert that a name belongs to, "encoder.layer.1"; of a name outside lists, nothing."""
    found = re.match(r".*\.\d+(?=\.)", name)
    return found.group() if found else ""


def _copy(model: nn.Module) -> nn.Module | None:
    """The model's modules and buffers around the same parameters, so that nothing a forward sets stays; or None."""
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    try:
        return deepcopy(model, {id(p): p for p in model.parameters()}).eval()
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # it holds what cannot be copied
        return None


def _adding(zero: Tensor) -> Any:
    return lambda module, inputs, output: output + zero.to(output.device, output.dtype)


def _without_gradient(model: nn.Module, tensors: dict[str, Tensor]) -> frozenset[str]:
    if not tensors:
        return frozenset()
    device = next(model.parameters()).device
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            ids = torch.arange(TOKENS, device=device) + 5
            if vocabulary := getattr(model.config, "vocab_size", None):
                ids %= vocabulary
            output = tree_leaves(dict(model(input_ids=ids[None])))
            summed = [value.sum() for value in output if isinstance(value, Tensor) and value.requires_grad]
            gradients = torch.autograd.grad(summed, list(tensors.values()), allow_unused=True)
        except Exception:  # whatever its reason, a model that does not run so says nothing here
            return frozenset()
    used = [name for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None]
    places, members = {in_every_layer(name) for name in used}, {_member(name) for name in used}
    unused = tensors.keys() - set(used)
    return frozenset(name for name in unused if in_every_layer(name) not in places or _member(name) in members)
