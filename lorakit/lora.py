"""LoRA on an existing model: inject, count, merge, switch off, take out again (arXiv:2106.09685).

The model stays the same object of the same class; every parameter keeps its name and its identity. What lorakit has to
remember (configurations, other adapters' values, the untouched values of what is trained in place) hangs on the model
as one plain record. One adapter is in the model at a time; the others wait in the record.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.combine import COMBINATIONS, combine_updates
from lorakit.initial import initial_update
from lorakit.layers import LoRALayer, Update, attach, detach, set_update, update_shapes
from lorakit.layers import LoRALinear as LoRALinear
from lorakit.lora_config import LoRAConfig, pattern_matches
from lorakit.masters import demote, promote
from lorakit.targets import default_targets, find_head, find_modules, find_targets, keep_layers, unmatched

STATE = "_lora_state"
"""Attribute of an adapted model that holds its `LoRAState`."""


@dataclass(frozen=True)
class Adapter:
    """One adapter outside the model: its configuration and values. While it is active only the names count."""

    config: LoRAConfig
    saved: tuple[str, ...]  # full names of the modules trained whole
    targets: tuple[str, ...]  # full names of the adapted layers
    updates: Mapping[str, Update]  # by layer
    values: Mapping[str, Tensor]  # parameters and buffers of the base that are trained in place, by full name


@dataclass
class LoRAState:
    """What an adapted model remembers: names, never references to modules, so that copies and pickles stay whole."""

    active: str
    adapters: dict[str, Adapter]  # the active one's values are the model's, not these
    required_grad: dict[str, bool]  # the base's flags before apply_lora
    originals: dict[str, Tensor] = field(
        default_factory=dict
    )  # untouched values of what the active one trains in place
    disabled: bool = False  # inside disable_lora()

    @property
    def current(self) -> Adapter:
        """The active adapter's record."""
        return self.adapters[self.active]


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
    model = unwrap(model)
    saved = {
        id(p): p.numel() for name in lora_state(model).current.saved for p in model.get_submodule(name).parameters()
    }
    return count_parameters(model).total + sum(saved.values())


def without_gradient(model: nn.Module) -> tuple[str, ...]:
    """Names of parameters that should be trained but have no gradient: call it after a first backward pass.

    A frozen embedding under reentrant checkpointing, or a layer that the model's output does not use, trains nothing
    and says nothing; DistributedDataParallel stops at it.
    """
    return tuple(name for name, p in unwrap(model).named_parameters() if p.requires_grad and p.grad is None)


def lora_plus_groups(
    model: nn.Module,
    learning_rate: float,
    ratio: float = 16.0,
    weight_decay: float = 0.0,
    embedding_learning_rate: float = 1e-6,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser in which B learns `ratio` times as fast as A (LoRA+, arXiv:2402.12354).

    As in the paper's code, vectors (biases, DoRA magnitudes) go with B, without weight decay; the head's matrices go
    with A, and adapted embeddings have a rate of their own.

    Raises:
        ValueError: `ratio` is below 1.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio must be at least 1, got {ratio!r}")
    model = unwrap(model)
    A, B, vectors, embeddings = [], [], [], []
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        if not parameter.requires_grad:
            continue
        if own in ("lora_A", "lora_B", "lora_magnitude") and isinstance(model.get_submodule(owner), nn.Embedding):
            embeddings.append(parameter)
        elif parameter.ndim == 1:
            vectors.append(parameter)
        else:
            (B if own == "lora_B" else A).append(parameter)
    groups = (
        (A, learning_rate, weight_decay),
        (B, learning_rate * ratio, weight_decay),
        (vectors, learning_rate * ratio, 0.0),
        (embeddings, embedding_learning_rate, weight_decay),
    )
    return [{"params": p, "lr": rate, "weight_decay": decay} for p, rate, decay in groups if p]


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
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    init_lora_weights: bool | str = True,
    seed: int = 0,
    adapter_name: str = "default",
) -> nn.Module:
    """Freeze `model` and add trainable low-rank updates to its layers, in place; the first output is unchanged.

    What is trained is float32 whatever the base's type. A model that has an adapter takes another one under another
    `adapter_name`; it becomes the active one.

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
        layers_to_transform: Indices of the layers to adapt, with a list of target_modules.
        layers_pattern: Names of the lists that hold those layers; () means the first number in a name.
        rank_pattern: Regex for a name's last parts -> another r for the layers it matches.
        alpha_pattern: The same for lora_alpha.
        use_rslora: Scale by lora_alpha/√r.
        use_dora: Train the norm of each output's weights apart from their direction.
        init_lora_weights: True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_[steps]" or "olora".
        seed: The initial A of a layer depends on this and the layer's name only; the global generators are not used.
        adapter_name: Name of this adapter among several.

    Returns:
        The same object.

    Raises:
        ValueError: An argument out of range; a name that matches nothing; a layer that cannot be adapted; an adapter of
            this name is there already. The model is then unchanged.
    """
    config = LoRAConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        bias=bias,
        modules_to_save=modules_to_save,
        exclude_modules=exclude_modules,
        layers_to_transform=layers_to_transform,
        layers_pattern=layers_pattern,
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora_weights=init_lora_weights,
    )
    state = getattr(model, STATE, None)
    if state is not None and adapter_name in state.adapters:
        raise ValueError(
            f"this model has LoRA already; call remove_lora(model) before another apply_lora, or add an adapter under "
            f"another adapter_name than {adapter_name!r}"
        )
    adapter = new_adapter(model, config, _modules_trained_whole(model, config), seed)
    _warn_of_large_ranks(model, adapter)
    return add_adapter(model, adapter_name, adapter)


