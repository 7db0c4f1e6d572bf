"""The page's charts: learning curves, F1 by entity type, reliability of the scores, and energy over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.report.comparison import contention_note
from lorakit.report.errors import TENTHS, Tenth, mean_distance, tenths_of
from lorakit.report.palette import RUNS
from lorakit.report.runs import COMPONENTS, EnergyPoint, Run
from lorakit.report.svg import STAND_INS, draw, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = "osD^vPX*"
POINTS = 300  # per line; more would not be visible at this width
ROWS = 24  # of a chart's table
WEIGHTS, CALIBRATION = ("adapter", "model"), "calibration.json"  # folders in a run's; what `lorakit calibrate` writes
WIDTH = 380  # points, about as many as CSS pixels on a phone

Numbered = Sequence[tuple[int, Run]]  # runs with their numbers, which give them their colours


@dataclass(frozen=True)
class Chart:
    """A picture, what it shows in words, and its data as a table."""

    name: str
    title: str
    description: str
    svg: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def loss_chart(runs: Sequence[Run]) -> Chart | None:
    """Training loss by step and validation loss after each epoch; None if no loss was recorded."""
    numbered = [(i, run) for i, run in enumerate(runs) if _pairs(run.steps, "step", "loss")]
    if not numbered:
        return None
    rows = []
    for _, run in numbered:
        for step, loss in thinned(_pairs(run.steps, "step", "loss"), ROWS):
            rows.append((run.label, f"{step:,}", "training", f"{loss:.4f}"))
        rows += [(run.label, f"{s:,}", "validation", f"{x:.4f}") for s, x in _pairs(run.evaluations, "step", "loss")]
    return Chart(
        "loss",
        "Loss by step",
        "Lines: mean loss per training word since the previous log line. Markers: loss on the validation set after "
        "each epoch. The vertical axis is logarithmic.",
        draw("loss", partial(_paint_loss, numbered), WIDTH, 280),
        ("run", "step", "set", "loss"),
        tuple(rows),
    )


def _paint_loss(runs: Numbered, figure: "Figure") -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes = figure.subplots()
    for i, run in runs:
        colour, dash, marker = look(i)
        steps, losses = zip(*thinned(_pairs(run.steps, "step", "loss")), strict=True)
        axes.plot(steps, losses, color=colour, linestyle=dash, linewidth=1.2)
        validation = _pairs(run.evaluations, "step", "loss")
        if validation:
            axes.plot(*zip(*validation, strict=True), color=colour, marker=marker, linestyle="", markersize=6)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    locator, (low, high) = LogLocator(subs=(1, 2, 5)), axes.get_ylim()
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 3:  # a short run's losses are close
        locator = MaxNLocator(5)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(True, axis="y")
    _legend(figure, runs, marked=True)


def f1_chart(runs: Sequence[Run]) -> Chart | None:
    """Validation F1 after each epoch; None if no epoch was scored."""
    numbered = [(i, run) for i, run in enumerate(runs) if _pairs(run.evaluations, "epoch", "f1")]
    if not numbered:
        return None
    rows = []
    for _, run in numbered:
        rows += [(run.label, str(e), "validation", f"{f1:.4f}") for e, f1 in _pairs(run.evaluations, "epoch", "f1")]
        if test := run.scores("test"):
            epoch = "best of each seed" if run.seeds else str(run.values.get("best_epoch", "–"))
            rows.append((run.label, epoch, "test", f"{test['f1']:.4f}"))
    marks = "A ring marks the best epoch, whose weights are kept. " if any(_best(run) for _, run in numbered) else ""
    if any(_best(run) and run.scores("test") for _, run in numbered):
        marks += "A cross there is their F1 on the test set. "
    return Chart(
        "f1",
        "F1 by epoch",
        f"Seqeval's default mode, validation set. {marks}{'; '.join(_end_of(run) for _, run in numbered)}.",
        draw("f1", partial(_paint_f1, numbered), WIDTH, 280),
        ("run", "epoch", "set", "F1"),
        tuple(rows),
    )


def _end_of(run: Run) -> str:
    """Where a run's curve ends and is highest, and the test F1, in words."""
    test = f", test {scores['f1']:.4f}" if (scores := run.scores("test")) else ""
    best = max(e["f1"] for e in run.evaluations)
    return f"{run.label} ends at {run.evaluations[-1]['f1']:.4f}, best {best:.4f}{test}"


def _best(run: Run) -> tuple[int, float] | None:
    """The best epoch and its validation F1; None if it was not recorded or differs between seeds."""
    epochs = {} if run.seeds else dict(_pairs(run.evaluations, "epoch", "f1"))
    epoch = run.values.get("best_epoch")
    return (epoch, epochs[epoch]) if epoch in epochs else None


