"""Merging: updates added to the weights for the base's speed, and removed again bit for bit."""

from torch import nn

from lorakit.adapters.adapter import lora_layers, unwrap
from lorakit.nn.weights import regather


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: the base's speed, the same outputs up to rounding.

    The original weights are kept for `unmerge_lora`. If FSDP2 has sharded the model every rank has to call this; each
    keeps its part of the originals.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        torch.nn.init.normal_(net[0].lora_B)
        x = torch.ones(1, 8)
        before = net(x)
        print(torch.allclose(lorakit.merge_lora(net)(x), before, atol=1e-5))  # True

    Args:
        model: an adapted model.

    Returns:
        The same object.

    Raises:
        ValueError: an adapted weight is tied to another module's, which would change too; or the sum is not finite.
    """
    plain = unwrap(model)
    regather(plain)
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
    """Undo `merge_lora`: the weights are again what they were, bit for bit.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        original = net[0].weight.clone()
        lorakit.unmerge_lora(lorakit.merge_lora(net))
        print(torch.equal(net[0].weight, original))  # True

    Args:
        model: an adapted model, merged or not.

    Returns:
        The same object.

    Raises:
        ValueError: the model has no LoRA.
    """
    regather(unwrap(model))
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model