def new_adapter(model: nn.Module, config: LoRAConfig, saved: tuple[str, ...], seed: int = 0) -> Adapter:
    """A fresh adapter for `model`, outside of it: the layers that `config` means, with their initial updates.

    Raises:
        ValueError: As `apply_lora`.
    """
    wanted = default_targets(model) if config.target_modules is None else config.target_modules
    targets = find_targets(model, wanted, config.exclude_modules, saved)
    if config.layers_to_transform is not None:
        targets = keep_layers(targets, config.layers_to_transform, config.layers_pattern)
    for what in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, what):
            if not any(pattern_matches(pattern, name) for name in targets):
                raise unmatched(what, pattern, (name.rpartition(".")[2] for name in targets))
    updates = {}
    for name in targets:
        r, alpha = config.rank_of(name), config.alpha_of(name)
        module = model.get_submodule(name)
        scaling = config.scaling(r, alpha)
        updates[name] = initial_update(module, name, r, alpha, scaling, config.init_lora_weights, seed)
    return Adapter(config, saved, targets, updates, {})


def add_adapter(model: nn.Module, name: str, adapter: Adapter) -> nn.Module:
    """Put an adapter made for `model` into it under `name`, as the active one; one of that name is replaced."""
    state = getattr(model, STATE, None)
    if state is None:
        state = LoRAState(name, {}, {n: p.requires_grad for n, p in model.named_parameters()})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        setattr(model, STATE, state)
        state.adapters[name] = adapter
        _put_in(model, state)
        return model
    _switch(model, state, name, adapter)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def lora_state(model: nn.Module) -> LoRAState:
    """The record that `apply_lora` left on the model.

    Raises:
        ValueError: The model has no LoRA.
    """
    model = unwrap(model)
    state = getattr(model, STATE, None)
    if state is None:
        raise ValueError(f"this {type(model).__name__} has no LoRA; call apply_lora(model) or load_adapter first")
    return state


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """The adapted layers with their full names, each once."""
    model = unwrap(model)
    for name in lora_state(model).current.targets:
        yield name, model.get_submodule(name)


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all adapters of the model, the active one first."""
    state = lora_state(model)
    return (state.active, *(name for name in state.adapters if name != state.active))


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make another adapter the active one, in place; head and biases change with it.

    Where both adapters have the same shapes the values go into the same parameters: an optimiser keeps working on them
    and a compiled model need not be compiled again. A merged model is merged with the new adapter.
    """
    model = unwrap(model)
    state = lora_state(model)
    _known(state, name)
    if name != state.active:
        _switch(model, state, name, state.adapters[name])
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Forget an adapter that is not the active one."""
    state = lora_state(model)
    _known(state, name)
    if name == state.active:
        raise ValueError(f"adapter {name!r} is active; set_adapter another one first, or remove_lora(model)")
    del state.adapters[name]
    return model


def combine_adapters(
    model: nn.Module, weights: Mapping[str, float], name: str, how: str = "cat", r: int | None = None
) -> nn.Module:
    """Make a new adapter, not yet active, whose change of the base is the weighted sum of others' changes.

    Args:
        model: An adapted model.
        weights: Adapter name -> its factor, any sign.
        name: Of the new adapter.
        how: "cat" is exact and its rank is the sum of the ranks; "svd" is the best approximation of rank `r`; "linear"
            adds A's and B's of one rank, PEFT's rough rule.
        r: Rank for "svd"; None means the largest of the adapters' ranks.

    Raises:
        ValueError: A name that is unknown or taken; a rule that does not exist; DoRA, whose changes do not add.
    """
    model = unwrap(model)
    state = lora_state(model)
    if name in state.adapters:
        raise ValueError(f"adapter {name!r} is there already; delete_adapter it first")
    if how not in COMBINATIONS:
        raise ValueError(f"how must be one of {', '.join(COMBINATIONS)}, got {how!r}")
    if not weights:
        raise ValueError("weights is empty; give at least one adapter and its factor")
    parts = []
    for part, weight in weights.items():
        _known(state, part)
        adapter = captured(model) if part == state.active else state.adapters[part]
        if adapter.config.use_dora:
            raise ValueError(f"adapter {part!r} uses DoRA, whose changes do not add; merge it instead")
        parts.append((adapter, float(weight)))

    targets = tuple(dict.fromkeys(t for adapter, _ in parts for t in adapter.targets))
    updates = {}
    for target in targets:
        mine = [(adapter.updates[target], weight) for adapter, weight in parts if target in adapter.updates]
        updates[target] = combine_updates(mine, how, r)
    values = {}
    for key in dict.fromkeys(k for adapter, _ in parts for k in adapter.values):
        base = _untouched(model, state, key)
        change = sum((w * (a.values[key].to(base) - base) for a, w in parts if key in a.values), torch.zeros_like(base))
        values[key] = base + change
    saved = tuple(dict.fromkeys(s for adapter, _ in parts for s in adapter.saved))
    first = updates[targets[0]]
    config = replace(
        parts[0][0].config,
        r=len(first.A),
        lora_alpha=first.lora_alpha,
        rank_pattern={},
        alpha_pattern={},
        use_rslora=False,
        init_lora_weights=True,
        bias=max((a.config.bias for a, _ in parts), key=("none", "lora_only", "all").index),
    )
    state.adapters[name] = Adapter(config, saved, targets, updates, values)
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: plain speed, the same outputs to rounding. The originals are kept.

    Raises:
        ValueError: An adapted weight is tied to another module's, which would change too; or the sum is not finite.
    """
    plain = unwrap(model)
    layers = dict(lora_layers(plain))
    owned = {id(layer.weight): name for name, layer in layers.items()}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if owner := owned.get(id(parameter)):
            holder = plain.get_submodule(name.rpartition(".")[0])
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
    """Undo `merge_lora`: the weights are bit for bit what they were."""
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model


