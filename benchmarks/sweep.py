"""Train every combination of LoRA's rank, targets and learning rate with several seeds, in shared steps (train_many).

  python benchmarks/sweep.py                                           24 runs, offline, about 3 minutes on two cores
  python benchmarks/sweep.py --dataset ../shared/bionlp2004 --sentences 1000 --validation 500 --seeds 0 1 2 --epochs 4

`lorakit tune` finds the best of such a grid for a fraction of the work; this trains all of it, to show how F1 depends
on each. The combinations of one seed share the base, the head that they start with, and steps, `--at-once` at a time.
Their folders are runs/NAME/seed-N/COMBINATION. The same command after a stop or a kill continues, and so does one with
more seeds; another grid is refused under the same NAME.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from jobs import read_corpus
from provenance import ROOT, BenchmarkParser, shown_options, write_results
from tables import mean_sd, table

import lorakit
from lorakit._counts import counted
from lorakit.training.config import TrainConfig, TrainResult
from lorakit.training.models import load_token_classifier
from lorakit.training.tuning import Space, run_of
from lorakit.training.tuning import front as front_of

RUNS = ROOT / "runs"
MARKS = "osD^vP"  # of learning rates in the picture


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = read_corpus(options.dataset, options.sentences)
    data = replace(data, validation=data.validation[: options.validation])
    targets = (names if names == "all-linear" else tuple(names.split(",")) for names in options.targets)
    space = Space(tuple(options.learning_rates), tuple(options.ranks), tuple(targets))
    settings = [space.at(places) for places in space.places()]
    rows = [{**one, "seeds": []} for one in settings]
    for seed in options.seeds:
        for row, found in zip(rows, train_seed(options, data, settings, seed), strict=True):
            row["seeds"].append(found)
    found = {"job": {**shown_options(options), "model": Path(options.model).name}, "grid": rows}
    write_results(options, found, report, draw, "F1 against trained parameters")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="sweep.py", description=__doc__)
    parser.add_common(model=str(ROOT / "examples" / "mini"), dataset="embedded", sentences=400)
    parser.add_common(validation=200, epochs=4, ranks=[2, 8, 32], targets=["query,value", "all-linear"], at_once=16)
    parser.add_common(learning_rates=[1e-3, 4e-3], seeds=[0, 1], batch_size=16, precision="auto", note="")
    return parser.parse_args(arguments)


def train_seed(
    options: argparse.Namespace, data: lorakit.data.ner_data.NerData, settings: Sequence[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Train every combination with a seed; what the result file keeps of each."""
    config = TrainConfig(
        epochs=options.epochs, batch_size=options.batch_size, precision=options.precision, seed=seed, progress=False
    )
    folder = RUNS / options.name / f"seed-{seed}"
    runs = [
        run_of(name_of(one), one, replace(config, output_dir=folder / name_of(one), resume=True)) for one in settings
    ]
    model, tokenizer = load_token_classifier(options.model, data.labels, seed)
    results = lorakit.train_many(model, tokenizer, data, runs, options.at_once)
    found = []
    for run in runs:
        lorakit.set_adapter(model, run.name)
        found.append({"seed": seed, **figures(results[run.name], lorakit.count_parameters(model).trainable)})
    return found


def figures(result: TrainResult, trained: int) -> dict[str, Any]:
    """What is kept of a run; F1 is None where it diverged."""
    return {
        "trainable_parameters": trained,
        "validation_f1": None if result.diverged else result.validation.f1,
        "best_epoch": result.best_epoch,
        "train_tokens": result.train_tokens,
        "train_seconds": result.train_seconds,
        "diverged": result.diverged,
    }


def name_of(settings: dict[str, Any]) -> str:
    """The name and folder of a combination."""
    name = f"{targets_of(settings, '+')}-r{settings['ranks']}-rate{settings['learning_rates']:g}"
    return re.sub(r"[^\w.+-]", "_", name)


