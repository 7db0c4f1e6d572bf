"""The report as one self-contained HTML page about any runs, with a light and a dark theme.

Everything on it comes from `runs.read_sources` and from what `lorakit calibrate` left beside a run's weights. Every
number is in a <data> element that also holds its exact value. The template engine escapes text from outside, and the
page's content security policy allows no script except the one below and no request.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorakit._counts import counted
from lorakit._files import write_text
from lorakit.report.carbon import Carbon
from lorakit.report.cells import KINDS, Group, Row, Table, number, watt_hours
from lorakit.report.charts import energy_chart, f1_chart, longest, loss_chart, reliability_chart, top_of, type_chart
from lorakit.report.comparison import NAMES, comparison_split, contention_note
from lorakit.report.costs import cost_table
from lorakit.report.page_tables import (
    energy_notes,
    energy_table,
    parameter_notes,
    parameter_table,
    score_table,
    wh_of,
)
from lorakit.report.palette import DARK, LIGHT, RUNS
from lorakit.report.run_comparison import SCORES, compare_runs, contention_lines, pair_rows, side_rows
from lorakit.report.runs import Run, Source, read_sources
from lorakit.report.seeds import seed_table
from lorakit.report.svg import titled
from lorakit.report.tables import contention_notes

ERRORS = "errors*.html"
TEMPLATE = Path(__file__).with_name("page.html")
SECTIONS = (
    ("summary", "At a glance"),
    ("seeds", "Seeds"),
    ("scores", "Scores"),
    ("comparison", "Comparison"),
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


def write_page(
    folders: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    labels: Sequence[str] = (),
    goals: Sequence[float] = (),
    carbon: Carbon | None = None,
) -> Path:
    """Write the report about some runs atomically.

    Args:
        folders: output folders of runs.
        output: the file; by default report.html in the run's folder or, for several runs, in the current folder.
        labels: a name per folder.
        goals: the F1 whose cost is shown, instead of shares of the best F1.
        carbon: the factors for the CO2 of what was measured; None takes the one each run was given.

    Returns:
        The path of the file.

    Raises:
        ValueError: a folder holds no run, or the output's folder does not exist.
        OSError: the file cannot be written.
    """
    path = Path(output) if output else Path(folders[0] if len(folders) == 1 else ".") / "report.html"
    sources = read_sources(folders, labels)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"the report cannot be written to {path}: give a file in a folder that exists")
    write_text(path, make_page(sources, goals, carbon, errors_links(sources, path.parent)))
    return path


def errors_links(sources: Sequence[Source], folder: Path) -> list[tuple[str, str]]:
    """Names and relative addresses of the pages of `lorakit evaluate --errors` in the runs' folders.

    Args:
        sources: runs; their folders and those of each mode are looked through for errors*.html.
        folder: of the page that will have the links.
    """
    found = []
    for source in sources:
        home = Path(source.folder)
        for path in sorted(file for inside in (home, *(home / name for name in NAMES)) for file in inside.glob(ERRORS)):
            relative = os.path.relpath(path.resolve(), folder.resolve())
            found.append((str(path), quote(relative.replace(os.sep, "/"))))
    return found


def make_page(
    sources: Sequence[Source],
    goals: Sequence[float] = (),
    carbon: Carbon | None = None,
    errors: Sequence[tuple[str, str]] = (),
) -> str:
    """The page's HTML; the same runs give the same bytes.

    Args:
        sources: the runs.
        goals, carbon: as for `write_page`.
        errors: as `errors_links` gives them.
    """
    from jinja2 import Environment, StrictUndefined  # slow to import, so only when a page is made
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    runs = [run for source in sources for run in source.runs]
    own = [run for run in runs if not run.published]
    top_wh, top_s = top_of(own), longest(own)
    energy_charts = [energy_chart(run, i, top_wh, top_s) for i, run in enumerate(own)]
    seed_tables = _seed_tables(sources)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return template.render(
        script=Markup(SCRIPT),
        script_hash=f"sha256-{digest}",
        light=LIGHT,
        dark=DARK,
        version=_version(),
        sections=[section for section in SECTIONS if seed_tables or section[0] != "seeds"],
        title=_title(sources),
        errors=errors,
        subtitle=_subtitle(own),
        svg=lambda chart: Markup(titled(chart.svg, chart.name, chart.title, chart.description)),
        cards=[_card(run, i) for i, run in enumerate(own)],
        seed_tables=seed_tables,
        reliability=[chart for i, run in enumerate(own) if (chart := reliability_chart(run, i))],
        score_tables=[table for split in ("validation", "test") if (table := score_table(runs, split))],
        comparison=_comparison(sources),
        curves=[chart for chart in (f1_chart(own), loss_chart(own)) if chart],
        energy_table=energy_table(runs),
        energy_notes=energy_notes(own, carbon),
        energy_charts=[chart for chart in energy_charts if chart],
        types=[chart for split in ("validation", "test") if (chart := type_chart(own, split))],
        parameter_table=parameter_table(runs),
        parameter_notes=parameter_notes(own),
        cost_table=cost_table(own, goals),
        cost_notes=contention_notes({run.label: run.values for run in own}),
        sources=[_source(source) for source in sources],
    )


def _title(sources: Sequence[Source]) -> str:
    if len(sources) > 1:
        return f"{len(sources)} runs side by side"
    model, dataset = sources[0].model, sources[0].dataset
    return f"{model} on {dataset}" if model and dataset else sources[0].folder


def _subtitle(runs: Sequence[Run]) -> str:
    def named(run: Run) -> str:
        return f"{run.label} ({counted(len(run.seeds), 'seed')})" if run.seeds else run.label

    count = sum(len(run.seeds) or 1 for run in runs)
    return f"{counted(count, 'run')}: {', '.join(map(named, runs))}"


def _seed_tables(sources: Sequence[Source]) -> list[Mapping[str, Any]]:
    """For each folder with several seeds, its table and where the page of each seed is."""
    tables = []
    for place, source in enumerate(sources, start=1):
        if "seeds" in source.record:
            pages = ", ".join(f"{source.folder}/{seed['folder']}/report.html" for seed in source.record["seeds"])
            table = replace(seed_table(source.record), id=f"seeds-{place}")
            tables.append({"title": source.folder, "table": table, "pages": pages})
    return tables


def _version() -> str:
    try:
        return version_of("lorakit")
    except PackageNotFoundError:  # used from its folder without being installed
        return "(not installed)"


def _comparison(sources: Sequence[Source]) -> Mapping[str, Any]:
    """What `lorakit compare` says of the runs, or why it says nothing."""
    runs = [run for source in sources for run in source.runs if not run.published]
    if len(runs) < 2 and not any(run.seeds for run in runs):
        return {"why": "There is one run, so there is nothing to compare."}
    split = comparison_split({run.label: run.values for run in runs}) or "validation"
    margins = {source.record.get("margin") for source in sources}
    margin = margins.pop() if len(margins) == 1 else None
    try:
        record = compare_runs([source.folder for source in sources], split, margin, one_side=True)
    except ValueError as error:
        return {"why": f"The runs are not compared by sentence: {error}."}
    sides = Table(
        "comparison-sides",
        f"Each side with its 95 % intervals on the {split} set",
        "",
        tuple(side["name"] for side in record["sides"]),
        (Group("Runs that differ only in the seed form a side", _breakable(side_rows(record))),),
    )
    pairs = [
        Table(
            f"comparison-{number}",
            f"{pair['name']} on the {split} set, with 95 % intervals",
            "",
            ("difference or ratio", "verdict"),
            (Group("", _breakable(pair_rows(pair))),),
            title=pair["name"],
        )
        for number, pair in enumerate(record["comparisons"], start=1)
    ]
    verdicts = [
        f"{pair['name']}, {SCORES[mode]}: {found['sentence']}."
        for pair in record["comparisons"]
        for mode, found in pair["f1"].items()
    ]
    margin_note = "" if margin is None else f" Equal means within ±{margin:g} of F1."
    return {
        "sides": sides,
        "pairs": pairs,
        "margin": margin_note,
        "verdicts": verdicts,
        "notes": contention_lines(record),
    }


def _breakable(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The same, but on a narrow page a line breaks before an interval, never inside it."""
    return tuple(
        replace(
            row, cells=tuple(replace(cell, text=cell.text.replace(", ", ",\N{NO-BREAK SPACE}")) for cell in row.cells)
        )
        for row in rows
    )


def _card(run: Run, position: int) -> Mapping[str, Any]:
    split = "test" if run.scores("test") else "validation"
    scores, energy = run.scores(split), run.values.get("energy") or {}
    trained = run.values.get("trainable_parameters")
    several, over = bool(run.seeds), f", mean of {counted(len(run.seeds), 'seed')}" if run.seeds else ""
    other = run.scores("validation") if split == "test" else None
    facts = [
        *([(f"F1, validation set{over}", number(other["f1"]))] if other else []),
        ("Parameters trained", number(trained, 0)),
        ("Duration, all seeds (s)" if several else "Duration (s)", number(run.values.get("duration_s"), 1)),
    ]
    for kind in KINDS if energy else ():
        name = f"Energy {kind}, all seeds (Wh)" if several else f"Energy {kind} (Wh)"
        facts.append((name, watt_hours(wh_of(energy, f"{kind}_kwh"), "", f"nothing {kind}")))
    return {
        "label": run.label,
        "colour": f"run{position % RUNS + 1}",
        "score": number(scores["f1"] if scores else None),
        "score_name": f"F1, {split} set{over}" if scores else "no score was recorded",
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
