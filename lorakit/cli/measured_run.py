"""What `lorakit train` and examples/bionlp.py do around the loop: measure it, say why it ended, show what came out."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.data.corpus import NerData
from lorakit.energy import EnergyMeter
from lorakit.power.journal import merge_runs, read_journal
from lorakit.power.reading import Reading
from lorakit.report.tables import energy_notes, energy_table, metrics_table, parameter_lines, scored_splits
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.distributed import is_main, world_size
from lorakit.training.loop import train
from lorakit.training.preemption import Preempted


def train_measured(model: nn.Module, tokenizer: Any, data: NerData, config: TrainConfig) -> tuple[TrainResult, Reading]:
    """Train under an energy meter, whose journal is output_dir/energy.jsonl; a resumed run's energy is whole."""
    journal = Path(config.output_dir) / "energy.jsonl" if is_main() else None
    if journal:
        journal.parent.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            journal.unlink(missing_ok=True)
    with EnergyMeter(out=journal) as meter:
        result = train(model, tokenizer, data, config, observe=lambda: {"power_w": meter.power_w()})
    reading = meter.reading
    if journal and config.resume:  # what the interrupted runs before this one have used is part of the cost
        reading = merge_runs([(journal, part) for part in read_journal(journal) if part.reading])
    return result, reading


def status_of(stopped: Preempted | FloatingPointError | MemoryError, program: str) -> int:
    """Say why training stopped; returns the exit status.

    Raises:
        SystemExit: memory ran out: this rank ends alone, the others must not be waited for.
    """
    if is_main():
        print(f"{program}: {stopped}", file=sys.stderr)
    if isinstance(stopped, MemoryError):
        raise SystemExit(1) from None
    return stopped.code if isinstance(stopped, Preempted) else 1


def environment() -> dict[str, str]:
    """What a figure depends on besides the command."""
    import transformers

    gpu = torch.cuda.is_available()
    return {
        "lorakit": sys.modules["lorakit"].__version__,  # the root is there before any of its parts
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "threads": str(torch.get_num_threads()),
        "processes": str(world_size()),
    }


def show(record: dict[str, Any], folder: Path) -> None:
    """Print a comparison's tables, and where its files are."""
    print(f"\n{record['model']} on {record['dataset']}")
    if scored_splits(record):
        print("", metrics_table(record), sep="\n")
    else:
        print("\nno validation or test set, so nothing was scored; `lorakit evaluate` scores on another corpus")
    print("", energy_table(record), "", *energy_notes(record), "", *parameter_lines(record), sep="\n")
    print(f"\nwritten to {folder}: report.html, comparison.md, comparison.json, comparison.png")