def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Take LoRA out again, in place: plain layers, and the parameters require grad as they did before.

    Args:
        model: An adapted model. Adapters that are not active are lost.
        merge: Keep what was learned: updates are added to the weights, trained biases and head stay. False puts back
            the untouched model, bit for bit, head and biases included.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    _refuse_while_disabled(state, "remove_lora")
    unmerge_lora(plain)
    if merge:
        merge_lora(plain)
    learned = dict(captured(plain).values)
    _take_out(plain, state, keep=())
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    with torch.no_grad():
        for name, value in learned.items() if merge else ():
            tensors[name].copy_(value)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(state.required_grad[name])
    delattr(plain, STATE)
    return model


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model computes what it computed before `apply_lora`, bit for bit, merged or not.

    Trained biases and heads are replaced by their untouched values too; nothing is lost, and contexts nest. Where FSDP2
    has sharded the model every rank has to enter and leave, and a graph recorded outside must be left for later: its
    backward would gather the untouched values.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    if state.disabled:
        yield model
        return
    layers = [layer for _, layer in lora_layers(plain)]
    regather(plain)
    swapped = _swap_in_originals(plain, state)
    shards = _fill_shards_with_originals(plain, state)
    try:
        state.disabled = True
        for layer in layers:
            layer.lora_off = True
        yield model
    finally:
        for layer in layers:
            layer.lora_off = False
        for registry, key, tensor in swapped:
            registry[key] = tensor
        with torch.no_grad():
            for shard, values in shards:
                shard.copy_(values)
        regather(plain)
        state.disabled = False


def regather(model: nn.Module) -> None:
    """Let FSDP2 drop what it has gathered, such as the root's parameters after a forward, and gather anew."""
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward"):
            module.reshard()


