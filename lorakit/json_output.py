"""What `--json` does in every command: a record to a file that appears whole, or to standard output with `-`."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(record: Mapping[str, Any], path: Path | None, text: str) -> None:
    """Print `text` for people; with a path also write the record there; with `-` print the record alone."""
    body = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if str(path) == "-":
        print(body, end="")
        return
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(body)
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    print(text, end="")
