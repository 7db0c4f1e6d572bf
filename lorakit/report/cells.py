"""The page's tables as data: cells hold a number both as shown and exactly."""

from dataclasses import dataclass

UNKNOWN = "not recorded"
KINDS = ("measured", "estimated")  # of energy, whose totals are separate


@dataclass(frozen=True)
class Cell:
    """A number as shown (`text`) and exactly (`value`).

    `value` is None where there is no number, and "" for words; `kind` says how an energy was obtained.
    """

    text: str
    value: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A named row; `key` rows are emphasised, `kind` marks a row of measured or of estimated energy."""

    name: str
    cells: tuple[Cell, ...]
    key: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under a common heading."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table with an id for links; `corner` heads the column of names, `title` replaces the visible caption."""

    id: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    title: str = ""


def number(value: float | None, digits: int = 4, unknown: str = UNKNOWN, sign: bool = False) -> Cell:
    """A number with a fixed number of digits, so that a column can be compared at a glance."""
    if value is None:
        return Cell(unknown)
    return Cell(f"{round(value, digits) or 0.0:{'+' if sign else ''},.{digits}f}".replace("-", "−"), repr(value))


def watt_hours(wh: float | None, kind: str, unknown: str) -> Cell:
    """Wh with about four significant digits, because runs span from milliwatt-hours to kilowatt-hours."""
    if wh is None:
        return Cell(unknown, kind="unavailable" if kind == "unavailable" else "")
    digits = 4 if wh < 1 else 3 if wh < 10 else 2 if wh < 100 else 1 if wh < 1000 else 0
    return Cell(f"{wh:,.{digits}f}", repr(wh), kind)
