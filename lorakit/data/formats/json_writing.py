"""JSON files as every writer of them writes: UTF-8 and LF, in one array or an object per line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write one value per line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_array(path: Path, records: Iterable[Any]) -> None:
    """Write an array with one value per line."""
    text = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{text}\n]\n", encoding="utf-8", newline="")
