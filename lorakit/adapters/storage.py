"""Adapter files in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no key for (label names, the base's fingerprint, the files' digests) is in `lorakit.json`, because PEFT
warns of unknown keys in its own file. Reading is strict: an adapter that would compute something else than it did where
it was saved is refused, naming the difference. Nothing is ever unpickled, and saving needs no network.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from lorakit.adapters.adapter import captured, unwrap
from lorakit.adapters.card import model_card
from lorakit.adapters.combination import without_start
from lorakit.adapters.files import (
    CARD,
    CONFIG,
    OWN,
    SCHEMA,
    TENSORS,
    digest,
    find_folder,
    read_own,
    read_tensors,
    same_every_time,
    write_all,
)
from lorakit.adapters.fingerprint import fingerprint
from lorakit.adapters.peft_format import base_name, peft_config, read_adapter, read_config, to_peft
from lorakit.adapters.state import add_adapter, refuse_other_parameters
from lorakit.nn.weights import is_sharded, regather


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    energy: Mapping[str, Any] | None = None,
) -> Path:
    """Write the active adapter so that PEFT and lorakit load it: config, tensors, own metadata, and a model card.

    A new folder appears with all its files at once. In one that is there each file is replaced whole; a crash between
    two of them leaves a set whose digests disagree, which `load_adapter` refuses. PiSSA and OLoRA updates are written
    as plain ones of twice the rank, which work on the untouched base.

    Args:
        model: An adapted model, merged or not. One that FSDP2 has sharded is gathered: every rank has to call, and
            rank 0 alone writes. Otherwise whoever calls writes.
        folder: Made if it is not there.
        metrics: Results for the model card: name -> value, nested mappings or a dataclass allowed.
        energy: What it cost, likewise.

    Returns:
        The folder.

    Raises:
        ValueError: The model has no LoRA.
        OSError: The folder cannot be written; what it held before is still there.
    """
    model = unwrap(model)
    regather(model)
    adapter = captured(model)
    plain = replace(
        adapter, updates={n: without_start(u, adapter.config.use_rslora) for n, u in adapter.updates.items()}
    )
    tensors = {key: t.contiguous().cpu() for key, t in to_peft(model, plain).items()}
    config = (json.dumps(peft_config(model, plain), indent=2, sort_keys=True) + "\n").encode()
    data = same_every_time(save(tensors, metadata={"format": "pt", "lorakit": str(SCHEMA)}))
    own = {
        "schema": SCHEMA,
        "labels": _labels(model) if adapter.saved else None,
        "base": fingerprint(model),
        "files": {CONFIG: digest(config), TENSORS: digest(data)},
    }
    own["digest"] = digest(json.dumps(own, sort_keys=True).encode())
    count = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(type(model).__name__, base_name(model), plain, count, own["labels"], metrics, energy)
    files = {
        TENSORS: data,
        CONFIG: config,
        OWN: (json.dumps(own, indent=2, sort_keys=True) + "\n").encode(),
        CARD: card.encode(),
    }
    if is_sharded(model) and torch.distributed.get_rank():
        return Path(folder)
    return write_all(Path(folder), files)


def load_adapter(
    model: nn.Module, folder_or_hub_id: str | Path, name: str = "default", *, check_base: bool = True
) -> nn.Module:
    """Put an adapter written by lorakit or PEFT into `model`, in place, as the active one and trainable.

    A plain model is adapted; an adapted one takes it as another adapter, or exchanges the one of that name. Whatever is
    wrong with the adapter, the model is then as it was.

    Args:
        model: The base that the adapter was trained on, with as many labels.
        folder_or_hub_id: A folder, or a hub id (the only case that uses the network).
        name: Among several adapters.
        check_base: False accepts another base than the adapter was trained on.

    Returns:
        The same model.

    Raises:
        ValueError: Something is missing, unexpected, damaged, or made for another model; says what and what to do.
        FileNotFoundError: There is no such folder, and the hub did not give it.
    """
    plain = unwrap(model)
    folder = find_folder(folder_or_hub_id)
    config = read_config(folder)
    tensors, ours = read_tensors(folder)
    own = read_own(folder) if ours or (folder / OWN).exists() else None
    labels = _check_labels(plain, own["labels"]) if own and own["labels"] else None
    adapter = read_adapter(plain, config, tensors)
    if check_base and own:
        _check_base(plain, own["base"], adapter.saved)
    elif check_base:
        _check_base_name(plain, config)
    refuse_other_parameters(model, name, adapter)
    add_adapter(plain, name, adapter)
    if labels:
        plain.config.id2label = dict(enumerate(labels))
        plain.config.label2id = {label: i for i, label in enumerate(labels)}
    return model


def base_and_labels(folder_or_hub_id: str | Path) -> tuple[str | None, list[str] | None]:
    """What an adapter's files say of the model it needs: its base, and the labels of its head; None where they do not.

    Raises:
        ValueError, FileNotFoundError: as `load_adapter`.
    """
    folder = find_folder(folder_or_hub_id)
    own = read_own(folder) if (folder / OWN).exists() else {"labels": None}
    return read_config(folder).get("base_model_name_or_path"), own["labels"]


def _check_base_name(model: nn.Module, config: Mapping[str, Any]) -> None:
    theirs, mine = config.get("base_model_name_or_path"), base_name(model)
    if theirs and mine and Path(theirs).name != Path(mine).name:
        raise ValueError(
            f"the adapter was trained on {theirs!r}, this model is {mine!r}; load that base, or pass check_base=False"
        )


def _labels(model: nn.Module) -> list[str] | None:
    """Label names in the order of the head's outputs; None where the model has none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    return [names[i] for i in sorted(names)] if names else None


def _check_labels(model: nn.Module, theirs: list[str]) -> list[str] | None:
    """The adapter's labels if the model's are unnamed and should take theirs; None if they agree."""
    mine = _labels(model)
    if mine is None or mine == theirs:
        return None
    if len(mine) != len(theirs):
        raise ValueError(
            f"the adapter has {len(theirs)} labels, this model {len(mine)}; build the base with "
            f"num_labels={len(theirs)}: {', '.join(theirs)}"
        )
    if mine == [f"LABEL_{i}" for i in range(len(mine))]:
        return theirs
    at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    raise ValueError(
        f"label {at} is {theirs[at]!r} in the adapter and {mine[at]!r} in this model; build the base with the "
        f"adapter's order: {', '.join(theirs)}"
    )


def _check_base(model: nn.Module, theirs: Mapping[str, str], saved: Iterable[str]) -> None:
    mine = fingerprint(model, saved)
    if mine["exact"] == theirs["exact"]:
        return
    if mine["types"] != theirs["types"] and mine["rounded"] == theirs["rounded"]:
        return  # the same base in another precision
    raise ValueError(
        "the adapter was trained on another base: the weights of this model have another fingerprint; load the base it "
        "was trained on, or pass check_base=False to use it here all the same"
    )
