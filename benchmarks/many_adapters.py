"""Many adapters in one step (train_many) beside the same runs one after the other: tokens per second, in turns.

  python benchmarks/many_adapters.py                                        the embedded base, 8 runs, batch 4
  python benchmarks/many_adapters.py --shape roberta-base --runs 16 --batch-size 32 --precision bf16       on a GPU

Each run has a seed, a start and a learning rate of its own, and the same corpus. Both ways take the same steps on the
same sentences, in turns, in reverse order in every second round; only steps are timed, not evaluation or set-up.
"""

import argparse
from dataclasses import replace
from statistics import median
from typing import Any

from jobs import SHAPES, Job, job_of, lora_of, make_model, own_config, tokenizer_of
from provenance import BenchmarkParser, shown_options, write_results
from tables import table
from timing import in_turns

import lorakit
from lorakit.data.corpus import NerData

WAYS = ("together", "one after the other")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    job = job_of(options, warmup=0)
    data = NerData(job.sentences(), (), (), job.labels, options.dataset)
    runs = [
        lorakit.AdapterRun(
            f"run {number}",
            lora_of(job) | {"seed": number},
            replace(own_config(job, "lora"), seed=number, learning_rate=1e-3 * (1 + number % 4)),
        )
        for number in range(options.runs)
    ]
    rounds: list[dict[str, Any]] = [{} for _ in range(options.rounds)]
    for number, way in in_turns(WAYS, options.rounds):
        results = together(job, data, runs) if way == WAYS[0] else one_by_one(job, data, runs)
        rounds[number][way] = {
            "tokens": sum(result.train_tokens for result in results),
            "seconds": sum(result.train_seconds for result in results),
        }
    found = {"job": shown_options(options), "rounds": rounds}
    write_results(options, found | speeds_of(rounds), report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="many_adapters.py", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_common(dataset="embedded", runs=8, batch_size=4, steps=40, rounds=3, precision="fp32", r=8)
    parser.add_common(target_modules=["query", "key", "value", "dense"], dropout=0.1, seed=0)
    return parser.parse_args(arguments)


def together(job: Job, data: NerData, runs: list[lorakit.AdapterRun]) -> list[lorakit.training.config.TrainResult]:
    """Every run, in steps of all."""
    return list(lorakit.train_many(make_model(job), tokenizer_of(job), data, runs, at_once=len(runs)).values())


def one_by_one(job: Job, data: NerData, runs: list[lorakit.AdapterRun]) -> list[lorakit.training.config.TrainResult]:
    """Every run by itself."""
    return [
        lorakit.train(lorakit.apply_lora(make_model(job), **run.lora), tokenizer_of(job), data, run.config)
        for run in runs
    ]


def speeds_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median tokens per second of each way, and the median of the rounds' ratios."""
    speeds = {way: [row[way]["tokens"] / row[way]["seconds"] for row in rounds] for way in WAYS}
    ratios = [fast / slow for fast, slow in zip(*speeds.values(), strict=True)]
    return {"tokens_per_s": {way: median(values) for way, values in speeds.items()}, "ratio": median(ratios)}


def report(found: dict[str, Any]) -> list[str]:
    """The table of both ways."""
    job, speeds = found["job"], found["tokens_per_s"]
    return [
        f"# {job['runs']} adapters, {job['shape']}, batch {job['batch_size']}",
        "",
        table(speeds.items(), ("runs", 0, "{}"), ("tokens/s of all", 1, "{:,.0f}")),
        "",
        f"Together they train {found['ratio']:.2f} times as fast (median of {job['rounds']} rounds).",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
