"""Train under an energy meter, and say why a run stopped early."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.cli.run_folder import resume_flag
from lorakit.cli.wording import in_flags
from lorakit.data.ner_data import NerData
from lorakit.energy import EnergyMeter
from lorakit.power.journal import add_consecutive, merge_runs, read_journal
from lorakit.power.reading import JOULES_PER_WH, Reading
from lorakit.power.steadiness import judge_steadiness
from lorakit.report.comparison import NAMES
from lorakit.training.checkpoint import OtherRunError
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.distributed import is_main, process_group
from lorakit.training.interleaving import take_turns
from lorakit.training.loop import PausableRun, train
from lorakit.training.preemption import Preempted, StopRequest


class RunMeter:
    """The energy of one training run, that of all its processes; output_dir/energy.jsonl is the first one's journal.

    Each `turn` has a meter and is a run of its own in the journal, as after a restart. What passes between two turns,
    such as the turn of another training run, is in none of them.

    Args:
        config: of the run; a resumed one also counts what the interrupted runs before it used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.journal = Path(config.output_dir) / "energy.jsonl" if is_main() else None
        self._readings: list[Reading] = []
        self._from_disk = 0  # how many of them are those of interrupted runs
        self._meter: EnergyMeter | None = None
        self._course: list[tuple[float, float]] = []
        if self.journal is None:
            return
        try:
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            if not config.resume:
                self.journal.unlink(missing_ok=True)
        except OSError as error:  # a folder that may not be written to is for training to refuse
            warnings.warn(f"{self.journal} cannot be replaced, so energy is not kept there: {error}", stacklevel=2)
            self.journal = None
            return
        if config.resume and _length(self.journal):
            try:
                before = [(self.journal, part) for part in read_journal(self.journal) if part.reading]
                self._readings += [merge_runs(before)] if before else []
                self._from_disk = len(self._readings)
            except (ValueError, OSError) as error:
                warnings.warn(f"the energy of the interrupted runs is not counted: {error}", stacklevel=2)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Measure the block; a run that may not continue leaves the journal as it was."""
        length = _length(self.journal) if self.journal else 0
        try:
            with EnergyMeter(out=self.journal) as self._meter:
                yield
        except OtherRunError:
            if self.journal and _length(self.journal) > length:
                os.truncate(self.journal, length)
            raise
        self._course += self._meter.course
        self._readings.append(self._meter.gather())

    def power_w(self) -> float | None:
        """Measured power now, W; None where nothing is measured."""
        return self._meter.power_w() if self._meter else None

    def turn_wh(self) -> float | None:
        """Energy of the present turn so far, Wh: what is measured, or else what is estimated; None if neither is."""
        if self._meter is None:
            return None
        now = self._meter.reading
        return now.estimated_wh if now.measured_wh is None else now.measured_wh

    @property
    def reading(self) -> Reading:
        """The energy of all turns so far, those of interrupted runs included, with a note on how steady the power was.

        What came from the disk may be damaged in a way that shows only here: then it is left out, with a warning.
        """
        try:
            total = add_consecutive(self._readings)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if not self._from_disk:
                raise
            warnings.warn(f"the energy of the interrupted runs is not counted: {error!r}", stacklevel=2)
            del self._readings[: self._from_disk]
            self._from_disk = 0
            total = add_consecutive(self._readings)
        return replace(total, notes=(*total.notes, *self._advice()))

    def _advice(self) -> list[str]:
        """How long a window of this load must be to be good to 2 %, where enough of it was measured."""
        edges_wh = self._readings[-1].measured_uncertainty_wh
        found = None if edges_wh is None else judge_steadiness(self._course, edges_wh * JOULES_PER_WH)
        return [] if found is None else [f"to measure this load {found}"]


def _length(path: Path) -> int:
    """Bytes of a file, 0 if it cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def train_measured(model: nn.Module, tokenizer: Any, data: NerData, config: TrainConfig) -> tuple[TrainResult, Reading]:
    """Train under an energy meter, whose journal is output_dir/energy.jsonl.

    Returns:
        The result, and the energy of the whole run: a resumed run counts what the interrupted ones before it used.
    """
    meter = RunMeter(config)
    with meter.turn():
        result = train(model, tokenizer, data, config, observe=lambda: {"power_w": meter.power_w()})
    return result, meter.reading


@dataclass
class Contestant:
    """What `train` takes, for one of several runs that take turns."""

    model: nn.Module
    tokenizer: Any
    data: NerData
    config: TrainConfig


def train_in_turns(contestants: Mapping[str, Contestant]) -> dict[str, tuple[TrainResult, Reading]]:
    """Train several models in turns, each under its own meter; the models are in memory at the same time.

    Every result equals that of `train_measured`, but for times and energy.

    Args:
        contestants: by name, which progress bars and lines show.

    Returns:
        Each run's result and energy, those of its own turns.

    Raises:
        ValueError: a run cannot be paused, or as for `train`.
        Preempted: a signal asked to stop; every run has saved its state.
        MemoryError, FloatingPointError: as for `train`.
    """
    meters = {name: RunMeter(one.config) for name, one in contestants.items()}
    runs: dict[str, PausableRun] = {}
    with process_group(), StopRequest() as stop:
        try:
            for name, one in contestants.items():
                with meters[name].turn():
                    runs[name] = _pausable(name, one, meters[name], stop)
            take_turns(runs, lambda name: meters[name].turn())
        finally:
            for run in runs.values():
                run.close()
    return {name: (run.result, meters[name].reading) for name, run in runs.items()}


def _pausable(name: str, one: Contestant, meter: RunMeter, stop: StopRequest) -> PausableRun:
    def observe() -> dict[str, float | None]:
        return {"power_w": meter.power_w()}

    return PausableRun(one.model, one.tokenizer, one.data, one.config, stop, observe, NAMES.get(name, name))


def exit_status(stopped: Preempted | MemoryError | OSError, arguments: argparse.Namespace) -> int:
    """Print why training stopped, and how to continue; returns the exit status.

    Raises:
        SystemExit: Memory ran out on this rank alone, so it must not wait for the others.
    """
    if is_main():
        told = in_flags(" ".join(str(stopped).split()), arguments.parser)
        told = told.replace("again with --resume", f"again with {resume_flag(arguments)}")
        print(f"{arguments.parser.prog}: {told}", file=sys.stderr)
    if isinstance(stopped, MemoryError):
        raise SystemExit(1) from None
    return stopped.code if isinstance(stopped, Preempted) else 1
