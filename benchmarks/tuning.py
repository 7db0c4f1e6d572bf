"""A search of `lorakit tune` beside the full grid: how close its best comes, and for what share of the operations.

  python benchmarks/tuning.py                      48 combinations, 200 sentences, embedded base, about 10 minutes
  python benchmarks/tuning.py --sentences 300 --validation 300 --epochs 9 --factors 2 3 4     30 CPU minutes, one thread

Every combination of the grid is trained to the end, by `train_many` without dropout, so that its scores do not depend
on which runs share its steps. Searches are then played on the recorded scores, by the code that `lorakit tune` runs:
what it tries, when it stops a trial and what it takes its place with. Only training is replaced by looking up. So many
searches, each with its own seed, can be compared with the same grid.

Two shares are given. Arithmetic: tokens that the search trains on, weighted by the weights they pass through (the
estimate of `tuning.operations_of`), over those of the grid. Operators: kernels that a GPU would launch, forward,
backward and optimizer, counted in one step of 16 runs together, and of one run alone for each of the targets; the grid
is trained one run after the other, as a loop over `lorakit train` does it. Evaluation is in neither.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import torch
from provenance import BIONLP, ROOT, BenchmarkParser, shown_options, write_results
from tables import table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lorakit
from lorakit._files import write_text
from lorakit.cli.tuning_record import weights_of
from lorakit.training import layout
from lorakit.training.config import TrainConfig
from lorakit.training.many import train_many
from lorakit.training.models import load_token_classifier
from lorakit.training.scores import EntityScores, Scores
from lorakit.training.tuning import Search, Space, operations_of, run_of

GOAL = 0.005  # of F1, below the best of the grid
NOTHING = EntityScores(0.0, 0.0, 0.0, 0)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    data = lorakit.read_ner(options.dataset)
    data = replace(
        data, train=data.train[: options.sentences], validation=data.validation[: options.validation], test=()
    )
    space = Space(
        tuple(options.learning_rates),
        tuple(options.ranks),
        tuple(names if names == "all-linear" else tuple(names.split(",")) for names in options.targets),
    )
    config = TrainConfig(
        epochs=options.epochs, batch_size=options.batch_size, log_every=1000, progress=False, seed=options.seed
    )
    grid = train_grid(options, data, space, config)
    if options.group is not None:
        return 0
    search = Search(space, 1, replace(config, output_dir="trials"), Path("trials"))
    model, tokenizer = load(options, data)
    sizes = weights_of(model, search)
    counted = Path(options.runs) / "operators.json"
    if not counted.exists():
        write_text(counted, json.dumps(count_operators(options, data, search)) + "\n")
    operators = json.loads(counted.read_text(encoding="utf-8"))
    for row in grid:
        targets = row["targets"] if isinstance(row["targets"], str) else list(row["targets"])
        updates, head = sizes["trained"][_key(targets)]
        row["operations_per_epoch"] = operations_of(row["tokens"], sizes["frozen"], row["ranks"] * updates + head)
        row["operations_per_epoch"] /= options.epochs
        row["operators_per_step"] = operators["alone"][_key(targets)]
    job = {name: value for name, value in shown_options(options).items() if name not in ("runs", "group")}
    found = {"job": {**job, "model": Path(options.model).name}, "operators": operators, "grid": grid}
    found["searches"] = {
        str(factor): [play(space, grid, config, options, factor, seed) for seed in range(options.searches)]
        for factor in options.factors
    }
    write_results(options, found, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="tuning.py", description=__doc__)
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 3], help="(default: %(default)s)")
    parser.add_argument("--runs", default=str(ROOT / "runs" / "tuning-grid"), help="folder of what has been trained")
    parser.add_argument("--group", type=int, help="train only this group of the grid; several can run at the same time")
    parser.add_common(model=str(ROOT / "examples" / "mini"), dataset=BIONLP, sentences=200, validation=200, epochs=4)
    parser.add_common(learning_rates=[2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3], ranks=[4, 8, 16, 32])
    parser.add_common(targets=["query,value", "all-linear"], batch_size=16, trials=32, at_once=16, searches=20, seed=0)
    return parser.parse_args(arguments)


def load(options: argparse.Namespace, data: lorakit.data.ner_data.NerData) -> tuple[Any, Any]:
    """The base without dropout."""
    return load_token_classifier(options.model, data.labels, options.seed, dropout=0.0)


def train_grid(options: argparse.Namespace, data: Any, space: Space, config: TrainConfig) -> list[dict[str, Any]]:
    """Train every combination, `at_once` in a group; returns its settings, the tokens and the scores after each epoch.

    A group that has been trained is read from its file.
    """
    settings = [space.at(places) for places in space.places()]
    folder, grid = Path(options.runs), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(settings), options.at_once)):
        path, group = folder / f"group-{number}.json", settings[first : first + options.at_once]
        if not path.exists() and options.group in (None, number):
            write_text(path, json.dumps(train_group(options, data, group, config), indent=1) + "\n")
        if path.exists():
            grid += json.loads(path.read_text(encoding="utf-8"))
    return grid


def train_group(
    options: argparse.Namespace, data: Any, settings: list[dict[str, Any]], config: TrainConfig
) -> list[dict[str, Any]]:
    """Train some combinations together."""
    runs = [run_of(str(number), found, config) for number, found in enumerate(settings)]
    results = train_many(*load(options, data), data, runs, options.at_once)
    return [
        {
            **found,
            "tokens": results[run.name].train_tokens,
            "f1": [scores.f1 for scores in results[run.name].history],
            "loss": [scores.loss for scores in results[run.name].history],
            "steps_per_epoch": results[run.name].steps // config.epochs,
        }
        for found, run in zip(settings, runs, strict=True)
    ]


class Operators(TorchDispatchMode):
    """Counts operators that compute something: no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        views = not function._schema.is_mutable and all(t.untyped_storage().data_ptr() in given for t in made)
        self.count += not (made and views)
        return output


