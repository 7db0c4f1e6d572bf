"""Adapter files in PEFT's format, both ways: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no key for (label names, the base's fingerprint, the files' digests) is in `lorakit.json`, because PEFT
warns of unknown keys in its own file. Reading is strict: an adapter that would compute something else than it did where
it was saved is refused, naming the difference. Nothing is ever unpickled, and saving needs no network.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lorakit.combine import without_start
from lorakit.layers import magnitude_shape, unpacked
from lorakit.lora import (
    STATE,
    Adapter,
    add_adapter,
    captured,
    new_adapter,
    regather,
    trained_in_place,
    unwrap,
    whole,
)
from lorakit.lora_config import LoRAConfig
from lorakit.targets import default_targets, layer_indices, name_matches

CONFIG, TENSORS, OWN, CARD = "adapter_config.json", "adapter_model.safetensors", "lorakit.json", "README.md"
PREFIX = "base_model.model."
SCHEMA = 1

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
"""Heads that PEFT adds to modules_to_save by itself, there or not."""

UNDERSTOOD = frozenset(
    """alpha_pattern auto_mapping base_model_name_or_path bias exclude_modules fan_in_fan_out inference_mode
    init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout modules_to_save peft_type peft_version
    r rank_pattern revision target_modules task_type use_dora use_rslora""".split()
)
NO_EFFECT = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Keys whose default PEFT writes although it changes nothing; any other key must be null, false or empty."""


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
    tensors = {key: t.contiguous().cpu() for key, t in _to_peft(model, plain).items()}
    config = (json.dumps(_peft_config(model, plain), indent=2, sort_keys=True) + "\n").encode()
    data = _same_every_time(save(tensors, metadata={"format": "pt", "lorakit": str(SCHEMA)}))
    own = {
        "schema": SCHEMA,
        "labels": _labels(model) if adapter.saved else None,
        "base": fingerprint(model),
        "files": {CONFIG: _digest(config), TENSORS: _digest(data)},
    }
    own["digest"] = _digest(json.dumps(own, sort_keys=True).encode())
    card = _card(model, plain, own["labels"], metrics, energy)
    files = {
        TENSORS: data,
        CONFIG: config,
        OWN: (json.dumps(own, indent=2, sort_keys=True) + "\n").encode(),
        CARD: card.encode(),
    }
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if sharded and torch.distributed.get_rank():
        return Path(folder)
    return _write_all(Path(folder), files)


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
    folder = _find_folder(folder_or_hub_id)
    config = _read_config(folder)
    tensors, ours = _read_tensors(folder)
    own = _read_own(folder) if ours or (folder / OWN).exists() else None
    labels = _check_labels(plain, own["labels"]) if own and own["labels"] else None
    adapter = _read_adapter(plain, config, tensors)
    if check_base and own:
        _check_base(plain, own["base"], adapter.saved)
    elif check_base:
        _check_base_name(plain, config)
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
    folder = _find_folder(folder_or_hub_id)
    own = _read_own(folder) if (folder / OWN).exists() else {"labels": None}
    return _read_config(folder).get("base_model_name_or_path"), own["labels"]


def fingerprint(model: nn.Module, saved: Iterable[str] | None = None) -> dict[str, str]:
    """Digests of the untouched base: everything but the modules trained whole and the updates.

    Args:
        model: Adapted or plain.
        saved: Full names of the modules left out; None means those that the active adapter trains.

    Returns:
        exact: of names, types, shapes and bytes. rounded: of the values in bfloat16, the same for one base held in
        float32, bfloat16, or float32 that once was bfloat16. types: of the types alone.
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
        tensor = whole(originals.get(name, merged.get(id(parameter), parameter)))
        tensor = unpacked(tensor)
        about = f"{name}:{tuple(tensor.shape)};".encode()
        types.update(f"{name}:{tensor.dtype};".encode())
        for digest, values in ((exact, tensor), (rounded, tensor.to(torch.bfloat16))):
            digest.update(about)
            values = values.cpu().contiguous().clone()  # numpy would fix the storage's size, which FSDP2 changes
            digest.update(values.reshape(-1).view(torch.uint8).numpy())
    exact.update(types.digest())
    return {"exact": exact.hexdigest(), "rounded": rounded.hexdigest(), "types": types.hexdigest()}


# Names: ours are the model's own, PEFT's are those of the model wrapped by it.


def _update_keys(model: nn.Module, name: str) -> tuple[str, str, str]:
    """PEFT's names for A, B and the DoRA magnitude of a layer."""
    embedding = isinstance(model.get_submodule(name), nn.Embedding)
    A, B = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{PREFIX}{name}.{A}", f"{PREFIX}{name}.{B}", f"{PREFIX}{name}.lora_magnitude_vector"


