"""A digest of a model's base, by which an adapter recognizes the base it was trained on."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from lorakit.adapters.adapter import STATE
from lorakit.nn.weights import dequantized, whole


def fingerprint(model: nn.Module, saved: Iterable[str] | None = None) -> dict[str, str]:
    """Compute digests of the base: everything except the updates and the modules trained in full.

    Args:
        model: adapted or plain.
        saved: full names of the modules to leave out; None means those that the active adapter trains.

    Returns:
        exact: of names, types, shapes and bytes. rounded: of the values in bfloat16, which are the same for one base in
        float32, in bfloat16, or in float32 converted from bfloat16. types: of the types alone.
    """
    state = getattr(model, STATE, None)
    saved = tuple(state.current.saved if saved is None else saved)
    originals = state.originals if state else {}
    exact, rounded, types = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    merged = {id(m.weight): m.lora_original for m in model.modules() if getattr(m, "lora_original", None) is not None}
    for name, parameter in sorted(model.named_parameters()):
        inside = any(name.startswith(f"{module}.") for module in saved)
        if inside or name.rpartition(".")[2] in ("lora_A", "lora_B", "lora_magnitude"):
            continue
        tensor = whole(originals.get(name, merged.get(id(parameter), parameter)).detach())
        tensor = dequantized(tensor)
        about = f"{name}:{tuple(tensor.shape)};".encode()
        types.update(f"{name}:{tensor.dtype};".encode())
        for digest, values in ((exact, tensor), (rounded, tensor.to(torch.bfloat16))):
            digest.update(about)
            values = values.cpu().contiguous().clone()  # a numpy view would pin the storage, which FSDP2 resizes
            digest.update(values.reshape(-1).view(torch.uint8).numpy())
    exact.update(types.digest())
    return {"exact": exact.hexdigest(), "rounded": rounded.hexdigest(), "types": types.hexdigest()}
