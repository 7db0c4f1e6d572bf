"""What a search found: as text for a terminal, and as one self-contained HTML page for light and dark themes.

Both are made from the record that `lorakit tune` writes as tuning.json, and from nothing else.
"""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit.report.errors_page import STYLE, html_table
from lorakit.report.palette import DARK, LIGHT
from lorakit.report.run_comparison import comparison_text
from lorakit.report.svg import STAND_INS, draw, titled
from lorakit.report.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIAL = ("learning rate", "rank", "targets", "epochs", "F1, validation")
TERA = 1e12


def cost_name(record: Mapping[str, Any]) -> str:
    """How the costs of trials are headed."""
    method = record["energy"]["method"]
    return "operations, 10¹² (estimated)" if method is None else f"Wh ({method}, shared by estimated operations)"


def tuning_text(record: Mapping[str, Any]) -> str:
    """The front, the finalists and how sure it is, as Markdown."""
    trials = {trial["name"]: trial for trial in record["trials"]}
    cost = cost_name(record)
    lines = [
        _sentence(record),
        "",
        f"F1 against {cost}: no other trial cost less and scored as well.",
        "",
        markdown_table([*TRIAL, cost, "trial"], [_row(trials[name], record) for name in record["front"]]),
    ]
    energy = record["energy"]
    if energy["method"] is not None:
        lines += ["", f"The search used {energy['search_wh']:.4g} Wh and the finalists {energy['finalists_wh']:.4g} Wh"]
        lines[-1] += f" ({energy['method']})."
    if record["finalists"]:
        lines += ["", f"Finalists, each with seeds {_seeds(record)}, which the search has not seen:", ""]
        lines += [markdown_table(FINALIST, [_finalist_row(found) for found in record["finalists"]])]
    if record["comparison"]:
        lines += ["", comparison_text(record["comparison"]).rstrip()]
    lines += ["", winner_sentence(record)]
    return "\n".join(lines) + "\n"


FINALIST = ("finalist", "learning rate", "rank", "targets", "validation F1 [95 %]", "test F1 [95 %]")


def winner_sentence(record: Mapping[str, Any]) -> str:
    """Which finalist won, and whether that is sure."""
    if not record["finalists"]:
        return "There is no winner: no trial could be trained to a score, or the finalists diverged."
    winner, *others = record["finalists"]
    sure = ""
    if others:
        verdicts = [pair["f1"]["default"]["verdict"] for pair in record["comparison"]["comparisons"]]
        worse = sum(verdict == "worse" for verdict in verdicts)
        sure = f"; {worse} of {len(others)} more are surely worse, of the rest one cannot tell"
        if worse == len(others):
            sure = "; all others are surely worse"
    settings = f"learning rate {winner['learning_rate']:g}, rank {winner['r']}, targets {_targets(winner)}"
    return f"The winner is {winner['name']} ({settings}){sure}."


def tuning_page(record: Mapping[str, Any]) -> str:
    """The page; it escapes every text, loads nothing and runs no script."""
    title = f"{record['model']} on {record['dataset']}"
    trials = {trial["name"]: trial for trial in record["trials"]}
    cost = cost_name(record)
    variables, dark = (";".join(f"--{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    style = f":root{{{variables}}}\n@media (prefers-color-scheme: dark) {{ :root{{{dark}}} }}\n{STYLE}"
    style += "\nfigure svg { width: 100%; height: auto; } figure { margin: 0; }"
    described = f"F1 on validation against {cost}; the line is the front, {counted(len(record['front']), 'trial')}."
    picture = draw("front", lambda figure: _paint(figure, record), 560, 320)
    comparison = record["comparison"]
    parts = [
        f"<p>{html.escape(_sentence(record))}</p>",
        f"<p><b>{html.escape(winner_sentence(record))}</b></p>",
        f"<figure>{titled(picture, 'front', 'The front', described)}</figure>",
        html_table("The front", [*TRIAL, cost, "trial"], [_row(trials[name], record) for name in record["front"]]),
        html_table("Finalists", FINALIST, [_finalist_row(found) for found in record["finalists"]]),
        html_table(
            "How sure it is",
            ["difference of F1 on validation", "verdict"],
            [
                [pair["name"], pair["f1"]["default"]["sentence"]]
                for pair in (comparison["comparisons"] if comparison else ())
            ],
        ),
        html_table(
            "All trials",
            [*TRIAL, cost, "trial", "ended"],
            [[*_row(trial, record), trial["state"]] for trial in record["trials"]],
        ),
        html_table("Environment", ["", ""], record["environment"].items()),
        f"<p><code>{html.escape(record['command'])}</code></p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Search: {html.escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n</head>\n<body>\n<h1>Search: {html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _paint(figure: "Figure", record: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    scale = TERA if record["energy"]["method"] is None else 1.0
    scored = [trial for trial in record["trials"] if trial["best_f1"] is not None]
    for finished, colour in ((False, "muted"), (True, "run1")):
        chosen = [trial for trial in scored if (trial["state"] == "finished") is finished]
        label = "trained to the end" if finished else "stopped"
        points = [trial["cost"] / scale for trial in chosen], [trial["best_f1"] for trial in chosen]
        axes.scatter(*points, s=18, color=STAND_INS[colour], label=label)
    trials = {trial["name"]: trial for trial in scored}
    on_front = [trials[name] for name in record["front"]]
    line = [trial["cost"] / scale for trial in on_front], [trial["best_f1"] for trial in on_front]
    axes.plot(*line, color=STAND_INS["run2"], drawstyle="steps-post", label="front")
    axes.set_xlabel(cost_name(record))
    axes.set_ylabel("F1, validation")
    axes.grid(axis="y")
    axes.legend(frameon=False, loc="lower right")


def _sentence(record: Mapping[str, Any]) -> str:
    states = [trial["state"] for trial in record["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    full = len(record["trials"]) * record["epochs"]
    used = sum(trial["epochs"] for trial in record["trials"])
    return (
        f"{len(record['trials'])} of {record['combinations']} combinations tried ({counts}); {used} epochs trained,"
        f" where training each to the end takes {full}."
    )


def _row(trial: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    f1 = "–" if trial["best_f1"] is None else f"{trial['best_f1']:.4f}"
    cost = trial["cost"] / (TERA if record["energy"]["method"] is None else 1.0)
    return [
        f"{trial['learning_rate']:g}",
        str(trial["r"]),
        _targets(trial),
        str(trial["epochs"]),
        f1,
        f"{cost:.4g}",
        trial["name"],
    ]


def _finalist_row(found: Mapping[str, Any]) -> list[str]:
    intervals = [found["f1"].get(split) for split in ("validation", "test")]
    return [found["name"], f"{found['learning_rate']:g}", str(found["r"]), _targets(found), *map(_interval, intervals)]


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _targets(found: Mapping[str, Any]) -> str:
    targets: str | Sequence[str] = found["target_modules"]
    return targets if isinstance(targets, str) else ",".join(targets)


def _seeds(record: Mapping[str, Any]) -> str:
    return ", ".join(str(seed) for seed in record["seeds"])
