"""The report's charts: drawn by matplotlib, as SVG that takes its colours from the page.

matplotlib is given a stand-in for each colour of the palette, which the finished SVG replaces by a CSS variable: one
drawing serves both themes. Text stays text. Names inside a drawing get its own prefix, so that many share one page.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from lorakit.power.reading import MEASURED
from lorakit.report.palette import LIGHT, RUNS
from lorakit.report.runs import COMPONENTS, EnergyPoint, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAND_INS = {name: f"#a1b2{number:02x}" for number, name in enumerate(LIGHT)}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = "osD^vPX*"
POINTS = 300  # of a line; more would not be seen at this width
ROWS = 24  # of a chart's table
WIDTH = 380  # points, about as many as CSS pixels on a phone


@dataclass(frozen=True)
class Chart:
    """A picture, what it shows in words, and its figures as a table."""

    name: str
    title: str
    description: str
    svg: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def loss_chart(runs: Sequence[Run]) -> Chart | None:
    """Training loss by step and validation loss after each epoch; None where nothing is known."""
    runs_with = [(i, run) for i, run in enumerate(runs) if _pairs(run.steps, "step", "loss")]
    if not runs_with:
        return None

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes = figure.subplots()
        for i, run in runs_with:
            colour, dash, marker = look(i)
            steps, losses = zip(*thinned(_pairs(run.steps, "step", "loss")), strict=True)
            axes.plot(steps, losses, color=colour, linestyle=dash, linewidth=1.2)
            validation = _pairs(run.evaluations, "step", "loss")
            if validation:
                axes.plot(*zip(*validation, strict=True), color=colour, marker=marker, linestyle="", markersize=6)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(True, axis="y")
        legend(figure, runs_with, marked=True)

    rows = []
    for _, run in runs_with:
        for step, loss in thinned(_pairs(run.steps, "step", "loss"), ROWS):
            rows.append((run.label, f"{step:,}", "training", f"{loss:.4f}"))
        rows += [(run.label, f"{s:,}", "validation", f"{x:.4f}") for s, x in _pairs(run.evaluations, "step", "loss")]
    return Chart(
        "loss",
        "Loss by step",
        "Lines: mean loss on the training words since the last log line. Marks: loss on the validation set after an "
        "epoch. The vertical axis is logarithmic.",
        draw("loss", paint, WIDTH, 280),
        ("run", "step", "of", "loss"),
        tuple(rows),
    )


def f1_chart(runs: Sequence[Run]) -> Chart | None:
    """Validation F1 after each epoch; None where no epoch was scored."""
    runs_with = [(i, run) for i, run in enumerate(runs) if _pairs(run.evaluations, "epoch", "f1")]
    if not runs_with:
        return None

    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for i, run in runs_with:
            colour, dash, marker = look(i)
            epochs, f1 = zip(*_pairs(run.evaluations, "epoch", "f1"), strict=True)
            axes.plot(epochs, f1, color=colour, linestyle=dash, marker=marker, markersize=6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel="validation F1")
        axes.grid(True, axis="y")
        legend(figure, runs_with, marked=True)

    ends = "; ".join(
        f"{run.label} ends at {run.evaluations[-1]['f1']:.4f}, best {max(e['f1'] for e in run.evaluations):.4f}"
        for _, run in runs_with
    )
    rows = [
        (run.label, str(epoch), f"{f1:.4f}")
        for _, run in runs_with
        for epoch, f1 in _pairs(run.evaluations, "epoch", "f1")
    ]
    return Chart(
        "f1",
        "Validation F1 by epoch",
        f"Seqeval's default mode. {ends}.",
        draw("f1", paint, WIDTH, 280),
        ("run", "epoch", "F1"),
        tuple(rows),
    )


def type_chart(runs: Sequence[Run], split: str) -> Chart | None:
    """F1 of each entity type; None where no run has any."""
    runs_with = [(i, run) for i, run in enumerate(runs) if (run.scores(split) or {}).get("by_type")]
    if not runs_with:
        return None
    names = sorted({name for _, run in runs_with for name in run.scores(split)["by_type"]})

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        height = 0.8 / len(runs_with)
        for place, (i, run) in enumerate(runs_with):
            scores = run.scores(split)["by_type"]
            known = [(row, scores[name]["f1"]) for row, name in enumerate(names) if name in scores]
            rows, f1 = zip(*known, strict=True)
            offset = (place - (len(runs_with) - 1) / 2) * height
            bars = axes.barh([row + offset for row in rows], f1, height * 0.86, color=look(i)[0])
            axes.bar_label(bars, fmt="{:.3f}", padding=3, fontsize=10)
        axes.set_yticks(range(len(names)), [plain(name, 24) for name in names])
        axes.set(xlim=(0, 1.13), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel=f"F1, {split} set")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        legend(figure, runs_with, bars=True)

    height = min(1600, 110 + len(names) * (14 + 17 * len(runs_with)))
    rows = []
    for name in names:
        for _, run in runs_with:
            row = run.scores(split)["by_type"].get(name)
            if row:
                figures = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
                rows.append((name, run.label, *figures, f"{row['support']:,}"))
    return Chart(
        f"types-{split}",
        f"F1 by entity type, {split} set",
        f"Seqeval's default mode, one bar for each run and type ({', '.join(names)}).",
        draw(f"types-{split}", paint, WIDTH, height),
        ("type", "run", "precision", "recall", "F1", "entities"),
        tuple(rows),
    )


def energy_chart(run: Run, number: int, top_wh: float) -> Chart | None:
    """Watt-hours over time, a panel a component: solid is measured, hatched is estimated; None without a journal.

    Args:
        number: which run it is, for the names inside the drawing.
        top_wh: the upper end of the vertical axis, so that runs and components can be compared.
    """
    points = thinned(run.energy)
    if len(points) < 2:
        return None
    unit_s, unit = (3600.0, "hours") if points[-1].elapsed_s > 7200 else (60.0, "minutes")
    if points[-1].elapsed_s < 180:
        unit_s, unit = 1.0, "seconds"
    times = [point.elapsed_s / unit_s for point in points]

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(len(COMPONENTS), sharex=True)
        for axes, name in zip(panels, COMPONENTS, strict=True):
            _paint_component(axes, name, run, times, points)
            axes.set(ylim=(0, top_wh), xlim=(0, times[-1]))
        panels[-1].set_xlabel(f"{unit} since the start")
        figure.supylabel("Wh so far", fontsize=11)

    rows = []
    for point in thinned(run.energy, ROWS):
        figures = ("unavailable" if (wh := point.wh[name]) is None else f"{wh:.4g}" for name in COMPONENTS)
        rows.append((f"{point.elapsed_s:,.0f}", *figures))
    kinds = [f"{name.upper()}: {state_of(run.component(name))}" for name in COMPONENTS]
    return Chart(
        f"energy{number}",
        f"{run.label}: energy over time",
        f"{'; '.join(kinds)}. Solid areas are measured, hatched ones estimated; thin dashed lines are an estimate's "
        "lowest and highest plausible value.",
        draw(f"energy{number}", paint, WIDTH, 330),
        ("seconds", *(f"{name.upper()}, {state_of(run.component(name))} (Wh)" for name in COMPONENTS)),
        tuple(rows),
    )


def _paint_component(axes: "Axes", name: str, run: Run, times: Sequence[float], points: Sequence[EnergyPoint]) -> None:
    colour, state, wh = STAND_INS[name], state_of(run.component(name)), [point.wh[name] for point in points]
    axes.set_title(f"{name.upper()} – {state}", loc="left", fontsize=11, color=STAND_INS["ink"])
    if None in wh:
        axes.text(0.5, 0.5, "no figure, which is not zero", ha="center", va="center", transform=axes.transAxes,
                  color=STAND_INS["muted"], fontsize=11)  # fmt: skip
        axes.set_yticks([])
        axes.tick_params(axis="x", length=0)
        axes.spines["left"].set_visible(False)
        return
    if state == "measured":
        axes.fill_between(times, wh, color=colour, linewidth=0)
    else:
        axes.fill_between(times, wh, facecolor=STAND_INS["panel"], edgecolor=colour, hatch="////", linewidth=0)
        spans = [point.range_wh[name] for point in points]
        if None not in spans:
            for ends in zip(*spans, strict=True):
                axes.plot(times, ends, color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.plot(times, wh, color=colour, linewidth=1.8)
    axes.set_title(f"{wh[-1]:.3g} Wh", loc="right", fontsize=11, color=STAND_INS["ink"])
    axes.grid(True, axis="y")


def state_of(component: Mapping[str, Any] | None) -> str:
    """ "measured", "estimated", "unavailable", or "not recorded" where the file says nothing."""
    if component is None:
        return "not recorded"
    return "measured" if component["method"] in MEASURED else component["method"]


def top_of(runs: Sequence[Run]) -> float:
    """A vertical axis that holds every component of every run."""
    ends = [wh for run in runs if run.energy for wh in run.energy[-1].wh.values() if wh is not None]
    highs = [span[1] for run in runs if run.energy for span in run.energy[-1].range_wh.values() if span]
    return 1.08 * max(ends + highs, default=0.0) or 1.0


def look(number: int) -> tuple[str, Any, str]:
    """Colour, dash and mark of a run: three ways to tell it from the others."""
    return (
        STAND_INS[f"run{number % RUNS + 1}"],
        DASHES[(number % RUNS + number // RUNS) % len(DASHES)],
        MARKERS[number % len(MARKERS)],
    )


def legend(figure: "Figure", runs: Sequence[tuple[int, Run]], marked: bool = False, bars: bool = False) -> None:
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


def plain(text: str, length: int) -> str:
    """A name as a drawing can show it: printable, short, and not hidden, as matplotlib hides names with a leading _."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= length else "…" + text[1 - length :]  # the ends of paths tell them apart
    return f"\u200b{text}" if text.startswith("_") else text


