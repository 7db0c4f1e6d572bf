"""Small corpora on disk, in the layouts that `read_ner` reads."""

import ast
import json
import re
from pathlib import Path

LABELS = {"O": 0, "B-DNA": 1, "I-DNA": 2, "B-protein": 3, "I-protein": 4}
ROW = {"tokens": ["IL-2", "gene"], "tags": ["B-DNA", "I-DNA"]}


def write_lines(path: Path, *records: object) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_folder(folder: Path, labels: dict[str, int] | None = None, **splits: list[object]) -> Path:
    """Write a JSON-lines file per split and, where there are labels, label.json."""
    for split, records in splits.items():
        write_lines(folder / f"{split}.json", *records)
    if labels is not None:
        (folder / "label.json").write_text(json.dumps(labels), encoding="utf-8")
    return folder


def write_text(path: Path, text: str) -> Path:
    """Write a file with exactly these characters, line ends included."""
    path.write_bytes(text.encode("utf-8"))
    return path


def named_columns(message: str) -> list[dict[str, int | str]]:
    """Each `columns=` that a message says to give, as `read_ner` takes it."""
    return [ast.literal_eval(found) for found in re.findall(r"columns=(\{[^}]*\})", message)]
