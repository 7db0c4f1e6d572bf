"""Drawings as SVG elements of a page, made by matplotlib, with the page's colours.

matplotlib gets a stand-in for each colour of the palette; in the finished SVG a CSS variable replaces it, so that one
drawing serves both themes. Text stays text. The ids in a drawing get its name as a prefix, so that one page can hold
many drawings.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from lorakit.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAND_INS = {name: f"#a1b2{number:02x}" for number, name in enumerate(LIGHT)}


def draw(name: str, paint: Callable[["Figure"], None], width: float, height: float) -> str:
    """Draw an SVG element; the same input gives the same bytes.

    Args:
        name: the prefix of the ids inside.
        paint: fills the figure, with colours of STAND_INS.
        width: in points.
        height: in points.
    """
    from matplotlib.figure import Figure  # slow to import, so only when a picture is drawn

    with _style():
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(file.getvalue(), name)


def titled(svg: str, name: str, title: str, description: str) -> str:
    """Put title and description into an SVG element, for screen readers."""
    head, rest = svg.split(">", 1)
    inside = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return f"{head}>{inside}{rest}"


def plain(text: str, length: int) -> str:
    """A name as a drawing can show it: printable and short. matplotlib would hide a label with a leading underscore."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= length else "…" + text[1 - length :]  # paths differ at their ends
    return f"\u200b{text}" if text.startswith("_") else text


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    ink, muted, rule = (STAND_INS[name] for name in ("ink", "muted", "rule"))
    chosen = {
        "svg.fonttype": "none", "svg.hashsalt": "lorakit", "text.parse_math": False, "font.size": 11,
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": rule, "xtick.color": muted, "ytick.color": muted,
        "grid.color": rule, "grid.linewidth": 0.7, "axes.axisbelow": True, "hatch.linewidth": 1.4,
        "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.8,
    }  # fmt: skip
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's own font will have it
        yield


def _inline(svg: str, name: str) -> str:
    """Turn matplotlib's file into an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)[1]
    names = f'aria-labelledby="{name}-title" aria-describedby="{name}-desc"'
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" {names} focusable="false">', svg, count=1)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: _adapt(tag[0], name), svg).strip()  # tags only: text is the user's


def _adapt(tag: str, name: str) -> str:
    """Prefix a tag's ids and references, and replace stand-ins by the page's colours."""
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', tag)
    for variable, stand_in in STAND_INS.items():
        tag = tag.replace(stand_in, f"var(--{variable})")
    return tag
