"""Cells and outcomes of sweep.py, and its tables and picture."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from provenance import energy_sources
from tables import at, mean_sd, table

from lorakit.power.reading import MEASURED
from lorakit.report.comparison import NAMES

KEPT = ("trainable_parameters", "total_parameters", "learning_rate", "epochs", "best_epoch", "steps", "train_tokens",
        "train_seconds", "train_tokens_per_s", "duration_s")  # fmt: skip
FIGURES = (  # of one mode: name, getter, format
    ("trainable parameters", at("trainable_parameters"), "{:,.0f}"),
    ("epochs", at("epochs"), "{:.0f}"),
    *(
        (f"{split} {name}", at(split, *path), "{:.4f}")
        for split in ("validation", "test")
        for name, path in (
            ("F1", ["f1"]),
            ("F1, strict IOB2", ["strict", "f1"]),
            ("precision", ["precision"]),
            ("recall", ["recall"]),
            ("accuracy", ["accuracy"]),
            ("loss", ["loss"]),
        )
    ),
    ("training tokens/s", at("train_tokens_per_s"), "{:,.0f}"),
    ("computed / real tokens", lambda mode: mode["computed_tokens"] / mode["train_tokens"], "{:.3f}"),
    ("run, evaluation included (s)", at("duration_s"), "{:,.0f}"),
    *((f"{part.upper()} (Wh)", at("energy", part, "kwh", scale=1e3), "{:.2f}") for part in ("gpu", "cpu", "ram")),
)


@dataclass(frozen=True)
class Configuration:
    """What a grid compares, with each seed. Full fine-tuning has neither targets nor r."""

    mode: str
    learning_rate: float
    targets: tuple[str, ...] = ()
    r: int = 0

    def __str__(self) -> str:
        if self.mode == "full":
            return f"full, rate {self.learning_rate:g}"
        return f"LoRA, {', '.join(self.targets)}, r={self.r}, rate {self.learning_rate:g}"

    def folder(self) -> str:
        parts = (self.mode, "+".join(self.targets), f"r{self.r}" * bool(self.r), f"rate{self.learning_rate:g}")
        return re.sub(r"[^\w.+-]", "_", "-".join(filter(None, parts)))

    def arguments(self, scale: float) -> list[str]:
        """Of examples/bionlp.py."""
        words = ["--mode", self.mode, "--learning-rate", f"{self.learning_rate:g}"]
        if self.mode == "lora":
            words += ["--r", str(self.r), "--lora-alpha", f"{scale * self.r:g}", "--target-modules", *self.targets]
        return words


@dataclass(frozen=True)
class Cell:
    """One run of the example; without a configuration it runs as it is."""

    configuration: Configuration | None
    seed: int

    def __str__(self) -> str:
        return f"{self.configuration}, seed {self.seed}" if self.configuration else f"seed {self.seed}"

    def folder(self) -> str:
        return f"{self.configuration.folder()}-seed{self.seed}" if self.configuration else f"seed-{self.seed}"

    def arguments(self, scale: float) -> list[str]:
        words = self.configuration.arguments(scale) if self.configuration else []
        return [*words, "--seed", str(self.seed)]


@dataclass(frozen=True)
class Outcome:
    """A finished cell: its comparison.json, or why there is none."""

    cell: Cell
    command: str
    record: dict[str, Any] | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.record is None:
            return f"failed: {self.error}"
        return "validation F1 " + ", ".join(f"{m['validation']['f1']:.4f}" for m in self.record["modes"].values())

    @property
    def values(self) -> dict[str, Any]:
        """The record's only mode."""
        (values,) = self.record["modes"].values()
        return values


def record_of(outcome: Outcome) -> dict[str, Any]:
    """What the result file keeps of a cell of a grid."""
    about = {**asdict(outcome.cell.configuration), "seed": outcome.cell.seed, "command": outcome.command}
    if outcome.record:
        values = outcome.values
        energy = {k: v for k, v in values["energy"].items() if k.endswith("kwh")}
        energy |= {p: {k: values["energy"][p][k] for k in ("kwh", "method")} for p in ("gpu", "cpu", "ram")}
        about |= {key: values[key] for key in KEPT}
        for split in ("validation", "test"):
            scores = values[split]
            about[split] = scores and {k: scores[k] for k in ("loss", "precision", "recall", "f1")}
            if scores:
                about[split]["strict_f1"] = scores["strict"]["f1"]
        about |= {"energy": energy, "environment": outcome.record["environment"]}
    return {**about, "failed": outcome.error}


# Seeds ----------------------------------------------------------------------------------------------------------------


