"""The errors of a tagger as text and as one self-contained HTML page for light and dark themes."""

import html
from collections.abc import Iterable, Sequence

from lorakit.data.tags import Span
from lorakit.report.errors import CONFIDENT, OUTCOMES, Errors, Tagged

STYLE = """
:root { color-scheme: light dark; --gold: #1a7f37; --wrong: #b3261e; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --gold: #6bd388; --wrong: #ff8f85; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text { text-align: left; overflow-wrap: anywhere; }
.pair { border-top: 1px solid var(--line); padding: .5rem 0; overflow-wrap: anywhere; }
.pair p { margin: .2rem 0; } .who { display: inline-block; width: 6rem; opacity: .75; font-size: .85rem; }
u { text-decoration-thickness: 2px; text-underline-offset: 3px; } .same { text-decoration-color: var(--gold); }
.odd { text-decoration-color: var(--wrong); text-decoration-style: wavy; }
svg { width: 18rem; max-width: 100%; } svg rect { fill: #4a7fd0; } svg text { font-size: 10px; fill: currentColor; }
svg path { stroke: currentColor; stroke-dasharray: 4 3; }
u small { margin-left: .25em; opacity: .8; }
"""


def errors_text(errors: Errors) -> str:
    """The main figures as lines for a terminal."""
    total = {outcome: sum(row[outcome] for row in errors.outcomes.values()) for outcome in OUTCOMES}
    parts = [f"{total[outcome]:,} {outcome}" for outcome in OUTCOMES]
    lines = [f"gold entities: {', '.join(parts)}; spurious: {sum(errors.spurious.values()):,}"]
    for name, table in (("seen", errors.seen), ("unseen", errors.unseen)):
        found, gold = (sum(row[i] for row in table.values()) for i in (0, 1))
        if gold:
            lines.append(f"recall of forms {name} in training: {found / gold:.4f} ({found:,} of {gold:,})")
    lines += [f"{count:,} sentences are in both {a} and {b}" for (a, b), count in errors.leaks.items()]
    return "".join(f"{line}\n" for line in lines)


def errors_page(errors: Errors, tagged: Sequence[Tagged], title: str) -> str:
    """The page; it escapes every text, loads nothing and runs no script.

    Args:
        errors: from `find_errors`.
        tagged: the same sentences.
        title: what was evaluated on what.
    """
    kinds = list(errors.outcomes)
    rows = [[kind, *(errors.outcomes[kind][name] for name in OUTCOMES)] for kind in kinds]
    shares = [
        [kind, *(_share(table.get(kind)) for table in (errors.seen, errors.unseen))]
        for kind in kinds
        if errors.seen or errors.unseen
    ]
    parts = [
        html_table("Gold entities by outcome", ["type", *OUTCOMES], rows),
        html_table(
            "Found as another type", ["gold", "predicted", "times"], [[*p, n] for p, n in errors.confusion.items()]
        ),
        html_table("Predicted where nothing is", ["type", "times"], errors.spurious.items()),
        html_table("Recall of forms that training has and has not", ["type", "seen", "unseen"], shares),
        html_table("Missed most often", ["form", "type", "times"], [[f, k, n] for (k, f), n in errors.missed_forms]),
        html_table(
            "Wrongly found most often", ["form", "type", "times"], [[f, k, n] for (k, f), n in errors.spurious_forms]
        ),
        html_table(
            "Sentences in two splits", ["split", "split", "sentences"], [[*p, n] for p, n in errors.leaks.items()]
        ),
        html_table(
            f"Suspected label errors: the model disagrees at {CONFIDENT:.0%} confidence or more",
            ["words", "sentence", "label", "predicted", "confidence"],
            [
                [" ".join(tagged[number - 1].words[start:end]), number, label, kind, f"{sure:.3f}"]
                for number, start, end, label, kind, sure in errors.suspected
            ],
        ),
    ]
    parts.append(_reliability(errors.reliability))
    worst = "".join(_pair(tagged[number - 1], number, count) for number, count in errors.worst)
    parts.append(f"<h2>Sentences with most errors</h2>\n{worst}" if worst else "")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Errors: {html.escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>Errors: {html.escape(title)}</h1>\n"
        + "".join(parts)
        + "</body>\n</html>\n"
    )


def _reliability(tenths: Sequence[tuple[int, float, float]]) -> str:
    """The reliability diagram: the share of entities that is right by score, and the line where scores are honest."""
    if not any(count for count, _, _ in tenths):
        return ""
    total = sum(count for count, _, _ in tenths)
    gap = sum(count * abs(score - right) for count, score, right in tenths) / total
    bars = "".join(
        f'<rect x="{20 * i + 21}" y="{200 - 200 * right:.1f}" width="18" height="{200 * right:.1f}">'
        f"<title>{count:,} entities, mean score {score:.3f}, right {right:.3f}</title></rect>"
        for i, (count, score, right) in enumerate(tenths)
        if count
    )
    rows = [
        [f"{i / 10:.1f}–{(i + 1) / 10:.1f}", f"{count:,}", f"{score:.3f}", f"{right:.3f}"]
        for i, (count, score, right) in enumerate(tenths)
        if count
    ]
    drawing = (
        '<svg viewBox="0 0 240 225" role="img" aria-label="reliability diagram">'
        f'{bars}<path d="M20 200 L220 0"/><text x="20" y="218">score 0</text><text x="220" y="218" '
        'text-anchor="end">1</text><text x="16" y="10" text-anchor="end">1</text></svg>\n'
    )
    table = html_table("Reliability", ["score", "entities", "mean score", "right"], rows)
    about = f"<p>Bars: share that is right, by score; on the line, scores are honest. Mean distance: {gap:.3f}.</p>\n"
    return table + about + drawing


def _share(counts: tuple[int, int] | None) -> str:
    return f"{counts[0] / counts[1]:.3f} of {counts[1]:,}" if counts else "–"


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table under a heading, its texts escaped; empty where there is no row."""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(c))}</td>' for c in row)}</tr>\n" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f'<h2>{html.escape(title)}</h2>\n<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def _pair(row: Tagged, number: int, count: int) -> str:
    """A sentence twice: as labelled and as predicted; entities that only one side has are underlined with waves."""
    sides = (("gold", row.gold, row.predicted), ("predicted", row.predicted, row.gold))
    lines = "".join(
        f'<p><span class="who">{name}</span>{_marked(row.words, mine, others)}</p>\n' for name, mine, others in sides
    )
    wrong = "1 error" if count == 1 else f"{count} errors"
    return f'<div class="pair"><p><b>sentence {number}</b>, {wrong}</p>\n{lines}</div>\n'


def _marked(words: Sequence[str], entities: Sequence[Span], others: Sequence[Span]) -> str:
    parts, reached = [], 0
    for entity in entities:
        parts += map(html.escape, words[reached : entity.start])
        same = "same" if entity in others else "odd"
        form = html.escape(" ".join(words[entity.start : entity.end]))
        parts.append(f'<u class="{same}">{form}<small>{html.escape(entity.type)}</small></u>')
        reached = entity.end
    return " ".join([*parts, *map(html.escape, words[reached:])])
