"""Checkpoints: train state on disk, written atomically, and refused by another run.

A checkpoint is a folder `checkpoints/step-00000120` with two files: `tensors.safetensors`, and `state.json` with every
number that is not a tensor and the SHA-256 of the first. It is written under a temporary name, flushed to the disk
file by file and folder by folder, and then renamed to a name that is new (a second one of the same step is called
`step-00000120.01`): a process killed at any moment leaves the previous checkpoint as it was. The newest checkpoint
whose hashes agree is read; a damaged one is skipped with a warning. Nothing is pickled. Only folders with such names,
written by the same run, are ever deleted when a new one is written: a copy that somebody made stays.

Tensors are named `model/NAME`, `best/NAME` (weights of the best epoch) and `optimizer/NAME/MOMENT`, after the trained
parameter's NAME. What differs between ranks (tokens, sums since the last log line, random generators) is in the list
`ranks` of state.json. A run may resume on another number of ranks: it keeps order and weights, and draws other dropout.
Runs that train together have one each, and `together` in state.json says which belong together (`many_checkpoints`).
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit._files import atomic_folder, folder_lock, read_bounded
from lorakit.nn.weights import whole
from lorakit.training.distributed import all_sum, device, gather_bytes, is_main, rank, world_size
from lorakit.training.identity import OtherRunError, check_same_run
from lorakit.training.state import Counters, TrainState

FORMAT = 1
KEEP = 2  # the newest, and one to fall back on
TENSORS, STATE = "tensors.safetensors", "state.json"
MOST_STATE_BYTES = 1 << 28  # of state.json; a larger one is damaged
# what reading a damaged checkpoint raises; JSON that is nested too deeply ends in a RecursionError
DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)
NAME = re.compile(r"step-(\d{8,})(?:\.(\d{2,}))?")  # of a folder that lorakit wrote


class Checkpoint(NamedTuple):
    """What a training loop needs to continue: tensors by name, and JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Saved(Protocol):
    """What can be saved: a `TrainState`, or that of one of several runs that train together."""

    device: torch.device
    counters: Counters

    def state_dict(self) -> Mapping[str, Any]:
        """As `TrainState.state_dict`; a "together" in it is kept as it is."""


class Checkpointer:
    """Saves and restores the state of one run; every rank calls it, and the main rank writes.

    Args:
        folder: where checkpoints are kept; None keeps none.
        identity: from `same_run.run_identity`.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(self, state: "Saved", report: Callable[[str], None]) -> bool:
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

    def restore(self, state: TrainState) -> str | None:
        """Continue from the newest intact checkpoint; does nothing where there is none.

        Returns:
            What to know of the learning rate if the run is now longer than was asked at first.

        Raises:
            OtherRunError: it belongs to another run.
            ValueError: the ranks see different folders.
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
            return None
        check_same_run(self.folder, found.state["run"], self.identity)
        state.load_state_dict(state_of_this_rank(found))
        return _longer(found.state, self.identity)

    def begin(self, results: str, overwrite: bool) -> None:
        """Begin a new run in a folder that holds no other one, which it would replace and could be resumed from.

        Args:
            results: name of the file beside `folder` that tells a finished run.
            overwrite: delete what an earlier run left.

        Raises:
            OtherRunError: on all ranks, if an earlier run left checkpoints or results.
        """
        if self.folder is None:
            return
        place, found = self.folder.parent, []
        if is_main():
            if overwrite:
                delete_checkpoints(self.folder)
                (place / results).unlink(missing_ok=True)
            found = [str(path.relative_to(place)) for path in _all(self.folder)]
            found += [results] * (place / results).is_file()
        if all_sum(torch.tensor(float(len(found)), device=device())):
            raise OtherRunError(
                f"output_dir {os.fspath(place)!r} holds another run ({', '.join(found) or 'rank 0 says what'}); choose"
                " another folder, or pass resume=True to continue that run or overwrite=True to delete it"
            )


class FolderInUseError(OtherRunError):
    """Another process trains into the same folder."""


@contextmanager
def run_lock(output_dir: str | os.PathLike[str] | None) -> Iterator[None]:
    """While active, no other process can train into this folder; every rank calls it, and the main rank locks.

    The same process may enter it several times. The kernel releases the lock when the process ends, however it ends;
    a file system without locks is used without one.

    Raises:
        FolderInUseError: on all ranks, if another process has the folder.
        OSError: on all ranks, if the folder cannot be made or read.
    """
    if output_dir is None:
        yield
        return
    with ExitStack() as held:
        refused: FolderInUseError | OSError | None = None
        if is_main():
            try:
                Path(output_dir).mkdir(parents=True, exist_ok=True)
                if not held.enter_context(folder_lock(Path(output_dir))):
                    refused = FolderInUseError(
                        f"another process trains into {os.fspath(output_dir)!r}; wait until it has ended, or choose"
                        " another output_dir"
                    )
            except OSError as error:
                refused = error
        main_refused = all_sum(torch.tensor(float(refused is not None), device=device()))
        if refused is not None:
            raise refused
        if main_refused:
            raise FolderInUseError(f"rank 0 could not lock {os.fspath(output_dir)!r}; its own message says why")
        yield


