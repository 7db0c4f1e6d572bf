"""Putting an adapter into a model and taking it out: one is active, the others wait in the record."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import (
    STATE,
    Adapter,
    LoRAState,
    captured,
    is_replicated,
    lora_layers,
    refuse_while_disabled,
    trained_in_place,
    unwrap,
)
from lorakit.adapters.mixed import mix_adapters, separate_adapters
from lorakit.adapters.names import named_parameters, named_tensors, submodule
from lorakit.nn.layers import LoRALayer, attach, detach, set_update
from lorakit.nn.master_weights import demote, promote
from lorakit.nn.token_rows import ROWS, attach_rows, detach_rows
from lorakit.nn.weights import is_adapted, magnitude_shape, refuse_sharded


def add_adapter(model: nn.Module, name: str, adapter: Adapter) -> nn.Module:
    """Make an adapter made for `model` its active one, under `name`; it replaces one of that name."""
    refuse_sharded(model, "adding an adapter")
    state = getattr(model, STATE, None)
    if state is None:
        state = LoRAState(name, {}, {n: p.requires_grad for n, p in named_parameters(model)})
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        setattr(model, STATE, state)
        model.register_forward_pre_hook(mix_adapters, with_kwargs=True)
        model.register_forward_hook(separate_adapters, always_call=True)
        state.adapters[name] = adapter
        put_in(model, state)
        return model
    switch(model, state, name, adapter)
    return model


def forget(model: nn.Module) -> None:
    """Remove what `add_adapter` left on the model besides the layers: the record and the hooks."""
    delattr(model, STATE)
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is mix_adapters]:
        del model._forward_pre_hooks[key]
        del model._forward_pre_hooks_with_kwargs[key]
    for key in [key for key, hook in model._forward_hooks.items() if hook is separate_adapters]:
        del model._forward_hooks[key]
        del model._forward_hooks_always_called[key]


def restore_base(model: nn.Module) -> None:
    """Take LoRA out of a model: the base's own values, layers and requires_grad flags."""
    state = getattr(model, STATE)
    take_out(model, state)
    for name, parameter in named_parameters(model):
        parameter.requires_grad_(state.required_grad[name])
    forget(model)


def refuse_other_parameters(model: nn.Module, name: str, adapter: Adapter) -> None:
    """Raise ValueError if DistributedDataParallel would keep exchanging the gradients of other parameters."""
    if not is_replicated(model):
        return
    plain = unwrap(model)
    mine = {n: p.shape for n, p in named_parameters(plain) if p.requires_grad}
    trained = trained_in_place(plain, adapter)
    theirs = {n: adapter.values.get(n, t).shape for n, t in trained if isinstance(t, nn.Parameter)}
    for target, update in adapter.updates.items():
        theirs |= {f"{target}.lora_A": update.A.shape, f"{target}.lora_B": update.B.shape}
        if adapter.config.use_dora:
            theirs[f"{target}.lora_magnitude"] = magnitude_shape(submodule(plain, target))
    for table, tokens in adapter.rows.items():
        theirs[f"{table}.{ROWS}"] = torch.Size((len(tokens), submodule(plain, table).embedding_dim))
    if mine != theirs:
        raise ValueError(
            f"adapter {name!r} trains other parameters than this model did when DistributedDataParallel wrapped it, "
            "which exchanges those alone; put it into the model itself (.module), then wrap that"
        )


def switch(model: nn.Module, state: LoRAState, name: str, adapter: Adapter) -> None:
    """Take the active adapter out of the model and put `adapter` in under `name`."""
    refuse_while_disabled(state, "switching adapters")
    refuse_sharded(model, "set_adapter")
    merged = any(layer.merged for _, layer in lora_layers(model))
    for _, layer in lora_layers(model):
        layer.unmerge()
    state.adapters[state.active] = captured(model)
    take_out(model, state, keep=(*adapter.targets, *adapter.rows))
    state.active, state.adapters[name] = name, adapter
    put_in(model, state)
    if merged:
        for _, layer in lora_layers(model):
            layer.merge()


def put_in(model: nn.Module, state: LoRAState) -> None:
    """Put the active adapter's values into the model, whose own tensors have their original values."""
    adapter = state.current
    for name in adapter.targets:
        module, update = submodule(model, name), adapter.updates[name]
        if is_adapted(module):
            set_update(module, update)
            module.lora_dropout = float(adapter.config.lora_dropout)
        else:
            attach(module, update, adapter.config.lora_dropout)
        if adapter.config.use_dora and module.lora_magnitude is None:
            module.lora_magnitude = nn.Parameter(module.adapted_norms())
    for name, tokens in adapter.rows.items():
        attach_rows(submodule(model, name), tokens)
    trained = dict(trained_in_place(model, adapter))
    state.originals = {name: tensor.detach().clone() for name, tensor in trained.items()}
    parameters = [tensor for tensor in trained.values() if isinstance(tensor, nn.Parameter)]
    promote(model, parameters, casts_itself=LoRALayer)
    with torch.no_grad():
        for name, value in adapter.values.items():
            fill(model, name, trained[name], value)
    state.shapes = {name: tensor.shape for name, tensor in trained.items()}
    state.model_config = configure(model, adapter.model_config)
    for parameter in parameters:
        parameter.requires_grad_(True)
    state.adapters[state.active] = replace(adapter, updates={}, values={})


def take_out(model: nn.Module, state: LoRAState, keep: Sequence[str] = ()) -> None:
    """Restore the base's own tensors; the layers and tables in `keep` stay in their form for the next adapter."""
    tensors = named_tensors(model)
    configure(model, state.model_config)
    for name, original in state.originals.items():
        tensor = tensors[name]
        if isinstance(tensor, nn.Parameter):
            demote(model, tensor, original)
            _match_rows(model, name, tensor)
            tensor.requires_grad_(False)
        else:
            tensor.copy_(original)
    state.originals, state.shapes, state.model_config = {}, {}, {}
    for name, layer in list(lora_layers(model)):
        if name not in keep:
            detach(layer)
    for name in state.current.rows:
        if name not in keep:
            detach_rows(submodule(model, name))


@torch.no_grad()
def fill(model: nn.Module, name: str, tensor: Tensor, value: Tensor) -> None:
    """Give a parameter or buffer of the model other values, which for other labels have another number of rows.

    Args:
        model: holds the tensor.
        name: its full name.
        tensor: changed in place.
        value: what it becomes.
    """
    if tensor.shape == value.shape:
        tensor.copy_(value)
        return
    tensor.data = value.to(tensor.device, tensor.dtype, copy=True)
    _match_rows(model, name, tensor)


def _match_rows(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let what depends on a tensor's shape follow it: its gradient, and what its layer says of itself."""
    owner, _, key = name.rpartition(".")
    layer = submodule(model, owner)
    if tensor.grad is not None and tensor.grad.shape != tensor.shape:
        tensor.grad = None
    if isinstance(layer, nn.Linear) and key == "weight":
        layer.out_features = len(tensor)


def configure(model: nn.Module, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Change entries of a model's configuration, where None stands for none; returns what they were."""
    before = {}
    for key, value in entries.items():
        before[key] = getattr(model.config, key, None)
        if value is not None:
            setattr(model.config, key, value)
        elif before[key] is not None:
            delattr(model.config, key)
    if "id2label" in entries and hasattr(model, "num_labels"):
        model.num_labels = model.config.num_labels
    return before
