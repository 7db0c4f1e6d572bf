"""Full fine-tuning beside LoRA: one record, two tables, one picture.

`comparison.json` holds the record; the tables and the picture are drawn from it alone and cannot say anything else.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorakit._files import atomic_write, write_text
from lorakit.adapters.counting import WHY_PEFT_COUNTS_MORE, ParameterCount
from lorakit.energy import Reading
from lorakit.training.config import TrainConfig, TrainResult

SCHEMA = 1
NAMES = {"full": "full", "lora": "LoRA"}
PARTS = {"ram": ("RAM", "RAM"), "gpu": ("all GPUs", "GPU"), "cpu": ("all CPUs", "CPU")}  # in the study's order

STUDY: dict[str, Any] = {
    # roberta-base on the hub's BioNLP2004, 8 x V100, ten epochs, validation set; energy by CodeCarbon 2.x, of which the
    # GPU row is measured and the RAM and CPU rows are constants times time
    "full": {
        "trainable_parameters": None,
        "validation": {
            "loss": 0.158031,
            "precision": 0.791423,
            "recall": 0.827481,
            "f1": 0.809050,
            "accuracy": 0.950083,
        },
        "energy": {
            "ram": {"kwh": 0.597710, "mean_w": 188.9085144996643, "method": "estimated"},
            "gpu": {"kwh": 1.585529, "mean_w": 477.46172772572896, "method": "counter"},
            "cpu": {"kwh": 0.134576, "mean_w": 42.5, "method": "estimated"},
            "measured_kwh": 1.585529,
            "estimated_kwh": 0.732286,
        },
    },
    "lora": {
        "trainable_parameters": 700427,
        "validation": {
            "loss": 0.151547,
            "precision": 0.784485,
            "recall": 0.827120,
            "f1": 0.805224,
            "accuracy": 0.949415,
        },
        "energy": {
            "ram": {"kwh": 0.687351, "mean_w": 188.9085144996643, "method": "estimated"},
            "gpu": {"kwh": 1.874576, "mean_w": 476.03178951650114, "method": "counter"},
            "cpu": {"kwh": 0.154766, "mean_w": 42.5, "method": "estimated"},
            "measured_kwh": 1.874576,
            "estimated_kwh": 0.842117,
        },
    },
}


def mode_record(
    result: TrainResult,
    parameters: ParameterCount,
    reading: Reading,
    config: TrainConfig,
    adapter: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One mode's part of `comparison.json`.

    Args:
        reading: the energy of the training, evaluation included.
        adapter: for LoRA its options, and `peft_total_parameters`.
    """
    return {
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "seed": config.seed,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "adapter": dict(adapter) if adapter else None,
        "steps": result.steps,
        "train_tokens": result.train_tokens,
        "computed_tokens": result.computed_tokens,
        "train_seconds": result.train_seconds,
        "compile_seconds": result.compile_seconds,
        "train_tokens_per_s": result.train_tokens_per_s,
        "duration_s": result.duration_s,
        "validation": result.validation.to_json() if result.validation else None,
        "test": result.test.to_json() if result.test else None,
        "history": [{"epoch": i, **asdict(scores)} for i, scores in enumerate(result.history, start=1)],
        "energy": reading.to_json(),
    }


def comparison_record(
    command: str,
    environment: Mapping[str, Any],
    model: str,
    dataset: str,
    modes: Mapping[str, Any],
    study: bool = False,
) -> dict[str, Any]:
    """The whole of `comparison.json`; `study` puts the study's published figures beside ours."""
    return {
        "schema": SCHEMA,
        "command": command,
        "environment": dict(environment),
        "model": model,
        "dataset": dataset,
        "modes": dict(modes),
        **({"study": STUDY} if study else {}),
    }


