"""What surrounds the steps of a run: time, log lines, checkpoints, and a stop that all ranks agree on."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from lorakit._counts import counted
from lorakit.data.packing import Plan
from lorakit.training.checkpoint import Checkpointer, newest_sound_checkpoint
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import is_main, rank, world_size
from lorakit.training.logger import TrainingLog
from lorakit.training.preemption import Preempted, StopAgreement, StopRequest
from lorakit.training.progress import ProgressBars
from lorakit.training.scores import Scores
from lorakit.training.sentences import NAME, RunSentences, SplitSentences, settings_of, write_sentences
from lorakit.training.state import TrainState

GIVE_UP_AFTER = 20  # steps in a row without a finite gradient; fp16 needs up to about 16 to find its scale

Observe = Callable[[], dict[str, float | None]]


class Session:
    """A run seen from outside its arithmetic.

    Args:
        config: of the run.
        state: what is saved, and whose counters are logged.
        checkpointer: where it is saved.
        stop: set by a signal.
        steps_per_epoch: of the run.
        observe: its values join each log line.
        label: the run's name on progress bars and lines; empty where it runs alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        checkpointer: Checkpointer,
        stop: StopRequest,
        steps_per_epoch: int,
        observe: Observe | None = None,
        label: str = "",
    ) -> None:
        self.config, self.state, self.checkpointer, self.observe = config, state, checkpointer, observe
        self.steps_per_epoch, self.stopping = steps_per_epoch, StopAgreement(stop, state.device)
        self.label = label
        self.log = TrainingLog(vars(config), label)
        self.bars = ProgressBars(config.epochs, steps_per_epoch, quiet=self.log.quiet)
        self._timed_since: float | None = None  # while steps are timed
        self._logged_at = self._paused_at = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """While active, log lines are written and bars shown, from the state's step on; may be opened repeatedly."""
        counters, steps = self.state.counters, self.steps_per_epoch
        self.bars = ProgressBars(self.config.epochs, steps, counters.step, self.log.quiet, label=self.label)
        with self.log.open(counters.log_bytes, counters.step), self.bars:
            try:
                yield
            finally:
                counters.log_bytes = self.log.length()

    def start_epoch(self) -> None:
        """Steps follow: time them."""
        self.bars.start_epoch(self.state.counters.epoch, self.state.counters.epoch_step)
        self._timed_since = self._logged_at = time.perf_counter()
        self.stopping.resume(self.state.counters.step)

    def end_epoch(self) -> None:
        """No more steps follow."""
        if self.state.device.type == "cuda":
            torch.cuda.synchronize()
        self._count_time()
        self._timed_since = None

    def pause(self) -> None:
        """Stop the clocks between two steps; the session may be closed until `unpause`."""
        self.end_epoch()
        self._paused_at = time.perf_counter()

    def unpause(self) -> None:
        """Steps follow again."""
        logged_at = self._logged_at + time.perf_counter() - self._paused_at
        self.start_epoch()
        self._logged_at = logged_at

    def after_step(self, grad_norm: Tensor) -> None:
        """Log, stop or save, where it is time to.

        Raises:
            Preempted: a signal asked to stop.
            FloatingPointError: no step had a finite gradient for a while.
        """
        config, counters = self.config, self.state.counters
        self.bars.update()
        if self.state.since_log.steps == config.log_every or counters.epoch_step == self.steps_per_epoch:
            self._log_step(grad_norm)
        elif self.stopping.is_due(counters.step):
            self.stopping.meet(counters.step, torch.zeros((), device=self.state.device))
        if self.stopping.is_agreed():
            self.leave()
        if config.save_every and counters.step % config.save_every == 0:
            self.save()

    def after_batch(self, done: int, total: int) -> None:
        """Leave in the middle of an evaluation, if any rank was told to stop."""
        if self.stopping.ask_all():
            self.leave()

    def evaluated(self, split: str, epoch: int, scores: Scores) -> None:
        """Log an evaluation."""
        self.log.evaluation(split, epoch, self.state.counters.step, scores)

    def check_loss(self, of: str, loss: float) -> None:
        """End a run whose weights have all diverged, before they are saved.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if math.isfinite(loss):
            return
        config = self.config
        fix = "a lower learning rate" + (", or in bf16 or fp32" if config.precision == "fp16" else "")
        raise FloatingPointError(
            f"the {of} loss is {loss} after epoch {self.state.counters.best_epoch}: training diverged (learning rate"
            f" {config.learning_rate:.2g}, precision {config.precision}); train again with {fix}"
        )

    def write_sentences(self, splits: Mapping[str, SplitSentences]) -> None:
        """Write sentences.json; a disk that cannot take it does not end the training."""
        if not is_main():
            return
        config, identity = self.config, self.checkpointer.identity
        run = RunSentences(config.seed, self.state.counters.best_epoch, settings_of(config, identity), splits)
        try:
            write_sentences(Path(config.output_dir), run)
        except OSError as error:
            self.log.problem(f"{NAME} could not be written ({error}); this run cannot be compared by sentence")

    def count_compiling(self, plan: Plan, seconds: float) -> None:
        """Count time spent compiling or recording a shape separately from that of training."""
        self.state.counters.compile_seconds += seconds
        self._timed_since, self._logged_at = self._timed_since + seconds, self._logged_at + seconds
        rows, width = plan.source.shape
        self.log.compiled(rows=rows, width=width, seconds=seconds)

    def save(self) -> bool:
        """Write a checkpoint; False, on all ranks, if the disk is full or not writable."""
        self._count_time()
        self.state.counters.log_bytes = self.log.length()
        return self.checkpointer.save(self.state, self.log.problem)

    def leave(self) -> NoReturn:
        """Save, and end the run.

        Raises:
            Preempted: always.
        """
        raise Preempted(self.stopping.signal, self.checkpointer.folder, self.save())

    @contextmanager
    def memory_errors_explained(self, plan: Plan, parts: int) -> Iterator[None]:
        """While active, an error for lack of memory names the batch and what to change.

        A single process also saves; several do not, because the other ranks would have to take part.
        """
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator has no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            if world_size() == 1:
                self.save()
            raise MemoryError(_out_of_memory(self.config, self.state.counters.step + 1, plan, parts)) from error

    def _log_step(self, grad_norm: Tensor) -> None:
        """Write one line for the steps since the last: host and ranks wait for each other here."""
        counters, since = self.state.counters, self.state.since_log
        loss = self.stopping.meet(counters.step, since.loss)
        skipped, in_a_row = int(since.skipped), int(since.in_a_row)
        counters.skipped += skipped
        seconds, good = time.perf_counter() - self._logged_at, since.steps - skipped
        first = self.state.optimizer.param_groups[0]
        rate = first["lr"] / first["rate_ratio"]  # what all groups have a ratio to
        self.log.step(
            self.bars,
            epoch=counters.epoch,
            step=counters.step,
            loss=loss / good if good else None,
            learning_rate=rate,
            grad_norm=float(grad_norm) if math.isfinite(float(grad_norm)) else None,
            skipped=counters.skipped,
            tokens_per_s=since.tokens * world_size() / seconds,
            **(self.observe() if self.observe else {}),
        )
        self.state.restart_log()
        self._logged_at = time.perf_counter()
        if in_a_row >= GIVE_UP_AFTER:
            raise FloatingPointError(
                f"the last {in_a_row} steps up to step {counters.step} had no finite gradient and were skipped"
                f" (learning rate {rate:.2g}, precision {self.config.precision}); try a lower learning rate or"
                f" precision='fp32'{self._state_before()}"
            )

    def _state_before(self) -> str:
        """Save, and say where the state from before the skipped steps is; they have changed no weights."""
        folder = self.checkpointer.folder
        if folder is None or not self.save():
            return ""
        return f"; the state before them is in {newest_sound_checkpoint(folder) or folder}"

    def _count_time(self) -> None:
        if self._timed_since is not None:
            now = time.perf_counter()
            self.state.counters.train_seconds += now - self._timed_since
            self._timed_since = now


def _out_of_memory(config: TrainConfig, step: int, plan: Plan, parts: int) -> str:
    rows, width = plan.source.shape
    where = f" on rank {rank()}" if world_size() > 1 else ""
    batch = f"{counted(rows, 'row')} of {counted(width, 'token')}"
    if parts > 1:
        return (
            f"out of memory{where} in step {step} with {batch}; a smaller batch would not help,"
            " because it is computed in parts; train fewer parameters, for example with LoRA"
        )
    if config.batch_size == 1:
        return f"out of memory{where} in step {step} with {batch}, and batch_size is 1; train fewer parameters"
    factor = next(number for number in range(2, config.batch_size + 1) if config.batch_size % number == 0)
    return (
        f"out of memory{where} in step {step} with {batch}; run the same again with"
        f" batch_size={config.batch_size // factor}, accumulate={config.accumulate * factor} and resume=True: the steps"
        " stay the same, and it continues from the newest checkpoint"
    )
