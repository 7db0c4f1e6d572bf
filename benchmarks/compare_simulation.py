"""How often `lorakit compare` is wrong, and how often it finds a true difference, on BioNLP2004's test set.

  python benchmarks/compare_simulation.py
  python benchmarks/compare_simulation.py --name compare_simulation-minilm \\
      --cells benchmarks/results/evidence-cells.jsonl

The counts are of real runs of two settings, full and LoRA: those of evidence.py's summary (--cells), or by default of
three seeds each on the embedded base, made with

  python examples/bionlp.py --dataset ../shared/bionlp2004 --sentences 4000 --epochs 3 --seed 0 --output-dir runs/seed-0

and gathered into --counts with --runs runs/seed-*/full runs/seed-*/lora. A simulated test set draws the real sentences
with replacement. A simulated run takes each sentence's counts from one of its setting's real runs, drawn anew for each
sentence, so sentences are as hard, and models disagree on them, as in reality. Settings A and B are made from the real
two: "alike" ones are both full; "close" ones are like LoRA on a fifth of the sentences, A and B on different ones, and
like full on the rest; "far" ones are full and LoRA themselves. Found entities are then lost, the same in all runs of a
setting, until both have the same true F1, or one that differs by --difference, and until the true F1 of the seeds has a
standard deviation of --seed-sd. That comes on top of the disagreement by sentence, so the F1 that one observes varies
more between seeds than --seed-sd.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from evidence_report import by_base, chosen_pair, settings_of, table_of
from provenance import RESULTS, BenchmarkParser, write_results

from lorakit.report.statistics import BETTER, CANNOT_TELL, EQUAL, WORSE, compare_f1, score_runs
from lorakit.report.tables import markdown_table
from lorakit.training.sentences import read_sentences

COUNTS = RESULTS / "compare_simulation_counts.json"
VERDICTS = (BETTER, WORSE, EQUAL, CANNOT_TELL)


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser("compare_simulation.py", __doc__)
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="gather the counts of these runs first")
    parser.add_argument("--cells", type=Path, metavar="FILE", help="take the counts from evidence.py's final cells")
    parser.add_argument("--counts", type=Path, default=COUNTS, help="default: in benchmarks/results")
    parser.add_common(comparisons=1000, seed_sd=0.003, difference=0.01, margin=0.005, resamples=500)
    options = parser.parse_args(arguments)
    if options.runs:
        write_counts(options.runs, options.counts)
    pools = counts_of_cells(options.cells) if options.cells else read_counts(options.counts)
    began, rows = time.perf_counter(), []
    sd, gap = options.seed_sd, options.difference
    scenarios = [  # settings, seeds, true difference, sd between seeds
        ("alike", 5, 0.0, sd),
        ("close", 2, 0.0, sd),
        ("close", 3, 0.0, sd),
        ("close", 5, 0.0, sd),
        ("close", 5, 0.0, 0.0),
        ("close", 5, 0.0, 3 * sd),
        ("far", 5, 0.0, sd),
        ("alike", 5, gap, sd),
        ("close", 5, gap, sd),
        ("close", 10, gap, sd),
        ("far", 5, gap, sd),
        ("far", 5, 2 * gap, sd),
    ]
    for settings, *truth in scenarios:
        rows.append({"settings": settings, **trial(settings_from(pools, settings), *truth, options)})
        print(settings, *truth, rows[-1]["paired"]["verdicts"], file=sys.stderr, flush=True)
    summary = {
        "sentences": len(pools[0][0]),
        "base": "all-MiniLM-L6-v2" if options.cells else "the embedded base",
        "real_runs": [len(pool) for pool in pools],
        "comparisons": options.comparisons,
        "seed_sd": options.seed_sd,
        "margin": options.margin,
        "resamples": options.resamples,
        "seconds": time.perf_counter() - began,
        "scenarios": rows,
    }
    write_results(options, summary, report)
    return 0


# Simulated runs ------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """Runs to draw from."""

    counts: np.ndarray  # (runs, sentences, 3)
    luck: np.ndarray  # (sentences, most entities), 0 to 1: an entity is lost if its luck is above the share to keep

    def true_f1(self, keep: float = 1.0) -> float:
        """The F1 of all runs together, which is what a run made of them has on average."""
        found, (_, predicted, gold) = keep_found(self.counts[:, :, 0], self.luck, keep).sum(), self.counts.sum((0, 1))
        return 2 * found / (predicted + gold)

    def share_to_keep(self, f1: float) -> float:
        """How many found entities to keep for this true F1."""
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.true_f1(middle) < f1 else (low, middle)
        return low


def settings_from(pools: list[np.ndarray], kind: str) -> tuple[Setting, Setting]:
    """The settings A and B, made from the counts of full and LoRA."""
    full, lora = pools
    draw = np.random.default_rng(1)
    runs, sentences = min(len(full), len(lora)), full.shape[1]
    luck = draw.random((2, sentences, int(max(full.max(), lora.max()))))
    if kind == "alike":
        return Setting(full, luck[0]), Setting(full, luck[0])
    if kind == "far":
        return Setting(full, luck[0]), Setting(lora, luck[1])
    place = draw.random(sentences)[None, :, None]
    a, b = (np.where(like_lora, lora[:runs], full[:runs]) for like_lora in (place < 0.2, place > 0.8))
    return Setting(a, luck[0]), Setting(b, luck[1])


def keep_found(found: np.ndarray, luck: np.ndarray, keep: float) -> np.ndarray:
    """The found entities that are left, of (..., sentences); the same are lost in every run."""
    left = np.concatenate([np.zeros((len(luck), 1), int), np.cumsum(luck < keep, axis=1)], axis=1)
    return left[np.arange(len(luck)), found]


def simulate(
    settings: tuple[Setting, Setting], shares: list[np.ndarray], seeds: int, draw: np.random.Generator
) -> np.ndarray:
    """Counts of both settings' runs on one simulated test set, shape (2 x seeds, sentences, 3).

    Args:
        settings: A and B.
        shares: for each, the share of found entities that each seed's run keeps.
        seeds: runs per setting.
        draw: random numbers.
    """
    sentences = settings[0].counts.shape[1]
    drawn, runs = draw.integers(sentences, size=sentences), []
    for setting, keeps in zip(settings, shares, strict=True):
        luck = setting.luck[drawn]
        for keep in keeps:
            counts = setting.counts[draw.integers(len(setting.counts), size=sentences), drawn]
            runs.append(np.column_stack([keep_found(counts[:, 0], luck, keep), counts[:, 1:]]))
    return np.stack(runs)


def trial(
    settings: tuple[Setting, Setting], seeds: int, difference: float, seed_sd: float, options: argparse.Namespace
) -> dict[str, object]:
    """Compare many pairs of runs of two settings whose true difference is known."""
    draw = np.random.default_rng(0)
    # four standard deviations below what the lower setting reaches, so that no seed needs more than was found
    goal = min(setting.true_f1() for setting in settings) - 4 * seed_sd
    kept = [setting.share_to_keep(f1) for setting, f1 in zip(settings, (goal, goal - difference), strict=True)]
    found = {"paired": [], "unpaired": []}
    for number in range(options.comparisons):
        shares = [np.clip(keep * (1 + draw.normal(0, seed_sd, seeds) / goal), 0, 1) for keep in kept]
        scored = score_runs(simulate(settings, shares, seeds, draw), options.resamples, seed=number)
        places = {i: i for i in range(seeds)}, {i: seeds + i for i in range(seeds)}
        found["paired"].append(compare_f1(scored, *places, options.margin))
        others = {100 + seed: place for seed, place in places[1].items()}
        found["unpaired"].append(compare_f1(scored, places[0], others, options.margin))
    truth = {"seeds": seeds, "f1": goal, "true_difference": -difference, "seed_sd": seed_sd}
    return truth | {
        how: {
            "verdicts": {name: sum(one.verdict == name for one in all_) / len(all_) for name in VERDICTS},
            "covered": float(np.mean([one.low <= -difference <= one.high for one in all_])),
            "half_width": float(np.mean([(one.high - one.low) / 2 for one in all_])),
            "sd_of_difference": float(np.std([one.value for one in all_], ddof=1)),
            "sd_seeds": float(np.sqrt(np.mean([one.sd_seeds**2 for one in all_]))),
            "sd_sentences": float(np.sqrt(np.mean([one.sd_sentences**2 for one in all_]))),
        }
        for how, all_ in found.items()
    }


# Files ---------------------------------------------------------------------------------------------------------------


def write_counts(folders: list[Path], path: Path) -> None:
    """Gather the test counts of real runs, by the name of their folders."""
    pools: dict[str, list[list[str]]] = {}
    for folder in folders:
        counts = read_sentences(folder).splits["test"].counts.default
        pools.setdefault(folder.name, []).append([" ".join(map(str, column)) for column in counts.T.tolist()])
    path.write_text(json.dumps(pools, indent=0) + "\n", encoding="utf-8")


def read_counts(path: Path) -> list[np.ndarray]:
    """The counts of each setting, shape (runs, sentences, 3)."""
    pools = json.loads(path.read_text(encoding="utf-8")).values()
    return [np.array([[column.split() for column in run] for run in runs], int).transpose(0, 2, 1) for runs in pools]


def counts_of_cells(path: Path) -> list[np.ndarray]:
    """The counts of the two settings that evidence.py's summary compares, full fine-tuning before LoRA."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pair = chosen_pair(settings_of(by_base(records)[0]))
    return [np.array([table_of(run["test_sentences"]["default"]) for run in pair[mode]]) for mode in ("full", "lora")]


