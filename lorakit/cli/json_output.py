"""The flag `--json` of every command: a record written to a file, or to standard output with `-`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit._files import write_text
from lorakit.cli.parser import file_or_folder


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    about = "also write the result to FILE; - prints it instead of the table"
    parser.add_argument("--json", type=file_or_folder, metavar="FILE", help=about)


def write_json(record: Mapping[str, Any], path: Path | None, text: str) -> None:
    """Print `text` for people. Given a path, also write the record there; given `-`, print only the record."""
    body = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if str(path) == "-":
        print(body, end="")
        return
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, body)
    print(text, end="")
