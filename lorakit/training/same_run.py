"""What makes a run the same: for a checkpoint to be continued, and for all ranks to train one model."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from lorakit.adapters.adapter import STATE
from lorakit.data.ner_data import NerData
from lorakit.data.tokenization import Encoded
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import gather_bytes, world_size
from lorakit.training.identity import (
    DROPOUT,
    FROZEN,
    LORA,
    SENTENCES,
    VALIDATION,
    OtherRunError,
    as_json,
    difference,
    digest_of,
    hash_of_tensors,
    shown,
)

SAME = (  # settings that a resumed run must not change
    "epochs", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "precision", "seed", "packing",
    "cache_prefix", "engine", "loss", "class_weights", "loraplus_lr_ratio", "module_learning_rates",
    "decode",
)  # fmt: skip
EACH_RANKS_OWN = ("output_dir", "progress", "log_to")  # settings that ranks may be given differently


def run_identity(
    config: TrainConfig,
    model: nn.Module,
    encoded: Encoded,
    data: NerData | None = None,
    hash_frozen: Callable[[nn.Module], str] | None = None,
) -> dict[str, Any]:
    """What must be the same for a run to be continued; every rank calls it, because sharded weights are gathered.

    Args:
        config: of the run.
        model: before its first step.
        encoded: the training corpus.
        data: the corpus, whose validation split decides which epoch is the best; None without one.
        hash_frozen: computes `frozen_hash`, or remembers it.
    """
    corpus = hashlib.sha256()
    for part in (encoded.ids, encoded.labels, encoded.offsets):
        corpus.update(part.tobytes())
    return {
        **settings_identity(config, model),
        "training corpus (hash)": corpus.hexdigest()[:16],
        VALIDATION: digest_of(data.validation if data else ()),
        FROZEN: (hash_frozen or frozen_hash)(model),
    }


def frozen_hash(model: nn.Module) -> str:
    """A digest of what is not trained; every rank calls it, because sharded weights are gathered."""
    return hash_of_tensors((name, p) for name, p in model.named_parameters() if not p.requires_grad)


def settings_identity(config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """The part of `run_identity` that needs no values: the model may be on the meta device."""
    return {
        **{name: as_json(getattr(config, name)) for name in SAME},
        "loss": "model" if config.loss == "model" else "cross_entropy",
        "packing": config.packing != "off",  # "auto" and "on" make the same batches
        SENTENCES: config.batch_size * config.accumulate * world_size(),
        LORA: lora_settings(model),
        DROPOUT: dropout_settings(model),
        "trained parameters": {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad},
    }


def lora_settings(model: nn.Module) -> dict[str, Any] | None:
    """The active adapter's settings, as JSON values; None without LoRA."""
    state = getattr(model, STATE, None)
    return None if state is None else as_json(asdict(state.current.config))


def dropout_settings(model: nn.Module) -> dict[str, float]:
    """Every rate of dropout: those of the configuration, and those of modules with how many have each."""
    config = vars(model.config) if hasattr(model, "config") else {}
    found = {name: float(x) for name, x in config.items() if "drop" in name and isinstance(x, int | float)}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            key = f"modules with {module.p:g}"
            found[key] = found.get(key, 0) + 1
    return dict(sorted(found.items()))


def check_ranks(config: TrainConfig, model: nn.Module, data: NerData) -> None:
    """Compare what the ranks were given; does nothing in a single process.

    Without this, ranks with different rates or seeds train to the end and give a model that is neither's, and ranks
    with another number of steps wait for each other or abort.

    Raises:
        OtherRunError: on every rank, if they differ; the message names the first difference.
    """
    if world_size() == 1:
        return
    compare_ranks({**config_of_rank(config), **corpus_of_rank(data), **model_of_rank(model)})


def config_of_rank(config: TrainConfig) -> dict[str, Any]:
    """The settings that all ranks must have in common, for `compare_ranks`."""
    return {name: repr(value) for name, value in vars(config).items() if name not in EACH_RANKS_OWN}


def corpus_of_rank(data: NerData) -> dict[str, Any]:
    """What tells two corpora apart, for `compare_ranks`."""
    splits = ("train", "validation", "test")
    return {
        "labels": list(data.labels),
        **{f"{split} set (hash)": digest_of(getattr(data, split)) for split in splits},
    }


def model_of_rank(model: nn.Module) -> dict[str, Any]:
    """What tells two models apart, for `compare_ranks`."""
    return {
        LORA: lora_settings(model),
        DROPOUT: dropout_settings(model),
        "parameters": {name: [list(p.shape), p.requires_grad] for name, p in model.named_parameters()},
        "weights (hash)": hash_of_tensors(model.named_parameters()),
    }


def compare_ranks(mine: Mapping[str, Any]) -> None:
    """Compare JSON values by name with those of all other ranks, which call this at the same moment.

    Raises:
        OtherRunError: on every rank, if they differ; the message names the first difference.
    """
    if world_size() == 1:
        return
    first, *others = (json.loads(part) for part in gather_bytes(json.dumps(mine).encode()))
    for number, other in enumerate(others, start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                where, ours, theirs = difference(name, first.get(name), other.get(name))
                raise OtherRunError(
                    f"the processes were given different settings: {where} is {shown(ours)} on rank 0 and"
                    f" {shown(theirs)} on rank {number}; start all with the same command"
                )
