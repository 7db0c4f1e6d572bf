"""Run examples/bionlp.py with several seeds, as it is or over a grid of LoRA's rank, targets and learning rate.

  python benchmarks/sweep.py --seeds 0 1 2 --name mine -- --dataset ../shared/bionlp2004 --epochs 2
  python benchmarks/sweep.py --ranks 2 8 32                              a small grid, offline, about ten minutes
  python benchmarks/sweep.py --ranks 4 16 --targets query,value all-linear --learning-rates 1e-3 --seeds 0 1 2
  python benchmarks/sweep.py --ranks 2 8 32 --name sweep-real -- --dataset ../shared/bionlp2004 --epochs 2

Everything after `--` goes to the example, which runs every cell (one seed of one configuration) in its own process.
Without any of the four grid flags the example runs as it is, and the table has mean ± standard deviation of every
figure: seeds alone move F1 by some tenths of a point. With one of them the table has a row per configuration, and the
picture shows F1 against energy and against trained parameters.

A cell's output is runs/NAME/CELL; its comparison.json is written atomically. The same command after a stop or a kill,
or one with more seeds or a wider grid, runs what is missing. A stopped cell starts over, so that its energy is that of
one run. Any other change is refused under the same NAME. A failed cell is noted and the others continue; the next call
tries it again.
"""

import argparse
import fcntl
import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from provenance import ROOT, BenchmarkParser, write_results
from sweep_report import Cell, Configuration, Outcome, draw_grid, grid_report, record_of, seeds_report
from tqdm import tqdm

from lorakit._files import write_text
from lorakit.cli.flags import add_lora_flags
from lorakit.cli.parser import input_errors

RUNS = ROOT / "runs"
EXAMPLE = ROOT / "examples" / "bionlp.py"
OURS = ("seed", "output-dir", "resume")  # flags of the example that we set
OURS_IN_A_GRID = (*OURS, "mode", "r", "lora-alpha", "target-modules", "learning-rate", "study")
SEEDS_ONLY = {"seeds": [0, 1, 2], "example": []}  # defaults
GRID = {"seeds": [0, 1], "example": ["--epochs", "2"]}
AXES = {
    "ranks": [2, 8, 32],
    "targets": [("query", "value"), ("all-linear",)],
    "learning_rates": [1e-3, 4e-3],
    "full_learning_rates": [1e-3],
}


