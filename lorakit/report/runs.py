"""What finished runs left on disk: comparison.json, and each mode's metrics.jsonl and energy journal.

Nothing else is read. A folder with metrics.jsonl but without comparison.json is one run; what is in comparison.json
only (parameters, command, environment) is then unknown, and so is whatever an older version did not write.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorakit._counts import counted
from lorakit._files import read_json_lines
from lorakit.power.journal import merge_runs, read_course, read_journal
from lorakit.power.reading import MEASURED
from lorakit.report.carbon import Carbon
from lorakit.report.comparison import NAMES, read_comparison
from lorakit.report.means import mean_of

COMPONENTS = ("gpu", "cpu", "ram")
METRICS, JOURNAL = "metrics.jsonl", "energy.jsonl"


@dataclass(frozen=True)
class EnergyPoint:
    """How much energy a run had used at a moment.

    Attributes:
        wall_s: the moment, seconds since 1970.
        elapsed_s: seconds that the run had taken, without pauses between restarts.
        wh: watt-hours so far by component; None if unavailable.
        range_wh: the lowest and highest plausible value of an estimate by component, else None.
    """

    wall_s: float
    elapsed_s: float
    wh: Mapping[str, float | None]
    range_wh: Mapping[str, tuple[float, float] | None]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        label: its name for people.
        mode: "full" or "lora", "" if unknown.
        values: the mode's part of comparison.json, or as much of it as the other two files hold.
        steps: the step lines of metrics.jsonl.
        evaluations: its evaluation lines on the validation set, one per epoch.
        energy: its energy over time; empty without a journal.
        published: it only holds figures published elsewhere (the study's).
        folder: of its log; None if there is no log.
        seeds: if it stands for runs of several seeds, those runs; `values` then has means and totals, `steps` and
            `evaluations` have means, and there is neither `energy` over time nor a folder.
    """

    label: str
    mode: str
    values: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    energy: tuple[EnergyPoint, ...] = ()
    published: bool = False
    folder: str | None = None
    seeds: "tuple[Run, ...]" = ()

    def scores(self, split: str) -> Mapping[str, Any] | None:
        """The scores on a split as comparison.json has them; None if nothing was recorded."""
        return self.values.get(split)

    def component(self, name: str) -> Mapping[str, Any] | None:
        """The energy of a component as comparison.json has it; None if nothing was recorded."""
        return (self.values.get("energy") or {}).get(name)

    def kind_of(self, name: str) -> str:
        """How a component's energy was obtained: "measured", "estimated", "unavailable" or "not recorded"."""
        component = self.component(name)
        if component is None:
            return "not recorded"
        return "measured" if component["method"] in MEASURED else component["method"]


@dataclass(frozen=True)
class Source:
    """A folder and the runs in it; `record` is its comparison.json, empty without one."""

    folder: str
    runs: tuple[Run, ...]
    model: str | None = None
    dataset: str | None = None
    command: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


def read_sources(folders: Sequence[str | os.PathLike[str]], labels: Sequence[str] = ()) -> list[Source]:
    """Read the runs of some folders. A run is named by its mode and, if there are several folders, by its folder.

    Args:
        folders: output folders of runs.
        labels: a name per folder, used instead of the folder's own.

    Returns:
        A source per folder, in the same order.

    Raises:
        ValueError: a folder does not exist or holds no run, or one of its files is not what it should be.
    """
    if labels and len(labels) != len(folders):
        raise ValueError(
            f"{counted(len(labels), 'label was', 'labels were')} given for {counted(len(folders), 'run')}; give one per"
            " run, in the same order"
        )
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a run is named twice: {', '.join(map(str, paths))}")
    names = labels or (_short_names(paths) if len(paths) > 1 else [""])
    return [_read_source(path, name) for path, name in zip(paths, names, strict=True)]


def _read_source(folder: Path, name: str) -> Source:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give a run's output folder")
    if (folder / "comparison.json").exists():
        return _read_comparison(folder, name)
    if not (folder / METRICS).exists():
        raise ValueError(f"{folder} holds neither comparison.json nor {METRICS}; give a run's output folder")
    mode = folder.name if folder.name in NAMES else ""
    return Source(str(folder), (_read_run(folder, name or NAMES.get(mode, folder.resolve().name), mode),))


def _read_comparison(folder: Path, name: str) -> Source:
    record = read_comparison(folder / "comparison.json")
    about = Carbon.of_record(record).recorded
    record["modes"] = {mode: {**values, **about} for mode, values in record["modes"].items()}
    if "seeds" in record:
        parts = [
            _read_modes(folder / seed["folder"], seed["modes"], f"seed {seed['seed']}") for seed in record["seeds"]
        ]
        labels = _labels(record["modes"], name)
        runs = [
            _over_seeds(labels[mode], mode, values, [part[mode] for part in parts])
            for mode, values in record["modes"].items()
        ]
    else:
        runs = list(_read_modes(folder, record["modes"], name).values())
    for mode, values in record.get("study", {}).items():
        runs.append(Run(f"study, {NAMES.get(mode, mode)}", mode, values, published=True))
    known = {key: record.get(key) for key in ("model", "dataset", "command")}
    return Source(str(folder), tuple(runs), **known, environment=record.get("environment") or {}, record=record)


def _read_modes(folder: Path, modes: Mapping[str, Any], name: str) -> dict[str, Run]:
    runs = {}
    for mode, label in _labels(modes, name).items():
        place = _place_of(folder, mode, modes[mode])
        if place:
            runs[mode] = _read_run(place, label, mode, modes[mode])
        else:  # the record still has the scores of each epoch
            runs[mode] = Run(label, mode, modes[mode], evaluations=tuple(modes[mode].get("history") or ()))
    return runs


