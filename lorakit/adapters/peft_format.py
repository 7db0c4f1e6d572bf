"""PEFT's format, read and written: its names for an adapter's tensors, and its configuration."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter, trained_in_place
from lorakit.adapters.config import ALL_LINEAR, LoRAConfig
from lorakit.adapters.files import CONFIG, TENSORS, read_json
from lorakit.adapters.initialization import new_adapter
from lorakit.adapters.names import name_matches
from lorakit.adapters.targets import default_targets, find_targets, layer_indices
from lorakit.nn.weights import magnitude_shape, whole

PREFIX = "base_model.model."

TASKS = {
    "ForTokenClassification": "TOKEN_CLS",
    "ForSequenceClassification": "SEQ_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's task_type by the end of the model's class name."""

PEFT_HEADS = {"TOKEN_CLS": ("classifier", "score"), "SEQ_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Heads that PEFT adds to modules_to_save on its own, whether the model has them or not."""

UNDERSTOOD = frozenset(
    """alpha_pattern auto_mapping base_model_name_or_path bias exclude_modules fan_in_fan_out inference_mode
    init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout modules_to_save peft_type peft_version
    r rank_pattern revision target_modules task_type use_dora use_rslora""".split()
)

NO_EFFECT = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Keys that PEFT writes with a default that changes nothing; any other unknown key must be null, false or empty."""


def update_keys(model: nn.Module, name: str) -> tuple[str, str, str]:
    """PEFT's names for A, B and the DoRA magnitude of a layer."""
    embedding = isinstance(model.get_submodule(name), nn.Embedding)
    A, B = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{PREFIX}{name}.{A}", f"{PREFIX}{name}.{B}", f"{PREFIX}{name}.lora_magnitude_vector"


def value_key(targets: Iterable[str], name: str) -> str:
    """PEFT's name for a tensor of the base; an adapted layer's own tensors are one level deeper there."""
    owner, _, own = name.rpartition(".")
    return f"{PREFIX}{owner}.base_layer.{own}" if owner in targets else f"{PREFIX}{name}"


def to_peft(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    found = {}
    for name, update in adapter.updates.items():
        values = (update.A, update.B, update.magnitude)
        found.update((k, t) for k, t in zip(update_keys(model, name), values, strict=True) if t is not None)
    found.update((value_key(adapter.targets, name), tensor) for name, tensor in adapter.values.items())
    return found


def wrapped_by_peft(names: Iterable[str], modules_to_save: Iterable[str]) -> list[str]:
    """The modules that PEFT trains in full for these names: its rule is an unanchored `endswith`."""
    return [name for name in names if any(name.endswith(wanted) for wanted in modules_to_save)]


def peft_config(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """The adapter_config.json from which PEFT builds the same adapter, resolved to this model's layers."""
    config, updates = adapter.config, adapter.updates
    task = next((t for end, t in TASKS.items() if type(model).__name__.endswith(end)), None)
    names = [name for name, module in model.named_modules() if name]
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
        "exclude_modules": None,
        "fan_in_fan_out": any(type(model.get_submodule(n)).__name__ == "LoRAConv1D" for n in updates),
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
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }


def _short(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha


def _peft_targets(model: nn.Module, adapter: Adapter) -> list[str] | str:
    """Name suffixes if they give PEFT exactly our layers, otherwise one regex of the full names."""
    wanted = adapter.config.target_modules or default_targets(model)
    if not isinstance(wanted, str):
        names = [n for n, _ in model.named_modules() if n and not any(_within(n, s) for s in adapter.saved)]
        if {n for n in names if any(name_matches(n, t) for t in wanted)} == set(adapter.targets):
            return sorted(set(wanted))
    return "|".join(re.escape(name) for name in adapter.targets)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def base_name(model: nn.Module) -> str | None:
    """The folder or hub id that the model was loaded from, if transformers recorded it."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        ValueError: it is incomplete, or uses a feature that lorakit does not have.
    """
    path = folder / CONFIG
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}; lorakit reads 'LORA'")
    for key in ("r", "lora_alpha"):
        if config.get(key) is None:
            raise ValueError(f"{path}: {key} is missing and cannot be guessed; add it as it was in training")
    for key, value in config.items():
        if key not in UNDERSTOOD and value and NO_EFFECT.get(key) != value:
            raise ValueError(f"{path}: {key}={value!r} is a feature that lorakit does not have; load it with PEFT")
    return config


def read_adapter(model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """Build the adapter for this model from PEFT's configuration and tensors.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape.
    """
    names = [name for name, module in model.named_modules() if name]
    automatic = PEFT_HEADS.get(config.get("task_type"), ())
    asked = tuple(dict.fromkeys([*(config.get("modules_to_save") or ()), *automatic]))
    for wanted in asked:
        if wanted not in automatic and not wrapped_by_peft(names, [wanted]):
            raise ValueError(f"modules_to_save {wanted!r} of the adapter is not in this {type(model).__name__}")
    saved = tuple(wrapped_by_peft(names, asked))
    if config.get("target_modules") is None:  # PEFT's defaults are ours; a wrong guess would not fit the tensors
        try:
            config = {**config, "target_modules": list(default_targets(model))}
        except ValueError as error:
            raise ValueError(f"{CONFIG} has no target_modules, and there is {error}") from None
    if config["target_modules"] == ALL_LINEAR:  # PEFT's includes an unused pooler, and a head not trained in full
        ours = find_targets(model, ALL_LINEAR, trained_in_full=saved)
        more = [name for name in names if name not in ours and f"{PREFIX}{name}.lora_A.weight" in tensors]
        config = {**config, "target_modules": [*ours, *more] if more else ALL_LINEAR}
    adapter = new_adapter(model, _lorakit_config(config, names, saved), saved)

    expected: dict[str, tuple[int, ...]] = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = update_keys(model, name)
        expected[A], expected[B] = tuple(update.A.shape), tuple(update.B.shape)
        if adapter.config.use_dora:
            expected[magnitude] = magnitude_shape(model.get_submodule(name))
    values = {value_key(adapter.targets, n): (n, t) for n, t in trained_in_place(model, adapter)}
    expected.update((key, tuple(tensor.shape)) for key, (_, tensor) in values.items())
    tensors = {key: t for key, t in tensors.items() if not _is_copy(key, saved)}
    for alias, key in _other_names(model, adapter, values).items():
        if alias in tensors and key in tensors and torch.equal(tensors[alias], tensors[key]):
            del tensors[alias]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = value_key(adapter.targets, name)  # PEFT also writes the whole table beside an adapted embedding
        if key not in expected and key in tensors and torch.equal(tensors[key], whole(parameter).detach().cpu()):
            del tensors[key]
    _compare(expected, tensors, counters={key for key, (_, t) in values.items() if not t.is_floating_point()})

    updates = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = update_keys(model, name)
        updates[name] = replace(update, A=tensors[A], B=tensors[B], magnitude=tensors.get(magnitude))
    return replace(adapter, updates=updates, values={name: tensors[key] for key, (name, _) in values.items()})


def _other_names(model: nn.Module, adapter: Adapter, values: Mapping[str, tuple[str, Tensor]]) -> dict[str, str]:
    """Other names of tied tensors -> the one we use: PEFT writes a tied bias under each of its names."""
    keys = {id(tensor): key for key, (_, tensor) in values.items()}
    names = ((value_key(adapter.targets, n), id(p)) for n, p in model.named_parameters(remove_duplicate=False))
    return {alias: keys[i] for alias, i in names if i in keys and alias != keys[i]}


def _is_copy(key: str, saved: Iterable[str]) -> bool:
    """With bias="all" PEFT writes each bias of a fully trained module twice more, one of them untrained."""
    return "bias" in key and any(
        key.startswith(f"{PREFIX}{module}.{copy}.")
        for module in saved
        for copy in ("modules_to_save", "original_module")
    )


def _compare(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], counters: Collection[str]) -> None:
    missing = [f"missing: {key}" for key in expected if key not in tensors]
    unexpected = [f"unexpected: {key}" for key in tensors if key not in expected]
    faults = []
    for key in (key for key in expected if key in tensors):  # not a set, whose order differs between processes
        if tuple(tensors[key].shape) != expected[key]:
            faults.append(f"{key} is {tuple(tensors[key].shape)}, this model needs {expected[key]}")
        elif tensors[key].is_floating_point() == (key in counters):
            faults.append(
                f"{key} is {tensors[key].dtype}, {'an integer' if key in counters else 'floating point'} here"
            )
    if every := [*missing, *unexpected, *faults]:
        few = [*missing[:3], *unexpected[:3], *faults[:3]]
        shown = "; ".join(few) + (f"; and {len(every) - len(few)} more" if len(every) > len(few) else "")
        raise ValueError(
            f"{TENSORS} does not fit {CONFIG} and this model: {shown}. Use the base it was trained on and the "
            "configuration it was saved with"
        )


def _lorakit_config(config: Mapping[str, Any], names: Iterable[str], saved: tuple[str, ...]) -> LoRAConfig:
    """PEFT's configuration as ours. Targets that PEFT silently skipped are skipped: the tensors decide."""
    names = [name for name in names if not any(_within(name, module) for module in saved)]
    targets = config["target_modules"]
    everything = targets == ALL_LINEAR
    targets = targets if everything else _known(targets, names)
    matched = [n for n in names if everything or _means(targets, n)]
    layers, lists = config.get("layers_to_transform"), config.get("layers_pattern") or ()
    lists = (lists,) if isinstance(lists, str) else tuple(lists)
    if layers is not None:
        there = set(layer_indices(matched, lists).values())
        layers = [i for i in ([layers] if isinstance(layers, int) else layers) if i in there] or None
    init = config.get("init_lora_weights", True)
    if str(init).startswith("pissa_niter"):
        raise ValueError(f"init_lora_weights={init!r}: the base was changed at random, which PEFT did not save")
    return LoRAConfig(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout") or 0.0,
        target_modules=targets,
        bias=config.get("bias") or "none",
        modules_to_save=saved,
        exclude_modules=_known(config.get("exclude_modules"), matched),
        layers_to_transform=layers,
        layers_pattern=lists if layers else (),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        init_lora_weights=True if init in (None, "eva") else init,
    )


def _means(wanted: str | Iterable[str], name: str) -> bool:
    """PEFT's rule: a string is a regex for the full name, a list holds name suffixes."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name_matches(name, w) for w in wanted)


def _known(wanted: str | list[str] | None, names: Iterable[str]) -> str | tuple[str, ...]:
    """The part of `wanted` that matches any of these names."""
    if isinstance(wanted, str):
        return wanted if any(_means(wanted, n) for n in names) else ()
    return tuple(sorted(w for w in wanted or () if any(name_matches(n, w) for n in names)))
