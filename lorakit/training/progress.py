"""The progress of a run on stderr: nested bars on a terminal, an occasional line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_S = 60.0


class Forgiving:
    """A stream whose failures end what it shows and nothing else: a full disk, or a pipe whose reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Whether it is a terminal; a closed stream is not one."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError, AttributeError):  # closed, or None as in a process without a console
            return False

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError, AttributeError):
            return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        try:
            self._stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


class ProgressBars:
    """Bars for the steps of a run, below it the steps of the epoch, below that the batches of an evaluation.

    A bar redraws itself with carriage returns, which fill a file, a pipe or a job's log with one endless line. There
    the first log step gets a line of its own, and then one every `LINE_EVERY_S` seconds.

    Args:
        epochs: of the run.
        steps_per_epoch: of the run.
        done: steps that a resumed run has already taken.
        quiet: show nothing at all, as on all ranks but the first.
        stream: where to show it; None is stderr.
        clock: seconds, for tests.
        label: the run's name where several take turns; their bars vanish at each turn.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        done: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        label: str = "",
    ) -> None:
        self.label = label
        self.epochs, self.steps_per_epoch, self.done = epochs, steps_per_epoch, done
        self.stream, self.clock = Forgiving(stream or sys.stderr), clock
        terminal = self.stream.isatty()
        self.bars, self.lines = not quiet and terminal, not quiet and not terminal
        self.epoch, self.last_line_s = 0, float("-inf")
        self.run_bar: tqdm | None = None
        self.epoch_bar: tqdm | None = None

    def __enter__(self) -> "ProgressBars":
        name = f"{self.label}, training" if self.label else "training"
        self.run_bar = self._bar(name, self.epochs * self.steps_per_epoch, self.done, 0, leave=not self.label)
        self.epoch_bar = self._bar("", self.steps_per_epoch, 0, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in (self.epoch_bar, self.run_bar):
            bar.close()

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begin an epoch (from 1), of which a resumed run has taken `done` steps."""
        self.epoch = epoch
        self.epoch_bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
        self.epoch_bar.reset()
        self.epoch_bar.update(done)

    def update(self) -> None:
        """Count one step."""
        self.done += 1
        self.epoch_bar.update()
        self.run_bar.update()

    def set_postfix(self, shown: Mapping[str, str]) -> None:
        """Show the newest figures."""
        self.run_bar.set_postfix(shown)
        if self.lines and self.clock() - self.last_line_s >= LINE_EVERY_S:
            self.last_line_s = self.clock()
            figures = ", ".join(f"{name} {value}" for name, value in shown.items())
            steps = self.epochs * self.steps_per_epoch
            prefix = f"{self.label}, " if self.label else ""
            print(f"{prefix}epoch {self.epoch}/{self.epochs}, step {self.done}/{steps}: {figures}", file=self.stream)

    @contextmanager
    def evaluation(self, split: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for an evaluation; call what it yields with the number of batches done and of all."""
        with self._bar(split, None, 0, 2, unit="batch") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show

    def _bar(
        self, name: str, total: int | None, done: int, position: int, unit: str = "step", leave: bool = False
    ) -> tqdm:
        return tqdm(
            desc=name, total=total, initial=done, position=position, unit=unit, leave=leave,
            file=self.stream, disable=not self.bars, dynamic_ncols=True,
        )  # fmt: skip
