"""Runs of several seeds: one record of them all, and a table with a row per seed.

In that record scores are means; steps, tokens, times and energies are totals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.power.contention import NOT_COMPARABLE
from lorakit.power.journal import add_consecutive
from lorakit.power.reading import Reading
from lorakit.report.cells import Cell, Group, Row, Table, number
from lorakit.report.comparison import NAMES, comparison_split, contention_note
from lorakit.report.means import mean_of
from lorakit.report.tables import MARK, markdown_table, scored_splits

SUMMED = ("steps", "train_tokens", "computed_tokens", "train_seconds", "compile_seconds", "duration_s")


def mean_modes(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The "modes" of a comparison.json over several seeds.

    Args:
        seeds: the record's "seeds": per seed its number ("seed") and its "modes", as `output.mode_record` makes them.

    Returns:
        For each mode a record like that of one run. "seed" is null; "energy" is the sum of the seeds' energies, with
        its method, and its note names each seed during which others used the machine.
    """
    return {
        mode: _one_mode({entry["seed"]: entry["modes"][mode] for entry in seeds})
        for mode in (seeds[0]["modes"] if seeds else ())
    }


def _one_mode(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    records = list(runs.values())
    totals = {name: sum(record[name] for record in records) for name in SUMMED}
    speed = totals["train_tokens"] / totals["train_seconds"] if totals["train_seconds"] else None
    means = mean_of([{name: value for name, value in record.items() if name != "energy"} for record in records])
    return {**means, **totals, "seed": None, "train_tokens_per_s": speed, "energy": _energy(runs)}


def _energy(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The sum, whose note is made of the seeds' own: a busy seed must not vanish in the mean over quiet ones."""
    readings = {seed: Reading.from_json(record["energy"]) for seed, record in runs.items()}
    total = add_consecutive(list(readings.values())).to_json()
    seen = {seed: reading.contention.reasons for seed, reading in readings.items() if reading.contention}
    busy = [f"during seed {seed} {reasons}" for seed, reasons in seen.items() if reasons]
    if total["contention"]:
        total["contention"]["note"] = f"{'; '.join(busy)}: {NOT_COMPARABLE}" if busy else None
    return total


# Rows per seed --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number that each run has.

    Attributes:
        name: for people.
        get: the number in a mode's record; None if it was not recorded.
        digits: shown after the point.
        is_score: a score, whose summary is the mean, rather than a time or an energy, whose summary is the total.
    """

    name: str
    get: Callable[[Mapping[str, Any]], float | None]
    digits: int
    is_score: bool = False


def seeds_table(record: Mapping[str, Any]) -> str:
    """A row per seed and one for all of them, as Markdown; numbers of contended runs are marked."""
    modes, measures = list(record["modes"]), seed_measures(record)
    header = ["seed"]
    for measure in measures:
        names = [NAMES[mode] for mode in modes]
        header += [f"{measure.name} {names[0]}", *names[1:]] + ["difference"] * (measure.is_score and len(modes) == 2)
    rows = []
    for entry in record["seeds"]:
        rows.append([str(entry["seed"])])
        for measure in measures:
            cells = _cells(measure, entry["modes"])
            rows[-1] += [cell.text for cell in (cells if measure.is_score else cells[: len(modes)])]
    rows.append(["mean, total"])
    for measure in measures:
        cells = _cells(measure, record["modes"])
        rows[-1] += [cell.text for cell in (cells if measure.is_score else cells[: len(modes)])]
    return markdown_table(header, rows)


def seed_table(record: Mapping[str, Any]) -> Table:
    """The same for the page: a group per measure with a row per seed."""
    modes = [NAMES[mode] for mode in record["modes"]]
    groups = []
    for measure in seed_measures(record):
        rows = [Row(f"seed {entry['seed']}", _cells(measure, entry["modes"])) for entry in record["seeds"]]
        rows.append(Row("mean" if measure.is_score else "total", _cells(measure, record["modes"]), key=True))
        groups.append(Group(measure.name[0].upper() + measure.name[1:], tuple(rows)))
    columns = (*modes, *([f"{modes[1]} − {modes[0]}"] if len(modes) == 2 else []))
    return Table("seeds-table", "Each seed's runs", "", columns, tuple(groups))


def seed_measures(record: Mapping[str, Any]) -> list[Measure]:
    """What the rows of single seeds show: F1, seconds, and the energies that were recorded."""
    measures = []
    split = comparison_split(record["modes"]) or next(iter(scored_splits(record)), None)
    if split:
        measures.append(Measure(f"{split} F1", lambda values: (values[split] or {}).get("f1"), 4, is_score=True))
        measures.append(Measure("strict F1", lambda values: _strict(values[split]), 4, is_score=True))
    measures.append(Measure("training (s)", lambda values: values["train_seconds"], 1))
    for kind in ("measured", "estimated"):
        totals = [values["energy"][f"{kind}_kwh"] for values in record["modes"].values()]
        if any(total is not None for total in totals):
            digits = 4 if max(filter(None, totals), default=0.0) < 0.01 else 2
            measures.append(Measure(f"Wh {kind}", lambda values, kind=kind: _wh(values, kind), digits))
    return measures


def _strict(scores: Mapping[str, Any] | None) -> float | None:
    return (scores or {}).get("strict", {}).get("f1")


def _wh(values: Mapping[str, Any], kind: str) -> float | None:
    kwh = values["energy"][f"{kind}_kwh"]
    return None if kwh is None else 1e3 * kwh


def _cells(measure: Measure, modes: Mapping[str, Mapping[str, Any]]) -> tuple[Cell, ...]:
    """A cell per mode and, for two modes, their difference; times and energies that are not comparable are marked."""
    values = [measure.get(record) for record in modes.values()]
    marks = ["" if measure.is_score or not contention_note(record) else MARK for record in modes.values()]
    cells = [_cell(value, measure.digits, mark) for value, mark in zip(values, marks, strict=True)]
    if len(values) == 2:
        difference = None if None in values else values[1] - values[0]
        cells.append(_cell(difference, measure.digits, max(marks), sign=True))
    return tuple(cells)


def _cell(value: float | None, digits: int, mark: str, sign: bool = False) -> Cell:
    cell = number(value, digits, "–", sign)
    return cell if value is None else Cell(cell.text + mark, cell.value)


def seed_names(seeds: Sequence[Mapping[str, Any]]) -> str:
    """The seeds' numbers: "0, 1, 2"."""
    return ", ".join(str(entry["seed"]) for entry in seeds)