@torch.no_grad()
def _fill_shards_with_originals(model: nn.Module, state: LoRAState) -> list[tuple[Tensor, Tensor]]:
    """Put this rank's part of the untouched values into what FSDP2 has sharded; returns each part with its own values.

    Into the same parameters: FSDP2 computes with those that it knows, whatever the module has under their names.
    """
    filled = []
    for name, parameter in model.named_parameters():
        if name in state.originals and hasattr(parameter, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements
            value = state.originals[name].to(parameter.device)
            shard = parameter.to_local()
            filled.append((shard, shard.clone()))
            shard.copy_(distribute_tensor(value, mesh, placements, src_data_rank=None).to_local())  # no exchange
    return filled


def _swap_in_originals(model: nn.Module, state: LoRAState) -> list[tuple[dict, str, Tensor]]:
    """Replace each tensor trained in place by its untouched values, wherever registered; returns what was there.

    Other parameter objects rather than other values in the same ones: a graph recorded outside stays valid.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    originals = {}
    for name, value in state.originals.items():
        trained = named[name]
        if hasattr(trained, "full_tensor"):
            continue
        value = value.to(trained.device)
        originals[id(trained)] = nn.Parameter(value, False) if isinstance(trained, nn.Parameter) else value
    swapped = []
    for module in model.modules():
        for registry in (module._parameters, module._buffers):
            for key, tensor in registry.items():
                if id(tensor) in originals:
                    swapped.append((registry, key, tensor))
                    registry[key] = originals[id(tensor)]
    return swapped


def captured(model: nn.Module) -> Adapter:
    """The active adapter with copies of its values, as it stands in the model."""
    state = lora_state(model)
    updates = {}
    for name, layer in lora_layers(model):
        A, B, magnitude = (
            None if p is None else whole(p).clone() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude)
        )
        start = None if layer.lora_start_A is None else (layer.lora_start_A, layer.lora_start_B)
        updates[name] = Update(A, B, layer.lora_alpha, layer.scaling, magnitude, start)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if state.disabled:
        raise RuntimeError("the adapter is switched off; leave disable_lora() first")
    values = {name: whole(tensors[name]).clone() for name in state.originals}
    return replace(state.current, updates=updates, values=values)


def whole(tensor: Tensor) -> Tensor:
    """The tensor's values without its graph; gathered from all ranks where FSDP has sharded it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _switch(model: nn.Module, state: LoRAState, name: str, adapter: Adapter) -> None:
    """Take the active adapter out of the model and put `adapter` in under `name`."""
    _refuse_while_disabled(state, "switching adapters")
    merged = any(layer.merged for _, layer in lora_layers(model))
    unmerge_lora(model)
    state.adapters[state.active] = captured(model)
    _take_out(model, state, keep=adapter.targets)
    state.active, state.adapters[name] = name, adapter
    _put_in(model, state)
    if merged:
        merge_lora(model)


def _put_in(model: nn.Module, state: LoRAState) -> None:
    """Put the active adapter's values into the model, whose tensors trained in place are untouched."""
    adapter = state.current
    for name in adapter.targets:
        module, update = model.get_submodule(name), adapter.updates[name]
        if isinstance(module, LoRALayer):
            set_update(module, update)
            module.lora_dropout = float(adapter.config.lora_dropout)
        else:
            attach(module, update, adapter.config.lora_dropout)
        if adapter.config.use_dora and module.lora_magnitude is None:
            module.lora_magnitude = nn.Parameter(module.adapted_norms())
    trained = dict(trained_in_place(model, adapter))
    state.originals = {name: tensor.detach().clone() for name, tensor in trained.items()}
    parameters = [tensor for tensor in trained.values() if isinstance(tensor, nn.Parameter)]
    promote(model, parameters, casts_itself=LoRALayer)
    with torch.no_grad():
        for name, value in adapter.values.items():
            trained[name].copy_(value)
    for parameter in parameters:
        parameter.requires_grad_(True)
    state.adapters[state.active] = replace(adapter, updates={}, values={})


def _take_out(model: nn.Module, state: LoRAState, keep: Sequence[str]) -> None:
    """Leave the untouched base; the layers in `keep` stay in their LoRA form, to be given other values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, original in state.originals.items():
        tensor = tensors[name]
        if isinstance(tensor, nn.Parameter):
            demote(model, tensor, original)
            tensor.requires_grad_(False)
        else:
            tensor.copy_(original)
    state.originals = {}
    for name, layer in list(lora_layers(model)):
        if name not in keep:
            detach(layer)


def trained_in_place(model: nn.Module, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """The base's own tensors that change in training: modules trained whole (buffers too), and the biases asked for."""
    bias, targets = adapter.config.bias, set(adapter.targets)
    own = ("lora_A", "lora_B", "lora_magnitude")
    for name, parameter in model.named_parameters():
        owner, _, key = name.rpartition(".")
        if key in own and isinstance(model.get_submodule(owner), LoRALayer):
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


def _warn_of_large_ranks(model: nn.Module, adapter: Adapter) -> None:
    """Warn where an update has a higher rank than its weight can have."""
    for name in adapter.targets:
        r = adapter.config.rank_of(name)
        A, B = update_shapes(model.get_submodule(name), r)
        limit = min(math.prod(A[1:]), B[0])
        if r > limit:
            warnings.warn(f"r={r} is more than {name!r} can use: its weight has rank {limit} at most", stacklevel=3)
            return


def _untouched(model: nn.Module, state: LoRAState, name: str) -> Tensor:
    if name in state.originals:
        return state.originals[name].float()
    return whole(dict(model.named_parameters()).get(name, dict(model.named_buffers()).get(name))).float()


def _known(state: LoRAState, name: str) -> None:
    if name not in state.adapters:
        raise unmatched("adapter", name, state.adapters)


def _refuse_while_disabled(state: LoRAState, what: str) -> None:
    if state.disabled:
        raise RuntimeError(f"{what} inside disable_lora(); leave the context first")
