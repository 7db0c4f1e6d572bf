"""Runs compared by their settings: which runs form a side, whether they can be compared, and what the table says.

Runs that differ only in their seed form a side. Every later side is compared with the first.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorakit._counts import counted
from lorakit.report.cells import Cell, Row, number
from lorakit.report.comparison import NAMES, contention_note
from lorakit.report.runs import Run, Source, read_sources
from lorakit.report.statistics import (
    BETTER,
    CANNOT_TELL,
    EQUAL,
    WORSE,
    Difference,
    Interval,
    Scored,
    compare_f1,
    f1_interval,
    mean_interval,
    ratio_interval,
    score_runs,
    verdict_of,
)
from lorakit.report.tables import MARK, markdown_table
from lorakit.training.sentences import MODES, NAME, RunSentences, read_sentences

SCHEMA = 1
COSTS = {
    "train_tokens_per_s": "training tokens/s",
    "train_seconds": "training (s)",
    "measured_wh": "measured (Wh)",
    "estimated_wh": "estimated (Wh)",
}
SCORES = {"default": "F1", "strict": "F1, strict IOB2"}


@dataclass(frozen=True)
class ScoredRun:
    """A run with its counts by sentence.

    Attributes:
        folder: that holds its sentences.json.
        run: what else it left on disk.
        model: the base, if it is known.
        sentences: the content of sentences.json.
    """

    folder: str
    run: Run
    model: str | None
    sentences: RunSentences

    @property
    def settings(self) -> str:
        """What it depends on besides the seed, as text; runs with the same one form a side."""
        adapter = {k: v for k, v in (self.run.values.get("adapter") or {}).items() if k != "peft_total_parameters"}
        return json.dumps([self.run.mode, self.model, adapter, dict(self.sentences.settings)], sort_keys=True)

    def cost(self, name: str) -> float | None:
        """A number of COSTS; None if it was not recorded."""
        if not name.endswith("_wh"):
            return self.run.values.get(name) or None
        kwh = (self.run.values.get("energy") or {}).get(name.replace("_wh", "_kwh"))
        return 1e3 * kwh if kwh else None


@dataclass(frozen=True)
class Side:
    """Runs that differ only in the seed.

    Attributes:
        name: for people.
        runs: by seed.
    """

    name: str
    runs: Mapping[int, ScoredRun]


def compare_runs(
    folders: Sequence[str | os.PathLike[str]],
    split: str = "test",
    margin: float | None = None,
    one_side: bool = False,
) -> dict[str, Any]:
    """Compare the runs in some folders; returns a record of plain values.

    Args:
        folders: of runs, or output folders that hold runs: one of each mode, or several seeds.
        split: "test" or "validation".
        margin: differences of F1 below it count as equal, above 0 and below 1; None for no such verdict.
        one_side: accept runs that differ only in the seed, of which the record has the means and intervals.

    Raises:
        ValueError: a folder holds no run, or the runs cannot be compared.
    """
    check_margin(margin)
    runs: list[ScoredRun] = []
    for folder in folders:
        try:
            runs += read_scored_runs(Path(folder))
        except ValueError as error:
            if not runs:
                raise
            raise ValueError(f"{error}; so it cannot be compared with {runs[0].folder}") from error
    seen: dict[Path, str] = {}
    for run in runs:
        place = Path(run.folder).resolve()
        if place in seen:
            raise ValueError(f"a run is named twice: {seen[place]}, {run.folder}")
        seen[place] = run.folder
    check_comparable(runs, split)
    sides = sides_of(runs)
    if len(sides) == 1 and not one_side:
        raise ValueError(
            f"{', '.join(run.folder for run in runs)}: nothing to compare, because there is one run or all differ only"
            " in the seed; give runs of at least two settings"
        )
    return record_of(sides, split, margin)


def check_margin(margin: float | None) -> None:
    """Check that a margin is a difference of F1.

    Raises:
        ValueError: it is not.
    """
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it must be a difference of F1 above 0 and below 1, such as 0.005")


# Reading -------------------------------------------------------------------------------------------------------------


def read_scored_runs(folder: Path) -> Iterator[ScoredRun]:
    """The runs in a folder: an output folder with a run of each mode or with several seeds, or a single run.

    Raises:
        ValueError: there is no run, or one whose sentences.json is missing, damaged or of another run.
    """
    for source, run in _runs_in(folder):
        place = run.folder
        if place is None:
            raise ValueError(f"{folder} holds the scores of {run.label} but not its log, so it cannot be compared")
        try:
            sentences = read_sentences(Path(place))
        except FileNotFoundError:
            raise ValueError(
                f"{place} has no {NAME}, which `lorakit train` writes at the end of a run; finish it, or train it again"
            ) from None
        for split, found in sentences.splits.items():
            for mode in MODES:
                scores = run.scores(split)
                recorded = scores and (scores if mode == "default" else scores["strict"])["f1"]
                if recorded is not None and found.counts.total(mode).f1 != recorded:
                    raise ValueError(
                        f"{place}/{NAME} is of another run than the scores beside it: {split} F1"
                        f" {found.counts.total(mode).f1:.4f} and {recorded:.4f} ({mode}); train the run again"
                    )
        yield ScoredRun(str(place), run, source.model, sentences)


def _runs_in(folder: Path) -> Iterator[tuple[Source, Run]]:
    """Runs of a folder; that of one mode has its parameters and its seconds in the comparison.json above it."""
    above = folder.resolve().parent
    if not (folder / "comparison.json").exists() and (above / "comparison.json").exists():
        (source,) = read_sources([above])
        found = [run for run in source.runs if run.folder and Path(run.folder).resolve() == folder.resolve()]
        if found:
            yield source, Run(**{**vars(found[0]), "folder": str(folder)})
            return
    (source,) = read_sources([folder])
    for run in source.runs:
        if not run.published:
            yield from ((source, one) for one in run.seeds or (run,))


def check_comparable(runs: Sequence[ScoredRun], split: str) -> None:
    """Check that all runs were scored on the same sentences.

    Raises:
        ValueError: two were not, or one was not scored on this split; names both and what differs.
    """
    first, *others = runs
    for run in runs:
        if split not in run.sentences.splits:
            there = ", ".join(run.sentences.splits) or "none"
            raise ValueError(f"{run.folder} was not scored on a {split} set (it has: {there}); choose one with split=")
    for other in others:
        a, b = (run.sentences.splits[split] for run in (first, other))
        if a.digest != b.digest or len(a.counts.default) != len(b.counts.default):
            raise ValueError(
                f"{first.folder} and {other.folder} cannot be compared: their {split} sets differ"
                f" ({counted(len(a.counts.default), 'sentence')} with digest {a.digest}, {len(b.counts.default):,} with"
                f" {b.digest}); compare runs on the same corpus and split"
            )
    if len(first.sentences.splits[split].counts.default) < 2:
        raise ValueError(f"the {split} set of {first.folder} has one sentence; at least two are needed to compare")


def sides_of(runs: Sequence[ScoredRun]) -> list[Side]:
    """Group runs that differ only in the seed; a seed that a group has already opens another of the same settings."""
    groups: list[tuple[str, dict[int, ScoredRun]]] = []
    for run in runs:
        key, seed = run.settings, run.sentences.seed
        group = next((found for name, found in groups if name == key and seed not in found), None)
        if group is None:
            group = {}
            groups.append((key, group))
        group[seed] = run
    modes = [NAMES.get(next(iter(group.values())).run.mode, "") for _, group in groups]
    if all(modes) and len(set(modes)) == len(modes):
        return [Side(mode, group) for mode, (_, group) in zip(modes, groups, strict=True)]
    return [Side(_name_of(group), group) for _, group in groups]


def _name_of(runs: Mapping[int, ScoredRun]) -> str:
    first = next(iter(runs.values())).folder
    return first if len(runs) == 1 else f"{first} and {len(runs) - 1} more"


# The record ----------------------------------------------------------------------------------------------------------


def record_of(sides: Sequence[Side], split: str, margin: float | None) -> dict[str, Any]:
    """Compare every later side with the first; the same runs give the same record."""
    places: list[dict[int, int]] = []
    runs: list[ScoredRun] = []
    for side in sides:
        places.append({seed: len(runs) + i for i, seed in enumerate(side.runs)})
        runs += side.runs.values()
    scored = {
        mode: score_runs(np.stack([getattr(run.sentences.splits[split].counts, mode) for run in runs]))
        for mode in MODES
    }
    return {
        "schema": SCHEMA,
        "split": split,
        "sentences": len(runs[0].sentences.splits[split].counts.default),
        "margin": margin,
        "sides": [_side_record(side, place, scored) for side, place in zip(sides, places, strict=True)],
        "comparisons": [
            _pair_record(sides[0], side, {mode: compare_f1(scored[mode], places[0], place, margin) for mode in MODES})
            for side, place in zip(sides[1:], places[1:], strict=True)
        ],
    }


def _side_record(side: Side, place: Mapping[int, int], scored: Mapping[str, Scored]) -> dict[str, Any]:
    costs = {name: list(_costs(side, name).values()) for name in COSTS}
    return {
        "name": side.name,
        "runs": [run.folder for run in side.runs.values()],
        "seeds": list(side.runs),
        "f1": {mode: vars(f1_interval(scored[mode], place)) for mode in MODES},
        "costs": {name: vars(mean_interval(values)) if values else None for name, values in costs.items()},
        "contention": _contention(side),
    }


def _costs(side: Side, name: str) -> dict[int, float]:
    """A cost by seed; empty unless every run recorded it."""
    values = {seed: run.cost(name) for seed, run in side.runs.items()}
    return {} if None in values.values() else values


def _contention(side: Side) -> list[str]:
    """Which runs shared the machine, so that their times and energies are not comparable."""
    notes = ((run.folder, contention_note(run.run.values)) for run in side.runs.values())
    return [f"{folder}: {note}" for folder, note in notes if note]


def _pair_record(first: Side, second: Side, f1: Mapping[str, Difference]) -> dict[str, Any]:
    ratios = {}
    for name in COSTS:
        a, b = _costs(first, name), _costs(second, name)
        ratios[name] = _ratio_record(ratio_interval(a, b), name) if a and b else None
    sentences = {SCORES[mode]: verdict_sentence(first.name, second.name, difference) for mode, difference in f1.items()}
    return {
        "name": f"{second.name} − {first.name}",
        "f1": {mode: {**difference.to_json(), "sentence": sentences[SCORES[mode]]} for mode, difference in f1.items()},
        "ratios": ratios,
        "contended": bool(_contention(first) or _contention(second)),
    }


def _ratio_record(ratio: Interval, name: str) -> dict[str, Any]:
    """A ratio of costs with its verdict: more tokens per second are better, more seconds and Wh are worse."""
    if ratio.low is None:
        return {**vars(ratio), "verdict": CANNOT_TELL}
    verdict = verdict_of(ratio.low - 1, ratio.high - 1, None)
    if name != "train_tokens_per_s":
        verdict = {BETTER: WORSE, WORSE: BETTER}.get(verdict, verdict)
    return {**vars(ratio), "verdict": verdict}


def verdict_sentence(first: str, second: str, found: Difference) -> str:
    """A difference's verdict in words, with what would tell where it cannot."""
    if min(found.seeds) == 1:
        alone = {
            BETTER: f"{second}'s is better",
            WORSE: f"{second}'s is worse",
            EQUAL: "they are equal within the margin",
            CANNOT_TELL: "cannot tell either",
        }[found.models]
        more = "" if found.more_seeds is None else f"; at least {counted(found.more_seeds, 'more seed')} per side"
        return f"cannot tell: one seed on a side does not show the spread between seeds{more}. Of these models: {alone}"
    if found.verdict == EQUAL:
        return f"{second} and {first} are equal within the margin"
    if found.verdict != CANNOT_TELL:
        return f"{second} is {found.verdict} than {first}"
    if found.more_seeds is None:
        return "cannot tell, and more seeds would not: the test set has too few sentences for so small a difference"
    return f"cannot tell; {counted(found.more_seeds, 'more seed')} per side would, if the difference stays"


