"""LoRA on an existing model (arXiv:2106.09685): adapt it, work with one or several adapters, and take LoRA out again.

The model stays the same object of the same class; every parameter keeps its name and its identity. `adapters/` holds
the parts; what users call is here, or imported here.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import (
    STATE,
    Adapter,
    LoRAState,
    captured,
    known,
    lora_state,
    refuse_while_disabled,
    unwrap,
)
from lorakit.adapters.adapter import lora_layers as lora_layers
from lorakit.adapters.combination import COMBINATIONS, combine_updates
from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.counting import ParameterCount as ParameterCount
from lorakit.adapters.counting import count_parameters as count_parameters
from lorakit.adapters.counting import lora_plus_groups as lora_plus_groups
from lorakit.adapters.counting import peft_total as peft_total
from lorakit.adapters.counting import without_gradient as without_gradient
from lorakit.adapters.disabling import disable_lora as disable_lora
from lorakit.adapters.initialization import new_adapter
from lorakit.adapters.merging import merge_lora as merge_lora
from lorakit.adapters.merging import unmerge_lora as unmerge_lora
from lorakit.adapters.state import add_adapter, refuse_other_parameters, switch, take_out
from lorakit.adapters.targets import find_head, find_modules
from lorakit.nn.layers import LoRALinear as LoRALinear
from lorakit.nn.weights import refuse_sharded, update_shapes, whole


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
    if unwrap(model) is not model:
        raise ValueError(
            f"apply_lora got a model in a {type(model).__name__}, which would go on with the parameters it was given; "
            "apply_lora first, then wrap or compile"
        )
    refuse_sharded(model, "apply_lora")
    state = getattr(model, STATE, None)
    if state is not None and adapter_name in state.adapters:
        raise ValueError(
            f"this model has LoRA already; call remove_lora(model) before another apply_lora, or add an adapter under "
            f"another adapter_name than {adapter_name!r}"
        )
    adapter = new_adapter(model, config, _modules_trained_whole(model, config), seed)
    _warn_of_large_ranks(model, adapter)
    return add_adapter(model, adapter_name, adapter)


def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Take LoRA out again, in place: plain layers, and the parameters require grad as they did before.

    Args:
        model: An adapted model. Adapters that are not active are lost.
        merge: Keep what was learned: updates are added to the weights, trained biases and head stay. False puts back
            the untouched model, bit for bit, head and biases included.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    refuse_while_disabled(state, "remove_lora")
    refuse_sharded(plain, "remove_lora")
    unmerge_lora(plain)
    if merge:
        merge_lora(plain)
    learned = dict(captured(plain).values)
    take_out(plain, state, keep=())
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    with torch.no_grad():
        for name, value in learned.items() if merge else ():
            tensors[name].copy_(value)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(state.required_grad[name])
    delattr(plain, STATE)
    return model


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all adapters of the model, the active one first."""
    state = lora_state(model)
    return (state.active, *(name for name in state.adapters if name != state.active))


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make another adapter the active one, in place; head and biases change with it.

    Where both adapters have the same shapes the values go into the same parameters: an optimiser keeps working on them
    and a compiled model need not be compiled again. A merged model is merged with the new adapter.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    known(state, name)
    if name != state.active:
        refuse_other_parameters(model, name, state.adapters[name])
        switch(plain, state, name, state.adapters[name])
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Forget an adapter that is not the active one."""
    state = lora_state(model)
    known(state, name)
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
        known(state, part)
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


def _untouched(model: nn.Module, state: LoRAState, name: str) -> Tensor:
    if name in state.originals:
        return state.originals[name].float()
    return whole(dict(model.named_parameters()).get(name, dict(model.named_buffers()).get(name)).detach()).float()


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
