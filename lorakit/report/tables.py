"""Markdown tables of a comparison, for comparison.md and the terminal; every number comes from the record."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from lorakit._counts import counted
from lorakit.adapters.card import in_markdown
from lorakit.report.carbon import Carbon
from lorakit.report.comparison import NAMES, contention_note
from lorakit.report.energy_totals import energy_sentence

PARTS = {"ram": ("RAM", "RAM"), "gpu": ("all GPUs", "GPU"), "cpu": ("all CPUs", "CPU")}  # in the study's order
MARK = "*"  # behind a difference of times or energies that are not comparable
METRICS = (
    ("loss", ("loss",)),
    ("precision", ("precision",)),
    ("recall", ("recall",)),
    ("F1", ("f1",)),
    ("accuracy", ("accuracy",)),
    ("precision, strict IOB2", ("strict", "precision")),
    ("recall, strict IOB2", ("strict", "recall")),
    ("F1, strict IOB2", ("strict", "f1")),
)
"""What a table of scores shows: the name, and the keys that lead to it in a split's scores."""
WHY_PEFT_COUNTS_MORE = "it counts the untrained copy that it keeps of modules trained in full, such as the head"

TableRow = tuple[str, Callable[[Any], float | None], int]  # name, value of a mode, digits
Group = tuple[str, Mapping[str, Any]]  # prefix of its first column, what the rows read for each mode


def as_markdown(record: Mapping[str, Any], sections: Iterable[tuple[str, str]] = ()) -> str:
    """The content of comparison.md: scores, energy, parameters, and how the figures were obtained.

    Args:
        record: the content of comparison.json.
        sections: titles and texts to add.
    """
    lines = [f"# {in_markdown(record['model'])} on {in_markdown(record['dataset'])}", ""]
    if scored_splits(record):
        lines += ["## Metrics", "", metrics_table(record), "", *metric_notes(record), ""]
    lines += ["## Energy", "", energy_table(record), "", *energy_notes(record), ""]
    lines += ["## Settings", "", settings_table(record), ""]
    lines += ["## Trainable parameters", "", *parameter_lines(record), ""]
    for title, text in sections:
        lines += [f"## {title}", "", text.rstrip("\n"), ""]
    environment = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    lines += [f"Command: {in_code(record['command'])}", "", f"Environment: {environment}", ""]
    return "\n".join(lines)


def in_code(text: str) -> str:
    """A text as inline code; backticks in it do not end it."""
    text = " ".join(text.split("\n"))
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def scored_splits(record: Mapping[str, Any]) -> list[str]:
    """The splits, of validation and test, on which at least one mode was scored."""
    return [split for split in ("validation", "test") if any(mode[split] for mode in record["modes"].values())]


def metric(scores: Mapping[str, Any] | None, keys: Sequence[str]) -> float | None:
    """A number of a split's scores by its keys in METRICS; None if the record does not have it."""
    value: Any = scores
    for key in keys:
        value = None if value is None else value.get(key)
    return value


def metrics_table(record: Mapping[str, Any]) -> str:
    """Loss, precision, recall, F1 and accuracy of each mode, validation and test side by side."""
    groups: list[Group] = [
        (f"{split} ", {mode: values[split] for mode, values in record["modes"].items()})
        for split in scored_splits(record)
    ]
    if "study" in record and any(mode["validation"] for mode in record["modes"].values()):
        groups.append(("study ", {mode: record["study"][mode]["validation"] for mode in record["modes"]}))
    rows = [(name, partial(metric, keys=keys), 6) for name, keys in METRICS]
    return _comparison_table("metric" + _over(record, "mean"), groups, rows)


def metric_notes(record: Mapping[str, Any]) -> list[str]:
    """How the scores are counted, one line each."""
    notes = ["- Entity scores by seqeval: its default mode, and strict IOB2, which counts well-formed entities only."]
    if "study" in record:
        notes.append("- The study published scores on its validation set only.")
    return notes


def energy_table(record: Mapping[str, Any]) -> str:
    """Wh and mean W of RAM, GPUs and CPUs of each mode; measured and estimated totals separately."""
    totals = [mode["energy"][name] for mode in record["modes"].values() for name in ("measured_kwh", "estimated_kwh")]
    digits = 3 if max(filter(None, totals), default=0.0) > 0.1 else 5  # the study's three, two more for small runs
    rows: list[TableRow] = []
    for part, (devices, device) in PARTS.items():
        rows.append((f"{devices} (Wh)", lambda mode, p=part: in_wh(mode["energy"][p].get("kwh")), digits))
        rows.append((f"{device} power (W)", lambda mode, p=part: mode["energy"][p].get("mean_w"), 2))
    for kind in ("measured", "estimated"):
        rows.append((f"total {kind} (Wh)", lambda mode, k=kind: in_wh(mode["energy"][f"{k}_kwh"]), digits))
    rows.append(("training (s)", lambda mode: mode.get("train_seconds"), 1))
    rows.append(("training tokens/s", lambda mode: mode.get("train_tokens_per_s"), 0))
    groups: list[Group] = [("", record["modes"])]
    if "study" in record:
        groups.append(("study ", {mode: record["study"][mode] for mode in record["modes"]}))
    return _comparison_table("energy" + _over(record, "total"), groups, rows)


