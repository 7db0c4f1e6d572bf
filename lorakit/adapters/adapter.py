"""The record of a model's adapters: their settings, their values, and the original values of the base.

All that lorakit has to remember is one plain record attached to the model. One adapter is active, and its values are
in the model; those of the others are in the record.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.names import (
    is_within,
    named_parameters,
    named_tensors,
    plain_name,
    submodule,
    unmatched,
    unwrapped,
)
from lorakit.nn.token_rows import ROWS, has_rows
from lorakit.nn.weights import Update, is_adapted, update_shapes, whole

STATE = "_lora_state"
"""Attribute of an adapted model that holds its `LoRAState`."""


@dataclass(frozen=True)
class Adapter:
    """One adapter outside the model: its settings and values. While it is active, only settings and names are used."""

    config: LoRAConfig
    saved: tuple[str, ...]  # full names of the modules trained in full
    targets: tuple[str, ...]  # full names of the adapted layers
    updates: Mapping[str, Update]  # by layer
    values: Mapping[str, Tensor]  # parameters and buffers of the base that are trained in place, by full name
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)  # by token table, the tokens whose rows are trained
    # entries of the model's configuration while it is active, such as its own labels; None removes one
    model_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The tag of each class, where they are not the base's."""
        names = self.model_config.get("id2label")
        return tuple(names[number] for number in sorted(names)) if names else None


@dataclass
class LoRAState:
    """Adapters of a model; names, never references to modules, so that the model can be copied and pickled."""

    active: str
    adapters: dict[str, Adapter]  # the active one's values are the model's, not these
    required_grad: dict[str, bool]  # the base's flags before apply_lora
    # original values of what the active adapter trains in place
    originals: dict[str, Tensor] = field(default_factory=dict)
    # of the active adapter's values; an output layer for other labels than the base's has another number of rows
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    # original entries of the model's configuration that are the active adapter's now; None for one that is new
    model_config: dict[str, Any] = field(default_factory=dict)
    disabled: bool = False  # inside disable_lora()

    @property
    def current(self) -> Adapter:
        """The active adapter's record."""
        return self.adapters[self.active]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile, DistributedDataParallel and FSDP1."""
    while (inner := unwrapped(model)) is not model or isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module if inner is model else inner
    return model


def is_replicated(model: nn.Module) -> bool:
    """Whether DistributedDataParallel is among the model's wrappers."""
    return isinstance(unwrapped(model), nn.parallel.DistributedDataParallel)


def lora_state(model: nn.Module) -> LoRAState:
    """The record that `apply_lora` attached to the model.

    Raises:
        ValueError: the model has no LoRA.
    """
    model = unwrap(model)
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(f"this {type(model).__name__} has no LoRA; call apply_lora(model) or load_adapter first")
    return state


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The adapted layers with their full names, without repeats.

    Raises:
        ValueError: the model has no LoRA, or PEFT has put layers of its own around these.
    """
    model = unwrap(model)
    for name in lora_state(model).current.targets:
        layer = submodule(model, name)
        if hasattr(layer, "base_layer"):
            raise ValueError(
                f"{name} is a layer of PEFT around lorakit's, because get_peft_model was given an adapted model; drop"
                " PEFT's adapter with peft_model.unload(), and to train with PEFT on what lorakit learned call"
                " remove_lora(model, merge=True) before get_peft_model"
            )
        yield name, layer


def refuse_parts(model: nn.Module, what: str) -> None:
    """Raise ValueError if a wrapper holds parts of the adapter's tensors, as FSDP1 does: they are not the values."""
    state, tensors = lora_state(model), named_tensors(unwrap(model))
    expected = dict(state.shapes)
    for name, layer in lora_layers(model):
        tensors |= {f"{name}.lora_A": layer.lora_A, f"{name}.lora_B": layer.lora_B}
        expected |= dict(zip((f"{name}.lora_A", f"{name}.lora_B"), update_shapes(layer, layer.r), strict=True))
    for name, shape in expected.items():
        found = getattr(tensors.get(name), "shape", None)
        if found != torch.Size(shape):
            raise ValueError(
                f"{what}: {name} is {tuple(found or ())}, not {tuple(shape)}: a wrapper such as FSDP1 holds the "
                "parameters in parts. save_adapter works on every rank inside "
                "FullyShardedDataParallel.summon_full_params(model); for the rest load what it wrote into an unwrapped "
                "model, or shard with fully_shard (FSDP2)"
            )


def captured(model: nn.Module, what: str = "reading an adapter") -> Adapter:
    """The active adapter with copies of its current values; `what` is named in errors."""
    state = lora_state(model)
    if state.disabled:
        raise RuntimeError("the adapter is switched off; leave disable_lora() first")
    refuse_parts(model, what)
    updates = {}
    for name, layer in lora_layers(model):
        A, B, magnitude = (
            None if p is None else whole(p.detach()).clone() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude)
        )
        start = None if layer.lora_start_A is None else (layer.lora_start_A, layer.lora_start_B)
        updates[name] = Update(A, B, layer.lora_alpha, layer.scaling, magnitude, start)
    tensors = named_tensors(unwrap(model))
    values = {name: whole(tensors[name].detach()).clone() for name in state.originals}
    return replace(state.current, updates=updates, values=values)


def trained_in_place(model: nn.Module, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """What training changes besides updates: fully trained modules (buffers too), requested biases, rows of tokens."""
    bias, targets = adapter.config.bias, set(adapter.targets)
    own = ("lora_A", "lora_B", "lora_magnitude")
    for name, parameter in named_parameters(model):
        owner, _, key = name.rpartition(".")
        if key == ROWS and has_rows(submodule(model, owner)):
            if owner in adapter.rows:
                yield name, parameter
            continue
        if key in own and is_adapted(submodule(model, owner)):
            continue
        if (
            any(is_within(name, module) for module in adapter.saved)
            or (bias == "all" and key == "bias")
            or (bias == "lora_only" and key == "bias" and owner in targets)
        ):
            yield name, parameter
    for name in adapter.saved:
        module = submodule(model, name)
        persistent = module.state_dict().keys()
        for own_name, buffer in module.named_buffers():
            if own_name in persistent:
                yield plain_name(f"{name}.{own_name}"), buffer


def untouched(model: nn.Module, name: str) -> Tensor:
    """The original values of one of the base's parameters or buffers, whatever the active adapter trains."""
    state = getattr(model, STATE, None)
    if state is not None and name in state.originals:
        return state.originals[name]
    return whole(named_tensors(model)[name].detach())


def untouched_rows(model: nn.Module, table: str, tokens: Sequence[int]) -> Tensor:
    """The base's rows of these tokens in float32: (tokens, width)."""
    return whole(submodule(model, table).weight.detach())[list(tokens)].float()


def known(state: LoRAState, name: str) -> None:
    """Raise ValueError unless the model has an adapter of this name."""
    if name not in state.adapters:
        raise unmatched("adapter", name, state.adapters)


def refuse_while_disabled(state: LoRAState, what: str) -> None:
    """Raise RuntimeError inside `disable_lora`, where the adapter's values are not in the model."""
    if state.disabled:
        raise RuntimeError(f"{what} inside disable_lora(); leave the context first")