# For people ----------------------------------------------------------------------------------------------------------


def comparison_text(record: Mapping[str, Any]) -> str:
    """The record as Markdown tables and verdicts."""
    sides, pairs = record["sides"], record["comparisons"]
    margin = "" if record["margin"] is None else f"; equal means within ±{record['margin']:g}"
    lines = [
        f"{record['split']} set, {counted(record['sentences'], 'sentence')}; 95 % intervals in brackets{margin}",
        "",
    ]
    lines.append(_table(["", *(side["name"] for side in sides)], side_rows(record)))
    notes = contention_lines(record)
    lines += [""] * bool(notes) + notes
    for pair in pairs:
        lines += ["", _table(["", pair["name"], "verdict"], pair_rows(pair))]
        lines += ["", *(f"{SCORES[mode]}: {found['sentence']}." for mode, found in pair["f1"].items())]
    return "\n".join(lines) + "\n"


def verdict_text(record: Mapping[str, Any]) -> str:
    """What a comparison.json of several seeds says: each side, the verdict, and how to add seeds that would tell."""
    comparison, count = record["comparison"], len(record["seeds"])
    if "why" in comparison:
        return f"The runs are not compared: {comparison['why']}.\n"
    found = [score["more_seeds"] for pair in comparison["comparisons"] for score in pair["f1"].values()]
    more = [number for number in found if number is not None]
    advice = f"To add seeds, run the same command with --seeds {count + max(more)} --resume.\n" if more else ""
    return comparison_text(comparison) + advice


