"""Training state on disk that is either whole or not there.

A checkpoint is a folder `checkpoints/step-00000120` with two files: `tensors.safetensors`, and `state.json` with every
number that is not a tensor and the SHA-256 of the first. It is written under a temporary name, flushed to the disk
file by file and folder by folder, and then renamed to a name that is new (a second one of the same step is called
`step-00000120.01`): a process killed at any moment leaves the previous checkpoint as it was. On reading, the newest
checkpoint whose hashes agree is taken; a damaged one is passed over with a warning. Nothing is pickled.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit._files import atomic_folder

FORMAT = 1
KEEP = 2  # the newest, and one to fall back on
TENSORS, STATE = "tensors.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """What a training loop needs to go on: tensors by name, and JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of this step into `folder`, then delete all but it and the KEEP - 1 before it.

    One of a later step goes, too: the run has come back to an earlier one because that was damaged.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = _new_path(folder, step)
    for unfinished in folder.glob(".step-*"):  # by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    with atomic_folder(target) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary / TENSORS)
        except SafetensorError as error:  # what a full disk is called there
            raise OSError(f"{temporary / TENSORS}: {error}") from error
        body = {"format": FORMAT, "step": step, "tensors_sha256": _hash(temporary / TENSORS), **checkpoint.state}
        (temporary / STATE).write_text(json.dumps({**body, "sha256": _digest(body)}), encoding="utf-8")
    kept = [path for path in _all(folder) if path <= target][-KEEP:]
    for other in set(_all(folder)) - set(kept):
        shutil.rmtree(other, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None where there is none.

    A damaged one is passed over with a warning that names it and what is wrong.
    """
    for path in reversed(_all(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warnings.warn(f"the checkpoint {path} is damaged ({error}); an older one is taken", stacklevel=2)
    return None


def delete_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a folder: a new run must not be continued by an old run's state."""
    for path in _all(folder):
        shutil.rmtree(path)


def _read(path: Path) -> Checkpoint:
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.pop("sha256", None) != _digest(state):
        raise ValueError(f"{STATE} does not match its hash")
    if state["format"] != FORMAT:
        raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
    if _hash(path / TENSORS) != state["tensors_sha256"]:
        raise ValueError(f"{TENSORS} does not match its hash")
    return Checkpoint(load_file(path / TENSORS), state)


def _all(folder: Path) -> list[Path]:
    """The folder's checkpoints by step, oldest first; unfinished ones have other names."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _new_path(folder: Path, step: int) -> Path:
    """A name after those of the same step: an evaluation may come between, or a resume from before it."""
    same = sorted(folder.glob(f"step-{step:08d}*"))
    number = int(same[-1].suffix.removeprefix(".") or 0) + 1 if same else 0
    return folder / (f"step-{step:08d}" + (f".{number:02d}" if number else ""))


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
