"""Switching LoRA off: an adapted model computes what its base does."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import LoRAState, lora_layers, lora_state, refuse_parts, unwrap
from lorakit.adapters.names import named_parameters, named_tensors
from lorakit.adapters.state import configure
from lorakit.nn.master_weights import base_type
from lorakit.nn.weights import like, regather


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[nn.Module]:
    """While active, the model computes what it did before `apply_lora`, bit for bit, merged or not.

    Trained biases and heads are replaced by their original values too. Nothing is lost, and contexts nest. If FSDP2 has
    sharded the model every rank has to enter and leave, and a backward pass through a graph recorded outside has to
    wait: it would gather the original values.

    Example:
        import torch

        net, x = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.ones(1, 8)
        before = net(x)
        lorakit.apply_lora(net, r=2, target_modules=["0"])
        torch.nn.init.normal_(net[0].lora_B)
        with lorakit.disable_lora(net):
            print(torch.equal(net(x), before))  # True
        print(torch.equal(net(x), before))  # False

    Args:
        model: an adapted model.

    Yields:
        The same object.

    Raises:
        ValueError: the model has no LoRA.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    if state.disabled:
        yield model
        return
    refuse_parts(plain, "disable_lora")
    layers = [layer for _, layer in lora_layers(plain)]
    regather(plain)
    swapped = _swap_in_originals(plain, state)
    shards = _fill_shards_with_originals(plain, state)
    own = configure(plain, state.model_config)
    try:
        state.disabled = True
        for layer in layers:
            layer.lora_off = True
        yield model
    finally:
        configure(plain, own)
        for layer in layers:
            layer.lora_off = False
        for registry, key, tensor in swapped:
            registry[key] = tensor
        with torch.no_grad():
            for shard, values in shards:
                shard.copy_(values)
        regather(plain)
        state.disabled = False


@torch.no_grad()
def _fill_shards_with_originals(model: nn.Module, state: LoRAState) -> list[tuple[Tensor, Tensor]]:
    """Put this rank's part of the original values into sharded parameters; returns each part with its trained values.

    The parameters stay the same objects: FSDP2 computes with those it knows, whatever the module holds.
    """
    filled = []
    for name, parameter in named_parameters(model):
        if name in state.originals and hasattr(parameter, "full_tensor"):
            value = state.originals[name].to(parameter.device)
            shard = parameter.to_local()
            filled.append((shard, shard.clone()))
            shard.copy_(like(value, parameter).to_local())
    for _, layer in lora_layers(model):
        if layer.merged and hasattr(layer.weight, "full_tensor"):
            shard = layer.weight.to_local()
            filled.append((shard, shard.clone()))
            shard.copy_(layer.lora_original.to_local())
    return filled


def _swap_in_originals(model: nn.Module, state: LoRAState) -> list[tuple[dict, str, Tensor]]:
    """Replace each tensor trained in place by its original values, and the updates by frozen ones; returns them.

    The replacements are other parameter objects, so that a graph recorded outside stays valid.
    """
    named = named_tensors(model)
    originals = {}
    for name, value in state.originals.items():
        trained = named[name]
        if hasattr(trained, "full_tensor"):
            continue
        value = value.to(trained.device, base_type(model, trained))
        # a copy of a buffer: a batch norm in training mode updates it
        originals[id(trained)] = nn.Parameter(value, False) if isinstance(trained, nn.Parameter) else value.clone()
    swapped = []
    for _, layer in lora_layers(model):  # nothing is trained meanwhile
        for parameter in (layer.lora_A, layer.lora_B, layer.lora_magnitude):
            if parameter is not None and not hasattr(parameter, "full_tensor"):
                originals[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for module in model.modules():
        for registry in (module._parameters, module._buffers):
            for key, tensor in registry.items():
                if id(tensor) in originals:
                    swapped.append((registry, key, tensor))
                    registry[key] = originals[id(tensor)]
    return swapped
