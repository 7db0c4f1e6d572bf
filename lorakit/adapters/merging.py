"""Updates added to the weights for plain speed, and taken out again bit for bit."""

from torch import nn

from lorakit.adapters.adapter import lora_layers, unwrap
from lorakit.nn.weights import regather


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: plain speed, the same outputs to rounding. The originals are kept.

    Where FSDP2 has sharded the model every rank has to call; each keeps its part of the originals.

    Raises:
        ValueError: An adapted weight is tied to another module's, which would change too; or the sum is not finite.
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
    """Undo `merge_lora`: the weights are bit for bit what they were."""
    regather(unwrap(model))
    for _, layer in lora_layers(model):
        layer.unmerge()
    return model
