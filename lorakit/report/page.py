"""The report as one self-contained HTML page about any runs, with a light and a dark theme.

Everything on it comes from `runs.read_sources`. Every number is in a <data> element that also holds its exact value.
The template engine escapes text from outside, and the page's content security policy allows no script except the one
below and no request.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from lorakit._files import write_text
from lorakit.report.cells import UNKNOWN, Cell, Group, Row, Table, number, watt_hours
from lorakit.report.charts import energy_chart, f1_chart, loss_chart, top_of, type_chart
from lorakit.report.comparison import contention_note
from lorakit.report.costs import Cost, cost_to_reach, f1_goals
from lorakit.report.palette import DARK, LIGHT, RUNS
from lorakit.report.run_comparison import SCORES, compare_runs, contention_lines, pair_rows, side_rows
from lorakit.report.runs import COMPONENTS, Run, Source, read_sources
from lorakit.report.svg import titled
from lorakit.report.tables import MARK, METRICS, WHY_PEFT_COUNTS_MORE, contention_notes, metric

TEMPLATE = Path(__file__).with_name("page.html")
SECTIONS = (
    ("summary", "At a glance"),
    ("scores", "Scores"),
    ("comparison", "Comparison"),
    ("curves", "Learning curves"),
    ("energy", "Energy"),
    ("types", "Entity types"),
    ("parameters", "Parameters"),
    ("cost", "Cost to reach an F1"),
    ("environment", "Environment"),
)
KINDS = ("measured", "estimated")
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


def write_page(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    labels: Sequence[str] = (),
    goals: Sequence[float] = (),
) -> Path:
    """Write the report about some runs atomically.

    Args:
        folders: output folders of runs.
        output: the file; by default report.html in the run's folder or, for several runs, in the current folder.
        labels: a name per folder.
        goals: the F1 whose cost is shown, instead of shares of the best F1.

    Returns:
        The path of the file.

    Raises:
        ValueError: a folder holds no run, or the output's folder does not exist.
        OSError: the file cannot be written.
    """
    page = make_page(read_sources(folders, labels), goals)
    path = Path(output) if output else Path(folders[0] if len(folders) == 1 else ".") / "report.html"
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"the report cannot be written to {path}: give a file in a folder that exists")
    write_text(path, page)
    return path


def make_page(sources: Sequence[Source], goals: Sequence[float] = ()) -> str:
    """The page's HTML; the same runs give the same bytes."""
    from jinja2 import Environment, StrictUndefined  # slow to import, so only when a page is made
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
        svg=lambda chart: Markup(titled(chart.svg, chart.name, chart.title, chart.description)),
        cards=[_card(run, i) for i, run in enumerate(own)],
        score_tables=[table for split in ("validation", "test") if (table := _score_table(runs, split))],
        comparison=_comparison(sources),
        curves=[chart for chart in (f1_chart(own), loss_chart(own)) if chart],
        energy_table=_energy_table(runs),
        energy_notes=_energy_notes(own),
        energy_charts=[chart for chart in energy_charts if chart],
        types=[chart for split in ("validation", "test") if (chart := type_chart(own, split))],
        parameter_table=_parameter_table(runs),
        parameter_notes=_parameter_notes(own),
        cost_table=_cost_table(own, goals),
        cost_notes=contention_notes({run.label: run.values for run in own}),
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


def _columns(runs: Sequence[Run]) -> tuple[str, ...]:
    """A column per run, and one for the difference if there are two of our own."""
    own = [run for run in runs if not run.published]
    difference = (f"{own[1].label} − {own[0].label}",) if len(own) == 2 else ()
    return (*(run.label for run in runs), *difference)


def _compared(runs: Sequence[Run], get: Callable[[Run], float | None], digits: int) -> tuple[Cell, ...]:
    """A number per run, and the difference if there are two of our own."""
    cells = [number(get(run), digits, _unknown(run)) for run in runs]
    own = [get(run) for run in runs if not run.published]
    if len(own) == 2:
        cells.append(Cell("–") if None in own else number(own[1] - own[0], digits, sign=True))
    return tuple(cells)


