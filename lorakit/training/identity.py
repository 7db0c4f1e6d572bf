"""The identity of a run, compared with that of a checkpoint; `same_run` makes it.

Weights and sentences are compared by a hash of their bytes. A sum would differ in its last digits on another number of
threads, and would be the same for a base with two layers exchanged.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.nn.weights import dequantized, whole

SENTENCES = "sentences per step (batch_size × accumulate × processes)"
FROZEN, LORA, DROPOUT, VALIDATION = "frozen weights (hash)", "LoRA", "dropout", "validation set (hash)"
UNKNOWN_BEFORE = (FROZEN, LORA, DROPOUT, VALIDATION)  # not in the checkpoints of earlier versions
MOST_SHOWN = 100  # characters of a value in a message


class OtherRunError(ValueError):
    """A folder or checkpoint belongs to another run, or the ranks were given different settings."""


def check_same_run(folder: Path, former: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's identity with that of the run that wants to continue; more epochs make the run longer.

    Args:
        folder: of the checkpoints, for messages.
        former: the checkpoint's. One of an earlier version does not have everything: a warning names what is missing.
        now: from `same_run.run_identity`, or a part of it.

    Raises:
        OtherRunError: they differ.
    """
    unknown = [name for name in UNKNOWN_BEFORE if name in now and name not in former]
    if unknown:
        warnings.warn(
            f"the checkpoint in {folder} is of an earlier version of lorakit, which did not record"
            f" {', '.join(unknown)}: whether they are the same now is not checked",
            stacklevel=3,
        )
    for name, value in now.items():
        before = _former(former, name)
        longer = name == "epochs" and isinstance(before, int) and before < value
        if name not in unknown and before != value and not longer:
            where, before, value = difference(name, before, value)
            raise OtherRunError(
                f"the checkpoint in {folder} was written with {where} = {shown(before)}, now it is {shown(value)};"
                " resume with the former value, or start again with overwrite=True instead of resume=True" + _hint(name)
            )


def _hint(name: str) -> str:
    if name != FROZEN:
        return ""
    return (
        " (another base was loaded, or LoRA's start is a factorisation of it, such as PiSSA's, which is the same to the"
        " last bit only on the same number of threads)"
    )


def difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Of two mappings the first entry that differs, as its name and the two values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**now, **before}:
            if before.get(key) != now.get(key):
                return f"{name}: {key}", before.get(key), now.get(key)
    return name, before, now


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def as_json(value: Any) -> Any:
    """The value as a checkpoint has it: a tuple is a list there."""
    return json.loads(json.dumps(value))


def _former(run: Mapping[str, Any], name: str) -> Any:
    """The value in a checkpoint's identity; earlier versions lacked some of them, or had other names."""
    if name == "engine" and name not in run:
        return next((engine for engine in ("compile", "cuda_graphs") if run.get(engine)), "eager")
    if name in ("loss", "decode") and name not in run:
        return {"loss": "cross_entropy", "decode": "greedy"}[name]
    if name == SENTENCES and name not in run:
        name = name.replace("per step", "a step")
    return run.get(name)


# Digests --------------------------------------------------------------------------------------------------------------


def digest_of(sentences: Iterable[tuple[Any, Any]]) -> str:
    """A digest of (words, tags) pairs: 16 hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for words, tags in sentences:
        digest.update(json.dumps([list(words), list(tags)]).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def hash_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of names, types, shapes and bytes; every rank calls it, because sharded tensors are gathered."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = whole(dequantized(tensor.detach())).cpu().contiguous()
        digest.update(f"{name}:{values.dtype}:{tuple(values.shape)};".encode())
        # a numpy view would pin the storage, which FSDP2 resizes
        digest.update(values.clone().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