def _labels(modes: Mapping[str, Any], name: str) -> dict[str, str]:
    labels = {mode: NAMES.get(mode, mode) for mode in modes}
    if name:
        labels = {mode: f"{name} · {label}" if len(modes) > 1 else name for mode, label in labels.items()}
    return labels


def _over_seeds(label: str, mode: str, values: Mapping[str, Any], seeds: Sequence[Run]) -> Run:
    """The runs of several seeds as one, whose log lines are the means of lines of the same step."""

    def means(lines: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Mapping[str, Any], ...]:
        by_step = [{line["step"]: line for line in run if "step" in line} for run in lines]
        shared = [step for step in by_step[0] if all(step in found for found in by_step)]
        return tuple(mean_of([found[step] for found in by_step]) for step in shared)

    steps, evaluations = means([run.steps for run in seeds]), means([run.evaluations for run in seeds])
    return Run(label, mode, values, steps, evaluations or tuple(values.get("history") or ()), seeds=tuple(seeds))


def _place_of(folder: Path, mode: str, values: Mapping[str, Any]) -> Path | None:
    """The folder of a mode's log: one of its own or, if one mode ran alone, the output folder itself.

    A later run that did not finish, or an earlier one of another mode, may have left its log in either place. A log
    belongs to this run if it has the scores of the record. None if there is no such log.
    """
    recorded = [scores["f1"] for scores in values.get("history") or ()]
    for place in (folder / mode, folder):
        lines = _read_log(place / METRICS)
        if lines and recorded in ([], [line["f1"] for line in lines if line.get("split") == "validation"]):
            return place
    return None


def _read_run(folder: Path, label: str, mode: str, values: Mapping[str, Any] | None = None) -> Run:
    lines = _read_log(folder / METRICS)
    evaluations = tuple(line for line in lines if line.get("event") == "evaluation")
    validation = tuple(line for line in evaluations if line.get("split") == "validation")
    energy = _read_energy(folder / JOURNAL)
    if values is None:
        values = _values_from(validation, evaluations, folder / JOURNAL)
    steps = tuple(line for line in lines if line.get("event") == "step")
    return Run(label, mode, values, steps, validation, energy, folder=str(folder))


def _read_log(path: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_json_lines(path)] if path.exists() else []


def _values_from(
    validation: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], journal: Path
) -> dict[str, Any]:
    """What the log and the journal say about a run that has no comparison.json."""
    best = max(validation, key=lambda line: line["f1"], default=None)  # the first of equals, as in training
    tests = [line for line in evaluations if line.get("split") == "test"]
    values: dict[str, Any] = {"validation": best, "test": tests[-1] if tests else None, "history": list(validation)}
    if validation:
        values |= {"epochs": validation[-1]["epoch"], "best_epoch": best["epoch"]}
    if journal.exists():
        parts = [(journal, run) for run in read_journal(journal) if run.reading]
        if parts:
            values["energy"] = merge_runs(parts).to_json()
    return values


def _read_energy(path: Path) -> tuple[EnergyPoint, ...]:
    """A journal's energy over time, the processes of a resumed training one after another."""
    if not path.exists():
        return ()
    points: list[EnergyPoint] = []
    courses = sorted(read_course(path).values(), key=lambda course: course[0][0])
    if any(later[0][0] < earlier[-1][0] for earlier, later in pairwise(courses)):
        return ()  # parallel processes: their sum over time is not in the file
    before_s, before = 0.0, {}
    for course in courses:
        first = next((reading for _, reading in course if reading), None)
        if first is None:
            continue
        for wall_s, reading in course:
            elapsed_s = before_s + (reading["duration_s"] if reading else 0.0)
            parts = {name: _so_far(reading, first, name, before) for name in COMPONENTS}
            points.append(
                EnergyPoint(
                    wall_s,
                    elapsed_s,
                    {name: wh for name, (wh, _) in parts.items()},
                    {name: span for name, (_, span) in parts.items()},
                )
            )
        before_s = points[-1].elapsed_s
        before = {name: (points[-1].wh[name], points[-1].range_wh[name]) for name in COMPONENTS}
    return tuple(points)


def _so_far(
    reading: Mapping[str, Any] | None,
    first: Mapping[str, Any],
    name: str,
    before: Mapping[str, tuple[float | None, tuple[float, float] | None]],
) -> tuple[float | None, tuple[float, float] | None]:
    """A component's Wh and range at a reading (None at a process's start), on top of what earlier processes used."""
    part = (reading or first)[name]
    wh_before, range_before = before.get(name, (0.0, (0.0, 0.0)))
    if part["kwh"] is None or wh_before is None:
        return None, None
    low, high = part.get("range_kwh") or (None, None)
    now = 1e3 if reading else 0.0  # kWh -> Wh; nothing was used at the start
    span = None if low is None or range_before is None else (range_before[0] + now * low, range_before[1] + now * high)
    return wh_before + now * part["kwh"], span


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has, such as "r8/lora"."""
    tails = [path.resolve().parts for path in paths]
    names = []
    for tail in tails:
        others = [other for other in tails if other is not tail]
        depth = next(n for n in range(1, len(tail) + 1) if all(other[-n:] != tail[-n:] for other in others))
        names.append("/".join(tail[-depth:]))
    return names