def _value_key(targets: Iterable[str], name: str) -> str:
    """PEFT's name for a tensor of the base; an adapted layer's own is one level further down there."""
    owner, _, own = name.rpartition(".")
    return f"{PREFIX}{owner}.base_layer.{own}" if owner in targets else f"{PREFIX}{name}"


def _to_peft(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    found = {}
    for name, update in adapter.updates.items():
        values = (update.A, update.B, update.magnitude)
        found.update((k, t) for k, t in zip(_update_keys(model, name), values, strict=True) if t is not None)
    found.update((_value_key(adapter.targets, name), tensor) for name, tensor in adapter.values.items())
    return found


def _wrapped_by_peft(names: Iterable[str], modules_to_save: Iterable[str]) -> list[str]:
    """The modules that PEFT trains whole for these names: its rule is an unanchored `endswith`."""
    return [name for name in names if any(name.endswith(wanted) for wanted in modules_to_save)]


def _peft_config(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """What PEFT needs to build the same adapter, resolved to this model's layers."""
    config, updates = adapter.config, adapter.updates
    task = next((t for end, t in TASKS.items() if type(model).__name__.endswith(end)), None)
    names = [name for name, module in model.named_modules() if name]
    heads = (*adapter.saved, *PEFT_HEADS.get(task, ()))
    if set(_wrapped_by_peft(names, heads)) != set(adapter.saved):
        task = None  # PEFT would train another head
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        task = None  # PEFT's classes for a task pass input_ids, which Whisper does not take
    r = Counter(len(u.A) for u in updates.values()).most_common(1)[0][0]
    alpha = Counter(u.lora_alpha for u in updates.values()).most_common(1)[0][0]
    return {
        "alpha_pattern": {re.escape(n): _short(u.lora_alpha) for n, u in updates.items() if u.lora_alpha != alpha},
        "auto_mapping": None,
        "base_model_name_or_path": _base_name(model),
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
    """Name suffixes where PEFT finds exactly our layers by them, else one regex with their full names."""
    wanted = adapter.config.target_modules or default_targets(model)
    if not isinstance(wanted, str):
        names = [n for n, _ in model.named_modules() if n and not any(_within(n, s) for s in adapter.saved)]
        if {n for n in names if any(name_matches(n, t) for t in wanted)} == set(adapter.targets):
            return sorted(set(wanted))
    return "|".join(re.escape(name) for name in adapter.targets)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _base_name(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _labels(model: nn.Module) -> list[str] | None:
    """Label names in the order of the head's outputs; None where the model has none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    return [names[i] for i in sorted(names)] if names else None


# Reading


def _find_folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"no adapter in {folder}: {CONFIG} is not there")
        return folder
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not folder.parent.is_dir()
    if not hub_id:
        raise FileNotFoundError(f"no adapter folder {folder}")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    """The folder of the hub's cache with the adapter's files: the one case that needs the network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[CONFIG, TENSORS, OWN]))
    except Exception as error:  # a foreign border: httpx's, the hub's and the cache's errors share no other base class
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise FileNotFoundError(
            f"there is no adapter folder {hub_id!r} here, and the hub did not give it ({reason}). Check the name; "
            f"without network fetch it elsewhere (hf download {hub_id}) and pass the folder"
        ) from None
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{hub_id!r} on the hub is no adapter: it has no {CONFIG}")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; fetch or save the adapter again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: not an object; fetch or save the adapter again")
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration, complete enough to compute the same thing."""
    path = folder / CONFIG
    config = _read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}; lorakit reads 'LORA'")
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            raise ValueError(f"{path}: {key} is missing and cannot be guessed; add it as it was in training")
    for key, value in config.items():
        if key not in UNDERSTOOD and value and NO_EFFECT.get(key) != value:
            raise ValueError(f"{path}: {key}={value!r} is a feature that lorakit does not have; load it with PEFT")
    return config


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors, and whether lorakit wrote them."""
    path = folder / TENSORS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "adapter_model.bin is a pickle, which can run any code: save it again with safetensors" if pickled else ""
        raise ValueError(f"{path} is missing. {why or 'Fetch or save the adapter again'}")
    try:
        with safe_open(path, framework="pt") as file:
            ours = "lorakit" in (file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, ours
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; fetch or save the adapter again") from None


def _read_own(folder: Path) -> dict[str, Any]:
    """lorakit's own metadata, after comparing every file with its digest."""
    path = folder / OWN
    if not path.is_file():
        raise ValueError(f"{path} is missing, without which nothing says which labels and base fit; copy it too")
    own = _read_json(path)
    if own.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {own.get('schema')!r}, this lorakit reads {SCHEMA}; use a newer lorakit")
    digest = own.pop("digest", None)
    if digest != _digest(json.dumps(own, sort_keys=True).encode()):
        raise ValueError(f"{path} was changed after it was written; fetch or save the adapter again")
    for name, expected in own["files"].items():
        if _digest((folder / name).read_bytes()) != expected:
            raise ValueError(
                f"{folder / name} is not the file that was saved with {OWN}; fetch or save the adapter again (after an "
                f"edit on purpose, delete {OWN} and the safetensors' metadata)"
            )
    return own


def _check_base_name(model: nn.Module, config: Mapping[str, Any]) -> None:
    theirs, mine = config.get("base_model_name_or_path"), _base_name(model)
    if theirs and mine and Path(theirs).name != Path(mine).name:
        raise ValueError(
            f"the adapter was trained on {theirs!r}, this model is {mine!r}; load that base, or pass check_base=False"
        )


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


def _read_adapter(model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter for this model, every tensor accounted for."""
    names = [name for name, module in model.named_modules() if name]
    automatic = PEFT_HEADS.get(config.get("task_type"), ())
    asked = tuple(dict.fromkeys([*(config.get("modules_to_save") or ()), *automatic]))
    for wanted in asked:
        if wanted not in automatic and not _wrapped_by_peft(names, [wanted]):
            raise ValueError(f"modules_to_save {wanted!r} of the adapter is not in this {type(model).__name__}")
    saved = tuple(_wrapped_by_peft(names, asked))
    adapter = new_adapter(model, _lorakit_config(config, names, saved), saved)

    expected: dict[str, tuple[int, ...]] = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = _update_keys(model, name)
        expected[A], expected[B] = tuple(update.A.shape), tuple(update.B.shape)
        if adapter.config.use_dora:
            expected[magnitude] = magnitude_shape(model.get_submodule(name))
    values = {_value_key(adapter.targets, n): (n, t) for n, t in trained_in_place(model, adapter)}
    expected.update((key, tuple(tensor.shape)) for key, (_, tensor) in values.items())
    tensors = {key: t for key, t in tensors.items() if not _is_copy(key, saved)}
    for alias, key in _other_names(model, adapter, values).items():
        if alias in tensors and key in tensors and torch.equal(tensors[alias], tensors[key]):
            del tensors[alias]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        key = _value_key(adapter.targets, name)  # PEFT also writes the whole table beside an adapted embedding
        if key not in expected and key in tensors and torch.equal(tensors[key], whole(parameter).cpu()):
            del tensors[key]
    _compare(expected, tensors)

    updates = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = _update_keys(model, name)
        updates[name] = replace(update, A=tensors[A], B=tensors[B], magnitude=tensors.get(magnitude))
    return replace(adapter, updates=updates, values={name: tensors[key] for key, (name, _) in values.items()})


def _other_names(model: nn.Module, adapter: Adapter, values: Mapping[str, tuple[str, Tensor]]) -> dict[str, str]:
    """Further names of tied tensors -> the one we use: PEFT writes a tied bias under each of its names."""
    keys = {id(tensor): key for key, (_, tensor) in values.items()}
    names = ((_value_key(adapter.targets, n), id(p)) for n, p in model.named_parameters(remove_duplicate=False))
    return {alias: keys[i] for alias, i in names if i in keys and alias != keys[i]}


def _is_copy(key: str, saved: Iterable[str]) -> bool:
    """With bias="all" PEFT writes each bias of a module trained whole twice more, once of them untrained."""
    return "bias" in key and any(
        key.startswith(f"{PREFIX}{module}.{copy}.")
        for module in saved
        for copy in ("modules_to_save", "original_module")
    )


def _compare(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    missing = [f"missing: {key}" for key in expected if key not in tensors]
    unexpected = [f"unexpected: {key}" for key in tensors if key not in expected]
    faults = []
    for key in expected.keys() & tensors.keys():
        if tuple(tensors[key].shape) != expected[key]:
            faults.append(f"{key} is {tuple(tensors[key].shape)}, this model needs {expected[key]}")
        elif not tensors[key].is_floating_point():
            faults.append(f"{key} is {tensors[key].dtype}, not floating point")
    if every := [*missing, *unexpected, *faults]:
        few = [*missing[:3], *unexpected[:3], *faults[:3]]
        shown = "; ".join(few) + (f"; and {len(every) - len(few)} more" if len(every) > len(few) else "")
        raise ValueError(
            f"{TENSORS} does not fit {CONFIG} and this model: {shown}. Use the base it was trained on and the "
            "configuration it was saved with"
        )


def _lorakit_config(config: Mapping[str, Any], names: Iterable[str], saved: tuple[str, ...]) -> LoRAConfig:
    """PEFT's configuration as ours. Targets that PEFT passed over in silence are passed over: the tensors decide."""
    names = [name for name in names if not any(_within(name, module) for module in saved)]
    targets = _known(config["target_modules"], names)
    matched = [n for n in names if _means(targets, n)]
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
    """PEFT's rule: one string is a regex for the full name, a list holds its last parts."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name_matches(name, w) for w in wanted)


def _known(wanted: str | list[str] | None, names: Iterable[str]) -> str | tuple[str, ...]:
    """What of `wanted` means something among these names."""
    if isinstance(wanted, str):
        return wanted if any(_means(wanted, n) for n in names) else ()
    return tuple(sorted(w for w in wanted or () if any(name_matches(n, w) for n in names)))


# Writing


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _same_every_time(data: bytes) -> bytes:
    """The safetensors file with its header sorted: safetensors writes the metadata in a random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[start:]


def _write_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write all files aside first, so that a full disk leaves what was there; then move them in place.

    A folder that is not there yet is one rename: it appears with everything in it.
    """
    new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent if new else folder))
    try:
        for name, data in files.items():
            with open(aside / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if new:
            os.chmod(aside, 0o755)  # mkdtemp's is the owner's alone
            try:
                os.rename(aside, folder)
                return folder
            except OSError:
                if not folder.is_dir():  # else another process made it meanwhile
                    raise
        for name in files:
            os.replace(aside / name, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _card(model: nn.Module, adapter: Adapter, labels: list[str] | None, metrics: Any, energy: Any) -> str:
    """The model card: what it is, how to load it, its labels, and the results given."""
    config, base = adapter.config, _base_name(model)
    count = sum(t.numel() for t in _to_peft(model, adapter).values())
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {base}"] if base else []),
        "tags: [lora, lorakit]",
        "---",
        "",
    ]
    lines += [f"# LoRA adapter for {type(model).__name__}", ""]
    lines += [
        f"{count:,} values: r={config.r}, lora_alpha={config.lora_alpha:g}, bias={config.bias}, "
        f"{len(adapter.targets)} layers adapted, trained whole: {', '.join(adapter.saved) or 'nothing'}.",
        "",
        "```python",
        'lorakit.load_adapter(base_model, "this folder")           # or',
        'peft.PeftModel.from_pretrained(base_model, "this folder")',
        "```",
    ]
    if labels:
        lines += ["", "## Labels", "", ", ".join(f"{i} {label}" for i, label in enumerate(labels))]
    for title, values in (("Metrics", metrics), ("Energy", energy)):
        rows = list(_flat(values))
        if rows:
            lines += ["", f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if is_dataclass(values):
        values = asdict(values)
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value