def targets_of(settings: dict[str, Any], between: str = ", ") -> str:
    """A combination's targets as text."""
    return settings["targets"] if isinstance(settings["targets"], str) else between.join(settings["targets"])


def points(grid: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int, list[float], bool]]:
    """Of each combination that no seed diverged with: trained parameters, validation F1, and whether none beats it."""
    sound = [row for row in grid if all(seed["validation_f1"] is not None for seed in row["seeds"])]
    found = [
        (row, row["seeds"][0]["trainable_parameters"], [seed["validation_f1"] for seed in row["seeds"]])
        for row in sound
    ]
    front = front_of([(cost, fmean(f1)) for _, cost, f1 in found])
    return [(*point, number in front) for number, point in enumerate(found)]


def report(found: dict[str, Any]) -> list[str]:
    """The table of all combinations."""
    job, grid = found["job"], found["grid"]
    on_front = [row for row, *_, front in points(grid) if front]
    seconds = sum(seed["train_seconds"] for row in grid for seed in row["seeds"])
    return [
        f"# Rank, targets and learning rate: {job['model']} on {job['dataset']}",
        "",
        *[job["note"], ""] * bool(job["note"]),
        f"Mean ± sd over {counted(len(job['seeds']), 'seed')}, {counted(job['sentences'], 'training sentence')},"
        f" {counted(job['epochs'], 'epoch')}. On the front: no other row has at least this validation F1"
        " for at most as many parameters. A mean over few seeds that lies within another's sd is no different from it."
        " A dash: a run diverged.",
        "",
        table(
            grid,
            ("targets", targets_of, "{}"),
            ("r", "ranks", "{}"),
            ("learning rate", "learning_rates", "{:g}"),
            ("trained parameters", lambda row: row["seeds"][0]["trainable_parameters"], "{:,}"),
            ("validation F1", lambda row: mean_sd([seed["validation_f1"] for seed in row["seeds"]], "{:.4f}"), "{}"),
            ("on the front", lambda row: "yes" if row in on_front else "", "{}"),
        ),
        "",
        f"{len(grid) * len(job['seeds'])} runs, up to {job['at_once']} of them in a step: {seconds:,.0f} s of steps.",
    ]


def draw(found: dict[str, Any], figure: Any) -> None:
    """Validation F1 against trained parameters; bars go from the lowest to the highest seed."""
    from matplotlib.lines import Line2D

    grid = points(found["grid"])
    rates = sorted({row["learning_rates"] for row, *_ in grid})
    targets = list(dict.fromkeys(targets_of(row) for row, *_ in grid))
    figure.set_size_inches(6, 5.6)
    figure.suptitle(f"{found['job']['model']} on {found['job']['dataset']}")
    axes = figure.subplots()
    line = sorted((cost, fmean(f1)) for _, cost, f1, front in grid if front)
    axes.plot(*zip(*line, strict=True), color="0.75", drawstyle="steps-post", zorder=1)
    for row, cost, f1, front in grid:
        mean, mark = fmean(f1), MARKS[rates.index(row["learning_rates"]) % len(MARKS)]
        axes.errorbar(
            cost, mean, [[mean - min(f1)], [max(f1) - mean]], marker=mark, markersize=7, elinewidth=0.8,
            color=f"C{targets.index(targets_of(row))}", markeredgecolor="black" if front else "white", zorder=2 + front,
        )  # fmt: skip
        axes.annotate(str(row["ranks"]), (cost, mean), xytext=(6, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="trained parameters", ylabel="validation F1 (seqeval, default mode)", xscale="log")
    axes.grid(alpha=0.3)
    handles = [Line2D([], [], marker="o", linestyle="", color=f"C{i}", label=name) for i, name in enumerate(targets)]
    handles += [
        Line2D([], [], marker=MARKS[i % len(MARKS)], linestyle="", color="0.4", label=f"learning rate {rate:g}")
        for i, rate in enumerate(rates)
    ]
    handles.append(Line2D([], [], color="0.75", label="Pareto front; numbers are ranks"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


if __name__ == "__main__":
    raise SystemExit(main())
