"""LoRA on an existing model: adapt it, and take LoRA out again (arXiv:2106.09685).

The model stays the same object of the same class; every parameter keeps its name and its identity. Other files hold
what is done with an adapted model: count (counting.py), merge (merging.py), switch off (disabling.py), switch between
several adapters (several.py); their names are also here.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lorakit.adapters.adapter import (
    STATE,
    Adapter,
    captured,
    lora_state,
    refuse_while_disabled,
    take_out,
    unwrap,
)
from lorakit.adapters.adapter import lora_layers as lora_layers
from lorakit.adapters.config import LoRAConfig, pattern_matches
from lorakit.adapters.counting import ParameterCount as ParameterCount
from lorakit.adapters.counting import count_parameters as count_parameters
from lorakit.adapters.counting import lora_plus_groups as lora_plus_groups
from lorakit.adapters.counting import peft_total as peft_total
from lorakit.adapters.counting import without_gradient as without_gradient
from lorakit.adapters.disabling import disable_lora as disable_lora
from lorakit.adapters.initialization import initial_update
from lorakit.adapters.merging import merge_lora as merge_lora
from lorakit.adapters.merging import unmerge_lora as unmerge_lora
from lorakit.adapters.state import adapter_names as adapter_names
from lorakit.adapters.state import add_adapter
from lorakit.adapters.state import combine_adapters as combine_adapters
from lorakit.adapters.state import delete_adapter as delete_adapter
from lorakit.adapters.state import set_adapter as set_adapter
from lorakit.adapters.targets import default_targets, find_head, find_modules, find_targets, keep_layers, unmatched
from lorakit.nn.layers import LoRALinear as LoRALinear
from lorakit.nn.layers import update_shapes
from lorakit.nn.weights import refuse_sharded


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
