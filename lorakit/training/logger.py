"""What a training run writes down: metrics.jsonl, the loggers asked for, the lines beside the progress bar."""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm import tqdm

from lorakit.training.distributed import is_main
from lorakit.training.metrics import Scores
from lorakit.training.progress import Progress
from lorakit.training.trackers import Write, open_logger, scalars


class SinceLog:
    """What has come together since the last log line, on the device where it would cost a wait to read it."""

    def __init__(self, device: torch.device, in_a_row: Tensor | None = None) -> None:
        self.loss, self.skipped = torch.zeros((), device=device), torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device) if in_a_row is None else in_a_row
        self.tokens = self.steps = 0

    def add(self, loss: Tensor, bad: Tensor, tokens: int) -> None:
        self.loss += torch.where(bad, 0.0, loss)
        self.skipped += bad
        self.in_a_row = (self.in_a_row + 1) * bad
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1

    def to_json(self) -> dict[str, float]:
        values = {name: float(getattr(self, name)) for name in ("loss", "skipped", "in_a_row")}
        return {**values, "tokens": self.tokens, "steps": self.steps}

    def from_json(self, record: Mapping[str, float]) -> None:
        for name in ("loss", "skipped", "in_a_row"):
            getattr(self, name).fill_(record[name])
        self.tokens, self.steps = int(record["tokens"]), int(record["steps"])


class TrainingLog:
    """metrics.jsonl and what is said to the user, on the main rank only."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings` are a TrainConfig's, by name; the loggers keep them beside the curves."""
        folder = settings["output_dir"]
        self.quiet = not settings["progress"] or not is_main()
        self.path = Path(folder) / "metrics.jsonl" if folder and is_main() else None
        self.file: IO[str] | None = None
        self.settings = settings
        self.loggers: list[Write] = []

    @contextmanager
    def open(self, length: int, step: int) -> Iterator[None]:
        """Write after the first `length` bytes of the file: what a resumed run will log again is cut off."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened, self.path.open("a", encoding="utf-8") as self.file:
            if length < self.length():
                self.file.truncate(length)
            for name in dict.fromkeys(self.settings["log_to"]):
                self.loggers.append(opened.enter_context(open_logger(name, self.path.parent, self.settings, step)))
            yield

    def length(self) -> int:
        return self.path.stat().st_size if self.path else 0

    def step(self, bar: Progress, **values: float | None) -> None:
        self._write({"event": "step", **values})
        loss = values["loss"]
        shown = {"loss": "–" if loss is None else f"{loss:.3f}", "tokens/s": f"{values['tokens_per_s']:,.0f}"}
        if values.get("power_w") is not None:
            shown["W"] = f"{values['power_w']:.0f}"
        bar.set_postfix(shown)

    def evaluation(self, split: str, epoch: int, step: int, scores: Scores) -> None:
        self._write({"event": "evaluation", "split": split, "epoch": epoch, "step": step, **scores.to_json()})
        if not self.quiet:
            tqdm.write(f"epoch {epoch}: {split} loss {scores.loss:.4f}, F1 {scores.f1:.4f}", file=sys.stderr)

    def prefix(self, **values: float) -> None:
        self._write({"event": "cache_prefix", **values})
        if not self.quiet:
            size = f"{values['bytes'] / 2**20:,.0f} MiB"
            tqdm.write(f"kept the output of {values['layers']} frozen layers: {size}", file=sys.stderr)

    def compiled(self, **values: float) -> None:
        self._write({"event": "compile", **values})
        if not self.quiet:
            tqdm.write(
                f"compiled {values['rows']} x {values['width']} tokens in {values['seconds']:.1f} s", file=sys.stderr
            )

    def problem(self, message: str) -> None:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        self._write({"event": "problem", "message": message})

    def _write(self, line: dict[str, Any]) -> None:
        line |= {"wall_s": time.time()}  # the energy journal's clock: a figure can be given its cost
        for write in list(self.loggers) if "step" in line else ():
            try:
                write(scalars(line), line["step"], line["wall_s"])
            except OSError as error:
                self.loggers.remove(write)
                warnings.warn(f"a logger of {self.settings['log_to']} failed: {error}", RuntimeWarning, stacklevel=2)
        if self.file is None:
            return
        try:
            print(json.dumps(line), file=self.file, flush=True)
        except OSError as error:  # a full disk costs the log, not the training
            self.file = None
            warnings.warn(f"{self.path} cannot be written any more: {error}", RuntimeWarning, stacklevel=2)
