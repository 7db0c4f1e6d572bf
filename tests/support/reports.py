"""A recorded run of examples/bionlp.py (without its checkpoints), and what tests do with it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded" / "bionlp"
HOSTILE = """</title><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'"&$x$"""


SCORES = {
    "loss": 0.2, "precision": 0.7, "recall": 0.8, "f1": 0.746667, "accuracy": 0.95,
    "strict": {"precision": 0.69, "recall": 0.79, "f1": 0.736622, "support": 10}, "by_type": {},
}  # fmt: skip
UNKNOWN = {"kwh": None, "mean_w": None, "method": "unavailable", "source": "no NVML"}


def mode_values(
    f1: float = 0.746667, ram: float = 0.001, trained: int = 100, adapter: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A mode's part of comparison.json, without a test set and without a GPU."""
    return {
        "trainable_parameters": trained, "total_parameters": 1000, "epochs": 2, "best_epoch": 2, "seed": 0,
        "learning_rate": 1e-3, "batch_size": 32, "adapter": adapter, "steps": 10, "train_tokens": 10_000,
        "computed_tokens": 10_100, "train_seconds": 5.0, "train_tokens_per_s": 2000.0, "duration_s": 7.0,
        "validation": {**SCORES, "f1": f1}, "test": None,
        "history": [{"epoch": 1, "f1": 0.5}, {"epoch": 2, "f1": f1}],
        "energy": {
            "gpu": UNKNOWN, "cpu": {"kwh": 0.002, "mean_w": 20.0, "method": "counter", "source": "RAPL"},
            "ram": {"kwh": ram, "mean_w": 6.0, "method": "estimated", "source": "by GiB"},
            "measured_kwh": 0.002, "estimated_kwh": ram,
        },
    }  # fmt: skip


CROWDED = {
    "share": 0.31,
    "note": "other processes used 31 % of the CPUs during this run: times and energy are not comparable",
}


def crowd(record: dict[str, Any], mode: str = "lora") -> dict[str, Any]:
    """Let other processes use the machine during a mode's run; returns the record."""
    record["modes"][mode]["energy"]["contention"] = CROWDED
    return record


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edit a run's comparison.json in place; returns the record."""
    path = run / "comparison.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return record


def figure_of(cell: str) -> tuple[float | None, str]:
    """A cell's exact value and its text."""
    value = re.search(r'value="([^"]*)"', cell)
    return float(value[1]) if value else None, " ".join(re.sub("<[^>]+>", " ", cell).split())


def figures_of(text: str, table: str) -> dict[str, list[tuple[float | None, str]]]:
    """Row name -> the texts and exact values of its cells; a group's rows are prefixed by its name."""
    body = re.search(rf'<table id="{table}">(.*?)</table>', text, re.DOTALL)[1]
    rows, group = {}, ""
    for line in re.findall(r"<tr.*?</tr>", body, re.DOTALL):
        found = re.search(r'scope="rowgroup"[^>]*>([^<]*)', line)
        if found:
            group = found[1]
        elif "<td>" in line:
            name = re.sub("<[^>]+>", "", re.search(r'scope="row"[^>]*>(.*?)</th>', line)[1])
            cells = re.findall(r"<td>(.*?)</td>", line, re.DOTALL)
            rows[f"{group}: {name}"] = [figure_of(cell) for cell in cells]
    return rows
