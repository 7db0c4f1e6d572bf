"""Found entities for people and programs: a table, JSON lines, CoNLL, a coloured terminal, an HTML page.

Texts are untrusted: control characters that a terminal would obey are shown as escapes (\\x1b), and HTML is escaped.
"""

import html
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from lorakit.data.pretokenizer import Word
from lorakit.training.prediction import Entity


class Tagging(NamedTuple):
    """A raw text and what was found in it: its words, one tag per word, and the entities."""

    text: str
    words: list[Word]
    tags: list[str]
    entities: list[Entity]


def as_table(found: Sequence[Tagging]) -> str:
    """One line per entity. Texts are counted from 1; characters and words from 0, with the end not included."""
    rows = [("text", "characters", "words", "type", "score", "entity")]
    for number, tagging in enumerate(found, start=1):
        for e in tagging.entities:
            places = (f"{e.start}-{e.end}", f"{e.first_word}-{e.end_word}")
            rows.append((str(number), *places, visible(e.type), f"{e.score:.3f}", visible(e.text)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    right = (0, 1, 2, 4)  # numbers
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        lines.append("  ".join([*cells, row[5]]))
    return "".join(f"{line}\n" for line in lines)


def as_jsonl(found: Iterable[Tagging]) -> str:
    """One line per text: {"text": ..., "entities": [{"type", "start", "end", "text", "score", ...}]}."""
    lines = ({"text": t.text, "entities": [asdict(entity) for entity in t.entities]} for t in found)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def as_conll(found: Iterable[Tagging]) -> str:
    """One word, a tab and its tag per line, and a blank line after each text: `read_ner` reads this format."""
    parts = []
    for tagging in found:
        parts += [f"{word.text}\t{tag}\n" for word, tag in zip(tagging.words, tagging.tags, strict=True)] + ["\n"]
    return "".join(parts)


COLOURS = ("44", "42", "45", "43", "46", "41")  # backgrounds; the type is written too, so nobody needs the colour


def as_terminal(found: Sequence[Tagging]) -> str:
    """The texts, each entity marked by a colour and followed by its type and score."""
    colour = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(_types(found))}
    lines = []
    for tagging in found:
        parts, reached = [], 0
        for e in tagging.entities:
            parts.append(visible(tagging.text[reached : e.start]))
            parts.append(f"\x1b[{colour[e.type]};30m {visible(e.text)} \x1b[0m\x1b[1m {visible(e.type)}\x1b[0m")
            parts.append(f"\x1b[2m {e.score:.2f}\x1b[0m")
            reached = e.end
        lines.append("".join(parts) + visible(tagging.text[reached:]) + "\n")
    return "".join(lines)


def visible(text: str) -> str:
    """The text with control characters and line ends as escapes, which a terminal shows instead of obeying."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _BIDI else c
        for c in text
    )


# these would change the order in which a line is shown
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/2 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; }
.legend { padding: 0; list-style: none; } .legend li { display: inline-block; margin-right: 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: #111; border-radius: .3em; padding: .15em .35em; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
mark b { font-size: .7em; margin-left: .5em; } mark small { font-size: .7em; margin-left: .35em; }
"""
FILLS = ("#a8d1ff", "#b5e3a1", "#f3b8e4", "#ffd480", "#9fe6df", "#ffb3a7", "#d3c3ff", "#d9d9d9")


def as_html(found: Sequence[Tagging], title: str = "Entities") -> str:
    """One self-contained page for light and dark themes; it escapes the text, loads nothing and runs no script."""
    counts = Counter(entity.type for tagging in found for entity in tagging.entities)
    number = {kind: i % len(FILLS) for i, kind in enumerate(_types(found))}
    rules = "".join(f".t{i} {{ background: {fill}; }}\n" for i, fill in enumerate(FILLS))
    legend = "".join(
        f'<li><mark class="t{number[kind]}">{html.escape(kind)}</mark> {counts[kind]}</li>\n' for kind in _types(found)
    )
    body = "\n".join(f'<p class="text" dir="auto">{_marked(tagging, number)}</p>' for tagging in found if tagging.text)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{rules}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f'<ul class="legend">\n{legend}</ul>\n{body}\n</body>\n</html>\n'
    )


def _marked(tagging: Tagging, number: dict[str, int]) -> str:
    parts, reached = [], 0
    for e in tagging.entities:
        parts.append(html.escape(tagging.text[reached : e.start]))
        parts.append(
            f'<mark class="t{number[e.type]}" title="{html.escape(e.type)}, score {e.score:.3f}">{html.escape(e.text)}'
            f"<b>{html.escape(e.type)}</b><small>{e.score:.2f}</small></mark>"
        )
        reached = e.end
    return "".join(parts) + html.escape(tagging.text[reached:])


def _types(found: Iterable[Tagging]) -> list[str]:
    return sorted({entity.type for tagging in found for entity in tagging.entities})
