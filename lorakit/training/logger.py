"""The log of a training run: metrics.jsonl, the loggers asked for, and lines beside the progress bars."""

import errno
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from lorakit._counts import counted
from lorakit.training.distributed import is_main
from lorakit.training.progress import Forgiving, ProgressBars
from lorakit.training.scores import Scores
from lorakit.training.trackers import Write, open_logger, scalars


class TrainingLog:
    """metrics.jsonl, and what the user is told, on the main rank only.

    Args:
        settings: a TrainConfig's fields by name; the loggers store them beside the curves.
        label: the run's name in what the user is told; empty where it runs alone.
    """

    def __init__(self, settings: Mapping[str, Any], label: str = "") -> None:
        folder, self.prefix = settings["output_dir"], f"{label}, " if label else ""
        self.quiet = not settings["progress"] or not is_main()
        self.path = Path(folder) / "metrics.jsonl" if folder and is_main() else None
        self.file: IO[bytes] | None = None
        self.now_s: Callable[[], float] = time.time  # while open, a clock that the energy journal's agrees with
        self.settings = settings
        self.loggers: list[Write] = []

    @contextmanager
    def open(self, length: int, step: int) -> Iterator[None]:
        """Write after the first `length` bytes of the file; what a resumed run will log again is cut off.

        Args:
            length: bytes of the file to keep.
            step: steps that the run has already taken.
        """
        if self.path is None:
            yield
            return
        offset = time.time() - _uptime_s()
        self.now_s = lambda: offset + _uptime_s()
        with ExitStack() as opened:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # unbuffered, so that closing it writes nothing that could fail
                self.file = opened.enter_context(self.path.open("ab", buffering=0))
                if length < self.length():
                    self.file.truncate(length)
            except OSError as error:
                self._give_up(error)
            for name in dict.fromkeys(self.settings["log_to"]):
                self.loggers.append(opened.enter_context(open_logger(name, self.path.parent, self.settings, step)))
            try:
                yield
            finally:  # the run may be paused, and opened again
                self.file, self.loggers = None, []

    def length(self) -> int:
        """Bytes of metrics.jsonl; 0 where this rank writes none."""
        try:
            return self.path.stat().st_size if self.path else 0
        except OSError:
            return 0

    def step(self, bars: ProgressBars, **values: float | None) -> None:
        """Log the steps since the last line, and show their loss and speed."""
        self._write({"event": "step", **values})
        loss = values["loss"]
        shown = {"loss": "–" if loss is None else f"{loss:.3f}", "tokens/s": f"{values['tokens_per_s']:,.0f}"}
        if values.get("power_w") is not None:
            shown["W"] = f"{values['power_w']:.0f}"
        bars.set_postfix(shown)

    def evaluation(self, split: str, epoch: int, step: int, scores: Scores) -> None:
        """Log an evaluation's scores."""
        self._write({"event": "evaluation", "split": split, "epoch": epoch, "step": step, **scores.to_json()})
        if not self.quiet:
            self._tell(f"epoch {epoch}: {split} loss {scores.loss:.4f}, F1 {scores.f1:.4f}")

    def cached(self, again: bool = False, **values: float) -> None:
        """Log that the frozen layers' output was computed, and its size; not if it was `again`, after a resume."""
        if not again:
            self._write({"event": "cache_prefix", **values})
        if not self.quiet:
            size = f"{values['bytes'] / 2**20:,.0f} MiB"
            self._tell(f"kept the output of {counted(values['layers'], 'frozen layer')}: {size}")

    def compiled(self, **values: float) -> None:
        """Log that a shape of batch was compiled or recorded, and the time it took."""
        self._write({"event": "compile", **values})
        if not self.quiet:
            self._tell(f"compiled {values['rows']} x {values['width']} tokens in {values['seconds']:.1f} s")

    def note(self, message: str) -> None:
        """Tell something about the run, also where no progress is shown."""
        self._write({"event": "note", "message": message})
        if is_main():
            self._tell(message)

    def problem(self, message: str) -> None:
        """Warn about something that does not end the run."""
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        self._write({"event": "problem", "message": message})

    def _tell(self, line: str) -> None:
        tqdm.write(self.prefix + line, file=Forgiving(sys.stderr))

    def _write(self, line: dict[str, Any]) -> None:
        line |= {"wall_s": self.now_s()}  # the energy journal's clock, so that a step can be given its energy
        for write in list(self.loggers) if "step" in line else ():
            try:
                write(scalars(line), line["step"], line["wall_s"])
            except OSError as error:
                self.loggers.remove(write)
                warnings.warn(f"a logger of {self.settings['log_to']} failed: {error}", RuntimeWarning, stacklevel=2)
        if self.file is None:
            return
        try:
            # JSON has no NaN: the loss of an epoch that diverged is null
            line = {name: None if _is_nan_or_inf(value) else value for name, value in line.items()}
            data = (json.dumps(line) + "\n").encode()
            if self.file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # a full disk ends the log, not the training
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.file = None
        warnings.warn(f"{self.path} can no longer be written: {error}", RuntimeWarning, stacklevel=3)


def _is_nan_or_inf(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _uptime_s() -> float:
    """Seconds since boot: unlike the wall clock, nobody can set it during a run."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
