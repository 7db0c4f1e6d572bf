"""LoRA's rank, targets and learning rate over seeds: F1 against watt-hours and against trained parameters.

  python benchmarks/sweep.py                                             a small grid, offline, about ten minutes
  python benchmarks/sweep.py --ranks 4 16 --targets query,value all-linear --learning-rates 1e-3 --seeds 0 1 2
  python benchmarks/sweep.py --name sweep-real -- --dataset ../shared/bionlp2004 --epochs 2

Everything after `--` goes to examples/bionlp.py, which trains each cell of the grid in a process of its own. A cell's
output is runs/NAME/CELL; its comparison.json appears whole or not at all. The same command after a stop or a kill, or
one with more ranks, targets, rates or seeds, runs what is missing; a cell that was stopped begins anew, so that its
energy is that of one run. Whatever else changes is refused under the same NAME. A cell that fails is noted, the others
go on, and the next call tries it again. Table, figures and picture go to benchmarks/results/NAME.{md,json,png}.
"""

import argparse
import fcntl
import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from seeds import machine, spread
from tqdm import tqdm

from lorakit._files import atomic_write, write_text
from lorakit.cli.flags import Parser, input_errors
from lorakit.power.reading import MEASURED
from lorakit.report.comparison import NAMES
from lorakit.report.tables import markdown_table

ROOT = Path(__file__).parent.parent
RUNS, RESULTS = ROOT / "runs", ROOT / "benchmarks" / "results"
EXAMPLE = ROOT / "examples" / "bionlp.py"
OURS = ("mode", "r", "lora-alpha", "target-modules", "learning-rate", "seed", "output-dir", "resume", "study")
KEPT = ("trainable_parameters", "total_parameters", "learning_rate", "epochs", "best_epoch", "steps", "train_tokens",
        "train_seconds", "train_tokens_per_s", "duration_s")  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What is compared: a point of the picture, run with each seed. Full fine-tuning has neither targets nor r."""

    mode: str
    learning_rate: float
    targets: tuple[str, ...] = ()
    r: int = 0

    def __str__(self) -> str:
        if self.mode == "full":
            return f"full, rate {self.learning_rate:g}"
        return f"LoRA, {', '.join(self.targets)}, r={self.r}, rate {self.learning_rate:g}"


@dataclass(frozen=True)
class Cell:
    """One training run of the sweep."""

    configuration: Configuration
    seed: int

    def folder(self) -> str:
        configuration = self.configuration
        parts = [configuration.mode, "+".join(configuration.targets), f"r{configuration.r}" * bool(configuration.r)]
        parts += [f"rate{configuration.learning_rate:g}", f"seed{self.seed}"]
        return re.sub(r"[^\w.+-]", "_", "-".join(filter(None, parts)))

    def arguments(self, scale: float) -> list[str]:
        """Of examples/bionlp.py."""
        configuration = self.configuration
        words = ["--mode", configuration.mode, "--learning-rate", f"{configuration.learning_rate:g}"]
        if configuration.mode == "lora":
            words += ["--r", str(configuration.r), "--lora-alpha", f"{scale * configuration.r:g}"]
            words += ["--target-modules", *configuration.targets]
        return [*words, "--seed", str(self.seed)]


@dataclass(frozen=True)
class Outcome:
    """A finished cell: its comparison.json, or why there is none."""

    cell: Cell
    command: str
    record: dict[str, Any] | None = None
    error: str | None = None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The (cost, score) that no other beats: one that costs no more, scores no less, and is better in one of them.

    Returns:
        Their places in `points`, by rising cost. Equal points are all in it.
    """
    front: list[int] = []
    best = cost = float("-inf")  # the highest score so far, and the cost at which it was first reached
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[place][1] > best or points[place] == (cost, best):
            front.append(place)
            cost, best = points[place]
    return front


# Running -------------------------------------------------------------------------------------------------------------


