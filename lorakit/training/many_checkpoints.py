"""Checkpoints of runs that train together: one per run, and which of them are of one moment.

How a run's values are rounded depends on the runs beside it. So that a resumed step is the same bit for bit, all runs
are saved at the same moment, under one number, and continue from the newest moment of which every run's checkpoint is
intact. A process killed between two of them leaves the moment before. Each checkpoint can also be continued alone, by
`train`: there it is that of a run like any other.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorakit.training.checkpoint import (
    DAMAGE,
    Checkpoint,
    checkpoint_states,
    read_checkpoint,
    state_of_this_rank,
)
from lorakit.training.distributed import gather_bytes
from lorakit.training.identity import OtherRunError, check_same_run

FIRST = 1  # number of the first moment


class Moment(NamedTuple):
    """When the runs were saved.

    Attributes:
        number: of the newest that any checkpoint is of.
        members: by run, in their order, the checkpoint's state of those that were being trained.
        ended: the same of those that had ended.
        queue: the state of the queue.
        runs: by run, what it is compared by.
    """

    number: int
    members: dict[str, dict[str, Any]]
    ended: dict[str, dict[str, Any]]
    queue: Any
    runs: dict[str, Mapping[str, Any]]


def together_at(
    number: int, members: list[str], ended: Mapping[str, int], queue: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What every checkpoint of a moment holds besides its run's state.

    Args:
        number: of the moment, higher than any before.
        members: names of the runs that are being trained, in their order.
        ended: by run the number at which it had ended.
        queue: the state of the queue.
        settings: what the runs must have in common with those that continue.
    """
    return {"number": number, "members": members, "ended": dict(ended), "queue": queue, "settings": dict(settings)}


def newest_moment(folders: Mapping[str, Path], settings: Mapping[str, Any]) -> Moment | None:
    """The newest moment of which all checkpoints are intact, the same on all ranks; None where nothing was saved.

    Args:
        folders: by run, of its checkpoints.
        settings: as for `together_at`.

    Raises:
        OtherRunError: the runs were others, or their checkpoints are not of one moment.
        ValueError: the ranks see different folders.
    """
    found = _newest_here(folders, settings)
    numbers = [int(number) for number in gather_bytes(str(found.number if found else 0).encode())]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"the processes find different checkpoints of the runs {', '.join(folders)}: the newest were saved at the"
            f" moments {numbers}; each run's output_dir must be on a disk that all nodes share"
        )
    return found


def _newest_here(folders: Mapping[str, Path], settings: Mapping[str, Any]) -> Moment | None:
    """As `newest_moment`, of the folders as this rank sees them."""
    places: dict[tuple[str, int], Path] = {}
    moments: dict[int, Mapping[str, Any]] = {}
    for name, folder in folders.items():
        for path, state in checkpoint_states(folder):
            together = state.get("together")
            if together is None:
                raise OtherRunError(
                    f"the checkpoint in {folder} is that of a run alone; continue it with train, or start again:"
                    " overwrite=True instead of resume=True"
                )
            places[name, together["number"]], moments[together["number"]] = path, together
    if moments:
        former, missing = moments[max(moments)]["settings"], "not given"
        check_same_run(
            next(folder for (_, number), folder in places.items() if number == max(moments)).parent,
            dict.fromkeys(settings, missing) | former,
            dict.fromkeys(former, missing) | dict(settings),
        )
    for number in sorted(moments, reverse=True):
        together = moments[number]
        wanted = {**together["ended"], **dict.fromkeys(together["members"], number)}
        found = {name: places.get((name, of)) for name, of in wanted.items()}
        if None in found.values():
            continue  # the process was killed before all were written, or one is damaged
        try:
            read = {name: read_checkpoint(path) for name, path in found.items()}
        except DAMAGE as error:
            warnings.warn(f"a checkpoint of {', '.join(found)} is damaged ({error}); older ones are used", stacklevel=2)
            continue
        states = {name: _state(checkpoint) for name, checkpoint in read.items()}
        runs = {name: checkpoint.state["run"] for name, checkpoint in read.items()}
        members = {name: states[name] for name in together["members"]}
        ended = {name: states[name] for name in together["ended"]}
        return Moment(max(moments), members, ended, together["queue"], runs)
    if max(moments, default=FIRST) > FIRST:
        raise OtherRunError(
            f"the checkpoints of runs {', '.join(folders)} are not of one moment, because some are missing or damaged;"
            " start again with overwrite=True instead of resume=True, or continue each alone with train"
        )
    return None


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    return {**state_of_this_rank(checkpoint), "together": checkpoint.state["together"]}
