"""PEFT's files, read: the same adapter for this model, or an error that says why not."""

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter, trained_in_place, untouched, untouched_rows
from lorakit.adapters.config import ALL_LINEAR, LoRAConfig, checked_tokens
from lorakit.adapters.files import CONFIG, TENSORS, read_json
from lorakit.adapters.full_training import refuse_untrainable
from lorakit.adapters.initialization import new_adapter
from lorakit.adapters.names import (
    WRAPPERS,
    is_within,
    name_matches,
    named_modules,
    named_parameters,
    outermost,
    plain_name,
    submodule,
)
from lorakit.adapters.patterns import check_kinds, check_patterns, check_ranks_fit
from lorakit.adapters.peft_format import DELTA, PREFIX, row_key, update_keys, value_key, wrapped_by_peft
from lorakit.adapters.targets import default_targets, find_targets, layer_indices
from lorakit.adapters.tasks import PEFT_HEADS
from lorakit.adapters.ties import closed_under_ties, untie
from lorakit.adapters.token_indices import owners_of, rows_trained
from lorakit.adapters.token_table import input_table
from lorakit.nn.token_rows import ROWS, has_rows
from lorakit.nn.weights import magnitude_shape, whole

UNDERSTOOD = frozenset(
    """alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying exclude_modules fan_in_fan_out
    inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_bias lora_dropout
    modules_to_save peft_type peft_version r rank_pattern revision target_modules task_type
    trainable_token_indices use_dora use_rslora""".split()
)

NO_EFFECT = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Keys that PEFT writes with a default that changes nothing; any other unknown key must be null, false or empty."""

MOST_SHOWN = 100  # characters of the names of layers, in a message


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
    check_kinds(config, str(path))
    try:
        checked_tokens(config.get("trainable_token_indices"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for key, value in config.items():
        if key not in UNDERSTOOD and value and NO_EFFECT.get(key) != value:
            raise ValueError(f"{path}: {key}={value!r} is a feature that lorakit does not have; load it with PEFT")
    return config


def read_adapter(model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Adapter:
    """Build the adapter for this model from PEFT's configuration and tensors.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape.
    """
    names = [name for name, _ in named_modules(model) if name]
    check_ranks_fit(config, tensors, CONFIG)
    check_patterns(config, names, CONFIG)
    config, tensors = _with_todays_names(model, names, config, tensors)
    if config.get("trainable_token_indices"):
        config, tensors = _with_rows(model, names, config, tensors)
    saved = _modules_trained_in_full(model, names, config, tensors)
    if config.get("target_modules") is None:  # PEFT's defaults are ours; a wrong guess would not fit the tensors
        try:
            config = {**config, "target_modules": list(default_targets(model))}
        except ValueError as error:
            raise ValueError(f"{CONFIG} has no target_modules, and there is {error}") from None
    if config["target_modules"] == ALL_LINEAR:  # PEFT's includes an unused pooler, and a head not trained in full
        ours = find_targets(model, ALL_LINEAR, trained_in_full=saved)
        more = [name for name in names if name not in ours and f"{PREFIX}{name}.lora_A.weight" in tensors]
        config = {**config, "target_modules": [*ours, *more] if more else ALL_LINEAR}
    elif config["target_modules"] and not _known(config["target_modules"], names):
        wanted = config["target_modules"]
        shown = wanted if isinstance(wanted, str) else ", ".join(wanted)
        raise ValueError(
            f"the adapter is for another architecture: {CONFIG} adapts {shown[:MOST_SHOWN]}, which"
            f" {type(model).__name__} does not have; load the base it was trained on"
            f" ({config.get('base_model_name_or_path') or 'not named there'})"
        )
    ours = _lorakit_config(config, names, saved)
    adapter = new_adapter(model, ours, saved, strict=False)
    adapter = replace(adapter, rows=rows_trained(model, ours, (*saved, *adapter.targets)))
    if config.get("lora_bias"):
        tensors = _with_biases_of_updates(model, adapter, tensors)

    expected: dict[str, tuple[int, ...]] = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = update_keys(model, name)
        expected[A], expected[B] = tuple(update.A.shape), tuple(update.B.shape)
        if adapter.config.use_dora:
            expected[magnitude] = magnitude_shape(submodule(model, name))
    values = {value_key(adapter.targets, n): (n, t) for n, t in trained_in_place(model, replace(adapter, rows={}))}
    for table, tokens in adapter.rows.items():
        values[row_key(f"{table}.{ROWS}")] = (f"{table}.{ROWS}", untouched_rows(model, table, tokens))
    expected.update((key, tuple(tensor.shape)) for key, (_, tensor) in values.items())
    tensors = {key: t for key, t in tensors.items() if not _is_copy(key, saved)}
    for alias, key in _other_names(model, adapter, values).items():
        if alias in tensors and key in tensors and torch.equal(tensors[alias], tensors[key]):
            del tensors[alias]
        elif alias in tensors and key in tensors:
            name = alias.removeprefix(PREFIX)
            raise ValueError(
                f"{name} and {key.removeprefix(PREFIX)} are tied in this model, and the adapter has different values "
                f"for them, as PEFT trains each by itself; untie them before load_adapter: {untie(name)}"
            )
    for name, parameter in named_parameters(model, remove_duplicate=False):
        key = value_key(adapter.targets, name)  # PEFT also writes the whole table beside an adapted embedding
        if key not in expected and key in tensors and torch.equal(tensors[key], whole(parameter).detach().cpu()):
            del tensors[key]
    _refuse_other_table(model, adapter, expected, tensors)
    _compare(expected, tensors, counters={key for key, (_, t) in values.items() if not t.is_floating_point()})

    updates = {}
    for name, update in adapter.updates.items():
        A, B, magnitude = update_keys(model, name)
        updates[name] = replace(update, A=tensors[A], B=tensors[B], magnitude=tensors.get(magnitude))
    return replace(adapter, updates=updates, values={name: tensors[key] for key, (name, _) in values.items()})


def _modules_trained_in_full(
    model: nn.Module, names: list[str], config: Mapping[str, Any], tensors: Collection[str]
) -> tuple[str, ...]:
    """Full names of the modules that PEFT trained in full for this configuration."""
    automatic = PEFT_HEADS.get(config.get("task_type"), ())
    asked = tuple(dict.fromkeys([*(config.get("modules_to_save") or ()), *automatic]))
    for wanted in asked:
        if wanted not in automatic and not wrapped_by_peft(names, [wanted]):
            raise ValueError(f"modules_to_save {wanted!r} of the adapter is not in this {type(model).__name__}")
    saved = outermost(wrapped_by_peft(names, asked))
    if config.get("ensure_weight_tying"):
        tied = (name for name in closed_under_ties(model, saved) if f"{PREFIX}{name}.weight" in tensors)
        saved = outermost([*saved, *tied])
    refuse_untrainable(model, saved, read_from_file=True)
    return saved


def _with_biases_of_updates(model: nn.Module, adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the biases that PEFT's `lora_bias` gives B by trained biases of the layers: b + scaling·b_B."""
    tensors = dict(tensors)
    for name, update in adapter.updates.items():
        added, key = f"{PREFIX}{name}.lora_B.bias", value_key(adapter.targets, f"{name}.bias")
        if added not in tensors:
            raise ValueError(f"{TENSORS} does not fit {CONFIG}: lora_bias is on, and {added} is missing")
        if getattr(submodule(model, name), "bias", None) is None:
            raise ValueError(f"lora_bias: {name!r} has no bias of its own to add the adapter's to; load it with PEFT")
        own = tensors.get(key, untouched(model, f"{name}.bias").cpu())
        tensors[key] = own.float() + update.scaling * tensors.pop(added).float()
    return tensors