def thinned(points: Sequence[Any], most: int = POINTS) -> list[Any]:
    """At most so many of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _pairs(lines: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[int, float]]:
    return [(line[x], line[y]) for line in lines if line.get(x) is not None and line.get(y) is not None]


def draw(name: str, paint: Callable[["Figure"], None], width: float, height: float) -> str:
    """An SVG element as text, the same bytes for the same figures; sizes in points."""
    from matplotlib.figure import Figure  # heavy: only when a picture is drawn

    with _style():
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(file.getvalue(), name)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    ink, muted, rule = (STAND_INS[name] for name in ("ink", "muted", "rule"))
    chosen = {
        "svg.fonttype": "none", "svg.hashsalt": "lorakit", "text.parse_math": False, "font.size": 11,
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": rule, "xtick.color": muted, "ytick.color": muted,
        "grid.color": rule, "grid.linewidth": 0.7, "axes.axisbelow": True, "hatch.linewidth": 1.4,
        "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.8,
    }  # fmt: skip
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's own font will have it
        yield


def _inline(svg: str, name: str) -> str:
    """matplotlib's file as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)[1]
    names = f'aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" {names} focusable="false">', svg, count=1)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: _own(tag[0], name), svg).strip()  # tags alone: text is the user's


def _own(tag: str, name: str) -> str:
    """A tag whose names have the drawing's prefix and whose colours are the page's."""
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', tag)
    for variable, stand_in in STAND_INS.items():
        tag = tag.replace(stand_in, f"var(--{variable})")
    return tag


def titled(chart: Chart) -> str:
    """The chart's SVG with its title and description inside, for readers who do not see it."""
    head, rest = chart.svg.split(">", 1)
    title, description = escape(chart.title), escape(chart.description)
    return (
        f'{head}><title id="{chart.name}-title">{title}</title><desc id="{chart.name}-desc">{description}</desc>{rest}'
    )