def _paint_f1(runs: Numbered, figure: "Figure") -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    for i, run in runs:
        colour, dash, marker = look(i)
        epochs, f1 = zip(*_pairs(run.evaluations, "epoch", "f1"), strict=True)
        axes.plot(epochs, f1, color=colour, linestyle=dash, marker=marker, markersize=6)
        if best := _best(run):
            axes.plot(*best, color=colour, marker="o", markersize=13, markerfacecolor="none", markeredgewidth=1.5)
            if test := run.scores("test"):
                axes.plot(best[0], test["f1"], color=colour, marker="x", markersize=9, markeredgewidth=2.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel="F1")
    axes.grid(True, axis="y")
    _legend(figure, runs, marked=True)


def type_chart(runs: Sequence[Run], split: str) -> Chart | None:
    """F1 of each entity type on a split; None if no run has any."""
    numbered = [(i, run) for i, run in enumerate(runs) if (run.scores(split) or {}).get("by_type")]
    if not numbered:
        return None
    names = sorted({name for _, run in numbered for name in run.scores(split)["by_type"]})
    rows = []
    for name in names:
        for _, run in numbered:
            row = run.scores(split)["by_type"].get(name)
            if row:
                scores = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
                rows.append((name, run.label, *scores, f"{row['support']:,}"))
    counts = [{name: row["support"] for name, row in run.scores(split)["by_type"].items()} for _, run in numbered]
    known = all(other == counts[0] for other in counts)  # as after runs on one corpus
    shown = [f"{plain(name, 18)} ({counts[0][name]:,})" if known else plain(name, 24) for name in names]
    about = "In brackets: the entities of the type in the annotation. " if known else ""
    height = min(1600, 110 + len(names) * (14 + 17 * len(numbered)))
    return Chart(
        f"types-{split}",
        f"F1 by entity type, {split} set",
        f"Seqeval's default mode, one bar per run and type ({', '.join(names)}). {about}A type with few entities has an"
        " uncertain F1.",
        draw(
            f"types-{split}",
            partial(_paint_types, numbered, dict(zip(names, shown, strict=True)), split),
            WIDTH,
            height,
        ),
        ("type", "run", "precision", "recall", "F1", "entities"),
        tuple(rows),
    )


def _paint_types(runs: Numbered, names: Mapping[str, str], split: str, figure: "Figure") -> None:
    axes = figure.subplots()
    height = 0.8 / len(runs)
    for place, (i, run) in enumerate(runs):
        scores = run.scores(split)["by_type"]
        known = [(row, scores[name]["f1"]) for row, name in enumerate(names) if name in scores]
        rows, f1 = zip(*known, strict=True)
        offset = (place - (len(runs) - 1) / 2) * height
        bars = axes.barh([row + offset for row in rows], f1, height * 0.86, color=look(i)[0])
        axes.bar_label(bars, fmt="{:.3f}", padding=3, fontsize=10)
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set(xlim=(0, 1.13), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel=f"F1, {split} set")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    _legend(figure, runs, bars=True)


def reliability_chart(run: Run, number: int) -> Chart | None:
    """The share of a run's predicted entities that is right, by score; None if the run was not calibrated.

    Args:
        run: the run.
        number: its number, which gives it its colour and its ids.

    Raises:
        ValueError: the calibration is damaged, or of other weights.
    """
    folder = next((f for f in _weights_of(run) if (f / CALIBRATION).is_file()), None)
    if folder is None:
        return None
    from lorakit.training.calibration_file import load_calibration  # slow to import

    found = load_calibration(folder)
    tenths = tenths_of([outcome for rows in found.outcomes.values() for outcome in rows])
    rows = [
        (span, f"{tenth.count:,}", f"{tenth.score:.3f}", f"{tenth.right:.3f}")
        for span, tenth in zip(TENTHS, tenths, strict=True)
        if tenth.count
    ]
    if not rows:
        return None
    return Chart(
        f"reliability{number}",
        f"{run.label}: are its scores honest?",
        f"Entities predicted on the validation set ({found.decode}), by score: the bars are the share that is right,"
        f" and the dashed line is where it equals the score. Mean distance {mean_distance(tenths):.3f}, after a"
        f" temperature of {found.temperature:.2f} fitted on the same set.",
        draw(f"reliability{number}", partial(_paint_reliability, tenths, number), WIDTH, 280),
        ("score", "entities", "mean score", "right"),
        tuple(rows),
    )


def _weights_of(run: Run) -> list[Path]:
    return [Path(run.folder) / part for part in WEIGHTS] if run.folder else []


