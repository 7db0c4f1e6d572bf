"""Checkpoints: train state on disk, written atomically, and refused by another run.

A checkpoint is a folder `checkpoints/step-00000120` with two files: `tensors.safetensors`, and `state.json` with every
number that is not a tensor and the SHA-256 of the first. It is written under a temporary name, flushed to the disk
file by file and folder by folder, and then renamed to a name that is new (a second one of the same step is called
`step-00000120.01`): a process killed at any moment leaves the previous checkpoint as it was. The newest checkpoint
whose hashes agree is read; a damaged one is skipped with a warning. Nothing is pickled.

Tensors are named `model/NAME`, `best/NAME` (weights of the best epoch) and `optimizer/NAME/MOMENT`, after the trained
parameter's NAME. What differs between ranks (tokens, sums since the last log line, random generators) is in the list
`ranks` of state.json. A run may resume on another number of ranks: it keeps order and weights, and draws other dropout.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorakit._files import atomic_folder
from lorakit.data.tokenization import Encoded
from lorakit.nn.weights import whole
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import all_sum, gather_bytes, is_main, rank, world_size
from lorakit.training.state import TrainState

FORMAT = 1
KEEP = 2  # the newest, and one to fall back on
TENSORS, STATE = "tensors.safetensors", "state.json"
SAME = (  # settings that a resumed run must not change
    "epochs", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "precision", "seed", "packing",
    "cache_prefix", "engine",
)  # fmt: skip
SENTENCES = "sentences per step (batch_size × accumulate × processes)"


class Checkpoint(NamedTuple):
    """What a training loop needs to continue: tensors by name, and JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpointer:
    """Saves and restores the state of one run; every rank calls it, and the main rank writes.

    Args:
        folder: where checkpoints are kept; None keeps none.
        identity: from `run_identity`.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(self, state: TrainState, report: Callable[[str], None]) -> bool:
        """Write a checkpoint; a disk that cannot take it does not end the training.

        All ranks return together: if one left while the main rank writes, torchrun would kill the main rank.

        Args:
            state: of this rank.
            report: called on the main rank with a message where the disk is full or not writable.

        Returns:
            Whether the checkpoint was written (or none was wanted), the same on all ranks.
        """
        if self.folder is None:
            return True
        checkpoint = gather_state(state.state_dict(), self.identity)
        failed = torch.zeros((), device=state.device)
        if is_main():
            step = state.counters.step
            try:
                save_checkpoint(self.folder, step, checkpoint)
            except OSError as error:
                failed += 1
                report(f"the checkpoint of step {step} could not be written ({error}); training continues")
        return not all_sum(failed)

    def restore(self, state: TrainState) -> None:
        """Continue from the newest intact checkpoint; does nothing where there is none.

        Raises:
            ValueError: it belongs to another run, or the ranks see different folders.
        """
        assert self.folder is not None, "TrainConfig refuses resume without output_dir"
        found = load_checkpoint(self.folder)
        steps = [int(step) for step in gather_bytes(str(found.state["step"] if found else -1).encode())]
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes find checkpoints of different steps in {self.folder}: {steps}; output_dir must be on a"
                " disk that all nodes share"
            )
        if found is None:
            return
        for name, value in self.identity.items():
            former = _former(found.state["run"], name)
            if former != value:
                raise ValueError(
                    f"the checkpoint in {self.folder} was written with {name} = {former!r}, now it is {value!r}; resume"
                    " with the former value, or start again without resume"
                )
        state.load_state_dict(state_of_this_rank(found))

    def clear(self) -> None:
        """Delete the checkpoints of an earlier run, so that this one is never resumed from them."""
        if self.folder is not None and is_main():
            delete_checkpoints(self.folder)


def run_identity(config: TrainConfig, model: nn.Module, encoded: Encoded) -> dict[str, Any]:
    """What must be the same for a run to be continued; every rank calls it, because sharded weights are gathered."""
    corpus = hashlib.sha256()
    for part in (encoded.ids, encoded.labels, encoded.offsets):
        corpus.update(part.tobytes())
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        **{name: getattr(config, name) for name in SAME},
        SENTENCES: config.batch_size * config.accumulate * world_size(),
        "training corpus (hash)": corpus.hexdigest()[:16],
        "trained parameters": {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad},
        "frozen weights (sum)": sum(float(whole(p.detach().double().sum())) for p in frozen),
    }


def _former(run: Mapping[str, Any], name: str) -> Any:
    """The value in a checkpoint's identity; earlier versions had other names for two of them."""
    if name == "engine" and name not in run:
        return next((engine for engine in ("compile", "cuda_graphs") if run.get(engine)), "eager")
    if name == SENTENCES and name not in run:
        name = name.replace("per step", "a step")
    return run.get(name)


