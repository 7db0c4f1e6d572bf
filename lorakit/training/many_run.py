"""A run that is being trained beside others: how far it is, what a checkpoint holds of it, and its log."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.data.ner_data import NerData
from lorakit.data.packing import Layout, Step, epoch_steps, steps_per_epoch
from lorakit.data.tokenization import Encoded
from lorakit.training.adapter_run import AdapterRun
from lorakit.training.checkpoint import run_lock
from lorakit.training.distributed import is_main, rank, world_size
from lorakit.training.identity import digest_of
from lorakit.training.logger import TrainingLog
from lorakit.training.metrics import SentenceCounts
from lorakit.training.optimizer import rate_of
from lorakit.training.progress import ProgressBars
from lorakit.training.scores import Scores
from lorakit.training.sentences import NAME, RunSentences, SplitSentences, settings_of, write_sentences
from lorakit.training.session import GIVE_UP_AFTER
from lorakit.training.stacked_parameters import tensors_of, with_tensors
from lorakit.training.state import Counters, random_state


class StepOutcome:
    """What a step gave for each run, on the device until the first of them logs it.

    Args:
        losses: (runs,), over all ranks. norms, skipped: (runs, 1).
    """

    def __init__(self, losses: Tensor, norms: Tensor, skipped: Tensor) -> None:
        self._parts, self._values = (losses, norms, skipped), None

    def values(self) -> list[tuple[float, float, bool]]:
        """Loss, norm of the gradient and whether the step was skipped, for each run."""
        if self._values is None:
            self._values = list(zip(*(part.flatten().tolist() for part in self._parts), strict=True))
        return self._values


@dataclass
class Since:
    """Sums since the last log line, as `SinceLog` has them for a run alone."""

    loss: float = 0.0
    skipped: int = 0
    in_a_row: int = 0  # skipped steps up to now
    tokens: int = 0
    steps: int = 0

    def add(self, loss: float, skipped: bool) -> None:
        """Count a step; its tokens are counted when it is taken."""
        self.loss += 0.0 if skipped else loss
        self.skipped += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0


@dataclass
class Corpus:
    """What a run is trained and scored on.

    Attributes:
        data: its sentences.
        encoded: those of the training split.
        number: of the corpus among all runs'.
        layout: of the run's batches.
    """

    data: NerData
    encoded: Encoded
    number: int
    layout: Layout


@dataclass(frozen=True)
class Snapshot:
    """A run's state, as `Checkpointer` saves it."""

    device: torch.device
    counters: Counters
    content: Mapping[str, Any]

    def state_dict(self) -> Mapping[str, Any]:
        """As that of `TrainState`."""
        return self.content


