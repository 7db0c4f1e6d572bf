"""Several adapters of a model in one batch: each row is computed with one of them (inference only)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit._counts import counted
from lorakit.adapters.adapter import STATE, Adapter, LoRAState, captured, known, lora_state, untouched, unwrap
from lorakit.adapters.combination import without_start
from lorakit.adapters.names import submodule
from lorakit.nn.stacked import Stack, is_stackable, padded, stacked, takes_updates
from lorakit.nn.weights import is_adapted, update_shapes

BASE = "__base__"
"""Name that stands for no adapter, as in PEFT."""
OPEN = "_lora_mixed"
"""Attribute of a model that is inside a forward with `adapter_names`: what undoes it."""


class MixedAdapters:
    """The stacked values of some adapters of a model, copied once and used for many batches.

    Args:
        model: an adapted model, unmerged, whose adapters are on one base.
        names: of its adapters, without repeats; "__base__" stands for none.

    Raises:
        ValueError: there is no such adapter, or one cannot be computed beside others; the message names why.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names, plain = tuple(names), unwrap(model)
        state = lora_state(plain)
        if state.disabled:
            raise ValueError("several adapters in a batch: LoRA is switched off; leave disable_lora() first")
        adapters = [_adapter(plain, state, name) for name in names]
        for name, adapter in zip(names, adapters, strict=True):
            if adapter.labels != state.current.labels:
                fix = "use disable_lora(model) for it" if name == BASE else f"call set_adapter(model, {name!r}) for it"
                raise ValueError(
                    f"adapter {name!r} cannot share a batch with {state.active!r}, which is active, as their labels"
                    f" differ; {fix} and give it a batch of its own"
                )
        layers = list(dict.fromkeys(name for adapter in adapters for name in adapter.updates))
        values = list(dict.fromkeys(name for adapter in adapters for name in adapter.values))
        parts: dict[str, dict[str, Tensor]] = {}
        for name in layers:
            parts[name] = dict(zip("AB", _stacked_updates(plain, name, adapters), strict=True))
        for name in values:
            owner, _, own = name.rpartition(".")
            base = untouched(plain, name)
            parts.setdefault(owner, {})[own] = torch.stack([a.values.get(name, base).to(base) for a in adapters])
        self.stacks = {name: Stack(**found) for name, found in parts.items()}
        self.modules = {name: submodule(plain, name) for name in self.stacks}

    @contextmanager
    def for_rows(self, rows: Tensor) -> Iterator[None]:
        """While active, the model computes each row of a batch with one of the adapters.

        Args:
            rows: (rows,) int64, on the model's device: the place among `names` of each row's adapter.
        """
        with stacked(self.modules, {name: stack.select(rows) for name, stack in self.stacks.items()}, len(rows)):
            yield


def mix_adapters(model: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
    """A hook before the model's forward: `adapter_names` gives the adapter of each row, as in PEFT.

    Models of transformers accept and ignore keywords that they do not know, so it takes the keyword away.
    """
    names = named.get("adapter_names")
    if names is None or not hasattr(model, STATE):
        return None
    named = {key: value for key, value in named.items() if key != "adapter_names"}
    given = next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)
    if isinstance(names, str) or given is None or len(names) != len(given):
        count = "no input" if given is None else counted(len(given), "row")
        shown = repr(names) if isinstance(names, str) else counted(len(names), "name")
        raise ValueError(f"adapter_names has one name for each row of the batch; got {shown} for {count}")
    if model.training:
        raise ValueError(
            "adapter_names is for inference, and the model is in training mode: call model.eval() first; train_many"
            " trains several adapters at once"
        )
    distinct = list(dict.fromkeys(names))
    rows = torch.tensor([distinct.index(name) for name in names], device=given.device)
    opened = ExitStack()
    opened.enter_context(MixedAdapters(model, distinct).for_rows(rows))
    model.__dict__[OPEN] = opened
    return arguments, named


def separate_adapters(model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
    """A hook after the model's forward, also after an error: undoes `mix_adapters`."""
    if opened := model.__dict__.pop(OPEN, None):
        opened.close()


def why_alone(model: nn.Module, adapter: Adapter) -> str | None:
    """Why an adapter cannot be computed beside others, such as "it uses DoRA"; None if it can."""
    if adapter.config.use_dora:
        return "it uses DoRA"
    if adapter.rows:
        return f"it trains rows of {', '.join(adapter.rows)}"
    for name in adapter.targets:
        if not takes_updates(layer := submodule(model, name)):
            return f"it adapts {name}, a {type(layer).__name__}"
    for name in adapter.values:
        owner, _, own = name.rpartition(".")
        if own not in ("weight", "bias") or not is_stackable(submodule(model, owner)):
            return f"it trains {name}, of a {type(submodule(model, owner)).__name__}"
    return None


def _adapter(model: nn.Module, state: LoRAState, name: str) -> Adapter:
    """The adapter with its values, if it can be computed beside others."""
    if name == BASE:
        return Adapter(state.current.config, (), (), {}, {})
    known(state, name)
    adapter = captured(model) if name == state.active else state.adapters[name]
    reason = why_alone(model, adapter)
    layers = (submodule(model, target) for target in adapter.targets)
    if reason is None and any(is_adapted(layer) and layer.merged for layer in layers):
        reason = "the model is merged (unmerge_lora(model) undoes that)"
    if reason:
        raise ValueError(
            f"adapter {name!r} cannot share a batch with others, because {reason}; call set_adapter(model, name) and"
            " give it a batch of its own"
        )
    return adapter


def _stacked_updates(model: nn.Module, name: str, adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor]:
    """A and scaling·B of a layer for each adapter, padded with zeros to the largest rank."""
    updates = [without_start(a.updates[name], False) if name in a.updates else None for a in adapters]
    layer = submodule(model, name)
    shape_A, shape_B = update_shapes(layer, max(len(update.A) for update in updates if update))
    A = padded([update and update.A for update in updates], shape_A, layer.weight.device)
    B = padded([update and update.scaling * update.B for update in updates], shape_B, layer.weight.device)
    return A, B
