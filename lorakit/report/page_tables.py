"""The page's tables of scores, energies and parameters: a column per run, and one for the difference of two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lorakit.report.carbon import Carbon
from lorakit.report.cells import KINDS, UNKNOWN, Cell, Group, Row, Table, number, watt_hours
from lorakit.report.comparison import contention_note
from lorakit.report.energy_totals import energy_sentence
from lorakit.report.runs import COMPONENTS, Run
from lorakit.report.tables import MARK, METRICS, WHY_PEFT_COUNTS_MORE, contention_notes, metric, option_text


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


def score_table(runs: Sequence[Run], split: str) -> Table | None:
    """The scores on a split; None if no run has any."""
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


def energy_table(runs: Sequence[Run]) -> Table:
    """Energy, mean power and time."""
    row = partial(_cost_row, runs)
    parts = [row(name.upper(), partial(_energy, name=name), _wh_digits(runs)) for name in COMPONENTS]
    totals = [row(f"Total {kind}", partial(_total, kind=kind), _wh_digits(runs), key=True) for kind in KINDS]
    powers = [row(name.upper(), partial(_power, name=name), 1) for name in COMPONENTS]
    times = [
        row("Training (s)", lambda run: _value(run, "train_seconds", 1), 1),
        row("Total, evaluation included (s)", lambda run: _value(run, "duration_s", 1), 1),
        row("Training tokens per second", lambda run: _value(run, "train_tokens_per_s", 0), 0),
        row("Its share of the machine's CPU time (%)", _cpu_share, 0),
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
    top_wh = max((wh_of(energy, f"{kind}_kwh") or 0.0 for energy in energies for kind in KINDS), default=0.0)
    return len(watt_hours(top_wh, "", "").text.partition(".")[2])


def wh_of(record: Mapping[str, Any], key: str = "kwh") -> float | None:
    kwh = record.get(key)
    return None if kwh is None else 1e3 * kwh


def _energy(run: Run, name: str) -> Cell:
    component = run.component(name)
    return Cell(UNKNOWN) if component is None else watt_hours(wh_of(component), run.kind_of(name), "–")


def _power(run: Run, name: str) -> Cell:
    component = run.component(name)
    return Cell(UNKNOWN) if component is None else number(component.get("mean_w"), 1, "unavailable")


def _cpu_share(run: Run) -> Cell:
    share = (run.component("cpu") or {}).get("process_share")
    return number(None if share is None else 100 * share, 0, _unknown(run))


def _total(run: Run, kind: str) -> Cell:
    energy = run.values.get("energy")
    return Cell(UNKNOWN) if energy is None else watt_hours(wh_of(energy, f"{kind}_kwh"), kind, f"nothing {kind}")


def energy_notes(runs: Sequence[Run], carbon: Carbon | None = None) -> list[str]:
    """What spoils a comparison of times and energies, the totals, and how each component was obtained.

    Each is said once for runs that agree.

    Args:
        carbon: the factors for CO2; None takes the one that each run was given.
    """
    notes: dict[str, list[str]] = {}
    for run in runs:
        energy = run.values.get("energy")
        if energy is not None:
            own = carbon or Carbon.of_record(run.values)
            notes.setdefault(energy_sentence(energy, own), []).append(run.label)
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
    for run in runs:
        for note in (run.values.get("energy") or {}).get("notes") or ():
            notes.setdefault(note, []).append(run.label)
    methods = [text if len(labels) == len(runs) else f"{', '.join(labels)} – {text}" for text, labels in notes.items()]
    return contention_notes({run.label: run.values for run in runs}) + methods


def parameter_table(runs: Sequence[Run]) -> Table:
    """Counts of parameters, and settings."""

    def rows(*named: tuple[str, Callable[[Run], Cell]]) -> tuple[Row, ...]:
        return tuple(_row(runs, name, cell, key=name == "Trained") for name, cell in named)

    counts = rows(
        ("Trained", lambda run: number(run.values.get("trainable_parameters"), 0)),
        ("Total", lambda run: number(run.values.get("total_parameters"), 0)),
        ("Share trained (%)", _share),
    )
    over = ", all seeds" if any(run.seeds for run in runs) else ""
    settings = rows(
        ("Epochs", lambda run: number(run.values.get("epochs"), 0)),
        ("Best epoch", lambda run: number(run.values.get("best_epoch"), 1 if run.seeds else 0)),
        ("Learning rate", partial(_setting, key="learning_rate")),
        ("Sentences per batch", lambda run: number(run.values.get("batch_size"), 0)),
        (f"Steps{over}", lambda run: number(run.values.get("steps"), 0)),
        (f"Tokens trained on{over}", lambda run: number(run.values.get("train_tokens"), 0)),
        ("Seed", _seed),
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


def _seed(run: Run) -> Cell:
    if run.seeds:
        return Cell(", ".join(str(seed.values.get("seed")) for seed in run.seeds), "")
    return _setting(run, "seed")


def _option(run: Run, name: str) -> Cell:
    options = run.values.get("adapter")
    if not options or name not in options:
        return Cell("none" if run.mode == "full" else UNKNOWN)
    value = options[name]
    return Cell(option_text(name, value), str(value))


def parameter_notes(runs: Sequence[Run]) -> list[str]:
    """Why PEFT counts more parameters."""
    notes = []
    for run in runs:
        peft = (run.values.get("adapter") or {}).get("peft_total_parameters")
        if peft and peft != run.values.get("total_parameters"):
            notes.append(f"{run.label}: PEFT would print a total of {peft:,}: {WHY_PEFT_COUNTS_MORE}")
    return notes
