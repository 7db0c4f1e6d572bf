"""Cost of a training step as rank, targets, layers, length, batch and corpus grow: LoRA beside full fine-tuning.

  python benchmarks/scaling.py                  six layers of 384 (13.8 M parameters), at most 8 minutes on 2 cores
  python benchmarks/scaling.py --shape mini     the embedded base

Every point is one `lorakit.train` on generated sentences (on the corpus itself where the corpus grows), in a fresh
process, so that its peak memory is its own. The points are measured in turns, round by round. FLOPs are both predicted
from shapes and counted. A single number, the FLOPs per second of full fine-tuning at 32 sentences of 40 tokens, turns
the predicted FLOPs of all points into predicted times.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from flops import MATRICES
from jobs import SHAPES, Job, config_of, encode_job, flops_of, job_of, own_shapes, own_steps, tokenizer_of
from processes import Worker
from provenance import BIONLP, BenchmarkParser, shown_options, write_results
from systems import System
from tables import table
from timing import in_turns

from lorakit.data.corpus import Sentence
from lorakit.data.encoding import encode

TARGETS = tuple(name.rsplit(".", 1)[1] if "self" in name else name for name, *_ in MATRICES)
GROWS = {  # what grows: its values, and its title
    "rank": ((1, 4, 16, 64, 128), "rank, query and value"),
    "targets": ((1, 2, 3, 4, 5, 6), "adapted matrices per layer, r=16"),
    "layers": ((1, 2, 4, 6), "trained layers, from the top"),
    "length": ((16, 32, 64, 128, 256, 512), "tokens per sentence, 8 sentences"),
    "batch": ((2, 4, 8, 16, 32, 64), "sentences per step, of 40 tokens"),
    "corpus": ((64, 128, 256, 512), "sentences of the corpus, one epoch including start-up"),
}
LENGTH, SENTENCES = 40, 32  # of the base point


@dataclass(frozen=True)
class Point:
    grows: str
    x: int
    mode: str
    job: Job


def main(arguments: list[str] | None = None, fresh: Callable[..., Any] | None = None) -> int:
    """Measure, print and write; `fresh` calls a function in a fresh process (a worker by default)."""
    options = parse(arguments)
    points = make_points(options)
    rows: list[dict[str, Any]] = [
        {"grows": point.grows, "x": point.x, "mode": point.mode, "predicted_flops": predict(point), "seconds": []}
        for point in points
    ]
    print(f"{len(points)} points; predicted GFLOP per step, before any run:", file=sys.stderr)
    for row in rows:
        print(f"  {row['grows']} {row['x']} {row['mode']}: {row['predicted_flops'] / 1e9:,.3f}", file=sys.stderr)
    for number, (point, row) in in_turns(list(zip(points, rows, strict=True)), options.rounds):
        found = (fresh or in_fresh_process)(measure, point, number == 0)
        row["seconds"].append(found.pop("seconds"))
        row |= found
    base = base_point(rows)
    rate = base["predicted_flops"] / statistics.median(base["seconds"])
    for row in rows:
        row["predicted_s"] = row["predicted_flops"] / rate
    found = {"options": shown_options(options), "base_flops_per_s": rate, "points": rows}
    write_results(options, found, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="scaling.py", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--grows", nargs="+", choices=GROWS, default=list(GROWS))
    parser.add_argument("--largest", type=int, help="leave out larger values, for a short run")
    parser.add_common(dataset=BIONLP, steps=3, rounds=2, dropout=0.1, seed=0)
    options = parser.parse_args(arguments)
    if "batch" not in options.grows:
        options.grows.append("batch")  # it has the base point
    return options


# The points -----------------------------------------------------------------------------------------------------------


def make_points(options: argparse.Namespace) -> list[Point]:
    base = job_of(options, batch_size=SENTENCES)
    layers, words, points = config_of(base).num_hidden_layers, one_token_words(base), []

    def add(grows: str, x: int, job: Job, length: int | None = LENGTH, modes: tuple[str, ...] = ("lora",)) -> None:
        if length:
            count = job.batch_size * (job.warmup + job.steps)
            job = replace(job, train=made_sentences(words, count, length, job.seed))
        points.extend(Point(grows, x, mode, job) for mode in modes)

    both = ("full", "lora")
    for grows in options.grows:
        for x in GROWS[grows][0]:
            if options.largest and x > options.largest and (grows, x) != ("batch", SENTENCES):
                continue
            if grows == "rank":
                add(grows, x, replace(base, r=x, lora_alpha=x))
            elif grows == "targets":
                add(grows, x, replace(base, target_modules=TARGETS[:x]))
            elif grows == "layers" and x <= layers:
                add(grows, x, replace(base, lowest_layer=layers - x))
            elif grows == "length":
                add(grows, x, replace(base, batch_size=8), x, both)
            elif grows == "batch":
                add(grows, x, replace(base, batch_size=x), LENGTH, both)
            elif grows == "corpus":
                add(grows, x, replace(base, steps=x // SENTENCES - 1), None, both)
    return points


def one_token_words(job: Job) -> list[str]:
    """Words of the corpus that are a single subword, so that a sentence's length in tokens is known."""
    words = sorted({word for sentence in job.train[:500] for word in sentence.words})
    lengths = encode(tokenizer_of(job), [[word] for word in words], 512).lengths
    return [word for word, length in zip(words, lengths, strict=True) if length == 3]  # with the two special tokens


