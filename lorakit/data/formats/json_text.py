"""JSON of which nothing is lost: a key that one object has twice is refused, as RFC 8259 (section 4) advises."""

import json
from typing import Any


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is twice in one object, of which one value would be lost; keep one")
    return found


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # raises ValueError: not JSON, or a key twice