def _unknown(run: Run) -> str:
    return "not published" if run.published else UNKNOWN


def _value(run: Run, key: str, digits: int) -> Cell:
    return number(run.values.get(key), digits, _unknown(run))


def _row(runs: Sequence[Run], name: str, cell: Callable[[Run], Cell], key: bool = False) -> Row:
    return Row(name, tuple(cell(run) for run in runs), key)


def _score_table(runs: Sequence[Run], split: str) -> Table | None:
    if not any(run.scores(split) for run in runs):
        return None
    runs = [run for run in runs if run.scores(split) or not run.published]
    rows: dict[bool, list[Row]] = {False: [], True: []}  # by whether they are strict
    for name, keys in METRICS:
        cells = _compared(runs, lambda run, keys=keys: metric(run.scores(split), keys), 4)
        shown = name.removesuffix(", strict IOB2").capitalize()
        rows[keys[0] == "strict"].append(Row(shown, cells, key=shown == "F1"))
    return Table(
        f"scores-{split}",
        f"Scores on the {split} set",
        "metric",
        _columns(runs),
        (Group("Default mode", tuple(rows[False])), Group("Strict IOB2", tuple(rows[True]))),
        title=f"{split.capitalize()} set",
    )


def _comparison(sources: Sequence[Source]) -> Mapping[str, Any]:
    """What `lorakit compare` says of the runs, or why it says nothing."""
    runs = [run for source in sources for run in source.runs if not run.published]
    if len(runs) < 2:
        return {"why": "There is one run, so there is nothing to compare."}
    split = "test" if all(run.scores("test") for run in runs) else "validation"
    try:
        record = compare_runs([source.folder for source in sources], split)
    except ValueError as error:
        return {"why": f"The runs are not compared by sentence: {error}."}
    sides = Table(
        "comparison-sides",
        f"Each side with its 95 % intervals on the {split} set",
        "",
        tuple(side["name"] for side in record["sides"]),
        (Group("Runs that differ only in the seed form a side", side_rows(record)),),
    )
    pairs = [
        Table(
            f"comparison-{number}",
            pair["name"],
            "",
            (pair["name"], "verdict"),
            (Group("Difference or ratio", pair_rows(pair)),),
        )
        for number, pair in enumerate(record["comparisons"], start=1)
    ]
    verdicts = [
        f"{pair['name']}, {SCORES[mode]}: {found['sentence']}."
        for pair in record["comparisons"]
        for mode, found in pair["f1"].items()
    ]
    return {"sides": sides, "pairs": pairs, "notes": verdicts + contention_lines(record)}


def _energy_table(runs: Sequence[Run]) -> Table:
    row = partial(_cost_row, runs)
    parts = [row(name.upper(), partial(_energy, name=name), _wh_digits(runs)) for name in COMPONENTS]
    totals = [row(f"Total {kind}", partial(_total, kind=kind), _wh_digits(runs), key=True) for kind in KINDS]
    powers = [row(name.upper(), partial(_power, name=name), 1) for name in COMPONENTS]
    times = [
        row("Training (s)", lambda run: _value(run, "train_seconds", 1), 1),
        row("Total, evaluation included (s)", lambda run: _value(run, "duration_s", 1), 1),
        row("Training tokens per second", lambda run: _value(run, "train_tokens_per_s", 0), 0),
    ]
    return Table(
        "energy-table",
        "Watt-hours by component, and how each was obtained",
        "component",
        _columns(runs),
        (
            Group("Energy (Wh)", (*parts, *totals)),
            Group("Mean power (W)", tuple(powers)),
            Group("Time", tuple(times)),
        ),
    )