def report(summary: dict[str, object]) -> list[str]:
    rows = [
        [
            f"{row['settings']}, {row['seeds']} seeds",
            f"{row['true_difference'] + 0:.3f}",
            f"{row['seed_sd']:g} ({row[how]['sd_seeds'] / 2**0.5:.4f})",
            how,
            *(f"{100 * row[how]['verdicts'][name]:.1f} %" for name in VERDICTS),
            f"{100 * row[how]['covered']:.1f} %",
            f"{row[how]['half_width']:.4f}",
        ]
        for row in summary["scenarios"]
        for how in ("paired", "unpaired")
    ]
    header = ["settings", "B − A", "sd of seeds (observed)", "seeds", *VERDICTS, "interval covers", "half width"]
    runs = " and ".join(map(str, summary["real_runs"]))
    return [
        "# What `lorakit compare` says where the truth is known",
        "",
        f"{summary['comparisons']:,} simulated comparisons per row, on {summary['sentences']:,} sentences drawn from"
        f" BioNLP2004's test set with the counts of {runs} real runs of {summary['base']}, in full and with LoRA. Alike"
        " settings are both full; close ones are like LoRA on a fifth of the sentences, each on its own, and like full"
        " on the rest; far ones are full and LoRA, brought to the same F1. The observed standard deviation between"
        f" seeds includes their disagreement by sentence. Margin {summary['margin']:g}, {summary['resamples']:,}"
        " resamples. Where B − A is 0, better and worse are false.",
        "",
        markdown_table(header, rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
