"""Merging: updates added to the weights for the base's speed, and removed again bit for bit."""

from torch import Tensor, nn

from lorakit.adapters.adapter import lora_layers, refuse_parts, unwrap
from lorakit.adapters.names import named_parameters, plain_name, submodule
from lorakit.nn.master_weights import base_type
from lorakit.nn.token_rows import ROWS, has_rows
from lorakit.nn.weights import regather, whole


def merge_lora(model: nn.Module) -> nn.Module:
    """Add the updates to the weights, in place: the base's speed, the same outputs up to rounding.

    The original weights are kept for `unmerge_lora`. While merged, transformers' `save_pretrained` writes a plain model
    with the merged weights. If FSDP2 has sharded the model every rank has to call this; each
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
        ValueError: an adapted weight is tied to another module's, which would change too; the sum is not finite; or
            FSDP1 holds the parameters in parts.
    """
    plain = unwrap(model)
    refuse_parts(plain, "merge_lora")
    regather(plain)
    layers = dict(lora_layers(plain))
    owned = {id(layer.weight): name for name, layer in layers.items()}
    for name, parameter in named_parameters(plain, remove_duplicate=False):
        if owner := owned.get(id(parameter)):
            holder = submodule(plain, name.rpartition(".")[0])
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
    plain = unwrap(model)
    regather(plain)
    for _, layer in lora_layers(plain):
        layer.unmerge()
    return model


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of a plain model with a merged model's weights.

    The model's own has the unmerged weights and the updates, which from_pretrained would leave out.
    """
    layers = dict(lora_layers(model))
    parameters = dict(named_parameters(model, remove_duplicate=False))
    found = {}
    for key, tensor in model.state_dict().items():
        owner, _, own = plain_name(key).rpartition(".")
        if own == ROWS or owner in layers and own.startswith("lora_"):
            continue
        if own == "weight" and has_rows(module := submodule(model, owner)):
            tensor = module.merged_table()
        tensor = layers[owner].weight.detach() if owner in layers and own == "weight" else tensor
        parameter = parameters.get(plain_name(key))
        dtype = tensor.dtype if parameter is None else base_type(model, parameter)
        found[plain_name(key)] = whole(tensor).to(dtype)
    return found