def _cost_row(runs: Sequence[Run], name: str, cell: Callable[[Run], Cell], digits: int, key: bool = False) -> Row:
    """A row of times or energies. The difference is marked if others used the machine during one of the two runs."""
    cells = [cell(run) for run in runs]
    own = [found.value for found, run in zip(cells, runs, strict=True) if not run.published]
    if len(own) == 2:
        known = None not in own
        difference = number(float(own[1]) - float(own[0]), digits, sign=True) if known else Cell("–")
        mark = MARK if known and any(map(_is_contended, runs)) else ""
        cells.append(replace(difference, text=difference.text + mark))
    return Row(name, tuple(cells), key)


def _is_contended(run: Run) -> bool:
    return contention_note(run.values) is not None


def _wh_digits(runs: Sequence[Run]) -> int:
    """Digits for differences of watt-hours, as `watt_hours` gives the largest of these runs' totals."""
    energies = [run.values.get("energy") or {} for run in runs]
    top_wh = max((_wh(energy, f"{kind}_kwh") or 0.0 for energy in energies for kind in KINDS), default=0.0)
    return len(watt_hours(top_wh, "", "").text.partition(".")[2])


def _wh(record: Mapping[str, Any], key: str = "kwh") -> float | None:
    kwh = record.get(key)
    return None if kwh is None else 1e3 * kwh


def _energy(run: Run, name: str) -> Cell:
    component = run.component(name)
    return Cell(UNKNOWN) if component is None else watt_hours(_wh(component), run.kind_of(name), "–")


def _power(run: Run, name: str) -> Cell:
    component = run.component(name)
    return Cell(UNKNOWN) if component is None else number(component.get("mean_w"), 1, "unavailable")


def _total(run: Run, kind: str) -> Cell:
    energy = run.values.get("energy")
    return Cell(UNKNOWN) if energy is None else watt_hours(_wh(energy, f"{kind}_kwh"), kind, f"nothing {kind}")


def _energy_notes(runs: Sequence[Run]) -> list[str]:
    """What spoils a comparison of times and energies, and how each component was obtained, once for runs that agree."""
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
    methods = [text if len(labels) == len(runs) else f"{', '.join(labels)} – {text}" for text, labels in notes.items()]
    return contention_notes({run.label: run.values for run in runs}) + methods


def _parameter_table(runs: Sequence[Run]) -> Table:
    def rows(*named: tuple[str, Callable[[Run], Cell]]) -> tuple[Row, ...]:
        return tuple(_row(runs, name, cell, key=name == "Trained") for name, cell in named)

    counts = rows(
        ("Trained", lambda run: number(run.values.get("trainable_parameters"), 0)),
        ("Total", lambda run: number(run.values.get("total_parameters"), 0)),
        ("Share trained (%)", _share),
    )
    settings = rows(
        ("Epochs", lambda run: number(run.values.get("epochs"), 0)),
        ("Best epoch", lambda run: number(run.values.get("best_epoch"), 0)),
        ("Learning rate", partial(_setting, key="learning_rate")),
        ("Sentences per batch", lambda run: number(run.values.get("batch_size"), 0)),
        ("Steps", lambda run: number(run.values.get("steps"), 0)),
        ("Tokens trained on", lambda run: number(run.values.get("train_tokens"), 0)),
        ("Seed", partial(_setting, key="seed")),
    )
    groups = [Group("Parameters", counts), Group("Training", settings)]
    options = dict.fromkeys(
        name for run in runs for name in run.values.get("adapter") or {} if name != "peft_total_parameters"
    )
    if options:
        groups.append(Group("LoRA", rows(*((name, partial(_option, name=name)) for name in options))))
    columns = tuple(run.label for run in runs)
    return Table("parameter-table", "What was trained, and how", "", columns, tuple(groups))


def _share(run: Run) -> Cell:
    trained, total = run.values.get("trainable_parameters"), run.values.get("total_parameters")
    return number(100 * trained / total if trained is not None and total else None, 4)


def _setting(run: Run, key: str) -> Cell:
    value = run.values.get(key)
    return Cell(UNKNOWN) if value is None else Cell(f"{value:g}", repr(value))


