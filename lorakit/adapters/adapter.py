"""The record of a model's adapters: their settings, their values, and the original values of the base.

All that lorakit has to remember is one plain record attached to the model. One adapter is active, and its values are
in the model; those of the others are in the record.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.names import unmatched
from lorakit.nn.weights import Update, is_adapted, whole

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


@dataclass
class LoRAState:
    """Adapters of a model; names, never references to modules, so that the model can be copied and pickled."""

    active: str
    adapters: dict[str, Adapter]  # the active one's values are the model's, not these
    required_grad: dict[str, bool]  # the base's flags before apply_lora
    # original values of what the active adapter trains in place
    originals: dict[str, Tensor] = field(default_factory=dict)
    disabled: bool = False  # inside disable_lora()

    @property
    def current(self) -> Adapter:
        """The active adapter's record."""
        return self.adapters[self.active]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def is_replicated(model: nn.Module) -> bool:
    """Whether DistributedDataParallel is among the model's wrappers."""
    while "_orig_mod" in model._modules:
        model = model._orig_mod
    return isinstance(model, nn.parallel.DistributedDataParallel)


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
    """The adapted layers with their full names, without repeats."""
    model = unwrap(model)
    for name in lora_state(model).current.targets:
        yield name, model.get_submodule(name)


def captured(model: nn.Module) -> Adapter:
    """The active adapter with copies of its current values."""
    state = lora_state(model)
    updates = {}
    for name, layer in lora_layers(model):
        A, B, magnitude = (
            None if p is None else whole(p.detach()).clone() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude)
        )
        start = None if layer.lora_start_A is None else (layer.lora_start_A, layer.lora_start_B)
        updates[name] = Update(A, B, layer.lora_alpha, layer.scaling, magnitude, start)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if state.disabled:
        raise RuntimeError("the adapter is switched off; leave disable_lora() first")
    values = {name: whole(tensors[name].detach()).clone() for name in state.originals}
    return replace(state.current, updates=updates, values=values)


def trained_in_place(model: nn.Module, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """The base's own tensors that training changes: fully trained modules (buffers too) and the requested biases."""
    bias, targets = adapter.config.bias, set(adapter.targets)
    own = ("lora_A", "lora_B", "lora_magnitude")
    for name, parameter in model.named_parameters():
        owner, _, key = name.rpartition(".")
        if key in own and is_adapted(model.get_submodule(owner)):
            continue
        if (
            any(name.startswith(f"{module}.") for module in adapter.saved)
            or (bias == "all" and key == "bias")
            or (bias == "lora_only" and key == "bias" and owner in targets)
        ):
            yield name, parameter
    for module in adapter.saved:
        persistent = model.get_submodule(module).state_dict().keys()
        for name, buffer in model.get_submodule(module).named_buffers(prefix=module):
            if name.removeprefix(f"{module}.") in persistent:
                yield name, buffer


def known(state: LoRAState, name: str) -> None:
    """Raise ValueError unless the model has an adapter of this name."""
    if name not in state.adapters:
        raise unmatched("adapter", name, state.adapters)


def refuse_while_disabled(state: LoRAState, what: str) -> None:
    """Raise RuntimeError inside `disable_lora`, where the adapter's values are not in the model."""
    if state.disabled:
        raise RuntimeError(f"{what} inside disable_lora(); leave the context first")