def count_operators(options: argparse.Namespace, data: Any, search: Search) -> dict[str, Any]:
    """Operators of one step: of `at_once` runs together, and by targets of one run alone.

    Counted as on a GPU, which computes a batch at once; a CPU cuts it into parts that fit its caches.
    """
    config = replace(search.config, epochs=1, output_dir=None)
    largest = [replace(run, config=config) for run in search.largest()]

    def of_a_step(train: Any) -> int:
        """Three steps without two, so that what surrounds them is left out."""
        counts = []
        for steps in (2, 3):
            with Operators() as counted, mock.patch.object(layout, "PART_ELEMENTS", 1 << 62):
                sentences = (data.train * 3 * config.batch_size)[: steps * config.batch_size]  # of few, repeat them
                train(replace(data, train=sentences, validation=(), test=()))
            counts.append(counted.count)
        return counts[1] - counts[0]

    def together(data: Any) -> None:
        runs = [replace(largest[i % len(largest)], name=f"run {i}") for i in range(options.at_once)]
        train_many(*load(options, data), data, runs, options.at_once)

    def alone(run: lorakit.AdapterRun) -> Any:
        def train(data: Any) -> None:
            model, tokenizer = load(options, data)
            lorakit.train(lorakit.apply_lora(model, **run.lora), tokenizer, data, run.config)

        return train

    by_targets = {_key(run.lora["target_modules"]): of_a_step(alone(run)) for run in largest}
    return {"together": of_a_step(together), "alone": by_targets}


def play(
    space: Space, grid: list[dict[str, Any]], config: TrainConfig, options: argparse.Namespace, factor: int, seed: int
) -> dict[str, Any]:
    """One search on the grid's scores: the best F1 it finds, and what it trains.

    All runs have epochs of as many steps, so a round is an epoch of every run that has a place.
    """
    cells = {json.dumps([row[name] for name in vars(space)]): row for row in grid}
    search = Search(
        space, options.trials, replace(config, seed=seed, output_dir="trials"), Path("trials"), None, factor
    )
    members: list[tuple[Any, dict[str, Any]]] = []
    done: dict[str, int] = {}
    operations, rounds = 0.0, 0
    while True:
        while len(members) < options.at_once and (run := search.next()) is not None:
            members.append((run, cells[json.dumps(list(search.trials[run.name].settings.values()))]))
        if not members:
            break
        rounds, left = rounds + 1, []
        for run, cell in members:
            epoch = done[run.name] = done.get(run.name, 0) + 1
            operations += cell["operations_per_epoch"]
            scores = Scores(cell["loss"][epoch - 1], 0.0, 0.0, cell["f1"][epoch - 1], 0.0, NOTHING, {})
            if not search.after_epoch(run, epoch, scores) and epoch < config.epochs:
                left.append((run, cell))
            else:
                search.ended(run, diverged=False)
        members = left
    return {
        "best_f1": search.best(1)[0].best_f1,
        "epochs": sum(done.values()),
        "operations": operations,
        "steps": rounds * grid[0]["steps_per_epoch"],
    }


def report(found: dict[str, Any]) -> list[str]:
    """The table of the searches beside the grid."""
    job, grid, together = found["job"], found["grid"], found["operators"]["together"]
    best = max(grid, key=lambda row: max(row["f1"]))
    best_f1 = max(best["f1"])
    operations = job["epochs"] * sum(row["operations_per_epoch"] for row in grid)
    operators = job["epochs"] * sum(row["steps_per_epoch"] * row["operators_per_step"] for row in grid)
    rows = []
    for factor, searches in found["searches"].items():
        below = [best_f1 - search["best_f1"] for search in searches]
        rows.append(
            {
                "factor": factor,
                "below": median(below),
                "worst": max(below),
                "within": f"{sum(gap <= GOAL for gap in below)} of {len(below)}",
                "arithmetic": mean(search["operations"] for search in searches) / operations,
                "operators": mean(search["steps"] for search in searches) * together / operators,
            }
        )
    spread = sorted(max(row["f1"]) for row in grid)
    return [
        f"# A search of {job['trials']} trials beside a grid of {len(grid)}",
        "",
        f"{job['dataset']}, {job['sentences']} training and {job['validation']} validation sentences, {job['epochs']}"
        f" epochs, the embedded base. Of the grid the best F1 on validation is {best_f1:.4f} (learning rate"
        f" {best['learning_rates']:g}, rank {best['ranks']}, {_key(best['targets'])}), the median {median(spread):.4f},"
        f" the worst {spread[0]:.4f}. {job['searches']} searches with other seeds, played on the grid's scores.",
        "",
        table(
            rows,
            ("one in N continues", "factor", "{}"),
            ("below the grid's best, median", "below", "{:.4f}"),
            ("largest", "worst", "{:.4f}"),
            (f"within {GOAL}", "within", "{}"),
            ("arithmetic / grid", "arithmetic", "{:.3f}"),
            ("operators / grid", "operators", "{:.4f}"),
        ),
        "",
        f"A step of {job['at_once']} runs together takes {together:,} operators; one of a run alone"
        f" {', '.join(f'{count:,} ({targets})' for targets, count in found['operators']['alone'].items())}.",
        "The finalists that `lorakit tune` trains afterwards with other seeds are not in it.",
    ]


def _key(targets: Any) -> str:
    return json.dumps(targets if isinstance(targets, str) else list(targets))


if __name__ == "__main__":
    raise SystemExit(main())
