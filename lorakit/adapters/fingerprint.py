"""A digest of a model's base, by which an adapter recognizes the base it was trained on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lorakit.adapters.adapter import STATE
from lorakit.adapters.names import is_within, named_parameters
from lorakit.nn.token_rows import ROWS
from lorakit.nn.weights import dequantized, whole

SHRUNK = "_lora_shrunk"
"""Attribute of a model whose base was shrunk: modules left out of a fingerprint -> fingerprint before, digest after."""


def base_fingerprint(
    model: nn.Module, saved: Iterable[str] | None = None, rows: Mapping[str, Sequence[int]] | None = None
) -> dict[str, str]:
    """The fingerprint of the base that an adapter needs: of a base shrunk by `shrink_base`, the one it came from.

    A base that has changed in any other way since is another one, and gets its own fingerprint.

    Args:
        model, saved, rows: as for `fingerprint`.
    """
    found, saved = fingerprint(model, saved, rows), _left_out(model, saved)
    before, after = getattr(model, SHRUNK, {}).get(saved, (found, found["rounded"]))
    return before if found["rounded"] == after else found


def remember_shrunk(model: nn.Module, before: dict[tuple[str, ...], dict[str, str]]) -> None:
    """Note on a model whose base was just shrunk which base that was.

    Args:
        model: the model, shrunk.
        before: its `base_fingerprint` before, by the modules that it leaves out.
    """
    setattr(model, SHRUNK, {saved: (old, fingerprint(model, saved)["rounded"]) for saved, old in before.items()})


def _left_out(model: nn.Module, saved: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(sorted(getattr(model, STATE).current.saved if saved is None else saved))


def fingerprint(
    model: nn.Module, saved: Iterable[str] | None = None, rows: Mapping[str, Sequence[int]] | None = None
) -> dict[str, str]:
    """Compute digests of the base: everything except the updates and the modules trained in full.

    Args:
        model: adapted or plain.
        saved: full names of the modules to leave out; None means those that the active adapter trains.
        rows: by token table, the tokens whose rows to leave out; None likewise.

    Returns:
        exact: of names, types, shapes and bytes. rounded: of the values in bfloat16, which are the same for one base in
        float32, in bfloat16, or in float32 converted from bfloat16. types: of the types alone.
    """
    state = getattr(model, STATE, None)
    saved = _left_out(model, saved)
    rows = (state.current.rows if state else {}) if rows is None else rows
    originals = state.originals if state else {}
    exact, rounded, types = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    merged = {id(m.weight): m.lora_original for m in model.modules() if getattr(m, "lora_original", None) is not None}
    for name, parameter in sorted(named_parameters(model)):
        inside = any(is_within(name, module) for module in saved)
        if inside or name.rpartition(".")[2] in ("lora_A", "lora_B", "lora_magnitude", ROWS):
            continue
        tensor = whole(originals.get(name, merged.get(id(parameter), parameter)).detach())
        tensor = dequantized(tensor)
        if tokens := rows.get(name.removesuffix(".weight")):
            tensor = tensor.index_fill(0, torch.tensor(tokens, device=tensor.device), 0)
        about = f"{name}:{tuple(tensor.shape)};".encode()
        types.update(f"{name}:{tensor.dtype};".encode())
        for digest, values in ((exact, tensor), (rounded, tensor.to(torch.bfloat16))):
            digest.update(about)
            values = values.cpu().contiguous().clone()  # a numpy view would pin the storage, which FSDP2 resizes
            digest.update(values.reshape(-1).view(torch.uint8).numpy())
    exact.update(types.digest())
    return {"exact": exact.hexdigest(), "rounded": rounded.hexdigest(), "types": types.hexdigest()}