def _option(run: Run, name: str) -> Cell:
    options = run.values.get("adapter")
    if not options or name not in options:
        return Cell("none" if run.mode == "full" else UNKNOWN)
    value = options[name]
    return Cell(", ".join(map(str, value)) if isinstance(value, list) else str(value), str(value))


def _parameter_notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    for run in runs:
        peft = (run.values.get("adapter") or {}).get("peft_total_parameters")
        if peft and peft != run.values.get("total_parameters"):
            notes.append(f"{run.label}: PEFT would print a total of {peft:,}: {WHY_PEFT_COUNTS_MORE}")
    return notes


def _cost_table(runs: Sequence[Run], chosen: Sequence[float]) -> Table | None:
    scored = [run for run in runs if run.evaluations]
    goals = f1_goals(scored, chosen)
    if not goals or not scored:
        return None
    shown = [kind for kind in KINDS if any(run.kind_of(name) == kind for run in scored for name in COMPONENTS)]
    groups = []
    for f1, share in goals:
        name = f"F1 {f1:.4f}" + ("" if share is None else ", the best" if share == 1 else f", {share:.0%} of the best")
        costs = [cost_to_reach(run, f1) for run in scored]
        rows = [
            Row("Epoch", _reached(costs, lambda cost: Cell(str(cost.epoch), str(cost.epoch)))),
            Row("Seconds", _marked(scored, _reached(costs, lambda cost: number(cost.seconds, 1)))),
            *(
                Row(f"Wh {kind}", _marked(scored, _reached(costs, partial(_spent, kind=kind))), kind=kind)
                for kind in shown
            ),
        ]
        groups.append(Group(name, tuple(rows)))
    caption = "Cost up to the epoch that first reached a validation F1"
    return Table("cost-table", caption, "", tuple(run.label for run in scored), tuple(groups))


def _reached(costs: Sequence[Cost | None], cell: Callable[[Cost], Cell]) -> tuple[Cell, ...]:
    return tuple(Cell("not reached") if cost is None else cell(cost) for cost in costs)


def _marked(runs: Sequence[Run], cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells, with a mark behind numbers of runs during which others used the machine."""
    return tuple(
        replace(cell, text=cell.text + MARK) if cell.value is not None and _is_contended(run) else cell
        for run, cell in zip(runs, cells, strict=True)
    )


def _spent(cost: Cost, kind: str) -> Cell:
    wh = cost.measured_wh if kind == "measured" else cost.estimated_wh
    return watt_hours(wh, "", UNKNOWN)


def _card(run: Run, position: int) -> Mapping[str, Any]:
    split = "test" if run.scores("test") else "validation"
    scores, energy = run.scores(split), run.values.get("energy") or {}
    trained = run.values.get("trainable_parameters")
    facts = [("Parameters trained", number(trained, 0)), ("Duration (s)", number(run.values.get("duration_s"), 1))]
    for kind in KINDS if energy else ():
        facts.append((f"Energy {kind} (Wh)", watt_hours(_wh(energy, f"{kind}_kwh"), "", f"nothing {kind}")))
    return {
        "label": run.label,
        "colour": f"run{position % RUNS + 1}",
        "score": number(scores["f1"] if scores else None),
        "score_name": f"F1, {split} set" if scores else "no score was recorded",
        "facts": facts,
        "warning": contention_note(run.values),
    }


def _source(source: Source) -> Mapping[str, Any]:
    facts = [("model", source.model), ("corpus", source.dataset), ("folder", source.folder)]
    facts = [(name, "not recorded" if value is None else str(value)) for name, value in facts]
    facts += [(name, str(value)) for name, value in source.environment.items()]
    if not source.environment:
        facts.append(("environment", "not recorded"))
    labels = ", ".join(run.label for run in source.runs if not run.published)
    return {"name": labels, "command": source.command, "facts": facts}
