"""Several adapters on one model: add, switch, combine, forget."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import (
    STATE,
    Adapter,
    LoRAState,
    captured,
    is_replicated,
    known,
    lora_layers,
    lora_state,
    put_in,
    refuse_while_disabled,
    take_out,
    trained_in_place,
    unwrap,
)
from lorakit.adapters.combination import COMBINATIONS, combine_updates
from lorakit.adapters.merging import merge_lora, unmerge_lora
from lorakit.nn.layers import magnitude_shape
from lorakit.nn.weights import refuse_sharded, whole


def add_adapter(model: nn.Module, name: str, adapter: Adapter) -> nn.Module:
    """Put an adapter made for `model` into it under `name`, as the active one; one of that name is replaced."""
    refuse_sharded(model, "adding an adapter")
    state = getattr(model, STATE, None)
    if state is None:
        state = LoRAState(name, {}, {n: p.requires_grad for n, p in model.named_parameters()})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        setattr(model, STATE, state)
        state.adapters[name] = adapter
        put_in(model, state)
        return model
    switch(model, state, name, adapter)
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


def refuse_other_parameters(model: nn.Module, name: str, adapter: Adapter) -> None:
    """Raise where DistributedDataParallel would go on exchanging the gradients of other parameters than are trained."""
    if not is_replicated(model):
        return
    plain = unwrap(model)
    mine = {n: p.shape for n, p in plain.named_parameters() if p.requires_grad}
    theirs = {n: t.shape for n, t in trained_in_place(plain, adapter) if isinstance(t, nn.Parameter)}
    for target, update in adapter.updates.items():
        theirs |= {f"{target}.lora_A": update.A.shape, f"{target}.lora_B": update.B.shape}
        if adapter.config.use_dora:
            theirs[f"{target}.lora_magnitude"] = magnitude_shape(plain.get_submodule(target))
    if mine != theirs:
        raise ValueError(
            f"adapter {name!r} trains other parameters than this model did when DistributedDataParallel wrapped it, "
            "which exchanges those alone; put it into the model itself (.module), then wrap that"
        )


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


def switch(model: nn.Module, state: LoRAState, name: str, adapter: Adapter) -> None:
    """Take the active adapter out of the model and put `adapter` in under `name`."""
    refuse_while_disabled(state, "switching adapters")
    refuse_sharded(model, "set_adapter")
    merged = any(layer.merged for _, layer in lora_layers(model))
    unmerge_lora(model)
    state.adapters[state.active] = captured(model)
    take_out(model, state, keep=adapter.targets)
    state.active, state.adapters[name] = name, adapter
    put_in(model, state)
    if merged:
        merge_lora(model)


def _untouched(model: nn.Module, state: LoRAState, name: str) -> Tensor:
    if name in state.originals:
        return state.originals[name].float()
    return whole(dict(model.named_parameters()).get(name, dict(model.named_buffers()).get(name)).detach()).float()
