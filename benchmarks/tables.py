"""Tables of results: one record per row, one getter and one format per column."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lorakit.report.tables import markdown_table

Get = str | int | Callable[[Any], Any]
Column = tuple[str, Get, str]


def table(records: Iterable[Any], *columns: Column) -> str:
    """A Markdown table with a row per record; an unknown value is a dash.

    Args:
        records: what the columns are made from.
        columns: (title, key or getter of a value, its format).
    """

    def cell(record: Any, get: Get, form: str) -> str:
        value = get(record) if callable(get) else record[get]
        return "–" if value is None else form.format(value)

    rows = [[cell(record, get, form) for _, get, form in columns] for record in records]
    return markdown_table([title for title, *_ in columns], rows)


def at(*path: str, scale: float = 1.0) -> Callable[[dict[str, Any]], Any]:
    """A getter: the value at this path of a nested record, scaled if it is a number; None where there is none."""

    def get(record: dict[str, Any]) -> Any:
        for key in path:
            record = record.get(key) if record else None
        return record if record is None or scale == 1.0 else scale * record

    return get


def mean_sd(values: Sequence[float | None], form: str, sign: bool = False) -> str:
    """Mean ± sample standard deviation; a constant is shown alone, a dash where a value is unknown."""
    if None in values or not values:
        return "–"
    mean = (form.replace("{:", "{:+") if sign else form).format(statistics.mean(values))
    return mean if len(set(values)) == 1 else f"{mean} ± {form.format(statistics.stdev(values))}"
