"""Module names: how a name or pattern matches them, and the error for one that matches nothing."""

import difflib
from collections.abc import Iterable, Sequence


def name_matches(name: str, suffix: str) -> bool:
    """Whether `suffix` is the name or its last parts: `query` and `self.query` match `layer.0.self.query`."""
    return name == suffix or name.endswith(f".{suffix}")


def unmatched(what: str, wanted: str, candidates: Iterable[str]) -> ValueError:
    """The error for a name that matches nothing: it suggests the closest names, then lists all."""
    names = list(dict.fromkeys(candidates))
    near = difflib.get_close_matches(wanted, names, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}? It" if near else "; it"
    return ValueError(f"{what} {wanted!r} matches nothing in this model{hint} has: {listing(names)}")


def listing(names: Sequence[str], limit: int = 30) -> str:
    """Join names for a message; beyond `limit` they are only counted."""
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown}, … ({len(names) - limit} more)"