# Train state and checkpoint -------------------------------------------------------------------------------------------


def gather_state(state: Mapping[str, Any], run: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of all ranks' states; every rank calls it, because sharded tensors are gathered.

    Args:
        state: this rank's, from `TrainState.state_dict`.
        run: from `run_identity`.
    """
    own = {"progress": state["counters"], "since_log": state["since_log"], "random": state["random"]}
    ranks = [json.loads(part) for part in gather_bytes(json.dumps(own).encode())]
    tensors = {f"{group}/{name}": whole(value) for group in ("model", "best") for name, value in state[group].items()}
    for name, moments in state["optimizer"].items():
        tensors |= {f"optimizer/{name}/{moment}": whole(value) for moment, value in moments.items()}
    return Checkpoint(tensors, {"run": run, "progress": state["counters"], "ranks": ranks, "scaler": state["scaler"]})


def state_of_this_rank(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state to continue from on this rank, for `TrainState.load_state_dict`.

    On another number of ranks the first one counts the tokens of all former ranks, and sums since the last log line and
    random generators are left out.
    """
    groups: dict[str, dict[str, Any]] = {"model": {}, "best": {}, "optimizer": {}}
    for key, value in checkpoint.tensors.items():
        group, _, name = key.partition("/")
        if group == "optimizer":
            name, _, moment = name.rpartition("/")
            groups[group].setdefault(name, {})[moment] = value
        else:
            groups[group][name] = value
    ranks = checkpoint.state["ranks"]
    same_ranks = len(ranks) == world_size()
    mine = [ranks[rank()]] if same_ranks else ranks if rank() == 0 else []
    tokens = {name: sum(part["progress"][name] for part in mine) for name in ("train_tokens", "computed_tokens")}
    state = {
        **groups,
        "scaler": checkpoint.state["scaler"],
        "counters": {**checkpoint.state["progress"], **tokens},
    }
    return {**state, "since_log": mine[0]["since_log"], "random": mine[0]["random"]} if same_ranks else state


# Files ----------------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint of this step into `folder`, then delete all but it and the KEEP - 1 before it.

    Those of later steps are deleted, too: the run has fallen back to an earlier one because they were damaged.

    Raises:
        OSError: the disk is full or cannot be written; earlier checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = _new_path(folder, step)
    for unfinished in folder.glob(".step-*"):  # by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    with atomic_folder(target) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary / TENSORS)
        except SafetensorError as error:  # what it raises on a full disk
            raise OSError(f"{temporary / TENSORS}: {error}") from error
        body = {"format": FORMAT, "step": step, "tensors_sha256": hash_of(temporary / TENSORS), **checkpoint.state}
        (temporary / STATE).write_text(json.dumps({**body, "sha256": _digest(body)}), encoding="utf-8")
    kept = [path for path in _all(folder) if path <= target][-KEEP:]
    for other in set(_all(folder)) - set(kept):
        shutil.rmtree(other, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest intact checkpoint; None where there is none.

    A damaged one is skipped with a warning that names it and says what is wrong.
    """
    for path in reversed(_all(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warnings.warn(f"the checkpoint {path} is damaged ({error}); an older one is used", stacklevel=2)
    return None


def delete_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a folder."""
    for path in _all(folder):
        shutil.rmtree(path)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _read(path: Path) -> Checkpoint:
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.pop("sha256", None) != _digest(state):
        raise ValueError(f"{STATE} does not match its hash")
    if state["format"] != FORMAT:
        raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
    if hash_of(path / TENSORS) != state["tensors_sha256"]:
        raise ValueError(f"{TENSORS} does not match its hash")
    return Checkpoint(load_file(path / TENSORS), state)


def _all(folder: Path) -> list[Path]:
    """The folder's checkpoints by step, oldest first; unfinished ones have other names."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _new_path(folder: Path, step: int) -> Path:
    """A name after those of the same step: an evaluation may be in between, or a resume from an earlier checkpoint."""
    same = sorted(folder.glob(f"step-{step:08d}*"))
    number = int(same[-1].suffix.removeprefix(".") or 0) + 1 if same else 0
    return folder / (f"step-{step:08d}" + (f".{number:02d}" if number else ""))


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
