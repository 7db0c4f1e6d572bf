"""LoRA on an existing model (arXiv:2106.09685): adapt it, work with one or several adapters, and take LoRA out again.

The model stays the same object of the same class; every parameter keeps its name and its identity. `adapters/` holds
the parts; what users call is here, or imported here.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorakit.adapters.adapter import (
    STATE,
    Adapter,
    captured,
    known,
    lora_state,
    refuse_while_disabled,
    untouched,
    untouched_rows,
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
from lorakit.adapters.full_training import modules_trained_in_full
from lorakit.adapters.initialization import new_adapter
from lorakit.adapters.merging import merge_lora as merge_lora
from lorakit.adapters.merging import unmerge_lora as unmerge_lora
from lorakit.adapters.names import named_tensors, submodule
from lorakit.adapters.peft_settings import config_of, refuse_peft_model
from lorakit.adapters.pretrained import SAVE, save_adapted
from lorakit.adapters.state import add_adapter, configure, fill, refuse_other_parameters, restore_base, switch
from lorakit.adapters.storage import save_adapter
from lorakit.adapters.token_indices import common_rows, rows_trained
from lorakit.adapters.unused import in_every_layer
from lorakit.nn.layers import LoRALinear as LoRALinear
from lorakit.nn.token_rows import ROWS
from lorakit.nn.weights import refuse_sharded, update_shapes

if TYPE_CHECKING:
    from peft import LoraConfig


def apply_lora(
    model: nn.Module,
    r: "int | LoraConfig" = 16,
    lora_alpha: float = 32,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] | None = "all-linear",
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
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    adapter_name: str = "default",
) -> nn.Module:
    """Freeze a model and add trainable low-rank updates to its layers, in place (arXiv:2106.09685).

    The model stays the same object, of the same class, with the same parameter names, and its first output is
    unchanged. What is trained is float32 whatever the base's type. A model that has an adapter can take another one
    under another `adapter_name`; the new one becomes active.

    Example:
        from transformers import AutoModelForTokenClassification

        model = AutoModelForTokenClassification.from_pretrained("examples/mini", num_labels=11)
        lorakit.apply_lora(model, r=8)
        print(lorakit.count_parameters(model))
        # trainable params: 150,283 || all params: 5,538,827 || trainable%: 2.7133

    Args:
        model: any module; transformers' models need no further settings.
        r: rank of the updates, at least 1; or a `peft.LoraConfig`, which then stands for all settings below.
        lora_alpha: the updates are scaled by lora_alpha/r.
        lora_dropout: probability in [0, 1) of zeroing an input of the updates, in training mode.
        target_modules: name suffixes of the layers to adapt; or one regex for the full name; or "all-linear": every
            linear layer except the head, the output embeddings and a pooler that the head does not use. None means the
            architecture's attention query and value, PEFT's default where PEFT knows the architecture.
        bias: which of the model's own biases are trained: "none", "all", or "lora_only" (of the adapted layers).
        modules_to_save: modules trained in full besides the head. None means only the detected head; [] means nothing,
            not even the head, which then stays frozen unless target_modules names it.
        exclude_modules: suffixes, or one regex, of targets to leave out.
        layers_to_transform: indices of the layers to adapt; not together with a regex in target_modules.
        layers_pattern: names of the module lists that hold those layers; () means the first number in a name.
        rank_pattern: regex for the end of a name -> another r for the layers it matches.
        alpha_pattern: the same for lora_alpha.
        use_rslora: scale by lora_alpha/√r (arXiv:2312.03732).
        use_dora: train the norm of each output's weights separately from their direction (arXiv:2402.09353).
        init_lora_weights: True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_[steps]" or "olora".
        trainable_token_indices: tokens whose rows of the token table are trained, such as those of new tokens, or a
            mapping of tables to tokens: {"word_embeddings": [8192, 8193]}. Resize the table before.
        seed: a layer's initial A depends only on this and the layer's name; global generators are not used.
        adapter_name: name of this adapter among several.

    Returns:
        The same object.

    Raises:
        ValueError: an argument is out of range; a name matches nothing; a layer cannot be adapted; or an adapter of
            this name exists. The model is then unchanged.
    """
    refuse_peft_model(model, "apply_lora")
    peft_config = r if hasattr(r, "peft_type") else None
    config = LoRAConfig(
        r=LoRAConfig.r if peft_config else r,
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
        trainable_token_indices=trainable_token_indices,
    )
    if peft_config:
        config = config_of(peft_config, unwrap(model), beside=config)
    if unwrap(model) is not model:
        raise ValueError(
            f"apply_lora got a model in a {type(model).__name__}, which would keep using the parameters it was given; "
            "apply_lora first, then wrap or compile"
        )
    refuse_sharded(model, "apply_lora")
    state = getattr(model, STATE, None)
    if state is not None and adapter_name in state.adapters:
        raise ValueError(
            f"this model has LoRA already; call remove_lora(model) before another apply_lora, or add an adapter under "
            f"another adapter_name than {adapter_name!r}"
        )
    adapter = new_adapter(model, config, modules_trained_in_full(model, config), seed)
    adapter = replace(adapter, rows=rows_trained(model, config, (*adapter.saved, *adapter.targets)))
    _warn_of_large_ranks(model, adapter)
    _warn_of_experts(model, adapter)
    return save_adapted(add_adapter(model, adapter_name, adapter), save_adapter)


def remove_lora(model: nn.Module, merge: bool = False) -> nn.Module:
    """Take LoRA out of a model, in place: plain layers again, and the base's own requires_grad flags.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        lorakit.remove_lora(net, merge=True)
        print(net[0])  # Linear(in_features=8, out_features=8, bias=True)

    Args:
        model: an adapted model. Adapters that are not active are lost.
        merge: True keeps what was learned: updates are added to the weights, trained biases and head stay. False
            restores the original model bit for bit, head and biases included.

    Returns:
        The same object.

    Raises:
        ValueError: the model has no LoRA, is sharded, or its merged weights would not be finite.
        RuntimeError: inside `disable_lora`.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    refuse_while_disabled(state, "remove_lora")
    refuse_sharded(plain, "remove_lora")
    unmerge_lora(plain)
    if merge:
        merge_lora(plain)
    learned = captured(plain)
    restore_base(plain)
    tensors = named_tensors(plain)
    with torch.no_grad():
        for name, value in learned.values.items() if merge else ():
            if name in tensors:
                fill(plain, name, tensors[name], value)
        for table, tokens in learned.rows.items() if merge else ():
            weight = tensors[f"{table}.weight"]
            weight[list(tokens)] = learned.values[f"{table}.{ROWS}"].to(weight)
    configure(plain, learned.model_config if merge else {})
    plain.__dict__.pop(SAVE, None)
    return model


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """List the names of a model's adapters, the active one first.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        lorakit.apply_lora(net, r=2, target_modules=["0"], adapter_name="other")
        print(lorakit.adapter_names(net))  # ('other', 'default')

    Args:
        model: an adapted model.

    Returns:
        The names.

    Raises:
        ValueError: the model has no LoRA.
    """
    state = lora_state(model)
    return (state.active, *(name for name in state.adapters if name != state.active))


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Make another adapter the active one, in place; head and biases change with it.

    If both adapters have the same shapes the values go into the same parameters: an optimizer keeps working on them,
    and a compiled model need not be compiled again. A merged model is merged with the new adapter.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        lorakit.apply_lora(net, r=2, target_modules=["0"], adapter_name="other")
        lorakit.set_adapter(net, "default")
        print(lorakit.adapter_names(net)[0])  # default

    Args:
        model: an adapted model.
        name: one of `adapter_names(model)`.

    Returns:
        The same object.

    Raises:
        ValueError: there is no adapter of this name; or DistributedDataParallel wraps the model and the adapter trains
            other parameters than it exchanges.
        RuntimeError: inside `disable_lora`.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    known(state, name)
    if name != state.active:
        refuse_other_parameters(model, name, state.adapters[name])
        switch(plain, state, name, state.adapters[name])
    return model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Delete an adapter that is not active.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        lorakit.apply_lora(net, r=2, target_modules=["0"], adapter_name="other")
        lorakit.delete_adapter(net, "default")
        print(lorakit.adapter_names(net))  # ('other',)

    Args:
        model: an adapted model.
        name: one of `adapter_names(model)`, but not the first.

    Returns:
        The same object.

    Raises:
        ValueError: there is no adapter of this name, or it is active.
    """
    state = lora_state(model)
    known(state, name)
    if name == state.active:
        raise ValueError(f"adapter {name!r} is active; set_adapter another one first, or remove_lora(model)")
    del state.adapters[name]
    return model


def combine_adapters(
    model: nn.Module, weights: Mapping[str, float], name: str, how: str = "cat", r: int | None = None
) -> nn.Module:
    """Make a new adapter, not yet active, whose change of the base is a weighted sum of others' changes.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), r=2, target_modules=["0"])
        lorakit.apply_lora(net, r=1, target_modules=["0"], adapter_name="other")
        lorakit.combine_adapters(net, {"default": 0.5, "other": 0.5}, name="mean")
        print(lorakit.set_adapter(net, "mean")[0].r)  # 3

    Args:
        model: an adapted model.
        weights: adapter name -> its factor, of any sign.
        name: name of the new adapter.
        how: "cat" is exact and its rank is the sum of the ranks; "svd" is the best approximation of rank `r`; "linear"
            adds the A's and B's of adapters of equal rank, PEFT's rough rule.
        r: rank for "svd"; None means the largest of the adapters' ranks.

    Returns:
        The same object.

    Raises:
        ValueError: a name is unknown or taken; `how` does not exist; or an adapter uses DoRA, whose changes cannot be
            added, or has labels of its own.
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
            raise ValueError(f"adapter {part!r} uses DoRA, whose changes cannot be added; merge it instead")
        if adapter.labels:
            raise ValueError(
                f"adapter {part!r} has labels of its own ({', '.join(adapter.labels)}), so its head is no change of the"
                " base's; combine adapters with the base's labels only"
            )
        parts.append((adapter, float(weight)))

    targets = tuple(dict.fromkeys(t for adapter, _ in parts for t in adapter.targets))
    updates = {}
    for target in targets:
        mine = [(adapter.updates[target], weight) for adapter, weight in parts if target in adapter.updates]
        updates[target] = combine_updates(mine, how, r)
    values = {}
    rows = common_rows(adapter for adapter, _ in parts)
    for key in dict.fromkeys(k for adapter, _ in parts for k in adapter.values):
        table, _, own = key.rpartition(".")
        base = untouched_rows(model, table, rows[table]) if own == ROWS else untouched(model, key).float()
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
        trainable_token_indices=rows or None,
    )
    state.adapters[name] = Adapter(config, saved, targets, updates, values, rows)
    return model


def _warn_of_large_ranks(model: nn.Module, adapter: Adapter) -> None:
    """Warn if an update has a higher rank than its weight can have."""
    for name in adapter.targets:
        r = adapter.config.rank_of(name)
        A, B = update_shapes(submodule(model, name), r)
        limit = min(math.prod(A[1:]), B[0])
        if r > limit:
            warnings.warn(f"r={r} is more than {name!r} can use: its weight has rank {limit} at most", stacklevel=3)
            return


def _warn_of_experts(model: nn.Module, adapter: Adapter) -> None:
    """Warn if LoRA is on a mixture's other matrices, but its experts have theirs in one tensor, which is no layer."""
    adapted = [in_every_layer(name) for name in adapter.targets]
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        tensors = [of for of, tensor in module.named_parameters(recurse=False) if tensor.dim() == 3]
        if last.endswith("experts") and tensors and any(a.startswith(in_every_layer(parent) + ".") for a in adapted):
            warnings.warn(
                f"{name!r} and its like in other layers hold the matrices of all experts in one tensor each"
                f" ({', '.join(tensors)}), which LoRA does not reach: they stay frozen",
                stacklevel=3,
            )
            return