def _paint_reliability(tenths: Sequence[Tenth], number: int, figure: "Figure") -> None:
    axes = figure.subplots()
    known = [(i, tenth) for i, tenth in enumerate(tenths) if tenth.count]
    axes.bar([i / 10 + 0.05 for i, _ in known], [tenth.right for _, tenth in known], 0.09, color=look(number)[0])
    axes.plot([0, 1], [0, 1], color=STAND_INS["muted"], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that is right")
    axes.grid(True, axis="y")


def energy_chart(run: Run, number: int, top_wh: float, top_s: float) -> Chart | None:
    """Watt-hours over time, one panel per component: solid is measured, hatched estimated; None without a journal.

    Args:
        run: the run.
        number: its number, for the ids inside the drawing.
        top_wh: the upper end of the vertical axis, common to all runs and components so that they can be compared.
        top_s: the right end of the horizontal axis, seconds, common to all runs.
    """
    points = thinned(run.energy)
    if len(points) < 2:
        return None
    rows = []
    for point in thinned(run.energy, ROWS):
        cells = ("unavailable" if (wh := point.wh[name]) is None else f"{wh:.4g}" for name in COMPONENTS)
        rows.append((f"{point.elapsed_s:,.0f}", *cells))
    kinds = [f"{name.upper()}: {run.kind_of(name)}" for name in COMPONENTS]
    note = contention_note(run.values)
    return Chart(
        f"energy{number}",
        f"{run.label}: energy over time",
        f"{'; '.join(kinds)}. Solid areas are measured, hatched ones estimated; thin dashed lines show the lowest and "
        f"highest plausible values of an estimate.{f' Note: {note}.' if note else ''}",
        draw(f"energy{number}", partial(_paint_energy, run, points, top_wh, top_s), WIDTH, 330),
        ("seconds", *(f"{name.upper()}, {run.kind_of(name)} (Wh)" for name in COMPONENTS)),
        tuple(rows),
    )


def _paint_energy(run: Run, points: Sequence[EnergyPoint], top_wh: float, top_s: float, figure: "Figure") -> None:
    unit_s, unit = (3600.0, "hours") if top_s > 7200 else (60.0, "minutes")
    if top_s < 180:
        unit_s, unit = 1.0, "seconds"
    times = [point.elapsed_s / unit_s for point in points]
    panels = figure.subplots(len(COMPONENTS), sharex=True)
    for axes, name in zip(panels, COMPONENTS, strict=True):
        _paint_component(axes, name, run, times, points)
        axes.set(ylim=(0, top_wh), xlim=(0, top_s / unit_s))
    panels[-1].set_xlabel(f"{unit} since the start")
    figure.supylabel("Wh so far", fontsize=11)


def _paint_component(axes: "Axes", name: str, run: Run, times: Sequence[float], points: Sequence[EnergyPoint]) -> None:
    colour, kind, wh = STAND_INS[name], run.kind_of(name), [point.wh[name] for point in points]
    axes.set_title(f"{name.upper()} – {kind}", loc="left", fontsize=11, color=STAND_INS["ink"])
    if None in wh:
        axes.text(0.5, 0.5, "no value, which is not zero", ha="center", va="center", transform=axes.transAxes,
                  color=STAND_INS["muted"], fontsize=11)  # fmt: skip
        axes.set_yticks([])
        axes.tick_params(axis="x", length=0)
        axes.spines["left"].set_visible(False)
        return
    if kind == "measured":
        axes.fill_between(times, wh, color=colour, linewidth=0)
    else:
        axes.fill_between(times, wh, facecolor=STAND_INS["panel"], edgecolor=colour, hatch="////", linewidth=0)
        ranges = [point.range_wh[name] for point in points]
        if None not in ranges:
            for ends in zip(*ranges, strict=True):
                axes.plot(times, ends, color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.plot(times, wh, color=colour, linewidth=1.8)
    axes.set_title(f"{wh[-1]:.3g} Wh", loc="right", fontsize=11, color=STAND_INS["ink"])
    axes.grid(True, axis="y")


def top_of(runs: Sequence[Run]) -> float:
    """The upper end of a vertical axis that holds every component of every run, Wh."""
    ends = [wh for run in runs if run.energy for wh in run.energy[-1].wh.values() if wh is not None]
    highs = [span[1] for run in runs if run.energy for span in run.energy[-1].range_wh.values() if span]
    return 1.08 * max(ends + highs, default=0.0) or 1.0


def longest(runs: Sequence[Run]) -> float:
    """The right end of a time axis that holds every run's energy over time, s."""
    return max((run.energy[-1].elapsed_s for run in runs if run.energy), default=0.0) or 1.0


def look(number: int) -> tuple[str, Any, str]:
    """Colour, dashes and marker of a run: three ways to tell it from the others."""
    return (
        STAND_INS[f"run{number % RUNS + 1}"],
        DASHES[(number % RUNS + number // RUNS) % len(DASHES)],
        MARKERS[number % len(MARKERS)],
    )


def thinned(points: Sequence[Any], most: int = POINTS) -> list[Any]:
    """At most `most` of the points, evenly spaced, including the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _legend(figure: "Figure", runs: Numbered, marked: bool = False, bars: bool = False) -> None:
    """Name the runs below the axes."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, columns = [], 2 if max(len(plain(run.label, 30)) for _, run in runs) > 16 or len(runs) == 2 else 3
    for i, _ in runs:
        colour, dash, marker = look(i)
        handles.append(
            Patch(color=colour)
            if bars
            else Line2D([], [], color=colour, linestyle=dash, marker=marker if marked else "")
        )
    labels = [plain(run.label, 30) for _, run in runs]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)


def _pairs(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[int, float]]:
    return [(line[x], line[y]) for line in lines if line.get(x) is not None and line.get(y) is not None]
