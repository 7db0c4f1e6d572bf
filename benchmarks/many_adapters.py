"""Many adapters in one step (train_many) beside the same runs one after the other: tokens per second, in turns.

  python benchmarks/many_adapters.py                                        the embedded base, 8 runs, batch 4
  python benchmarks/many_adapters.py --shape roberta-base --runs 16 --batch-size 32 --precision bf16       on a GPU
  python benchmarks/many_adapters.py --memory --runs 16                     peak memory beside one run of as many tokens

Each run has a seed, a start and a learning rate of its own, and the same corpus. Both ways take the same steps on the
same sentences, in turns, in reverse order in every second round; only steps are timed, not evaluation or set-up.
With --memory, a single run whose batches hold as many sentences as those of all runs together is trained instead, each
way in a process of its own, and the peaks of their memory are compared.
"""

import argparse
from dataclasses import replace
from statistics import median
from typing import Any

from jobs import SHAPES, Job, job_of, lora_of, make_model, own_config, tokenizer_of
from processes import Worker, peak_bytes, release_memory, reset_peak, resident_bytes
from provenance import BenchmarkParser, shown_options, write_results
from tables import table
from timing import in_turns

import lorakit
from lorakit.data.corpus import NerData

WAYS = ("together", "one after the other")
MEMORY = (WAYS[0], "one run, as many tokens per step")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.memory:
        peaks = {way: peak_of(way, options) for way in MEMORY}
        found = {"job": shown_options(options), "peaks": peaks}
        write_results(options, found, memory_report)
        return 0
    job, data, runs = job_of_many(options)
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
    parser.add_argument("--memory", action="store_true", help="compare peak memory instead of speed")
    parser.add_common(dataset="embedded", runs=8, batch_size=4, steps=40, rounds=3, precision="fp32", r=8)
    parser.add_common(target_modules=["query", "key", "value", "dense"], dropout=0.1, seed=0)
    return parser.parse_args(arguments)


def job_of_many(options: argparse.Namespace) -> tuple[Job, NerData, list[lorakit.AdapterRun]]:
    """The job, its corpus and its runs."""
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
    return job, data, runs


def peak_of(way: str, options: argparse.Namespace) -> dict[str, int]:
    """The memory of one way, in a process of its own."""
    worker = Worker(way, Memory, options)
    try:
        return worker.ask("train", way)
    finally:
        worker.close()


class Memory:
    """Trains in a worker, and notes its memory."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def train(self, way: str) -> dict[str, int]:
        """Bytes that the process held before, and at its peak."""
        job, data, runs = job_of_many(self.options)
        release_memory()
        reset_peak()
        before = resident_bytes()
        if way == WAYS[0]:
            together(job, data, runs)
        else:
            run = runs[0]
            wide = replace(run, config=replace(run.config, batch_size=job.batch_size * len(runs), epochs=len(runs)))
            one_by_one(job, data, [wide])
        return {"before": before, "peak": peak_bytes()}


def memory_report(found: dict[str, Any]) -> list[str]:
    """The table of the peaks."""
    job, peaks = found["job"], found["peaks"]
    many, one = peaks.values()
    more = [row["peak"] - row["before"] for row in (many, one)]
    return [
        f"# Peak memory of {job['runs']} adapters, {job['shape']}, batch {job['batch_size']}",
        "",
        table(
            peaks.items(),
            ("runs", 0, "{}"),
            ("peak (MB)", lambda row: row[1]["peak"] / 1e6, "{:,.0f}"),
            ("beyond imports and corpus (MB)", lambda row: (row[1]["peak"] - row[1]["before"]) / 1e6, "{:,.0f}"),
        ),
        "",
        f"Together {many['peak'] / one['peak']:.2f} times the peak of one run, {more[0] / more[1]:.2f} times without"
        " imports and corpus; both take as many steps of as many sentences.",
    ]


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