def _with_rows(
    model: nn.Module, names: list[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Name the tables of trained rows by full name; one that others share, or of another class, is trained whole."""
    asked, tensors, rows, whole_tables = config["trainable_token_indices"], dict(tensors), {}, []
    if not isinstance(asked, Mapping):
        inputs = input_table(model)
        asked = {next((name for name, m in named_modules(model) if m is inputs), "embed_tokens"): asked}
    for wanted, tokens in asked.items():
        for name in wrapped_by_peft(names, [wanted]):
            delta = tensors.get(f"{PREFIX}{name}.{DELTA}")
            if delta is None:  # of a tied module, whose rows are under the table's name
                continue
            shape = tuple(untouched(model, f"{name}.weight").shape)
            if len(delta) != len(tokens) or max(tokens) >= shape[0] or delta.shape[1:] != shape[1:]:
                raise ValueError(
                    f"trainable_token_indices up to {max(tokens)} with rows {tuple(delta.shape)} do not fit {name!r}, "
                    f"which is {shape}; load the resized base, or call "
                    f"model.resize_token_embeddings({max(tokens) + 1}) first"
                )
            if len(tables := owners_of(model, name)) == 1 and _is_plain_table(submodule(model, name)):
                rows[name] = tokens
                continue
            table = untouched(model, f"{name}.weight").float().cpu().clone()
            table[torch.tensor(tokens)] = tensors.pop(f"{PREFIX}{name}.{DELTA}").float()
            whole_tables += tables
            tensors |= {f"{PREFIX}{tied}.weight": table for tied in tables}
    if not rows and not whole_tables:
        raise ValueError(f"{TENSORS} does not fit {CONFIG}: no trainable_tokens_delta for {', '.join(asked)}")
    if whole_tables:
        shown = ", ".join(whole_tables)
        warnings.warn(f"{shown}: the adapter trains some rows; further training here trains all", stacklevel=4)
    saved = [*(config.get("modules_to_save") or ()), *whole_tables]
    return {**config, "modules_to_save": saved, "trainable_token_indices": rows}, tensors


def _is_plain_table(module: nn.Module) -> bool:
    return type(module) is nn.Embedding or has_rows(module)


def _with_todays_names(
    model: nn.Module, names: list[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors without the parts of names that wrappers add, and with the modules' present names.

    transformers has renamed modules of some architectures; files written before have the former names.
    """
    tensors = {plain_name(key): tensor for key, tensor in tensors.items()}
    config = {**config}
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        wanted = config.get(key)
        if isinstance(wanted, str):
            config[key] = re.sub(rf"({'|'.join(WRAPPERS)})\\?\.", "", wanted)
        elif wanted:
            config[key] = [plain_name(name) for name in wanted]
    known = {f"{PREFIX}{name}" for name in names}
    if all(_owner(key) in known for key in tensors) or not all(key.startswith(PREFIX) for key in tensors):
        return config, tensors
    new = {key: PREFIX + _renamed(model, key.removeprefix(PREFIX)) for key in tensors}
    if not all(_owner(key) in known for key in new.values()):
        return config, tensors  # no renaming explains it: the error names the file's own keys
    targets = config.get("target_modules")
    if isinstance(targets, list):
        config["target_modules"] = [
            t if any(name_matches(n, t) for n in names) else _renamed(model, t) for t in targets
        ]
    elif targets and targets != ALL_LINEAR:
        config["target_modules"] = "|".join(
            sorted({re.escape(_owner(key).removeprefix(PREFIX)) for key in new.values() if ".lora_" in key})
        )
    return config, {new[key]: tensor for key, tensor in tensors.items()}


def _owner(key: str) -> str:
    """The module that a key of PEFT's file belongs to."""
    return (
        re.sub(r"\.(lora_|base_layer\.).*$", "", key)
        if re.search(r"\.(lora_|base_layer\.)", key)
        else key.rpartition(".")[0]
    )


def _renamed(model: nn.Module, name: str) -> str:
    """A module's or parameter's name in an older transformers -> its present one."""
    for old, new in (getattr(model, "_checkpoint_conversion_mapping", None) or {}).items():
        name, count = re.subn(old, new, name)
        if count:
            return name
    if hasattr(model, "base_model_prefix"):
        from transformers.conversion_mapping import WeightRenaming, get_model_conversion_mapping

        for renaming in get_model_conversion_mapping(model, add_legacy=False):
            if isinstance(renaming, WeightRenaming):
                name = renaming.rename_source_key(name)[0]
    return name


def _other_names(model: nn.Module, adapter: Adapter, values: Mapping[str, tuple[str, Tensor]]) -> dict[str, str]:
    """Other names of tied tensors -> the one we use: PEFT writes a tied bias under each of its names."""
    keys = {id(tensor): key for key, (_, tensor) in values.items()}
    names = ((value_key(adapter.targets, n), id(p)) for n, p in named_parameters(model, remove_duplicate=False))
    return {alias: keys[i] for alias, i in names if i in keys and alias != keys[i]}


def _refuse_other_table(
    model: nn.Module, adapter: Adapter, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> None:
    """Raise ValueError if the adapter's token table has other rows than the model's."""
    table = input_table(model)
    name = next((name for name, module in named_modules(model) if module is table), None)
    if name is None:
        return
    for key, dim in ((value_key(adapter.targets, f"{name}.weight"), 0), (update_keys(model, name)[0], 1)):
        if key in expected and key in tensors and tensors[key].shape[dim] != expected[key][dim]:
            rows = tensors[key].shape[dim]
            raise ValueError(
                f"the adapter trained {name!r} with {rows} rows, and this model has {expected[key][dim]}; call"
                f" model.resize_token_embeddings({rows}) first"
            )


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
    names = [name for name in names if not any(is_within(name, module) for module in saved)]
    targets = config["target_modules"]
    everything = targets == ALL_LINEAR
    targets = targets if everything else _known(targets, names)
    matched = [n for n in names if everything or _means(targets, n)]
    layers, lists = config.get("layers_to_transform"), config.get("layers_pattern") or ()
    lists = (lists,) if isinstance(lists, str) else tuple(lists)
    lists = tuple(name for name in lists if layer_indices(matched, [name])) or lists
    if layers is not None:
        there = set(layer_indices(matched, lists).values())
        layers = [i for i in ([layers] if isinstance(layers, int) else layers) if i in there] or None
    return LoRAConfig(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout") or 0.0,
        target_modules=targets,
        bias=_bias(config),
        modules_to_save=saved,
        exclude_modules=_known(config.get("exclude_modules"), matched),
        layers_to_transform=layers,
        layers_pattern=lists if layers else (),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        init_lora_weights=_initialization(config.get("init_lora_weights", True)),
        trainable_token_indices=config.get("trainable_token_indices") or None,
    )


def _bias(config: Mapping[str, Any]) -> str:
    asked = config.get("bias") or "none"
    return "lora_only" if asked == "none" and config.get("lora_bias") else asked


def _initialization(asked: bool | str | None) -> bool | str:
    """PEFT's `init_lora_weights` as ours; where only the start of training differed, True."""
    if not isinstance(asked, str):
        return True if asked is None else asked
    plain = asked.lower()
    if plain in ("eva", "mica"):
        return True
    if plain.startswith(("corda", "lora_ga", "pissa_niter")):
        raise ValueError(
            f"init_lora_weights={asked!r}: the base was changed when training started, which the file does not hold; "
            "save it with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion=...) first"
        )
    return plain


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