def made_sentences(words: list[str], count: int, length: int, seed: int) -> tuple[Sentence, ...]:
    draw = np.random.default_rng(seed)
    chosen = draw.choice(words, (count, length - 2))
    return tuple(Sentence(tuple(map(str, row)), ("O",) * len(row)) for row in chosen)


def predict(point: Point) -> float:
    """FLOPs of a timed step, or of the whole epoch where the corpus grows."""
    job = point.job
    encoded = encode_job(job, job.sentences())
    steps = own_steps(job, encoded)
    whole = point.grows == "corpus"
    timed = steps if whole else steps[job.warmup :]
    shapes = [shape for step in own_shapes(job, encoded, timed) for shape in step]
    flops = flops_of(job, f"lorakit-{point.mode}", shapes)
    return flops if whole else flops / len(timed)


# One point ------------------------------------------------------------------------------------------------------------


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with closing(Worker("a point", partial, function)) as worker:
        return worker.ask("__call__", *arguments)


def measure(point: Point, counts: bool) -> dict[str, Any]:
    """Seconds per step (of the whole epoch where the corpus grows); if `counts`, also peak memory and counted FLOPs."""
    system, whole = System(f"lorakit-{point.mode}", point.job, alone=True), point.grows == "corpus"
    cost = system.train()
    found = {"seconds": cost["startup_s"] + cost["timed_s"] if whole else cost["step_s"]}
    if counts:
        found["peak_bytes"] = cost["peak_bytes"]
    if counts and not whole:  # the corpus's steps differ, and one of them says little
        counted = system.count()
        found |= {key: counted[key] for key in ("operators", "flops")}
    return found


# The report -----------------------------------------------------------------------------------------------------------


def seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["seconds"])


def base_point(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Full fine-tuning at the values that everything else is compared with."""
    return next(row for row in rows if (row["grows"], row["x"], row["mode"]) == ("batch", SENTENCES, "full"))


def sweep(summary: dict[str, Any], grows: str) -> dict[str, list[dict[str, Any]]]:
    """A sweep's points by mode; where only LoRA has the quantity, full is the base point for every value."""
    rows = [row for row in summary["points"] if row["grows"] == grows]
    lora, full = ([row for row in rows if row["mode"] == mode] for mode in ("lora", "full"))
    return {"full": full or [base_point(summary["points"])] * len(lora), "lora": lora}


def report(summary: dict[str, Any]) -> list[str]:
    options = summary["options"]
    counted = [row for row in summary["points"] if "flops" in row]
    worst = max(abs(row["flops"] / row["predicted_flops"] - 1) for row in counted)
    lines = [
        f"# Scaling: {options['shape']}'s shape, fp32",
        "",
        "Predicted FLOPs follow from the shapes alone; the counted ones differ from them by at most"
        f" {worst:.2g} of their size ({len(counted)} points). Predicted times are these FLOPs at one rate,"
        f" {summary['base_flops_per_s'] / 1e9:,.0f} GFLOP/s, that of full fine-tuning at {SENTENCES} sentences of"
        f" {LENGTH} tokens.",
        "",
        f"Medians of {options['rounds']} rounds of {options['steps']} steps after one warm-up step, including"
        f" optimizer and clipping. What does not grow is {SENTENCES} sentences of {LENGTH} tokens, LoRA r=16 on query"
        f" and value of every layer, base dropout {options['dropout']:g}. Peak: the process's resident peak (VmHWM)"
        " minus what it held before it built its model.",
    ]
    for grows in options["grows"]:
        title, parts = GROWS[grows][1], sweep(summary, grows)
        is_base = " (its base point)" * (parts["full"][0]["grows"] != grows)
        header = [title, f"full GFLOP{is_base}", "LoRA GFLOP", "full predicted (s)", "full (s)", "LoRA predicted (s)",
                  "LoRA (s)", "LoRA / full predicted", "LoRA / full", "full peak (MiB)", "LoRA peak (MiB)"]  # fmt: skip
        forms = ["{:,}", *["{:,.1f}"] * 2, *["{:.3f}"] * 6, *["{:,.0f}"] * 2]
        rows = [
            [
                lora["x"],
                *(row["predicted_flops"] / 1e9 for row in (full, lora)),
                *(value for row in (full, lora) for value in (row["predicted_s"], seconds(row))),
                lora["predicted_flops"] / full["predicted_flops"],
                seconds(lora) / seconds(full),
                *(row["peak_bytes"] / 2**20 for row in (full, lora)),
            ]
            for full, lora in zip(*parts.values(), strict=True)
        ]
        columns = zip(header, range(len(header)), forms, strict=True)
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", table(rows, *columns)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