class Member:
    """A run that is being trained beside others.

    Args:
        run: its settings.
        adapter: its adapter as it starts; afterwards the best one so far.
        corpus: what it is trained on.
        identity: from `run_identity`; empty where nothing is saved.
        state: of a checkpoint to continue from, as `state_of_this_rank` gives it, with its "together".
    """

    def __init__(
        self,
        run: AdapterRun,
        adapter: Adapter,
        corpus: Corpus,
        identity: Mapping[str, Any],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.config, self.adapter, self.corpus, self.identity = run, run.config, adapter, corpus, identity
        config = run.config
        self.steps_per_epoch = steps_per_epoch(len(corpus.encoded), config.batch_size, config.accumulate, world_size())
        self.counters, self.began = Counters(), time.perf_counter()
        self.test: Scores | None = None
        self.counts: dict[str, SentenceCounts] = {}  # by split, of the best epoch
        self.diverged = self.stopped = False
        self.saved_at = 0  # number of the moment at which it was saved last
        self._steps: Iterator[Step] | None = None
        self._since, self._waiting = Since(), []  # the last steps' outcomes, on the device, and the run's row in each
        if state is not None:
            self._load(state)
        self._logged_at, self._norm, self._was_skipped = self.began, 0.0, False
        self.log = TrainingLog(vars(config), run.name)
        self._bars = ProgressBars(config.epochs, self.steps_per_epoch, quiet=True)
        self._open = ExitStack()
        self._open.enter_context(run_lock(config.output_dir))
        self._open.enter_context(self.log.open(self.counters.log_bytes, self.counters.step))
        self._open.enter_context(self._bars)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        steps = self.steps_per_epoch * self.config.epochs
        return rate_of(self.counters.step, steps, self.config.learning_rate, self.config.warmup_ratio)

    @property
    def is_at_the_end_of_an_epoch(self) -> bool:
        """Whether it has taken an epoch's steps, and not been scored after them."""
        return self.counters.epoch_step == self.steps_per_epoch

    @property
    def has_ended(self) -> bool:
        """Whether all epochs are over, or patience is, or it was stopped or has diverged."""
        return self.diverged or self.stopped or self.counters.has_ended(self.config.epochs, self.config.patience)

    def next_step(self) -> Step:
        """This rank's part of the next step of its order."""
        config, counters = self.config, self.counters
        if self._steps is None:
            self._steps = epoch_steps(
                self.corpus.encoded,
                self.corpus.layout,
                config.batch_size,
                config.accumulate,
                config.seed,
                counters.epoch,
                rank(),
                world_size(),
                first_step=counters.epoch_step,
            )
        return next(self._steps)

    def after_step(self, step: Step, row: int, outcome: StepOutcome, seconds: float) -> bool:
        """Count a step, and log where it is time to; returns whether the epoch has ended, or the run has diverged.

        Args:
            step: which.
            row: of this run among those that took it.
            outcome: of the step, for all of them.
            seconds: this run's share of the time that the step of all runs took.
        """
        counters, rate = self.counters, self.rate
        tokens = sum(micro.tokens for micro in step.micros)
        counters.count_step(tokens, sum(micro.computed_tokens for micro in step.micros if micro.counts))
        counters.train_seconds += seconds
        self._since.tokens += tokens
        self._since.steps += 1
        self._waiting.append((row, outcome))
        if self.is_at_the_end_of_an_epoch or self._since.steps == self.config.log_every:
            self._log(rate)
        return self.is_at_the_end_of_an_epoch or self.diverged

    def count_compiling(self, shape: tuple[int, int], seconds: float) -> None:
        """Count time spent compiling a shape, this run's share, separately from that of training."""
        self.counters.compile_seconds += seconds
        self._logged_at += seconds
        self.log.compiled(rows=shape[0], width=shape[1], seconds=seconds)

    def evaluated(self, scores: Scores | None, counts: SentenceCounts | None, adapter: Adapter) -> None:
        """Count an epoch, and keep its adapter if it is the best so far.

        Args:
            scores: on validation; None where the corpus has no such split, so that the last epoch counts as the best.
            counts: by sentence, with the scores.
            adapter: with the epoch's values.
        """
        counters = self.counters
        if scores is None:
            counters.best_epoch, self.adapter = counters.epoch, adapter
        else:
            self.log.evaluation("validation", counters.epoch, counters.step, scores)
            if counters.add_scores(scores.to_json()):
                self.adapter = adapter
                self.counts["validation"] = counts
            loss = counters.history[counters.best_epoch - 1]["loss"]
            if not math.isfinite(loss):
                self._diverge(f"its validation loss is {loss} after epoch {counters.best_epoch}")
        counters.next_epoch()
        self._steps = None

    def check_loss(self, of: str, loss: float) -> None:
        """Let the run end if a loss is not finite."""
        if not math.isfinite(loss):
            self._diverge(f"its {of} loss is {loss} after epoch {self.counters.epoch}")

    def snapshot(self, row: Mapping[str, Any], together: Mapping[str, Any], device: torch.device) -> Snapshot:
        """Its state now.

        Args:
            row: from `StackedParameters.row_state`.
            together: what is saved of all runs that train together.
            device: on which it is trained.
        """
        self._sum_up()
        self.counters.log_bytes = self.log.length()
        since = asdict(self._since)
        if not is_main():  # that of all ranks is the main one's: a run that continues alone adds up its ranks'
            since["loss"] = 0.0
        content = {
            **row,
            "best": tensors_of(self.adapter) if self.counters.best_epoch else {},
            "scaler": {},
            "counters": asdict(self.counters),
            "since_log": since,
            "random": random_state(),
            "together": {**together, "diverged": self.diverged, "stopped": self.stopped},
        }
        return Snapshot(device, self.counters, content)

    def write_sentences(self) -> None:
        """Write sentences.json on the main rank; a disk that cannot take it does not end the training."""
        if not is_main():
            return
        splits = {
            split: SplitSentences(digest_of(getattr(self.corpus.data, split)), counts)
            for split, counts in self.counts.items()
        }
        settings = settings_of(self.config, self.identity)
        found = RunSentences(self.config.seed, self.counters.best_epoch, settings, splits)
        try:
            write_sentences(Path(self.config.output_dir), found)
        except OSError as error:
            self.log.problem(f"{NAME} could not be written ({error}); this run cannot be compared by sentence")

    def close(self) -> None:
        """Close its log, and leave its folder to others."""
        self._open.close()

    def _load(self, state: Mapping[str, Any]) -> None:
        for item in fields(Counters):
            setattr(self.counters, item.name, state["counters"][item.name])
        self._since = Since(**state.get("since_log", {}))  # left out on another number of ranks
        self.diverged, self.stopped = state["together"]["diverged"], state["together"]["stopped"]
        self.saved_at = state["together"]["number"]
        if state["best"]:
            self.adapter = with_tensors(self.adapter, state["best"])

    def _sum_up(self) -> None:
        """Read the outcomes that are still on the device, one after the other, whenever that happens."""
        for row, outcome in self._waiting:
            loss, self._norm, self._was_skipped = outcome.values()[row]
            self._since.add(loss, self._was_skipped)
        self._waiting = []

    def _log(self, rate: float) -> None:
        self._sum_up()
        since, now = self._since, time.perf_counter()
        self.counters.skipped += since.skipped
        good = since.steps - since.skipped
        self.log.step(
            self._bars,
            epoch=self.counters.epoch,
            step=self.counters.step,
            loss=since.loss / good if good else None,
            learning_rate=rate,
            grad_norm=None if self._was_skipped else self._norm,
            skipped=self.counters.skipped,
            tokens_per_s=since.tokens * world_size() / (now - self._logged_at),
        )
        self._since, self._logged_at = Since(in_a_row=since.in_a_row), now
        if since.in_a_row >= GIVE_UP_AFTER:
            self._diverge(f"the last {since.in_a_row} steps had no finite gradient")

    def _diverge(self, why: str) -> None:
        if self.diverged:
            return
        self.diverged = True
        if is_main():
            self.log.problem(
                f"run {self.run.name!r}: {why}, so it ends here and the others continue; try a lower learning rate"
                f" ({self.config.learning_rate:.2g}), or precision='fp32'"
            )
