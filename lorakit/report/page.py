"""The report as one HTML page: self-contained, for any runs, in a light and a dark theme.

What it shows comes from `runs.read_sources` alone. Every number stands in a <data> element that holds its exact value
beside the rounded one. Text from outside is escaped by the template engine, and the page's own policy lets no script
run but the one below and nothing be fetched.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from lorakit._files import write_text
from lorakit.adapters.counting import WHY_PEFT_COUNTS_MORE
from lorakit.report.charts import energy_chart, f1_chart, loss_chart, state_of, titled, top_of, type_chart
from lorakit.report.costs import cost_to_reach, targets
from lorakit.report.palette import DARK, LIGHT, RUNS
from lorakit.report.runs import COMPONENTS, Run, Source, read_sources
from lorakit.report.tables import metric_rows

TEMPLATE = Path(__file__).with_name("page.html")
SECTIONS = (
    ("summary", "At a glance"),
    ("scores", "Scores"),
    ("curves", "Learning curves"),
    ("energy", "Energy"),
    ("types", "Entity types"),
    ("parameters", "Parameters"),
    ("cost", "Cost to reach an F1"),
    ("environment", "Environment"),
)
SCRIPT = """
(() => {
  const names = ["automatic", "light", "dark"], button = document.getElementById("theme");
  let chosen = 0;
  const show = () => {
    if (chosen) document.documentElement.dataset.theme = names[chosen];
    else delete document.documentElement.dataset.theme;
    button.textContent = "Theme: " + names[chosen];
  };
  try { chosen = Math.max(0, names.indexOf(localStorage.getItem("lorakit-theme"))); } catch {}
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = (chosen + 1) % names.length;
    show();
    try { localStorage.setItem("lorakit-theme", names[chosen]); } catch {}
  });
  show();
})();
"""


@dataclass(frozen=True)
class Cell:
    """A figure as shown and as it is; `kind` says how an energy was obtained."""

    text: str
    value: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]
    key: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Group:
    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    id: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    title: str = ""


def write_page(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    labels: Sequence[str] = (),
    f1_targets: Sequence[float] = (),
) -> Path:
    """Write the report of some runs' folders, whole or not at all; returns where.

    Args:
        output: the file; by default report.html in the run's folder, and for several runs in the current one.
        labels: a name for each folder.
        f1_targets: the F1 of which the cost is shown, instead of shares of the best.

    Raises:
        ValueError: a folder holds no run, or the output's folder does not exist.
    """
    page = make_page(read_sources(folders, labels), f1_targets)
    path = Path(output) if output else Path(folders[0] if len(folders) == 1 else ".") / "report.html"
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"the report cannot be written to {path}: give a file in a folder that exists")
    write_text(path, page)
    return path


def make_page(sources: Sequence[Source], f1_targets: Sequence[float] = ()) -> str:
    """The page's HTML, the same for the same runs."""
    from jinja2 import Environment, StrictUndefined  # only when a page is made
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    runs = [run for source in sources for run in source.runs]
    own = [run for run in runs if not run.published]
    top_wh = top_of(own)
    energy_charts = [energy_chart(run, i, top_wh) for i, run in enumerate(own)]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return template.render(
        script=Markup(SCRIPT),
        script_hash=f"sha256-{digest}",
        light=LIGHT,
        dark=DARK,
        version=_version(),
        sections=SECTIONS,
        title=_title(sources),
        subtitle=f"{len(own)} {'run' if len(own) == 1 else 'runs'}: {', '.join(run.label for run in own)}",
        svg=lambda chart: Markup(titled(chart)),
        cards=[_card(run, i) for i, run in enumerate(own)],
        score_tables=[table for split in ("validation", "test") if (table := _score_table(runs, split))],
        curves=[chart for chart in (f1_chart(own), loss_chart(own)) if chart],
        energy_table=_energy_table(runs),
        energy_notes=_energy_notes(own),
        energy_charts=[chart for chart in energy_charts if chart],
        types=[chart for split in ("validation", "test") if (chart := type_chart(own, split))],
        parameter_table=_parameter_table(runs),
        parameter_notes=_parameter_notes(own),
        cost_table=_cost_table(own, f1_targets),
        sources=[_source(source) for source in sources],
    )


def _title(sources: Sequence[Source]) -> str:
    if len(sources) > 1:
        return f"{len(sources)} runs side by side"
    model, dataset = sources[0].model, sources[0].dataset
    return f"{model} on {dataset}" if model and dataset else sources[0].folder


def _version() -> str:
    try:
        return version_of("lorakit")
    except PackageNotFoundError:  # used from its folder without being installed
        return "(not installed)"