def seeds_report(summary: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """Mean ± sample standard deviation over the seeds, for each mode and for LoRA minus full of the same seed."""
    runs = summary["runs"]
    first, modes = runs[0], list(runs[0]["modes"])
    rows = []
    for name, get, form in FIGURES:
        values = {mode: [get(run["modes"][mode]) for run in runs] for mode in modes}
        row = [name, *(mean_sd(values[mode], form) for mode in modes)]
        if modes == ["full", "lora"]:
            pairs = zip(*values.values(), strict=True)
            row.append(mean_sd([None if None in pair else pair[1] - pair[0] for pair in pairs], form, sign=True))
        rows.append(row)
    header = [f"{len(runs)} seeds, mean ± sd", *(NAMES[mode] for mode in modes), "difference"]
    lines = [
        *head(summary, first, ""),
        table(rows, *((title, i, "{}") for i, title in enumerate(header[: len(rows[0])]))),
    ]
    lines += ["", *energy_sources([first["modes"][modes[-1]]["energy"]])]
    for mode in modes:
        used = first["modes"][mode]
        adapter = {k: v for k, v in (used["adapter"] or {}).items() if k != "peft_total_parameters"}
        settings = f"learning rate {used['learning_rate']:g}, batch {used['batch_size']}"
        lines.append(f"- {NAMES[mode]}: {settings}" + f", {adapter}" * bool(adapter))
    return [
        *lines,
        "",
        *failures(outcomes),
        "Each run:",
        "",
        "```",
        *(run["command"] for run in runs),
        "```",
        "",
        *environments(runs),
    ]


def head(summary: dict[str, Any], first: dict[str, Any], about: str) -> list[str]:
    title = f"# {about}{first['model']} on {Path(first['dataset']).name}"
    return [title, "", *[summary["note"], ""] * bool(summary["note"])]


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    failed = [outcome for outcome in outcomes if outcome.error]
    lines = [f"Failed: {len(failed)} of {len(outcomes)} cells" + (":" if failed else "."), ""]
    return lines + [f"- {outcome.cell}: {outcome.error}" for outcome in failed] + [""] * bool(failed)


def environments(records: Iterable[dict[str, Any]]) -> list[str]:
    """The environments that the runs recorded, and a warning if there are several."""
    found = dict.fromkeys(json.dumps(record["environment"]) for record in records)
    lines = ["Run with " + ", ".join(f"{name} {value}" for name, value in json.loads(text).items()) for text in found]
    if len(found) > 1:
        lines += ["", "The cells did not all run in one environment: their times and energies cannot be compared."]
    return lines


# A grid ---------------------------------------------------------------------------------------------------------------


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The (cost, score) points that no other beats: one that costs no more, scores no less, and is better in one.

    Returns:
        Their indices, by rising cost. Equal points are all included.
    """
    front: list[int] = []
    best = cost = float("-inf")  # the highest score so far, and the cost at which it was first reached
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[place][1] > best or points[place] == (cost, best):
            front.append(place)
            cost, best = points[place]
    return front


def energy_kind(outcomes: Sequence[Outcome]) -> tuple[str, str] | None:
    """("measured" or "estimated", of what): the kind that all cells have, measured before estimated, or None."""
    energies = [outcome.values["energy"] for outcome in outcomes]
    for kind, methods in (("measured", MEASURED), ("estimated", ("estimated",))):
        parts = {tuple(p.upper() for p in ("gpu", "cpu", "ram") if e[p]["method"] in methods) for e in energies}
        if len(parts) == 1 and parts != {()} and all(energy[f"{kind}_kwh"] is not None for energy in energies):
            return kind, " + ".join(parts.pop())
    return None


@dataclass(frozen=True)
class Point:
    """A configuration over its seeds; `wh` is empty where the cells have no kind of energy in common."""

    configuration: Configuration
    parameters: int
    validation_f1: list[float]
    test_f1: list[float | None]
    wh: list[float]
    duration_s: list[float]

    @property
    def score(self) -> float:
        return fmean(self.validation_f1)


def points_of(outcomes: Sequence[Outcome], kind: str | None) -> list[Point]:
    """Configurations that have at least one finished cell, in the grid's order."""
    by_configuration: dict[Configuration, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        if outcome.record:
            by_configuration.setdefault(outcome.cell.configuration, []).append(outcome.values)
    getters = [at("validation", "f1"), at("test", "f1"), at("energy", f"{kind}_kwh", scale=1e3), at("duration_s")]
    return [
        Point(c, group[0]["trainable_parameters"], *([get(values) for values in group] for get in getters))
        for c, group in by_configuration.items()
    ]


def fronts(points: Sequence[Point], kind: Any) -> dict[str, list[int]]:
    """Indices of the points on each front, by mean over the seeds."""
    found = {"parameters": pareto_front([(point.parameters, point.score) for point in points])}
    if kind:
        found["Wh"] = pareto_front([(fmean(point.wh), point.score) for point in points])
    return found


def grid_report(summary: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    finished = [outcome for outcome in outcomes if outcome.record]
    kind = energy_kind(finished)
    points = points_of(outcomes, kind and kind[0])
    on = fronts(points, kind)
    seeds = len({outcome.cell.seed for outcome in outcomes})

    def mode(point: Point) -> str:
        ran = len(point.validation_f1)
        return NAMES[point.configuration.mode] + f" ({ran} of {seeds} seeds)" * (ran < seeds)

    lines = head(summary, finished[0].record, "Rank, targets and learning rate: ")
    lines += [
        (f"Mean ± sd over {seeds} seeds" if seeds > 1 else "One seed")
        + "; a run is training and evaluation. On a front: no other row has at least this validation F1 for at most"
        " this cost. A mean over few seeds that lies within another's sd is no different from it.",
        "",
        table(
            enumerate(points),
            ("", lambda row: mode(row[1]), "{}"),
            ("targets", lambda row: ", ".join(row[1].configuration.targets), "{}"),
            ("r", lambda row: row[1].configuration.r or "", "{}"),
            ("learning rate", lambda row: row[1].configuration.learning_rate, "{:g}"),
            ("trained parameters", lambda row: row[1].parameters, "{:,}"),
            ("validation F1", lambda row: mean_sd(row[1].validation_f1, "{:.4f}"), "{}"),
            ("test F1", lambda row: mean_sd(row[1].test_f1, "{:.4f}"), "{}"),
            ("run (s)", lambda row: mean_sd(row[1].duration_s, "{:.1f}"), "{}"),
            (f"Wh {kind[0]} ({kind[1]})" if kind else "Wh", lambda row: mean_sd(row[1].wh, "{:.3f}"), "{}"),
            ("on the front of", lambda row: ", ".join(name for name, front in on.items() if row[0] in front), "{}"),
        ),
        "",
    ]
    if kind is None:
        lines += ["The cells have no kind of energy in common: there is no picture of it.", ""]
    lines += [*energy_sources(outcome.values["energy"] for outcome in finished), "", *failures(outcomes)]
    return [*lines, f"A cell: `{finished[0].command}`", "", *environments(outcome.record for outcome in finished)]


def draw_grid(outcomes: Sequence[Outcome], figure: Any) -> None:
    """Validation F1 against Wh and against trained parameters; bars go from the lowest to the highest seed."""
    from matplotlib.lines import Line2D

    finished = [outcome for outcome in outcomes if outcome.record]
    kind = energy_kind(finished)
    points = points_of(outcomes, kind and kind[0])
    targets = list(dict.fromkeys(p.configuration.targets for p in points if p.configuration.targets))
    rates = sorted({p.configuration.learning_rate for p in points if p.configuration.targets})
    colours = {name: f"C{number}" for number, name in enumerate(targets)}
    marks = {rate: "osD^vP"[number % 6] for number, rate in enumerate(rates)}
    panels = [("parameters", "trained parameters", lambda p: p.parameters)]
    if kind:
        panels.insert(0, ("Wh", f"Wh per run, {kind[0]} ({kind[1]})", lambda p: fmean(p.wh)))
    figure.set_size_inches(6 * len(panels), 5.6)
    figure.suptitle(f"{finished[0].record['model']} on {Path(finished[0].record['dataset']).name}")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, label, cost) in zip(row, panels, strict=True):
        line = [points[place] for place in fronts(points, kind)[name]]
        costs, scores = [cost(point) for point in line], [point.score for point in line]
        axes.plot(costs, scores, color="0.75", drawstyle="steps-post", zorder=1)
        for point in points:
            configuration, score = point.configuration, point.score
            is_full = configuration.mode == "full"
            axes.errorbar(
                cost(point), score, [[score - min(point.validation_f1)], [max(point.validation_f1) - score]],
                marker="*" if is_full else marks[configuration.learning_rate], markersize=13 if is_full else 7,
                color="black" if is_full else colours[configuration.targets], elinewidth=0.8,
                markeredgecolor="white" if point not in line else "black", zorder=3 if point in line else 2,
            )  # fmt: skip
            if not is_full:
                axes.annotate(
                    str(configuration.r), (cost(point), score), xytext=(6, -10), textcoords="offset points", fontsize=8
                )
        axes.set(xlabel=label, xscale="log" if name == "parameters" else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation F1 (seqeval, default mode)")
    handles = [Line2D([], [], marker="*", markersize=11, linestyle="", color="black", label="full fine-tuning")]
    handles += [
        Line2D([], [], marker="o", linestyle="", color=colours[t], label=f"LoRA: {', '.join(t)}") for t in targets
    ]
    handles += [Line2D([], [], marker=marks[r], linestyle="", color="0.4", label=f"learning rate {r:g}") for r in rates]
    handles.append(Line2D([], [], color="0.75", label="Pareto front; numbers are ranks"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