def grid(arguments: argparse.Namespace) -> list[Cell]:
    """The cells; all configurations with the first seed come first, so that a stopped sweep has an answer."""
    configurations = [Configuration("full", rate) for rate in arguments.full_learning_rates]
    axes = product(arguments.targets, arguments.ranks, arguments.learning_rates)
    configurations += [Configuration("lora", rate, targets, r) for targets, r, rate in axes]
    return [
        Cell(configuration, seed) for seed, configuration in product(arguments.seeds, dict.fromkeys(configurations))
    ]


def sweep(cells: Sequence[Cell], arguments: argparse.Namespace) -> list[Outcome]:
    """Run what is not done yet.

    Raises:
        ValueError: the folder holds another sweep's cells, or is in use.
    """
    folder = RUNS / arguments.name
    with alone(folder) as held:
        check_settings(folder / "sweep.json", settings_of(arguments))
        found = {cell: done(cell, arguments) for cell in cells}  # before anything runs: it may refuse
        missing = [cell for cell in cells if found[cell] is None]
        spent_s: list[float] = []
        with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", disable=None) as bar:
            for cell in missing:
                begin = time.monotonic()
                found[cell] = outcome = run(cell, arguments, held)
                spent_s.append(time.monotonic() - begin)
                left = len(missing) - len(spent_s)
                minutes = left * sum(spent_s) / len(spent_s) / 60
                said = f"failed: {outcome.error}" if outcome.error else f"validation F1 {f1(outcome, 'validation'):.4f}"
                tqdm.write(
                    f"{len(cells) - left} of {len(cells)}: {cell.configuration}, seed {cell.seed}: {said};"
                    f" {spent_s[-1]:.0f} s, about {minutes:.0f} min left",
                    file=sys.stderr,
                )
                bar.update()
    return list(found.values())


def done(cell: Cell, arguments: argparse.Namespace) -> Outcome | None:
    """A cell's result on disk; None where there is none.

    Raises:
        ValueError: the folder holds another command's result, or there is nothing to compare by.
    """
    words, command = command_of(cell, arguments)
    path = RUNS / arguments.name / cell.folder() / "comparison.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["command"] != command:
        raise ValueError(f"{path} is the result of {record['command']!r}, not of {command!r}; give another --name")
    outcome = Outcome(cell, command, record)
    if mode_of(outcome)["validation"] is None:
        raise ValueError(f"{record['dataset']} has no validation set, by which the cells are compared")
    return outcome


def run(cell: Cell, arguments: argparse.Namespace, held: int) -> Outcome:
    """Train one cell in a process of its own; what it prints goes to its log.txt."""
    words, command = command_of(cell, arguments)
    folder = RUNS / arguments.name / cell.folder()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, pass_fds=(held,),
        )  # fmt: skip
        try:
            status = process.wait()
        finally:
            process.terminate()  # we were stopped: it must not go on alone
            process.wait()
    outcome = done(cell, arguments) if status == 0 else None
    if outcome is None:
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        why = f"killed by signal {-status}" if status < 0 else f"status {status}"
        outcome = Outcome(cell, command, error=f"{why}: {last.strip()[:300]}")
        text = json.dumps({"command": command, "error": outcome.error}, indent=1) + "\n"
        write_text(folder / "failed.json", text)
    return outcome


def command_of(cell: Cell, arguments: argparse.Namespace) -> tuple[list[str], str]:
    """The example's arguments, and the command as the example itself writes it down."""
    folder = Path("runs") / arguments.name / cell.folder()
    words = [*arguments.example, *cell.arguments(arguments.scale), "--output-dir", str(folder)]
    return words, shlex.join(["python", "examples/bionlp.py", *words])


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; a cell inherits it, so that one that outlived a killed sweep still holds it.

    Raises:
        ValueError: another sweep, or such a cell, is at work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{folder} is in use by another sweep, or by the last cell of one that was killed"
            ) from None
        yield file.fileno()


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a folder have in common: the example's arguments, and what the files they name hold."""
    sys.path.insert(0, str(EXAMPLE.parent))
    from bionlp import parse

    chosen, _ = parse([*arguments.example, *grid(arguments)[0].arguments(arguments.scale)])
    corpus = chosen.dataset or EXAMPLE.parent / "mini" / "corpus.py"
    return {
        "example": arguments.example, "scale": arguments.scale,
        "base": content(chosen.model), "corpus": content(corpus),
    }  # fmt: skip


