"""Runs that take turns, so that whatever else the machine does slows all of them down alike.

Two runs one after the other cannot be compared on a shared machine: another job in the second half hits one of them
only. Here each run takes a few steps, then the next one does. Every other round is in reverse order (A B, B A, A B, …),
so that a steady drift cancels out, too.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lorakit.training.preemption import Preempted

TURNS = 40  # of each run, or a few more: a job that starts in the middle is seen by both to within a turn


class Pausable(Protocol):
    """A run that takes turns, such as `lorakit.training.loop.PausableRun`.

    Attributes:
        step: optimizer steps taken so far, the same on all ranks.
        result: None until the run has finished.
        folder: of its checkpoints.
    """

    step: int
    result: object | None
    folder: Path | None

    def advance(self) -> None:
        """Continue until the next pause, or to the end."""

    def save(self) -> bool:
        """Write a checkpoint during a pause; returns whether that worked."""


def steps_per_turn(steps_per_epoch: int, epochs: int) -> int:
    """Steps between two pauses that give a run at least `TURNS` turns, or as many as it has steps."""
    turns_per_epoch = -(-TURNS // epochs)
    return max(1, steps_per_epoch // turns_per_epoch)


def take_turns(runs: Mapping[str, Pausable], turn: Callable[[str], AbstractContextManager[object]]) -> None:
    """Let runs take turns until all have finished; a run that stops early leaves the others to continue.

    The run with the fewest steps is next, so runs that were resumed at different steps come level first.

    Args:
        runs: by name.
        turn: a context for each turn of the run with this name, such as a measurement.

    Raises:
        Preempted: a signal asked to stop; every unfinished run has saved its state.
    """
    rounds, order = 0, list(runs)
    while left := [name for name in runs if runs[name].result is None]:
        if len({runs[name].step for name in left}) == 1:
            order, rounds = left[::-1] if rounds % 2 else left, rounds + 1
        name = min((name for name in order if name in left), key=lambda name: runs[name].step)
        try:
            with turn(name):
                runs[name].advance()
        except Preempted as stopped:
            others = [runs[other] for other in left if other != name]
            saved = all([stopped.saved, *[run.save() for run in others]])
            folders = " and ".join(str(run.folder) for run in (runs[name], *others))
            raise Preempted(stopped.signal, folders, saved) from None
