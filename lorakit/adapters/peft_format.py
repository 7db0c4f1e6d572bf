"""PEFT's format, written: its names for an adapter's tensors, and the configuration that it reads."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.names import is_within, name_matches, named_modules, named_parameters, submodule
from lorakit.adapters.targets import default_targets
from lorakit.adapters.tasks import PEFT_HEADS, task_of_model
from lorakit.nn.token_rows import ROWS

PREFIX = "base_model.model."

DELTA = "token_adapter.trainable_tokens_delta"
"""PEFT's name for trained rows, which are values in spite of it."""


def update_keys(model: nn.Module, name: str) -> tuple[str, str, str]:
    """PEFT's names for A, B and the DoRA magnitude of a layer."""
    embedding = isinstance(submodule(model, name), nn.Embedding)
    A, B = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{PREFIX}{name}.{A}", f"{PREFIX}{name}.{B}", f"{PREFIX}{name}.lora_magnitude_vector"


def value_key(targets: Iterable[str], name: str) -> str:
    """PEFT's name for a tensor of the base; an adapted layer's own tensors are one level deeper there."""
    owner, _, own = name.rpartition(".")
    return f"{PREFIX}{owner}.base_layer.{own}" if owner in targets else f"{PREFIX}{name}"


def row_key(name: str) -> str | None:
    """PEFT's name for the trained rows of a token table; None for any other tensor."""
    table, _, own = name.rpartition(".")
    return f"{PREFIX}{table}.{DELTA}" if own == ROWS else None


def to_peft(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    found = {}
    for name, update in adapter.updates.items():
        values = (update.A, update.B, update.magnitude)
        found.update((k, t) for k, t in zip(update_keys(model, name), values, strict=True) if t is not None)
    found.update((row_key(name) or value_key(adapter.targets, name), tensor) for name, tensor in adapter.values.items())
    for alias, name in tied_in_full(model, adapter).items():  # PEFT reads every module's own
        found[value_key(adapter.targets, alias)] = adapter.values[name].clone()
    return found


def tied_in_full(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Other names of the tied parameters in modules trained in full -> the name that the adapter uses."""
    every = list(named_parameters(model, remove_duplicate=False))
    first = {id(p): name for name, p in reversed(every)}
    found = {name: first[id(p)] for name, p in every if any(is_within(name, saved) for saved in adapter.saved)}
    return {alias: name for alias, name in found.items() if alias != name and name in adapter.values}


def wrapped_by_peft(names: Iterable[str], modules_to_save: Iterable[str]) -> list[str]:
    """The modules that PEFT trains in full for these names: its rule is an unanchored `endswith`."""
    return [name for name in names if any(name.endswith(wanted) for wanted in modules_to_save)]


def peft_config(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """The adapter_config.json from which PEFT builds the same adapter, resolved to this model's layers."""
    config, updates = adapter.config, adapter.updates
    task = task_of_model(model)
    names = [name for name, _ in named_modules(model) if name]
    heads = (*adapter.saved, *PEFT_HEADS.get(task, ()))
    if set(wrapped_by_peft(names, heads)) != set(adapter.saved):
        task = None  # PEFT would train another head
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        task = None  # PEFT's classes for a task pass input_ids, which Whisper does not take
    r = Counter(len(u.A) for u in updates.values()).most_common(1)[0][0]
    alpha = Counter(u.lora_alpha for u in updates.values()).most_common(1)[0][0]
    return {
        "alpha_pattern": {re.escape(n): _short(u.lora_alpha) for n, u in updates.items() if u.lora_alpha != alpha},
        "auto_mapping": None,
        "base_model_name_or_path": base_name(model),
        "bias": config.bias,
        **({"ensure_weight_tying": True} if tied_in_full(model, adapter) else {}),
        "exclude_modules": None,
        "fan_in_fan_out": any(type(submodule(model, n)).__name__ == "LoRAConv1D" for n in updates),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": _short(alpha),
        "lora_dropout": config.lora_dropout,
        "modules_to_save": list(adapter.saved) or None,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": {re.escape(n): len(u.A) for n, u in updates.items() if len(u.A) != r},
        "revision": None,
        "target_modules": _peft_targets(model, adapter),
        "task_type": task,
        **(
            {"trainable_token_indices": {n: list(tokens) for n, tokens in adapter.rows.items()}} if adapter.rows else {}
        ),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }


def _short(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def _peft_targets(model: nn.Module, adapter: Adapter) -> list[str] | str:
    """Name suffixes if they give PEFT exactly our layers, otherwise one regex of the full names."""
    wanted = adapter.config.target_modules or default_targets(model)
    if not isinstance(wanted, str):
        names = [n for n, _ in named_modules(model) if n and not any(is_within(n, s) for s in adapter.saved)]
        if {n for n in names if any(name_matches(n, t) for t in wanted)} == set(adapter.targets):
            return sorted(set(wanted))
    return "|".join(re.escape(name) for name in adapter.targets)


def base_name(model: nn.Module) -> str | None:
    """The folder or hub id that the model was loaded from, if transformers recorded it."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None