def figure(value: float | None, digits: int = 4, unknown: str = "not recorded", sign: bool = False) -> Cell:
    """Fixed digits, so that a column can be compared at a glance."""
    return (
        Cell(unknown)
        if value is None
        else Cell(f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−"), repr(value))
    )


def watt_hours(value: float | None, kind: str, unknown: str) -> Cell:
    """Four significant digits: runs span from milliwatt-hours to kilowatt-hours."""
    if value is None:
        return Cell(unknown, kind="unavailable" if kind == "unavailable" else "")
    digits = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return Cell(f"{value:,.{digits}f}", repr(value), kind)


def _difference(runs: Sequence[Run]) -> tuple[str, ...]:
    own = [run for run in runs if not run.published]
    return (f"{own[1].label} − {own[0].label}",) if len(own) == 2 else ()


def _compared(
    runs: Sequence[Run], get: Callable[[Run], float | None], digits: int, unknown: str = "not recorded"
) -> tuple[Cell, ...]:
    """A figure of each run, and the difference where there are two."""
    cells = [figure(get(run), digits, "not published" if run.published else unknown) for run in runs]
    own = [get(run) for run in runs if not run.published]
    if len(own) == 2:
        cells.append(Cell("–") if None in own else figure(own[1] - own[0], digits, sign=True))
    return tuple(cells)


def _score_table(runs: Sequence[Run], split: str) -> Table | None:
    if not any(run.scores(split) for run in runs):
        return None
    runs = [run for run in runs if run.scores(split) or not run.published]
    rows = {
        name: Row(
            name.removesuffix(", strict IOB2").removeprefix(f"{split} ").capitalize(),
            _compared(runs, lambda run, get=get: get(scores) if (scores := run.scores(split)) else None, 4),
            key=name.startswith("F1"),
        )
        for name, get in metric_rows(split)
    }
    strict = tuple(row for name, row in rows.items() if name.endswith("strict IOB2"))
    default = tuple(row for name, row in rows.items() if not name.endswith("strict IOB2"))
    return Table(
        f"scores-{split}",
        f"Scores on the {split} set",
        "metric",
        (*(run.label for run in runs), *_difference(runs)),
        (Group("Default mode", default), Group("Strict IOB2", strict)),
        title=f"{split.capitalize()} set",
    )


def _energy_table(runs: Sequence[Run]) -> Table:
    def part(run: Run, name: str) -> Cell:
        component = run.component(name)
        kind = state_of(component)
        if component is None:
            return Cell("not recorded")
        kwh = component.get("kwh")
        return watt_hours(None if kwh is None else 1e3 * kwh, kind, "–")

    def power(run: Run, name: str) -> Cell:
        return figure(
            (run.component(name) or {}).get("mean_w"), 1, "unavailable" if run.component(name) else "not recorded"
        )

    def total(run: Run, name: str, kind: str) -> Cell:
        energy = run.values.get("energy")
        kwh = (energy or {}).get(f"{name}_kwh")
        nothing = "not recorded" if energy is None else f"nothing {name}"
        return watt_hours(None if kwh is None else 1e3 * kwh, kind, nothing)

    def plainly(run: Run, key: str, digits: int) -> Cell:
        return figure(run.values.get(key), digits, "not published" if run.published else "not recorded")

    def row(name: str, cell: Callable[[Run], Cell], key: bool = False) -> Row:
        return Row(name, tuple(cell(run) for run in runs), key)

    parts = tuple(row(name.upper(), lambda run, n=name: part(run, n)) for name in COMPONENTS)
    totals = tuple(
        row(f"Total {name}", lambda run, n=name: total(run, n, n), key=True) for name in ("measured", "estimated")
    )
    powers = tuple(row(name.upper(), lambda run, n=name: power(run, n)) for name in COMPONENTS)
    times = (
        row("Training (s)", lambda run: plainly(run, "train_seconds", 1)),
        row("All, evaluation included (s)", lambda run: plainly(run, "duration_s", 1)),
        row("Training tokens per second", lambda run: plainly(run, "train_tokens_per_s", 0)),
    )
    return Table(
        "energy-table",
        "Watt-hours by component, each with how it was obtained",
        "component",
        tuple(run.label for run in runs),
        (Group("Energy (Wh)", parts + totals), Group("Mean power (W)", powers), Group("Time", times)),
    )


def _energy_notes(runs: Sequence[Run]) -> list[str]:
    """How each component's figure was obtained, once where runs agree."""
    notes: dict[str, list[str]] = {}
    for run in runs:
        for name in COMPONENTS:
            component = run.component(name)
            if component is not None:
                text = f"{name.upper()}: {component['method']} ({component.get('source') or 'source not recorded'})"
                span = component.get("range_kwh")
                if span:
                    text += f", plausible from {1e3 * span[0]:.3g} to {1e3 * span[1]:.3g} Wh"
                elif component.get("uncertainty_kwh") is not None:
                    text += f", ± {1e3 * component['uncertainty_kwh']:.2g} Wh"
                notes.setdefault(text, []).append(run.label)
    return [text if len(labels) == len(runs) else f"{', '.join(labels)} – {text}" for text, labels in notes.items()]


def _parameter_table(runs: Sequence[Run]) -> Table:
    def share(run: Run) -> float | None:
        trained, total = run.values.get("trainable_parameters"), run.values.get("total_parameters")
        return 100 * trained / total if trained is not None and total else None

    def adapter(run: Run, name: str) -> Cell:
        options = run.values.get("adapter")
        if not options or name not in options:
            return Cell("none" if run.mode == "full" else "not recorded")
        value = options[name]
        return Cell(", ".join(map(str, value)) if isinstance(value, list) else str(value), str(value))

    def row(name: str, cells: Sequence[Cell], key: bool = False) -> Row:
        return Row(name, tuple(cells), key)

    def plainly(name: str, key: str, digits: int) -> Row:
        unknown = "not recorded"
        return row(name, [figure(run.values.get(key), digits, unknown) for run in runs])

    def as_is(name: str, key: str) -> Row:
        values = [run.values.get(key) for run in runs]
        return row(name, [Cell("not recorded") if v is None else Cell(f"{v:g}", repr(v)) for v in values])

    counts = (
        row("Trained", [figure(run.values.get("trainable_parameters"), 0) for run in runs], key=True),
        plainly("In all", "total_parameters", 0),
        row("Share trained (%)", [figure(share(run), 4) for run in runs]),
    )
    settings = (
        plainly("Epochs", "epochs", 0),
        plainly("Best epoch", "best_epoch", 0),
        as_is("Learning rate", "learning_rate"),
        plainly("Sentences a batch", "batch_size", 0),
        plainly("Steps", "steps", 0),
        plainly("Tokens trained on", "train_tokens", 0),
        as_is("Seed", "seed"),
    )
    groups = [Group("Parameters", counts), Group("Training", settings)]
    options = dict.fromkeys(
        name for run in runs for name in run.values.get("adapter") or {} if name != "peft_total_parameters"
    )
    if options:
        rows = tuple(row(name, [adapter(run, name) for run in runs]) for name in options)
        groups.append(Group("LoRA", rows))
    return Table(
        "parameter-table",
        "What was trained, and how",
        "",
        tuple(run.label for run in runs),
        tuple(groups),
    )


def _parameter_notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    for run in runs:
        peft = (run.values.get("adapter") or {}).get("peft_total_parameters")
        if peft and peft != run.values.get("total_parameters"):
            notes.append(f"{run.label}: PEFT would print {peft:,} in all: {WHY_PEFT_COUNTS_MORE}")
    return notes


def _cost_table(runs: Sequence[Run], chosen: Sequence[float]) -> Table | None:
    scored = [run for run in runs if run.evaluations]
    wanted = targets(scored, chosen)
    if not wanted or not scored:
        return None

    def cells(f1: float, get: Callable[[Any], Cell]) -> tuple[Cell, ...]:
        costs = [cost_to_reach(run, f1) for run in scored]
        return tuple(Cell("not reached") if cost is None else get(cost) for cost in costs)

    groups = []
    for f1, share in wanted:
        name = f"F1 {f1:.4f}" + ("" if share is None else ", the best" if share == 1 else f", {share:.0%} of the best")
        rows = [
            Row("Epoch", cells(f1, lambda cost: Cell(str(cost.epoch), str(cost.epoch)))),
            Row("Seconds", cells(f1, lambda cost: figure(cost.seconds, 1))),
        ]
        for kind in ("measured", "estimated"):
            shown = [run for run in scored if any(state_of(run.component(name)) == kind for name in COMPONENTS)]
            if shown:
                found = cells(f1, lambda cost, k=kind: watt_hours(getattr(cost, f"{k}_wh"), "", "not recorded"))
                rows.append(Row(f"Wh {kind}", found, kind=kind))
        groups.append(Group(name, tuple(rows)))
    return Table(
        "cost-table", "Cost up to the epoch that first reached a validation F1", "", tuple(r.label for r in scored),
        tuple(groups),
    )  # fmt: skip


def _card(run: Run, number: int) -> Mapping[str, Any]:
    split = "test" if run.scores("test") else "validation"
    scores, energy = run.scores(split), run.values.get("energy") or {}
    trained = run.values.get("trainable_parameters")
    facts = [("Parameters trained", figure(trained, 0)), ("Duration (s)", figure(run.values.get("duration_s"), 1))]
    for kind in ("measured", "estimated"):
        kwh = energy.get(f"{kind}_kwh")
        facts.append((f"Energy {kind} (Wh)", watt_hours(None if kwh is None else 1e3 * kwh, "", f"nothing {kind}")))
    return {
        "label": run.label,
        "colour": f"run{number % RUNS + 1}",
        "score": figure(scores["f1"] if scores else None),
        "score_name": f"F1, {split} set" if scores else "no score was recorded",
        "facts": facts if energy else facts[:2],
    }


def _source(source: Source) -> Mapping[str, Any]:
    facts = [("model", source.model), ("corpus", source.dataset), ("folder", source.folder)]
    facts = [(name, "not recorded" if value is None else str(value)) for name, value in facts]
    facts += [(name, str(value)) for name, value in source.environment.items()]
    if not source.environment:
        facts.append(("environment", "not recorded"))
    labels = ", ".join(run.label for run in source.runs if not run.published)
    return {"name": labels, "command": source.command, "facts": facts}
