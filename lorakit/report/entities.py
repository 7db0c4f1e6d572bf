"""Found entities for people and programs: a table, JSON lines, CSV, CoNLL, a coloured terminal, an HTML page.

Texts are untrusted: control characters that a terminal would obey are shown as escapes (\\x1b), and HTML is escaped.
"""

import csv
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import NamedTuple

from lorakit._counts import counted
from lorakit.data.pretokenizer import Word
from lorakit.data.tags import Span, from_spans
from lorakit.report.terminal import COLOURS, visible
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


def as_csv(found: Iterable[Tagging], first: int = 1) -> str:
    """A header, then a row per entity: the number of its text, from 1, and the fields of `Entity` (RFC 4180).

    Args:
        found: the texts and their entities.
        first: the number of the first text; above 1 there is no header.
    """
    names, file = [field.name for field in fields(Entity)], io.StringIO()
    writer = csv.writer(file)
    if first == 1:
        writer.writerow(["number", *names])
    for number, tagging in enumerate(found, start=first):
        writer.writerows([number, *(getattr(entity, name) for name in names)] for entity in tagging.entities)
    return file.getvalue()


def as_conll(found: Iterable[Tagging]) -> str:
    """One word, a tab and its tag per line, and a blank line after each text: `read_ner` reads this format.

    The tags are those of the entities, so they are well-formed IOB2 even where the model's own begin an entity with I-.
    """
    parts = []
    for tagging in found:
        spans = [Span(e.type, e.first_word, e.end_word) for e in tagging.entities]
        tags = from_spans(spans, len(tagging.words))
        parts += [f"{word.text}\t{tag}\n" for word, tag in zip(tagging.words, tags, strict=True)] + ["\n"]
    return "".join(parts)


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


STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .3rem; }
.about { margin: 0 0 .8rem; overflow-wrap: anywhere; opacity: .8; font-size: .9rem; }
.legend { padding: 0; list-style: none; } .legend li { display: inline-block; margin: 0 1rem .3rem 0; }
ol { margin: 0; padding: 0; list-style: none; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; padding: .25rem 0 .25rem 2.6rem;
  position: relative; border-top: 1px solid #8884; }
.text::before { content: attr(data-number); position: absolute; left: 0; width: 2rem; text-align: right; opacity: .65;
  font-size: .8rem; line-height: 2.5; }
mark { color: #111; border-radius: .3em; padding: .15em .35em; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.label { white-space: nowrap; }
mark b { font-size: .7em; margin-left: .5em; } mark small { font-size: .7em; margin-left: .35em; }
"""
FILLS = ("#a8d1ff", "#b5e3a1", "#f3b8e4", "#ffd480", "#9fe6df", "#ffb3a7", "#d3c3ff", "#d9d9d9")


def as_html(found: Sequence[Tagging], model: str) -> str:
    """One self-contained page for light and dark themes; it escapes the text, loads nothing and runs no script.

    Each text has the number that the table gives it. Blank texts are left out, and how many is said.

    Args:
        found: the texts and their entities.
        model: the name of the model that found them.
    """
    counts = Counter(entity.type for tagging in found for entity in tagging.entities)
    number = {kind: i % len(FILLS) for i, kind in enumerate(_types(found))}
    rules = "".join(f".t{i} {{ background: {fill}; }}\n" for i, fill in enumerate(FILLS))
    legend = "".join(
        f'<li><mark class="t{number[kind]}">{html.escape(kind)}</mark> {counts[kind]:,}</li>\n'
        for kind in _types(found)
    )
    shown = [(i, tagging) for i, tagging in enumerate(found, start=1) if tagging.text.strip()]
    body = "\n".join(
        f'<li class="text" dir="auto" data-number="{i}">{_marked(tagging, number)}</li>' for i, tagging in shown
    )
    title = f"{counted(counts.total(), 'entity', 'entities')} in {counted(len(shown), 'text')}"
    blank = len(found) - len(shown)
    about = f"found by {model}" + (f"; {counted(blank, 'blank text')} left out" if blank else "")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(f'{title} – {model}')}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{rules}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="about">{html.escape(about)}</p>\n'
        f'<ul class="legend">\n{legend}</ul>\n<ol>\n{body}\n</ol>\n</body>\n</html>\n'
    )


def _marked(tagging: Tagging, number: dict[str, int]) -> str:
    parts, reached = [], 0
    for e in tagging.entities:
        parts.append(html.escape(tagging.text[reached : e.start]))
        last = re.search(r"\S{,12}\s*$", e.text)[0]  # no line breaks between the entity's end and its label
        parts.append(
            f'<mark class="t{number[e.type]}" title="{html.escape(e.type)}, score {e.score:.3f}">'
            f'{html.escape(e.text.removesuffix(last))}<span class="label">{html.escape(last)}'
            f"<b>{html.escape(e.type)}</b><small>{e.score:.2f}</small></span></mark>"
        )
        reached = e.end
    return "".join(parts) + html.escape(tagging.text[reached:])


def _types(found: Iterable[Tagging]) -> list[str]:
    return sorted({entity.type for tagging in found for entity in tagging.entities})