def main(arguments: Sequence[str] | None = None) -> int:
    options, parser = parse(arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinding stops the running cell
    try:
        with input_errors(parser):
            outcomes = sweep(grid(options), options)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) == len(outcomes):
        print(f"all {len(failed)} cells failed, the first with {failed[0].error}", file=sys.stderr)
        return 1
    found = {"name": options.name, "note": options.note}
    if options.grid:
        found["cells"] = [record_of(outcome) for outcome in outcomes]
        show = lambda summary: grid_report(summary, outcomes)  # noqa: E731
        draw = lambda _, figure: draw_grid(outcomes, figure)  # noqa: E731
        write_results(options, found, show, draw, "F1 against energy and parameters")
    else:
        found["runs"] = [outcome.record for outcome in outcomes if outcome.record]
        write_results(options, found, lambda summary: seeds_report(summary, outcomes))
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, BenchmarkParser]:
    parser = BenchmarkParser(prog="sweep.py", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", help="default: 0 1 2, in a grid 0 1")
    add("--ranks", type=int, nargs="+", metavar="R", help="LoRA's ranks (default: 2 8 32)")
    about = "sets of layers, names within a set joined by commas (default: query,value all-linear)"
    add("--targets", type=lambda text: tuple(text.split(",")), nargs="+", metavar="NAMES", help=about)
    add("--learning-rates", type=float, nargs="+", metavar="X", help="LoRA's learning rates (default: 1e-3 4e-3)")
    about = "of full fine-tuning, the reference; none leaves it out (default: 1e-3)"
    add("--full-learning-rates", type=float, nargs="*", metavar="X", help=about)
    about = "in a grid lora_alpha is this times the rank (default: %(default)s)"
    add("--scale", type=float, default=1.0, metavar="X", help=about)
    add("example", nargs="*", help="arguments of examples/bionlp.py, after -- (default: none, in a grid --epochs 2)")
    parser.add_common(note="")
    options = parser.parse_args(arguments)
    options.grid = any(getattr(options, axis) is not None for axis in AXES)
    options.example = options.example or None
    for name, default in {**AXES, **(GRID if options.grid else SEEDS_ONLY)}.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    ours = OURS_IN_A_GRID if options.grid else OURS
    for word in options.example:
        name = word.split("=")[0].removeprefix("--")  # maybe shortened; --r is not short for --resume
        if word.startswith("--") and (name in ours or name != "r" and any(own.startswith(name) for own in ours)):
            parser.error(f"{word} is set by the sweep itself; leave it out after --")
    return options, parser


def grid(options: argparse.Namespace) -> list[Cell]:
    """The cells; all configurations with the first seed come first, so that a stopped sweep has an answer."""
    configurations: list[Configuration | None] = [None]
    if options.grid:
        configurations = [Configuration("full", rate) for rate in options.full_learning_rates]
        axes = product(options.targets, options.ranks, options.learning_rates)
        configurations += [Configuration("lora", rate, targets, r) for targets, r, rate in axes]
    return [Cell(configuration, seed) for seed, configuration in product(options.seeds, dict.fromkeys(configurations))]


def sweep(cells: Sequence[Cell], options: argparse.Namespace) -> list[Outcome]:
    """Run what is not done yet.

    Raises:
        ValueError: the folder holds another sweep's cells, or is in use.
    """
    folder = RUNS / options.name
    with alone(folder) as held:
        check_settings(folder / "sweep.json", settings_of(options))
        found = {cell: done(cell, options) for cell in cells}  # before anything runs: it may refuse
        missing = [cell for cell in cells if found[cell] is None]
        spent_s: list[float] = []
        with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", disable=None) as bar:
            for cell in missing:
                begin = time.monotonic()
                found[cell] = outcome = run(cell, options, held)
                spent_s.append(time.monotonic() - begin)
                left = len(missing) - len(spent_s)
                minutes = left * sum(spent_s) / len(spent_s) / 60
                tqdm.write(
                    f"{len(cells) - left} of {len(cells)}: {cell}: {outcome}; {spent_s[-1]:.0f} s, about"
                    f" {minutes:.0f} min left",
                    file=sys.stderr,
                )
                bar.update()
    return list(found.values())


def done(cell: Cell, options: argparse.Namespace) -> Outcome | None:
    """A cell's result on disk; None if there is none.

    Raises:
        ValueError: the folder holds another command's result, or the corpus has no validation set.
    """
    _, command = command_of(cell, options)
    path = RUNS / options.name / cell.folder() / "comparison.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["command"] != command:
        raise ValueError(f"{path} is the result of {record['command']!r}, not of {command!r}; give another --name")
    if any(mode["validation"] is None for mode in record["modes"].values()):
        raise ValueError(f"{record['dataset']} has no validation set to compare the cells by")
    return Outcome(cell, command, record)


def run(cell: Cell, options: argparse.Namespace, held: int) -> Outcome:
    """Train one cell in a process of its own; what it prints goes to its log.txt."""
    words, command = command_of(cell, options)
    folder = RUNS / options.name / cell.folder()
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
            process.terminate()  # if we were stopped, it must not continue alone
            process.wait()
    outcome = done(cell, options) if status == 0 else None
    if outcome is None:
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        why = f"killed by signal {-status}" if status < 0 else f"status {status}"
        outcome = Outcome(cell, command, error=f"{why}: {last.strip()[:300]}")
        write_text(folder / "failed.json", json.dumps({"command": command, "error": outcome.error}, indent=1) + "\n")
    return outcome


def command_of(cell: Cell, options: argparse.Namespace) -> tuple[list[str], str]:
    """The example's arguments, and the command as the example itself records it."""
    folder = Path("runs") / options.name / cell.folder()
    is_full = cell.configuration is not None and cell.configuration.mode == "full"
    example = without_lora_flags(options.example) if is_full else options.example
    words = [*example, *cell.arguments(options.scale), "--output-dir", str(folder)]
    return words, shlex.join(["python", "examples/bionlp.py", *words])


def without_lora_flags(words: Sequence[str]) -> list[str]:
    """The example's other arguments: full fine-tuning refuses LoRA's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_lora_flags(parser)
    parser.add_argument("--cache-prefix", action="store_true")
    return parser.parse_known_args(words)[1]


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; a cell inherits it, so that one that outlives a killed sweep still holds it.

    Raises:
        ValueError: another sweep, or such a cell, is running here.
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


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a folder share: the example's arguments, and the contents of the files that they name."""
    sys.path.insert(0, str(EXAMPLE.parent))
    from bionlp import parse

    chosen = parse([*options.example, *grid(options)[0].arguments(options.scale)])
    corpora = chosen.dataset or [EXAMPLE.parent / "mini" / "corpus.py"]
    files = {"base": content(chosen.model), "corpus": " ".join(content(corpus) for corpus in corpora)}
    return {"example": options.example, "scale": options.scale, **files}


def content(source: str | Path) -> str:
    """A digest of the bytes of a file or folder; a hub id stands for itself."""
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
    """Write the settings with a folder's first cell, and compare them with every later one.

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


if __name__ == "__main__":
    sys.exit(main())
