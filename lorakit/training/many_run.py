"""One of several runs that train together: its settings, how far it is, and its log."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.data.ner_data import NerData
from lorakit.data.packing import Layout, Step, epoch_steps, steps_per_epoch
from lorakit.data.tokenization import Encoded
from lorakit.training.checkpoint import run_lock
from lorakit.training.config import TrainConfig
from lorakit.training.logger import TrainingLog
from lorakit.training.optimizer import rate_of
from lorakit.training.progress import ProgressBars
from lorakit.training.scores import Scores
from lorakit.training.session import GIVE_UP_AFTER
from lorakit.training.state import Counters


@dataclass(frozen=True)
class AdapterRun:
    """One run of `train_many`: an adapter's settings, and how it is trained.

    Example:
        import lorakit

        runs = [
            lorakit.AdapterRun(f"r{r}", {"r": r, "seed": 1}, lorakit.TrainConfig(learning_rate=1e-3)) for r in (4, 16)
        ]
        print([run.name for run in runs])  # ['r4', 'r16']

    Args:
        name: of the adapter, among the runs.
        lora: arguments of `apply_lora`, by name; the rest are its defaults.
        config: as for `train`.
        data: its own corpus, with the model's labels; None for that of all runs.
    """

    name: str
    lora: Mapping[str, Any] = field(default_factory=dict)
    config: TrainConfig = TrainConfig()
    data: NerData | None = None


class StepOutcome:
    """What a step gave for each run, on the device until the first of them logs it.

    Args:
        losses: (runs,). norms, skipped: (runs, 1).
    """

    def __init__(self, losses: Tensor, norms: Tensor, skipped: Tensor) -> None:
        self._parts, self._values = (losses, norms, skipped), None

    def values(self) -> list[tuple[float, float, bool]]:
        """Loss, norm of the gradient and whether the step was skipped, for each run."""
        if self._values is None:
            self._values = list(zip(*(part.flatten().tolist() for part in self._parts), strict=True))
        return self._values


class Member:
    """A run that is being trained beside others.

    Args:
        run: its settings.
        adapter: its adapter as it starts; afterwards the best one so far.
        encoded: its training corpus.
        corpus: the number of that among all runs'.
        layout: of its batches.
    """

    def __init__(self, run: AdapterRun, adapter: Adapter, encoded: Encoded, corpus: int, layout: Layout) -> None:
        self.run, self.config, self.adapter = run, run.config, adapter
        self.encoded, self.corpus, self.layout = encoded, corpus, layout
        config = run.config
        self.steps_per_epoch = steps_per_epoch(len(encoded), config.batch_size, config.accumulate, 1)
        self.counters, self.began = Counters(), time.perf_counter()
        self.test: Scores | None = None
        self.in_a_row, self.gave_up = 0, False
        self._steps: Iterator[Step] = iter(())
        self._since: list[tuple[int, StepOutcome]] = []  # the run's row in each step since the last log line
        self._logged_at, self._tokens = self.began, 0
        self.log = TrainingLog(vars(config), run.name)
        self._bars = ProgressBars(config.epochs, self.steps_per_epoch, quiet=True)
        self._open = ExitStack()
        self._open.enter_context(run_lock(config.output_dir))
        self._open.enter_context(self.log.open(0, 0))
        self._open.enter_context(self._bars)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        steps = self.steps_per_epoch * self.config.epochs
        return rate_of(self.counters.step, steps, self.config.learning_rate, self.config.warmup_ratio)

    def next_step(self) -> Step:
        """The next step of its order."""
        config = self.config
        if self.counters.epoch_step == 0:
            sizes = (config.batch_size, config.accumulate, config.seed)
            self._steps = epoch_steps(self.encoded, self.layout, *sizes, self.counters.epoch)
        return next(self._steps)

    def after_step(self, step: Step, row: int, outcome: StepOutcome, seconds: float) -> bool:
        """Count a step, and log where it is time to; returns whether the epoch has ended.

        Args:
            step: which.
            row: of this run among those that took it.
            outcome: of the step, for all of them.
            seconds: this run's share of the time that the step of all runs took.
        """
        counters, rate = self.counters, self.rate
        tokens = sum(micro.tokens for micro in step.micros)
        counters.count_step(tokens, sum(micro.computed_tokens for micro in step.micros))
        counters.train_seconds += seconds
        self._tokens += tokens
        self._since.append((row, outcome))
        ended = counters.epoch_step == self.steps_per_epoch
        if ended or len(self._since) == self.config.log_every:
            self._log(rate)
        return ended

    def evaluated(self, scores: Scores | None, adapter: Adapter) -> None:
        """Count an epoch, and keep its adapter if it is the best so far.

        Args:
            scores: on validation; None where the corpus has no such split, so that the last epoch counts as the best.
            adapter: with the epoch's values.
        """
        counters = self.counters
        if scores is None:
            counters.best_epoch, self.adapter = counters.epoch, adapter
        else:
            self.log.evaluation("validation", counters.epoch, counters.step, scores)
            if counters.add_scores(scores.to_json()):
                self.adapter = adapter
        counters.next_epoch()

    @property
    def has_ended(self) -> bool:
        """Whether all epochs are over, or patience is, or it has diverged."""
        return self.gave_up or self.counters.has_ended(self.config.epochs, self.config.patience)

    def close(self) -> None:
        """Close its log, and leave its folder to others."""
        self._open.close()

    def _log(self, rate: float) -> None:
        read = [outcome.values()[row] for row, outcome in self._since]
        losses, norms, skips = zip(*read, strict=True)
        for skipped in skips:
            self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.counters.skipped += int(sum(skips))
        good = [loss for loss, skipped in zip(losses, skips, strict=True) if not skipped]
        seconds, now = time.perf_counter() - self._logged_at, time.perf_counter()
        self.log.step(
            self._bars,
            epoch=self.counters.epoch,
            step=self.counters.step,
            loss=sum(good) / len(good) if good else None,
            learning_rate=rate,
            grad_norm=None if skips[-1] else norms[-1],
            skipped=self.counters.skipped,
            tokens_per_s=self._tokens / seconds,
        )
        self._since, self._tokens, self._logged_at = [], 0, now
        if self.in_a_row >= GIVE_UP_AFTER and not self.gave_up:
            self.gave_up = True
            self.log.problem(
                f"run {self.run.name!r}: the last {self.in_a_row} steps had no finite gradient, so it ends here; try a"
                " lower learning rate, or precision='fp32'"
            )
