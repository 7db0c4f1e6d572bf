"""Saving and loading adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no key for (label names, the base's fingerprint, the files' digests) is in `lorakit.json`, because PEFT
warns about unknown keys in its own file. Reading is strict: an adapter that would compute something other than where it
was saved is refused, and the difference is named. Nothing is unpickled, and saving needs no network.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from lorakit._counts import counted
from lorakit.adapters.adapter import Adapter, captured, unwrap
from lorakit.adapters.card import into_readme, model_card
from lorakit.adapters.combination import without_start
from lorakit.adapters.files import (
    CARD,
    CONFIG,
    OWN,
    SCHEMA,
    TENSORS,
    digest,
    find_folder,
    is_ours,
    not_finite,
    read_own,
    read_tensors,
    same_every_time,
    write_all,
)
from lorakit.adapters.fingerprint import SHRUNK, base_fingerprint
from lorakit.adapters.peft_format import base_name, peft_config, to_peft
from lorakit.adapters.peft_reading import read_adapter, read_config
from lorakit.adapters.peft_settings import refuse_peft_model
from lorakit.adapters.pretrained import save_adapted
from lorakit.adapters.state import add_adapter, refuse_other_parameters
from lorakit.adapters.tasks import refuse_other_task
from lorakit.adapters.token_table import input_table, resized_table
from lorakit.data.decoding import decoder_of, remember_decoder
from lorakit.data.habits import from_json, habits_of, remember_habits
from lorakit.nn.weights import is_sharded, regather


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    energy: Mapping[str, Any] | None = None,
) -> Path:
    """Write the active adapter so that PEFT and lorakit can load it: tensors, config, lorakit's metadata, a model card.

    A new folder appears with all its files at once. In an existing one each file is replaced atomically; a crash
    between two of them leaves a set whose digests disagree, which `load_adapter` refuses. A README.md that is there
    keeps its text and metadata; only lorakit's own part is replaced. PiSSA and OLoRA updates are
    written as plain ones of twice the rank, which work on the original base.

    Example:
        import tempfile
        from pathlib import Path

        from transformers import AutoModelForTokenClassification

        model = AutoModelForTokenClassification.from_pretrained("examples/mini", num_labels=3)
        lorakit.apply_lora(model, r=8)
        folder = lorakit.save_adapter(model, Path(tempfile.mkdtemp()) / "adapter", metrics={"f1": 0.7})
        print(sorted(path.name for path in folder.iterdir()))
        # ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'lorakit.json']

    Args:
        model: an adapted model, merged or not. A model sharded by FSDP2 is gathered: every rank has to call, and rank 0
            writes. Otherwise every caller writes.
        folder: created if it does not exist.
        metrics: results for the model card: name -> value; nested mappings or a dataclass are allowed.
        energy: what training cost, in the same form.

    Returns:
        The folder.

    Raises:
        ValueError: the model has no LoRA, or FSDP1 holds its parameters in parts.
        FloatingPointError: a value is NaN or infinite.
        OSError: the folder cannot be written; its earlier files are still there.
    """
    model = unwrap(model)
    regather(model)
    adapter = captured(model, "save_adapter")
    if found := resized_table(model, adapter.saved, adapter.rows):
        name, rows, more = found
        warnings.warn(
            f"{name} was resized from {rows} to {more} rows, and the adapter does not hold the new ones: train them "
            f"with trainable_token_indices=range({rows}, {more}), or all rows with modules_to_save=[{name!r}], or keep "
            "the resized base (its save_pretrained before apply_lora) and load the adapter on that",
            stacklevel=2,
        )
    plain = replace(
        adapter, updates={n: without_start(u, adapter.config.use_rslora) for n, u in adapter.updates.items()}
    )
    tensors = {key: t.contiguous().cpu() for key, t in to_peft(model, plain).items()}
    if bad := not_finite(tensors):
        raise FloatingPointError(
            f"the adapter is not saved, because {bad} has values that are not finite: training diverged; train again"
            " with a lower learning rate"
        )
    config = (json.dumps(peft_config(model, plain), indent=2, sort_keys=True) + "\n").encode()
    data = same_every_time(save(tensors, metadata={"format": "pt", "lorakit": str(SCHEMA)}))
    own = {
        "schema": SCHEMA,
        "labels": _labels(model) if adapter.saved else None,
        "base": base_fingerprint(model),
        "files": {CONFIG: digest(config), TENSORS: digest(data)},
    }
    if resized := resized_table(model, (), {}):
        own["table_rows"] = resized[2]
    if words := habits_of(model).to_json():
        own["words"] = words
    if (decode := decoder_of(model)) != "greedy":
        own["decode"] = decode
    own["digest"] = digest(json.dumps(own, sort_keys=True).encode())
    count = sum(tensor.numel() for tensor in tensors.values())
    card = model_card(type(model).__name__, base_name(model), plain, count, own["labels"], metrics, energy)
    readme = Path(folder) / CARD
    if readme.is_file():
        card = into_readme(readme.read_text(encoding="utf-8", errors="surrogateescape"), card)
    files = {
        TENSORS: data,
        CONFIG: config,
        OWN: (json.dumps(own, indent=2, sort_keys=True) + "\n").encode(),
        CARD: card.encode(errors="surrogateescape"),
    }
    if is_sharded(model) and torch.distributed.get_rank():
        return Path(folder)
    return write_all(Path(folder), files)


def load_adapter(
    model: nn.Module, folder_or_hub_id: str | Path, name: str = "default", *, check_base: bool = True
) -> nn.Module:
    """Put an adapter written by lorakit or PEFT into a model, in place, active and trainable.

    A plain model is adapted; an adapted one takes it as another adapter, or replaces the one of that name. If anything
    is wrong with the adapter the model stays as it was.

    Example:
        import tempfile

        from transformers import AutoModelForTokenClassification

        base, other = (AutoModelForTokenClassification.from_pretrained("examples/mini", num_labels=3) for _ in "12")
        folder = lorakit.save_adapter(lorakit.apply_lora(base, r=4), tempfile.mkdtemp())
        model = lorakit.load_adapter(other, folder)
        print(lorakit.adapter_names(model))  # ('default',)

    Args:
        model: the base that the adapter was trained on, of a class for the same task, with the same number of labels.
        folder_or_hub_id: a folder, or a hub id (the only case that uses the network).
        name: name of the adapter among several.
        check_base: False accepts another base, or a class for another task, than the adapter was trained on, and an
            adapter of lorakit's whose lorakit.json is lost.

    Returns:
        The same model.

    Raises:
        ValueError: something is missing, unexpected, damaged, or made for another model; the message says what to do.
        FileNotFoundError: there is no such folder, and the hub does not have it.
    """
    plain = unwrap(model)
    refuse_peft_model(plain, "load_adapter")
    folder = find_folder(folder_or_hub_id)
    config = read_config(folder)
    tensors, ours = read_tensors(folder)
    own = read_own(folder) if (ours and check_base) or (folder / OWN).exists() else None
    if check_base:
        refuse_other_task(plain, config.get("task_type"), "the adapter", "pass check_base=False to use it here anyway")
    labels = _check_labels(plain, own["labels"]) if own and own["labels"] else None
    adapter = read_adapter(plain, config, tensors)
    if check_base and own:
        _check_base(plain, own, adapter)
    elif check_base:
        _check_base_name(plain, config)
    refuse_other_parameters(model, name, adapter)
    save_adapted(add_adapter(plain, name, adapter), save_adapter)
    if labels:
        plain.config.id2label = dict(enumerate(labels))
        plain.config.label2id = {label: i for i, label in enumerate(labels)}
    if own and own["labels"]:
        remember_habits(plain, from_json(own.get("words")))
        remember_decoder(plain, own.get("decode", "greedy"))
    return model


def base_and_labels(folder_or_hub_id: str | Path, check_base: bool = True) -> tuple[str | None, list[str] | None]:
    """Read which base and head labels an adapter needs; None for what its files do not say.

    Args:
        folder_or_hub_id: as for `load_adapter`.
        check_base: False accepts an adapter of lorakit's whose lorakit.json is lost, which then says no labels.

    Raises:
        ValueError, FileNotFoundError: as `load_adapter`.
    """
    folder = find_folder(folder_or_hub_id)
    own = read_own(folder) if (folder / OWN).exists() or (check_base and is_ours(folder)) else {"labels": None}
    return read_config(folder).get("base_model_name_or_path"), own["labels"]


def task_of(folder_or_hub_id: str | Path) -> str | None:
    """Read PEFT's name of the task that an adapter was trained for; None where its files do not say.

    Raises:
        ValueError, FileNotFoundError: as `load_adapter`.
    """
    return read_config(find_folder(folder_or_hub_id)).get("task_type")


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
    """The adapter's labels if the model's are unnamed and should take these; None if they agree."""
    mine = _labels(model)
    if mine is None or mine == theirs:
        return None
    if len(mine) != len(theirs):
        raise ValueError(
            f"the adapter has {counted(len(theirs), 'label')}, this model {len(mine)}; build the base with "
            f"num_labels={len(theirs)}: {', '.join(theirs)}"
        )
    if mine == [f"LABEL_{i}" for i in range(len(mine))]:
        return theirs
    at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    raise ValueError(
        f"label {at} is {theirs[at]!r} in the adapter and {mine[at]!r} in this model; build the base with the "
        f"adapter's order: {', '.join(theirs)}"
    )


def _check_base(model: nn.Module, own: Mapping[str, Any], adapter: Adapter) -> None:
    saved, mine, theirs = adapter.saved, base_fingerprint(model, adapter.saved, adapter.rows), own["base"]
    if mine["exact"] == theirs["exact"]:
        return
    if mine["types"] != theirs["types"] and mine["rounded"] == theirs["rounded"]:
        return  # the same base in another precision
    if tuple(sorted(saved)) not in getattr(model, SHRUNK, {tuple(sorted(saved)): ...}):
        raise ValueError(
            "this base was shrunk while other modules were trained in full than the adapter's "
            f"({', '.join(saved) or 'none'}), so whether it is the adapter's base is not known; load_adapter into the "
            "base first, then shrink_base, or pass check_base=False"
        )
    before, rows = own.get("table_rows"), len(getattr(input_table(model), "weight", ()))
    if before and before != rows:
        raise ValueError(
            f"the adapter was trained on another base: its token table had {before} rows, this one has {rows}; load the"
            f" resized base that was kept then. resize_token_embeddings({before}) would fill the new rows with other"
            " random numbers: with trainable_token_indices the adapter holds them"
        )
    if found := resized_table(model, saved, adapter.rows):
        name, rows, more = found
        raise ValueError(
            f"the adapter was trained on another base: {name} was resized here from {rows} to {more} rows, and the new "
            "ones are not those of training; load the resized base that was kept then, or train again with "
            f"trainable_token_indices=range({rows}, {more}), which saves the new rows"
        )
    raise ValueError(
        "the adapter was trained on another base: the weights of this model have another fingerprint; load the base it "
        "was trained on, or pass check_base=False to use it here anyway"
    )
