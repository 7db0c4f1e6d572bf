"""LoRA on an existing model: inject, count, merge, switch off, take out again (arXiv:2106.09685).

The model stays the same object of the same class; every parameter keeps its name and its identity. What lorakit has to
remember (the configuration, the untouched values of what is trained in place) hangs on the model as one plain record.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorakit.layers import LoRALayer, attach, detach
from lorakit.layers import LoRALinear as LoRALinear
from lorakit.targets import default_targets, find_head, find_modules, find_targets

BIASES = ("none", "all", "lora_only")
STATE = "_lora_state"
"""Attribute of an adapted model that holds its `LoRAState`."""


@dataclass(frozen=True)
class LoRAConfig:
    """What `apply_lora` was asked for, checked; the names are those of PEFT's LoraConfig."""

    r: int = 8  # rank of the update
    lora_alpha: float = 16  # the update is scaled by alpha/r
    lora_dropout: float = 0.0  # probability
    target_modules: str | tuple[str, ...] | None = None  # None: by architecture
    bias: str = "none"
    modules_to_save: tuple[str, ...] | None = None  # None: the detected head
    exclude_modules: str | tuple[str, ...] = ()
    use_rslora: bool = False  # scale by alpha/√r instead (arXiv:2312.03732)

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be a whole number of at least 1, got {self.r!r}")
        if isinstance(self.lora_alpha, bool) or not (0 < self.lora_alpha < math.inf):
            raise ValueError(f"lora_alpha must be a positive number, got {self.lora_alpha!r}")
        if isinstance(self.lora_dropout, bool) or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be a probability from 0 to below 1, got {self.lora_dropout!r}")
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"modules_to_save must be a list of names, got {self.modules_to_save!r}")
        for name in ("target_modules", "modules_to_save", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("target_modules is empty; leave it out for the architecture's default")

    def scaling(self, r: int, lora_alpha: float) -> float:
        """The factor on BA for a layer of this rank and alpha."""
        return lora_alpha / math.sqrt(r) if self.use_rslora else lora_alpha / r


@dataclass
class LoRAState:
    """What an adapted model remembers: names, never references to modules, so that copies and pickles stay whole."""

    config: LoRAConfig
    targets: tuple[str, ...]  # full names of the adapted layers
    saved: tuple[str, ...]  # full names of the modules trained whole
    originals: dict[str, Tensor] = field(default_factory=dict)  # untouched values of the base's trained parameters
    required_grad: dict[str, bool] = field(default_factory=dict)  # the base's flags before apply_lora
    disabled: bool = False  # inside disable_lora()


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has and trains; prints like PEFT's line."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable part of the total, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count each distinct parameter once: those that require grad, and all."""
    parameters = list(model.parameters())
    return ParameterCount(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def peft_total(model: nn.Module) -> int:
    """The "all params" that PEFT prints for the same adapter: it also counts an untrained copy of the head.

    PEFT trains a deep copy of every module in modules_to_save and keeps the original, dead, beside it. On roberta-base
    with 11 labels, r=16, query+value and bias="all": lorakit 700,427 of 124,653,323; PEFT 700,427 of 124,661,782, which
    are 8,459 (768 x 11 + 11) more.
    """
    saved = {id(p): p.numel() for name in lora_state(model).saved for p in model.get_submodule(name).parameters()}
    return count_parameters(model).total + sum(saved.values())


def apply_lora(
    model: nn.Module,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = None,
    bias: str = "none",
    modules_to_save: Sequence[str] | None = None,
    *,
    exclude_modules: str | Sequence[str] = (),
    use_rslora: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Freeze `model` and add trainable low-rank updates to its layers, in place; the first output is unchanged.

    Args:
        model: Any module. Keeps its class, signature, parameter names and identities.
        r: Rank of the updates, at least 1.
        lora_alpha: The updates are scaled by lora_alpha/r.
        lora_dropout: Dropout probability on the input of the updates, active in training mode.
        target_modules: Name suffixes of the layers to adapt; or one regex for the full name; or "all-linear". None
            means the architecture's attention query and value.
        bias: Which of the model's own biases are trained: "none", "all", or "lora_only" (of the adapted layers).
        modules_to_save: Modules trained whole besides the head. None means the detected head alone, [] nothing, not
            even the head.
        exclude_modules: Suffixes, or one regex, of targets to leave out.
        use_rslora: Scale by lora_alpha/√r.
        seed: The initial A of a layer depends on this and the layer's name only; the global generators are not used.

    Returns:
        The same object.

    Raises:
        ValueError: An argument out of range; a name that matches nothing; a layer that cannot be adapted; a model that
            was adapted before. The model is then unchanged.
    """
    if hasattr(model, STATE):
        raise ValueError("this model has LoRA already; call remove_lora(model) before another apply_lora")
    config = LoRAConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        bias=bias,
        modules_to_save=modules_to_save,
        exclude_modules=exclude_modules,
        use_rslora=use_rslora,
    )
    saved = _modules_trained_whole(model, config)
    wanted = default_targets(model) if config.target_modules is None else config.target_modules
    targets = find_targets(model, wanted, config.exclude_modules, saved)

    state = LoRAState(config, targets, saved)
    state.required_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    trained = {id(p): p for p in _trained_in_place(model, state)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if id(parameter) in trained:
            state.originals[name] = parameter.detach().clone()
    for name in targets:
        module = model.get_submodule(name)
        attach(module, *_fresh_update(module, name, r, seed), lora_alpha, config.scaling(r, lora_alpha), lora_dropout)
    setattr(model, STATE, state)
    return model


def lora_state(model: nn.Module) -> LoRAState:
    """The record that `apply_lora` left on the model.

    Raises:
        ValueError: The model has no LoRA.
    """
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(f"this {type(model).__name__} has no LoRA; call apply_lora(model) or load_adapter first")
    return state


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """The adapted layers with their full names, each once."""
    for name in lora_state(model).targets:
        yield name, model.get_submodule(name)


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: plain speed, the same outputs to rounding. The originals are kept."""
    for _, layer in lora_layers(model):
        layer.merge()
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo `merge_lora`: the weights are bit for bit what they were."""
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model


def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Take LoRA out again, in place: plain layers, and the parameters require grad as they did before.

    Args:
        model: An adapted model.
        merge: Keep what was learned: updates are added to the weights, trained biases and head stay. False puts back
            the untouched model, bit for bit, head and biases included.
    """
    state = lora_state(model)
    if state.disabled:
        raise RuntimeError("remove_lora inside disable_lora(); leave the context first")
    unmerge_lora(model)
    if merge:
        merge_lora(model)
    for _, layer in list(lora_layers(model)):
        detach(layer)
    for name, parameter in model.named_parameters():
        if name in state.originals and not merge:
            parameter.data = state.originals[name].to(parameter.device)
        parameter.requires_grad_(state.required_grad[name])
    delattr(model, STATE)
    return model


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model computes what it computed before `apply_lora`, bit for bit, merged or not.

    Trained biases and heads are replaced by their untouched values too; nothing is copied or lost, and contexts nest.
    """
    state = lora_state(model)
    if state.disabled:
        yield model
        return
    swapped = _swap_in_originals(model, state)
    layers = [layer for _, layer in lora_layers(model)]
    try:
        state.disabled = True
        for layer in layers:
            layer.lora_off = True
        yield model
    finally:
        for layer in layers:
            layer.lora_off = False
        for module, key, parameter in swapped:
            module._parameters[key] = parameter
        state.disabled = False


def _swap_in_originals(model: nn.Module, state: LoRAState) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Replace each parameter trained in place by its untouched values, wherever registered; returns what was there.

    Other parameter objects rather than other values in the same ones: a graph recorded outside stays valid.
    """
    named = dict(model.named_parameters())
    originals = {
        id(named[name]): nn.Parameter(value.to(named[name].device), requires_grad=False)
        for name, value in state.originals.items()
    }
    swapped = []
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in originals:
                swapped.append((module, key, parameter))
                module._parameters[key] = originals[id(parameter)]
    return swapped


def _modules_trained_whole(model: nn.Module, config: LoRAConfig) -> tuple[str, ...]:
    """Full names of the head and of what modules_to_save names."""
    if config.modules_to_save == ():
        return ()
    head = find_head(model)
    extra = find_modules(model, config.modules_to_save or (), "modules_to_save")
    saved = tuple(dict.fromkeys([*head, *(n for n in extra if not any(n.startswith(f"{h}.") for h in head))]))
    inside = {id(p) for name in saved for p in model.get_submodule(name).parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in inside and not any(name.startswith(f"{s}.") for s in saved):
            raise ValueError(
                f"modules_to_save {', '.join(map(repr, saved))} shares a tied parameter with {name!r}, which would be "
                "trained too; name both modules, or untie them"
            )
    return saved


def _trained_in_place(model: nn.Module, state: LoRAState) -> Iterator[nn.Parameter]:
    """The base's own parameters that are trained: the modules trained whole, and the biases asked for."""
    for name in state.saved:
        yield from model.get_submodule(name).parameters()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        if state.config.bias == "all" and is_bias(name):
            yield parameter
        elif state.config.bias == "lora_only" and own == "bias" and owner in state.targets:
            yield parameter


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias: by its own name, or its module's (T5's `relative_attention_bias.weight`)."""
    owner, _, own = name.rpartition(".")
    return "bias" in own or owner.endswith("bias")


def _fresh_update(module: nn.Module, name: str, r: int, seed: int) -> tuple[Tensor, Tensor]:
    """A (r, in) drawn as nn.Linear draws its weight, B (out, r) zero; both float32 on the layer's device."""
    device = module.weight.device
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    A = torch.empty(r, module.in_features, dtype=torch.float32)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
    return A.to(device), torch.zeros(module.out_features, r, dtype=torch.float32, device=device)