def in_wh(kwh: float | None) -> float | None:
    """Watt-hours of a record's kilowatt-hours; unknown stays unknown."""
    return None if kwh is None else 1e3 * kwh


def _over(record: Mapping[str, Any], how: str) -> str:
    """What the first column's head says if the figures are of several seeds."""
    return f", {how} of {counted(len(record['seeds']), 'seed')}" if "seeds" in record else ""


def energy_notes(record: Mapping[str, Any]) -> list[str]:
    """What spoils the comparison of times and energies, and how each component was obtained, one line each."""
    lines = contention_notes({NAMES[mode]: values for mode, values in record["modes"].items()})
    carbon, notes = Carbon.of_record(record), dict[str, list[str]]()
    for mode, values in record["modes"].items():
        lines.append(f"{NAMES[mode]}: {energy_sentence(values['energy'], carbon)}")
        for note in values["energy"].get("notes") or ():
            notes.setdefault(note, []).append(NAMES[mode])
    energy = next(iter(record["modes"].values()))["energy"]
    lines += [f"{device}: {energy[part]['method']} ({energy[part]['source']})" for part, (_, device) in PARTS.items()]
    lines += [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    if record.get("interleaved"):
        lines.append("The models were trained in turns, a few steps each; time and energy are each one's own.")
    return [f"- {line}" for line in lines]


def contention_notes(modes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The remark on each run during which others used the machine; `modes` maps a name to a mode's record."""
    return [f"{name}{MARK}: {note}" for name, values in modes.items() if (note := contention_note(values))]


SETTINGS = {
    "learning_rate": "learning rate",
    "module_learning_rates": "rates of modules",
    "batch_size": "sentences per batch",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "steps": "steps",
}
"""What a table of settings shows of each mode: the key in its record, and the name; LoRA's own options follow."""


def settings_table(record: Mapping[str, Any]) -> str:
    """How each mode was trained: its rate, batches, epochs and, for LoRA, the options of `apply_lora`."""
    modes = record["modes"]
    names = {key: name for key, name in SETTINGS.items() if any(values.get(key) for values in modes.values())}
    rows = [[name, *(_setting(values.get(key)) for values in modes.values())] for key, name in names.items()]
    adapters = [values["adapter"] or {} for values in modes.values()]
    options = dict.fromkeys(name for adapter in adapters for name in adapter if name != "peft_total_parameters")
    rows += [[name, *(option_text(name, adapter.get(name)) for adapter in adapters)] for name in options]
    return markdown_table(["setting", *(NAMES[mode] for mode in modes)], rows)


def option_text(name: str, value: Any) -> str:
    """An option of `apply_lora` for people: the default start by the name that --init-lora-weights has for it."""
    return "kaiming" if name == "init_lora_weights" and value is True else _setting(value)


def _setting(value: Any) -> str:
    """A setting for people: 0.002, query value, lora_B=0.008; a dash for none."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_setting(one)}" for name, one in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "–"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return "–" if value is None else str(value)


def parameter_lines(record: Mapping[str, Any]) -> list[str]:
    """How many parameters each mode trains, and why PEFT counts more."""
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table that also reads well as plain text: the first column aligned left, the others right."""
    cells = [[re.sub(r"([|<`])", r"\\\1", " ".join(cell.split("\n"))) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def _comparison_table(corner: str, groups: Sequence[Group], rows: Sequence[TableRow]) -> str:
    """One column per group and mode, and the difference in groups that have both modes.

    Where a group has whole records, as that of energies does, differences that are not comparable are marked.
    """
    header, body = [corner], [[name] for name, _, _ in rows]
    for prefix, modes in groups:
        both = "full" in modes and "lora" in modes
        mark = MARK if any(contention_note(fields) for fields in modes.values() if fields) else ""
        names = [*(NAMES[mode] for mode in modes), *["difference"] * both]
        header += [prefix + names[0], *names[1:]]  # the prefix once, or the table would be too wide for a terminal
        for line, (_, get, digits) in zip(body, rows, strict=True):
            values = {mode: get(fields) for mode, fields in modes.items()}
            line += [_number(value, digits) for value in values.values()]
            if both:
                known = None not in values.values()
                difference = values["lora"] - values["full"] if known else None
                line.append(_number(difference, digits, sign=True) + mark * known)
    return markdown_table(header, body)


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    """A fixed number of digits, so that the numbers of a row can be compared at a glance; a dash for unknown."""
    return "–" if value is None else f"{round(value, digits) or 0.0:{'+' if sign else ''},.{digits}f}"