def contention_lines(record: Mapping[str, Any]) -> list[str]:
    """What else used the machine, a line for each run that it concerns."""
    return [f"{MARK} {note}" for side in record["sides"] for note in side["contention"]]


def side_rows(record: Mapping[str, Any]) -> tuple[Row, ...]:
    """Each side's figures, with a cell per side."""
    sides = record["sides"]
    seeds = [", ".join(map(str, side["seeds"])) for side in sides]
    rows = [
        Row(
            "seeds" if any(len(side["seeds"]) > 1 for side in sides) else "seed",
            tuple(Cell(text, "") for text in seeds),
        )
    ]
    rows += [Row(name, tuple(_interval(side["f1"][mode], 4) for side in sides)) for mode, name in SCORES.items()]
    for name, shown in COSTS.items():
        if any(side["costs"][name] for side in sides):
            digits = 0 if name == "train_tokens_per_s" else 1 if name == "train_seconds" else 3
            rows.append(Row(shown, tuple(_interval(side["costs"][name], digits) for side in sides)))
    return tuple(rows)


def pair_rows(pair: Mapping[str, Any]) -> tuple[Row, ...]:
    """Each difference or ratio with its interval, and its verdict."""
    rows = [(SCORES[mode], _interval(found, 4, sign=True), found["verdict"]) for mode, found in pair["f1"].items()]
    for name, ratio in pair["ratios"].items():
        if ratio:
            mark = MARK if pair["contended"] else ""
            rows.append((f"{COSTS[name]}, ratio{mark}", _interval(ratio, 3), ratio["verdict"]))
    return tuple(Row(name, (cell, Cell(verdict, ""))) for name, cell, verdict in rows)


def _table(header: Sequence[str], rows: Sequence[Row]) -> str:
    return markdown_table(header, [[row.name, *(cell.text for cell in row.cells)] for row in rows])


def _interval(found: Mapping[str, Any] | None, digits: int, sign: bool = False) -> Cell:
    if found is None:
        return Cell("–")
    numbers = (found["value"], found["low"], found["high"])
    value, *limits = (None if x is None else number(x, digits, sign=sign).text for x in numbers)
    return Cell(value if None in limits else f"{value} [{', '.join(limits)}]", repr(found["value"]))