def content(source: str | Path) -> str:
    """A digest of a file's or a folder's bytes; a hub id stands for itself."""
    path = Path(source)
    if not path.exists():
        return str(source)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Keep the settings with a folder's first cell, compare with every later one.

    Raises:
        ValueError: they differ.
    """
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{path.parent} holds cells with {name} {before.get(name)!r}, now it is {value!r}; "
                    "give another --name, or remove that folder"
                )
    write_text(path, json.dumps(settings, indent=1) + "\n")


# Showing -------------------------------------------------------------------------------------------------------------


def f1(outcome: Outcome, split: str) -> float | None:
    scores = mode_of(outcome)[split]
    return None if scores is None else scores["f1"]


def mode_of(outcome: Outcome) -> dict[str, Any]:
    return outcome.record["modes"][outcome.cell.configuration.mode]


def energy_kind(outcomes: Sequence[Outcome]) -> tuple[str, str] | None:
    """("measured" or "estimated", of what), the kind that all cells have, measured before estimated; else None."""
    energies = [mode_of(outcome)["energy"] for outcome in outcomes]
    for kind, methods in (("measured", MEASURED), ("estimated", ("estimated",))):
        parts = {tuple(p.upper() for p in ("gpu", "cpu", "ram") if e[p]["method"] in methods) for e in energies}
        if len(parts) == 1 and parts != {()} and all(energy[f"{kind}_kwh"] is not None for energy in energies):
            return kind, " + ".join(parts.pop())
    return None


@dataclass(frozen=True)
class Point:
    """A configuration over its seeds; `wh` is empty where the cells have no kind of energy in common."""

    configuration: Configuration
    parameters: int
    validation_f1: list[float]
    test_f1: list[float | None]
    wh: list[float]
    duration_s: list[float]


def points_of(outcomes: Sequence[Outcome], kind: str | None) -> list[Point]:
    """Configurations that have at least one finished cell, in the grid's order."""
    by_configuration: dict[Configuration, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.record:
            by_configuration.setdefault(outcome.cell.configuration, []).append(outcome)
    return [
        Point(
            configuration,
            mode_of(group[0])["trainable_parameters"],
            [f1(outcome, "validation") for outcome in group],
            [f1(outcome, "test") for outcome in group],
            [1e3 * mode_of(outcome)["energy"][f"{kind}_kwh"] for outcome in group] if kind else [],
            [mode_of(outcome)["duration_s"] for outcome in group],
        )
        for configuration, group in by_configuration.items()
    ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def fronts(points: Sequence[Point]) -> dict[str, list[int]]:
    """Places of the points on each front, by mean over the seeds."""
    scores = [mean(point.validation_f1) for point in points]
    found = {"parameters": pareto_front([(p.parameters, score) for p, score in zip(points, scores, strict=True)])}
    if all(point.wh for point in points):
        found["Wh"] = pareto_front([(mean(p.wh), score) for p, score in zip(points, scores, strict=True)])
    return found


def table(summary: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The report in Markdown."""
    finished = [outcome for outcome in outcomes if outcome.record]
    first = finished[0].record
    kind = energy_kind(finished)
    points = points_of(outcomes, kind and kind[0])
    on = fronts(points)
    seeds = len({outcome.cell.seed for outcome in outcomes})
    energy = f"Wh {kind[0]} ({kind[1]})" if kind else "Wh"
    rows = []
    for place, point in enumerate(points):
        configuration, ran = point.configuration, len(point.validation_f1)
        rows.append([
            NAMES[configuration.mode] + (f" ({ran} of {seeds} seeds)" if ran < seeds else ""),
            ", ".join(configuration.targets), str(configuration.r or ""), f"{configuration.learning_rate:g}",
            f"{point.parameters:,}", spread(point.validation_f1, "{:.4f}"), spread(point.test_f1, "{:.4f}"),
            spread(point.duration_s, "{:.1f}"), spread(point.wh, "{:.3f}") if point.wh else "–",
            ", ".join(name for name, front in on.items() if place in front),
        ])  # fmt: skip
    header = ["", "targets", "r", "learning rate", "trained parameters", "validation F1", "test F1", "run (s)", energy,
              "on the front of"]  # fmt: skip
    lines = [f"# Rank, targets and learning rate: {first['model']} on {Path(first['dataset']).name}", ""]
    lines += [summary["note"], ""] if summary["note"] else []
    lines += [f"Mean ± sd over {seeds} seeds" if seeds > 1 else "One seed"]
    lines[-1] += (
        "; a run is training and evaluation. On a front: no other row has at least this validation F1 for at most this "
        "cost. A mean over few seeds that lies within another's sd is no different from it."
    )
    lines += ["", markdown_table(header, rows), "", f"![F1 against energy and parameters]({summary['name']}.png)", ""]
    if kind is None:
        lines += ["The cells have no kind of energy in common: there is no picture of it.", ""]
    for part in ("gpu", "cpu", "ram"):
        said = dict.fromkeys("{method} ({source})".format(**mode_of(o)["energy"][part]) for o in finished)
        lines.append(f"- {part.upper()}: {'; or '.join(said)}")
    failed = [outcome for outcome in outcomes if outcome.error]
    lines += ["", f"Failed: {len(failed)} of {len(outcomes)} cells" + (":" if failed else "."), ""]
    lines += [f"- {outcome.cell.configuration}, seed {outcome.cell.seed}: {outcome.error}" for outcome in failed]
    lines += [""] * bool(failed)
    lines += [f"Command: `{summary['command']}`", "", f"A cell: `{finished[0].command}`", ""]
    lines += [f"Machine: {summary['machine']}", ""]
    for environment in distinct(outcome.record["environment"] for outcome in finished):
        lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in environment.items()))
    if len(distinct(outcome.record["environment"] for outcome in finished)) > 1:
        lines += ["", "The cells did not all run in one environment: their times and energies cannot be compared."]
    return "\n".join(lines) + "\n"


def distinct(records: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in dict.fromkeys(json.dumps(record) for record in records)]


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Validation F1 against Wh and against trained parameters; bars go from the lowest to the highest seed."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    finished = [outcome for outcome in outcomes if outcome.record]
    kind = energy_kind(finished)
    points = points_of(outcomes, kind and kind[0])
    targets = list(dict.fromkeys(p.configuration.targets for p in points if p.configuration.targets))
    rates = sorted({p.configuration.learning_rate for p in points if p.configuration.targets})
    colours = {name: f"C{number}" for number, name in enumerate(targets)}
    marks = {rate: "osD^vP"[number % 6] for number, rate in enumerate(rates)}
    panels = [("parameters", "trained parameters", lambda p: p.parameters)]
    if kind:
        panels.insert(0, ("Wh", f"Wh of a run, {kind[0]} ({kind[1]})", lambda p: mean(p.wh)))
    figure = Figure(figsize=(6 * len(panels), 5.6), layout="constrained")
    figure.suptitle(f"{finished[0].record['model']} on {Path(finished[0].record['dataset']).name}")
    for axes, (name, label, cost) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        line = [points[place] for place in fronts(points)[name]]
        axes.plot(
            [cost(p) for p in line],
            [mean(p.validation_f1) for p in line],
            color="0.75",
            drawstyle="steps-post",
            zorder=1,
        )
        for point in points:
            configuration, score = point.configuration, mean(point.validation_f1)
            is_full = configuration.mode == "full"
            axes.errorbar(
                cost(point), score, [[score - min(point.validation_f1)], [max(point.validation_f1) - score]],
                marker="*" if is_full else marks[configuration.learning_rate], markersize=13 if is_full else 7,
                color="black" if is_full else colours[configuration.targets], elinewidth=0.8,
                markeredgecolor="white" if point not in line else "black", zorder=3 if point in line else 2,
            )  # fmt: skip
            if not is_full:
                axes.annotate(
                    str(configuration.r), (cost(point), score), xytext=(6, -10), textcoords="offset points", fontsize=8
                )
        axes.set(xlabel=label, xscale="log" if name == "parameters" else "linear")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation F1 (seqeval, default mode)")
    handles = [Line2D([], [], marker="*", markersize=11, linestyle="", color="black", label="full fine-tuning")]
    handles += [
        Line2D([], [], marker="o", linestyle="", color=colours[t], label=f"LoRA: {', '.join(t)}") for t in targets
    ]
    handles += [Line2D([], [], marker=marks[r], linestyle="", color="0.4", label=f"learning rate {r:g}") for r in rates]
    handles.append(Line2D([], [], color="0.75", label="Pareto front; numbers are ranks"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110, format="png")


# Command line --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="sweep.py", description=__doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2, 8, 32], metavar="R", help="LoRA's ranks (default: 2 8 32)")
    names = [("query", "value"), ("all-linear",)]
    about = "sets of layers, names within a set joined by commas (default: query,value all-linear)"
    add("--targets", type=lambda text: tuple(text.split(",")), nargs="+", default=names, metavar="NAMES", help=about)
    about = "LoRA's learning rates (default: 1e-3 4e-3)"
    add("--learning-rates", type=float, nargs="+", default=[1e-3, 4e-3], metavar="X", help=about)
    about = "of full fine-tuning, the reference; none leaves it out (default: 1e-3)"
    add("--full-learning-rates", type=float, nargs="*", default=[1e-3], metavar="X", help=about)
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    add(
        "--scale", type=float, default=1.0, metavar="X", help="lora_alpha is this times the rank (default: %(default)s)"
    )
    add("--name", default="sweep", help="of the result files and of the folder in runs/ (default: %(default)s)")
    add("--note", default="", help="a sentence for the head of the table")
    about = "arguments of examples/bionlp.py, after -- (default: --epochs 2)"
    add("example", nargs="*", default=["--epochs", "2"], help=about)
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    taken = [word for word in arguments.example if is_ours(word)]
    if taken:
        parser.error(f"{taken[0]} is the sweep's own; leave it out after --")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the way out stops the running cell
    try:
        with input_errors(parser):
            outcomes = sweep(grid(arguments), arguments)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) == len(outcomes):
        print(f"all {len(failed)} cells failed, the first with {failed[0].error}", file=sys.stderr)
        return 1
    write_results(outcomes, arguments, shlex.join(["python", "benchmarks/sweep.py", *words]))
    return 1 if failed else 0


def is_ours(word: str) -> bool:
    """Whether a word of the example's arguments is a flag, maybe shortened, that the sweep sets itself."""
    name = word.split("=")[0]
    return name.startswith("--") and any(own.startswith(name[2:]) for own in OURS)


def brief(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    if scores is None:
        return None
    return {k: scores[k] for k in ("loss", "precision", "recall", "f1")} | {"strict_f1": scores["strict"]["f1"]}


def write_results(outcomes: Sequence[Outcome], arguments: argparse.Namespace, command: str) -> None:
    """The table, its figures and its picture."""
    summary = {"schema": 1, "command": command, "machine": machine(), "name": arguments.name, "note": arguments.note}
    cells = []
    for outcome in outcomes:
        about = {**asdict(outcome.cell.configuration), "seed": outcome.cell.seed, "command": outcome.command}
        if outcome.record:
            values = mode_of(outcome)
            energy = {k: v for k, v in values["energy"].items() if k.endswith("kwh")}
            energy |= {p: {k: values["energy"][p][k] for k in ("kwh", "method")} for p in ("gpu", "cpu", "ram")}
            scores = {split: brief(values[split]) for split in ("validation", "test")}
            about |= {**{key: values[key] for key in KEPT}, **scores, "energy": energy}
            about["environment"] = outcome.record["environment"]
        cells.append({**about, "failed": outcome.error})
    text = table(summary, outcomes)
    figures = json.dumps({**summary, "cells": cells}, indent=1) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{arguments.name}.md", text)
    write_text(RESULTS / f"{arguments.name}.json", figures)
    atomic_write(RESULTS / f"{arguments.name}.png", lambda path: draw(outcomes, path))
    print(text)


if __name__ == "__main__":
    sys.exit(main())
