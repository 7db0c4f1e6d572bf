"""The mean of records: of scores, of lists of them, of whole log lines."""

from collections.abc import Mapping, Sequence
from typing import Any


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of equally named numbers in records and lists of them.

    Example:
        from lorakit.report.means import mean_of

        print(mean_of([{"f1": 0.5, "epoch": 3}, {"f1": 0.75, "epoch": 3}]))  # {'f1': 0.625, 'epoch': 3}

    Lists are cut to the shortest; what some records lack is left out. None where values are neither numbers nor equal.
    """
    first = values[0]
    if all(value == first and type(value) is type(first) for value in values):
        return first
    if all(isinstance(value, Mapping) for value in values):
        shared = [name for name in first if all(name in value for value in values)]
        return {name: mean_of([value[name] for value in values]) for name in shared}
    if all(isinstance(value, list | tuple) for value in values):
        return [mean_of(row) for row in zip(*values, strict=False)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sum(values) / len(values)
    return None
