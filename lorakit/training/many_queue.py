"""Which run starts next where runs train together, and which of them stop early: a list, or something that decides."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from lorakit.training.adapter_run import AdapterRun
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import world_size
from lorakit.training.identity import SENTENCES, as_json
from lorakit.training.scores import Scores

NOT_SETTINGS = ("output_dir", "resume", "overwrite", "save_every", "log_every", "progress", "log_to")
BATCH = ("batch_size", "accumulate")  # only their product with the number of processes must stay


class RunQueue(Protocol):
    """Where the runs that train together come from.

    What it decides may depend on nothing but its state and the scores that it is told, so that a resumed queue decides
    the same again.
    """

    most: int
    """No more runs than this come from it."""

    def largest(self) -> Sequence[AdapterRun]:
        """Runs in whose adapters every run's adapter has room: the layers, and the highest rank of each."""

    def next(self) -> AdapterRun | None:
        """The next run to start; None where there is none now."""

    def run(self, name: str) -> AdapterRun:
        """A run that `next` has given."""

    def folders(self) -> Mapping[str, Path]:
        """The checkpoints' folders of the runs that may have started, by run."""

    def after_epoch(self, run: AdapterRun, epoch: int, scores: Scores | None) -> bool:
        """Whether the run should stop after this epoch.

        Args:
            run: which.
            epoch: its number, from 1.
            scores: on validation; None where the corpus has no such split.
        """

    def ended(self, run: AdapterRun, diverged: bool) -> None:
        """The run has ended, by its epochs, its patience, `after_epoch`, or because it diverged."""

    def settings(self) -> dict[str, Any]:
        """What must be the same for a stopped queue to be continued, as JSON values by name."""

    def state_dict(self) -> Any:
        """How far it is, as JSON values."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` gave."""


class RunList:
    """Runs that start in their order and end by themselves."""

    def __init__(self, runs: Sequence[AdapterRun]) -> None:
        self.runs, self.started, self.most = {run.name: run for run in runs}, 0, len(runs)

    def largest(self) -> Sequence[AdapterRun]:
        """All of them."""
        return list(self.runs.values())

    def next(self) -> AdapterRun | None:
        """The first that has not started."""
        if self.started == len(self.runs):
            return None
        self.started += 1
        return list(self.runs.values())[self.started - 1]

    def run(self, name: str) -> AdapterRun:
        """A run by its name."""
        return self.runs[name]

    def folders(self) -> Mapping[str, Path]:
        """Of all of them."""
        return {name: Path(run.config.output_dir) / "checkpoints" for name, run in self.runs.items()}

    def after_epoch(self, run: AdapterRun, epoch: int, scores: Scores | None) -> bool:
        """Never stops a run."""
        return False

    def ended(self, run: AdapterRun, diverged: bool) -> None:
        """Does nothing."""

    def settings(self) -> dict[str, Any]:
        """The settings of every run that are not the defaults."""
        return {name: value for run in self.runs.values() for name, value in settings_of_run(run).items()}

    def state_dict(self) -> int:
        """How many have started."""
        return self.started

    def load_state_dict(self, state: int) -> None:
        """Continue after so many."""
        self.started = state


def settings_of_run(run: AdapterRun) -> dict[str, Any]:
    """A run's settings that are not the defaults, and its sentences per step, by "RUN: NAME"; not its corpus."""
    found: dict[str, Any] = {f"LoRA's {name}": value for name, value in run.lora.items()}
    for field in fields(TrainConfig):
        if field.name not in (*NOT_SETTINGS, *BATCH) and getattr(run.config, field.name) != field.default:
            found[field.name] = getattr(run.config, field.name)
    found[SENTENCES] = run.config.batch_size * run.config.accumulate * world_size()
    return {run.name: "among the runs"} | {f"{run.name}: {name}": as_json(value) for name, value in found.items()}