def write_comparison(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write comparison.json, .md and .png into a folder, each whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_text(folder / "comparison.json", text)
    write_text(folder / "comparison.md", as_markdown(record))
    atomic_write(folder / "comparison.png", lambda path: draw(record, path))


def as_markdown(record: Mapping[str, Any]) -> str:
    """The two tables of the study, the parameters, and how the figures came about."""
    lines = [f"# {record['model']} on {record['dataset']}", ""]
    for split in ("validation", "test"):
        if any(mode[split] for mode in record["modes"].values()):
            lines += [f"## Metrics, {split} set", "", metrics_table(record, split), ""]
    lines += ["## Energy", "", energy_table(record), "", *energy_notes(record), ""]
    lines += ["## Trainable parameters", "", *parameter_lines(record), ""]
    environment = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    lines += [f"Command: `{record['command']}`", "", f"Environment: {environment}", ""]
    return "\n".join(lines)


def metric_rows(split: str) -> list[tuple[str, Callable[[Mapping[str, Any]], float | None]]]:
    """What a table of scores shows: name, and where it is in a split's scores (None where an old file has it not)."""

    def strict(name: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda scores: scores.get("strict", {}).get(name)

    return [
        (f"{split} loss", lambda scores: scores["loss"]),
        ("precision", lambda scores: scores["precision"]),
        ("recall", lambda scores: scores["recall"]),
        ("F1", lambda scores: scores["f1"]),
        ("accuracy", lambda scores: scores["accuracy"]),
        ("precision, strict IOB2", strict("precision")),
        ("recall, strict IOB2", strict("recall")),
        ("F1, strict IOB2", strict("f1")),
    ]


def metrics_table(record: Mapping[str, Any], split: str) -> str:
    """Loss, precision, recall, F1 and accuracy of each mode, and the difference."""
    rows = [(name, lambda mode, get=get: get(mode[split]), 6) for name, get in metric_rows(split)]
    return _comparison_table(record, "metric", rows, split)


def energy_table(record: Mapping[str, Any]) -> str:
    """kWh and mean W of RAM, GPUs and CPUs of each mode, the totals apart by how they were obtained."""
    totals = [mode["energy"][name] for mode in record["modes"].values() for name in ("measured_kwh", "estimated_kwh")]
    digits = 6 if max(filter(None, totals), default=0.0) > 0.1 else 8  # the study's six, two more for small runs
    rows: list[tuple[str, Callable[[Any], float | None], int]] = []
    for part, (devices, device) in PARTS.items():
        rows.append((f"{devices} (kWh)", lambda mode, p=part: mode["energy"][p].get("kwh"), digits))
        rows.append((f"{device} power (W)", lambda mode, p=part: mode["energy"][p].get("mean_w"), 2))
    rows.append(("total measured (kWh)", lambda mode: mode["energy"]["measured_kwh"], digits))
    rows.append(("total estimated (kWh)", lambda mode: mode["energy"]["estimated_kwh"], digits))
    rows.append(("training (s)", lambda mode: mode.get("train_seconds"), 1))
    rows.append(("training tokens/s", lambda mode: mode.get("train_tokens_per_s"), 0))
    return _comparison_table(record, "energy", rows)


def energy_notes(record: Mapping[str, Any]) -> list[str]:
    """One line a component: how its figure was obtained."""
    energy = next(iter(record["modes"].values()))["energy"]
    return [f"- {device}: {energy[part]['method']} ({energy[part]['source']})" for part, (_, device) in PARTS.items()]


def parameter_lines(record: Mapping[str, Any]) -> list[str]:
    """What each mode trains, and why PEFT counts more."""
    lines = []
    for mode, values in record["modes"].items():
        trained, total = values["trainable_parameters"], values["total_parameters"]
        lines.append(
            f"- {NAMES[mode]}: {trained:,} of {total:,} parameters are trained ({100 * trained / total:.4f} %)"
        )
        peft = (values["adapter"] or {}).get("peft_total_parameters")
        if peft and peft != total:
            lines.append(f"  (PEFT would print {trained:,} of {peft:,}: {WHY_PEFT_COUNTS_MORE})")
    if "study" in record:
        lines.append("- study: 700,427 of 124,661,782 with LoRA (it prints 56.19 %; the value is 0.5619 %)")
    return lines


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Four panels: F1 by epoch, trained parameters, speed, energy by component (hatched: estimated)."""
    from matplotlib.figure import Figure  # heavy: only when a picture is drawn
    from matplotlib.ticker import MaxNLocator

    modes = record["modes"]
    names, colours = [NAMES[mode] for mode in modes], {"full": "#4c72b0", "lora": "#dd8452"}
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(f"{record['model']} on {record['dataset']}")
    (curve, parameters), (speed, energy) = figure.subplots(2, 2)
    ends = {mode: values["history"][-1]["f1"] for mode, values in modes.items() if values["history"]}
    for mode, values in modes.items():
        epochs, f1 = [row["epoch"] for row in values["history"]], [row["f1"] for row in values["history"]]
        curve.plot(epochs, f1, "o-", color=colours[mode], label=NAMES[mode])
        if f1:
            # the two often end close together: the better one's stands above, each in its colour
            place = (6, 4 if mode == max(ends, key=ends.get) else -10)
            end = (epochs[-1], f1[-1])
            curve.annotate(f"{f1[-1]:.3f}", end, xytext=place, textcoords="offset points", color=colours[mode])
    curve.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    curve.margins(x=0.15, y=0.1)
    curve.set(title="Validation F1 (seqeval, default mode)", xlabel="epoch")
    if any(values["history"] for values in modes.values()):
        curve.legend()
    for axes, key, title in (
        (parameters, "trainable_parameters", "Trained parameters"),
        (speed, "train_tokens_per_s", "Training, real tokens per second"),
    ):
        bars = axes.bar(names, [values[key] for values in modes.values()], color=[colours[mode] for mode in modes])
        axes.bar_label(bars, fmt="{:,.0f}")
        axes.set_title(title)
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    bottom = [0.0] * len(modes)
    for part, colour in (("gpu", "#55a868"), ("cpu", "#8172b3"), ("ram", "#937860")):
        parts = [values["energy"][part] for values in modes.values()]
        heights = [1000 * (values["kwh"] or 0.0) for values in parts]  # a part that is unknown is not drawn
        if not any(heights):
            continue
        hatches = ["//" if values["method"] == "estimated" else "" for values in parts]
        label = f"{part.upper()}, {parts[0]['method']}"
        energy.bar(names, heights, bottom=bottom, color=colour, hatch=hatches, edgecolor="white", label=label)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    energy.set(title="Energy of the run, evaluation included", ylabel="Wh")
    energy.margins(y=0.25)
    if any(bottom):
        energy.legend(loc="upper right", ncols=3, fontsize="small")
    else:
        energy.text(0.5, 0.5, "nothing could be measured", ha="center", transform=energy.transAxes)
    figure.savefig(path, dpi=110, format="png")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that reads well as plain text, too: first column left, the others right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _comparison_table(
    record: Mapping[str, Any],
    corner: str,
    rows: Sequence[tuple[str, Callable[[Any], float | None], int]],
    split: str | None = None,
) -> str:
    """Rows of one number per mode, with the difference where there are both, then the study's columns."""
    groups = [("", record["modes"])]
    if "study" in record and split != "test":  # the study published validation figures only
        groups.append(("study, ", {mode: STUDY[mode] for mode in record["modes"]}))
    header, body = [corner], [[name] for name, _, _ in rows]
    for prefix, modes in groups:
        header += [prefix + NAMES[mode] for mode in modes]
        both = "full" in modes and "lora" in modes
        header += [prefix + "difference"] * both
        for line, (_, get, digits) in zip(body, rows, strict=True):
            values = {mode: get(fields) for mode, fields in modes.items()}
            line += [_number(value, digits) for value in values.values()]
            if both:
                known = None not in values.values()
                line.append(_number(values["lora"] - values["full"], digits, sign=True) if known else "–")
    return markdown_table(header, body)


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    """Fixed digits, so that a column can be compared at a glance; a dash for what is unknown."""
    return "–" if value is None else f"{value:{'+' if sign else ''},.{digits}f}"