def check_resumable(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse, before anything is trained or written, what `Checkpointer.restore` would refuse.

    Args:
        folder: of the checkpoints; one without any is accepted.
        identity: from `same_run.settings_identity`.

    Raises:
        OtherRunError: the newest checkpoint belongs to another run.
    """
    for path in reversed(_all(folder)):
        try:
            former = _read_state(path)["run"]
        except DAMAGE:
            continue  # damaged; `load_checkpoint` says so
        return check_same_run(folder, former, identity)


def _longer(former: Mapping[str, Any], identity: Mapping[str, Any]) -> str | None:
    epochs, now = former["run"]["epochs"], identity["epochs"]
    if epochs == now:
        return None
    return (
        f"continued from step {former['step']}, now for {now} epochs in place of {epochs}: the learning rate rises to"
        f" the schedule of {now} epochs and falls again, so the result is not that of {now} epochs from the start"
    )


# Train state and checkpoint -------------------------------------------------------------------------------------------


def gather_state(state: Mapping[str, Any], run: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of all ranks' states; every rank calls it, because sharded tensors are gathered.

    Args:
        state: this rank's, from `TrainState.state_dict`.
        run: from `same_run.run_identity`.
    """
    own = {"progress": state["counters"], "since_log": state["since_log"], "random": state["random"]}
    ranks = [json.loads(part) for part in gather_bytes(json.dumps(own).encode())]
    tensors = {f"{group}/{name}": whole(value) for group in ("model", "best") for name, value in state[group].items()}
    for name, moments in state["optimizer"].items():
        tensors |= {f"optimizer/{name}/{moment}": whole(value) for moment, value in moments.items()}
    content = {"run": run, "progress": state["counters"], "ranks": ranks, "scaler": state["scaler"]}
    return Checkpoint(tensors, content | {name: state[name] for name in ("together",) if name in state})


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
        if NAME.match(unfinished.name.removeprefix(".")) and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)
    with atomic_folder(target) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary / TENSORS)
        except SafetensorError as error:  # what it raises on a full disk
            raise OSError(f"{temporary / TENSORS}: {error}") from error
        body = {"format": FORMAT, "step": step, "tensors_sha256": hash_of(temporary / TENSORS), **checkpoint.state}
        (temporary / STATE).write_text(json.dumps({**body, "sha256": _digest(body)}), encoding="utf-8")
    _rotate(folder, target, checkpoint.state.get("run"))
    return target


def _rotate(folder: Path, target: Path, run: Any) -> None:
    """Delete this run's checkpoints but for `target`, the KEEP - 1 before it, and the last with a finite gradient."""
    states = {path: _state_or_none(path) for path in _all(folder)}
    mine = [path for path, state in states.items() if state is None or _is_of(path, state, run)]
    intact = [path for path in mine if path <= target and states[path] is not None]
    sound = [path for path in intact if not _diverging(states[path])]
    for other in set(mine) - {*intact[-KEEP:], *sound[-1:]}:
        shutil.rmtree(other, ignore_errors=True)


def _is_of(path: Path, state: Mapping[str, Any], run: Any) -> bool:
    """Whether a run wrote this checkpoint under this name; a copy under another step's name is its owner's."""
    return state.get("run") == run and state.get("step") == int(NAME.fullmatch(path.name)[1])


def _diverging(state: Mapping[str, Any]) -> bool:
    """Whether the steps right before a checkpoint had no finite gradient."""
    return any(part["since_log"]["in_a_row"] for part in state.get("ranks", ()))


def _state_or_none(path: Path) -> dict[str, Any] | None:
    """A checkpoint's state; None where it is damaged."""
    try:
        return _read_state(path)
    except DAMAGE:
        return None


def newest_sound_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that no step without a finite gradient came right before; None where there is none."""
    states = ((path, _state_or_none(path)) for path in reversed(_all(folder)))
    return next((path for path, state in states if state is not None and not _diverging(state)), None)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest intact checkpoint; None where there is none.

    A damaged one is skipped with a warning that names it and says what is wrong.
    """
    for path in reversed(_all(folder)):
        try:
            return read_checkpoint(path)
        except DAMAGE as error:
            warnings.warn(f"the checkpoint {path} is damaged ({error}); an older one is used", stacklevel=2)
    return None


def checkpoint_states(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoints of a folder whose state.json is intact, oldest first; their tensors may be damaged."""
    states = ((path, _state_or_none(path)) for path in _all(folder))
    return [(path, state) for path, state in states if state is not None]


def delete_checkpoints(folder: Path) -> None:
    """Delete all checkpoints of a folder; folders with other names, and links, stay."""
    for path in _all(folder):
        shutil.rmtree(path)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DAMAGE: it is damaged.
    """
    state = _read_state(path)
    if hash_of(path / TENSORS) != state["tensors_sha256"]:
        raise ValueError(f"{TENSORS} does not match its hash")
    return Checkpoint(load_file(path / TENSORS), state)


def _read_state(path: Path) -> dict[str, Any]:
    state = json.loads(read_bounded(path / STATE, MOST_STATE_BYTES))
    if not isinstance(state, dict) or state.pop("sha256", None) != _digest(state):
        raise ValueError(f"{STATE} does not match its hash")
    if state["format"] != FORMAT:
        raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
    return state


def _all(folder: Path) -> list[Path]:
    """The folder's checkpoints by step, oldest first; unfinished ones, copies and links have other names or kinds."""
    found = (path for path in folder.glob("step-*") if NAME.fullmatch(path.name))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _new_path(folder: Path, step: int) -> Path:
    """A name after those of the same step: an evaluation may be in between, or a resume from an earlier checkpoint."""
    names = [NAME.fullmatch(path.name) for path in folder.glob(f"step-{step:08d}*")]
    same = [int(name[2] or 0) for name in names if name and int(name[1]) == step]
    number = max(same) + 1 if same else 0
    return folder / (f"step-{step:08d}" + (f".{number:02d}" if number else ""))


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
