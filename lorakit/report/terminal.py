"""Texts and entities on a terminal, which must not obey what a text holds."""

import os
import sys
import unicodedata
from collections.abc import Sequence

COLOURS = ("44", "42", "45", "43", "46", "41")  # backgrounds; the type is written too, so nobody needs the colour

# these would change the order in which a line is shown
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shows_colours() -> bool:
    """Whether standard output is a terminal that shows colours, and NO_COLOR does not turn them off."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def visible(text: str) -> str:
    """The text with control characters and line ends as escapes, which a terminal shows instead of obeying."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _BIDI else c
        for c in text
    )


def marked(pieces: Sequence[tuple[str, str]], colours: dict[str, str] | None) -> str:
    """One line of (text, type) pieces, of which those with a type are marked: by colour, or as `[text TYPE]`.

    Args:
        pieces: the text in order; the type is "" outside of entities.
        colours: type -> one of COLOURS; None marks without colours.
    """
    parts = []
    for text, kind in pieces:
        if not kind:
            parts.append(visible(text))
        elif colours is None:
            parts.append(f"[{visible(text)} {visible(kind)}]")
        else:
            parts.append(f"\x1b[{colours[kind]};30m {visible(text)} \x1b[0m\x1b[1m {visible(kind)}\x1b[0m")
    return " ".join(parts)
