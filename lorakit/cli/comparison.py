"""What a finished comparison records of its environment, and what it prints."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from lorakit._counts import counted
from lorakit.report.run_comparison import verdict_text
from lorakit.report.seeds import seed_names, seeds_table
from lorakit.report.tables import (
    energy_notes,
    energy_table,
    metrics_table,
    parameter_lines,
    scored_splits,
    settings_table,
)
from lorakit.training.distributed import device, world_size


def environment() -> dict[str, str]:
    """What the figures depend on besides the command: versions, device, threads, processes."""
    import transformers  # heavy

    gpu, cores = device().type == "cuda", counted(os.cpu_count() or 1, "core")
    return {
        "lorakit": sys.modules["lorakit"].__version__,  # imported before any of its modules
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()}, {cores})",
        "threads": str(torch.get_num_threads()),
        "processes": str(world_size()),
    }


def print_comparison(record: dict[str, Any], folder: Path) -> None:
    """Print the tables of a comparison, and where its files are."""
    seeds = f", seeds {seed_names(record['seeds'])}" if "seeds" in record else ""
    print(f"\n{record['model']} on {record['dataset']}{seeds}")
    if scored_splits(record):
        print("", metrics_table(record), sep="\n")
    else:
        print("\nno validation or test set, so nothing was scored; `lorakit evaluate` scores on another corpus")
    print(
        "",
        energy_table(record),
        "",
        *energy_notes(record),
        "",
        settings_table(record),
        "",
        *parameter_lines(record),
        sep="\n",
    )
    if "seeds" in record:
        print("", seeds_table(record), sep="\n")
    print(f"\nwritten to {folder}: report.html, comparison.md, comparison.json, comparison.png")


def print_verdict(record: dict[str, Any]) -> None:
    """Print what the seeds of a comparison say, with intervals and in words."""
    print("", verdict_text(record), sep="\n", end="")
