"""Train under an energy meter, and say why a run stopped early."""

import sys
from pathlib import Path
from typing import Any

from torch import nn

from lorakit.data.corpus import NerData
from lorakit.energy import EnergyMeter
from lorakit.power.journal import merge_runs, read_journal
from lorakit.power.reading import Reading
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.distributed import is_main
from lorakit.training.loop import train
from lorakit.training.preemption import Preempted


def train_measured(model: nn.Module, tokenizer: Any, data: NerData, config: TrainConfig) -> tuple[TrainResult, Reading]:
    """Train under an energy meter, whose journal is output_dir/energy.jsonl.

    Returns:
        The result, and the energy of the whole run: a resumed run counts what the interrupted ones before it used.
    """
    journal = Path(config.output_dir) / "energy.jsonl" if is_main() else None
    if journal:
        journal.parent.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            journal.unlink(missing_ok=True)
    with EnergyMeter(out=journal) as meter:
        result = train(model, tokenizer, data, config, observe=lambda: {"power_w": meter.power_w()})
    reading = meter.reading
    if journal and config.resume:
        reading = merge_runs([(journal, part) for part in read_journal(journal) if part.reading])
    return result, reading


def exit_status(stopped: Preempted | FloatingPointError | MemoryError, program: str) -> int:
    """Print why training stopped; returns the exit status.

    Raises:
        SystemExit: Memory ran out on this rank alone, so it must not wait for the others.
    """
    if is_main():
        print(f"{program}: {stopped}", file=sys.stderr)
    if isinstance(stopped, MemoryError):
        raise SystemExit(1) from None
    return stopped.code if isinstance(stopped, Preempted) else 1
