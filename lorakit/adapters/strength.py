"""The strength of an adapter at run time: its updates are multiplied by a number for a while."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lorakit.adapters.adapter import lora_layers, lora_state, refuse_while_disabled, unwrap
from lorakit.nn.layers import set_scaling


@contextmanager
def scale_lora(model: nn.Module, strength: float) -> Iterator[nn.Module]:
    """While active, the active adapter's updates are multiplied by `strength`: 0 leaves them out, 1 changes nothing.

    What the adapter trains in full (the head, biases, rows of tokens) stays as it is, as in PEFT; for an adapter whose
    head is weaker too, use `combine_adapters`. Contexts nest: their strengths multiply. Files that are saved meanwhile
    hold the adapter in its own strength.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        torch.nn.init.normal_(net[0].lora_B)
        x = torch.ones(1, 8)
        with lorakit.disable_lora(net):
            base = net(x)
        full = net(x)
        with lorakit.scale_lora(net, 0.5):
            print(torch.allclose(net(x), (base + full) / 2, atol=1e-5))  # True

    Args:
        model: an adapted model, not merged.
        strength: a finite number, of any sign.

    Yields:
        The same object.

    Raises:
        ValueError: the model has no LoRA or is merged, or the strength is no finite number.
        RuntimeError: inside `disable_lora`.
    """
    plain = unwrap(model)
    state = lora_state(plain)
    refuse_while_disabled(state, "scale_lora")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, such as 0.5, got {strength!r}")
    layers = [layer for _, layer in lora_layers(plain)]
    if any(layer.merged for layer in layers):
        raise ValueError("scale_lora on a merged model, whose updates are part of the weights; call unmerge_lora first")
    before = [(layer, layer.lora_A, layer.scaling, strength * layer.scaling) for layer in layers]
    for layer, _, _, scaled in before:
        set_scaling(layer, scaled)
    try:
        yield model
    finally:
        for layer, A, own, scaled in before:
            if getattr(layer, "lora_A", None) is A and layer.scaling == scaled:  # not another adapter's since
                set_scaling(layer, own)
