"""What a training step costs as rank, targets, trained layers, length, batch and corpus grow: LoRA beside full.

  python benchmarks/scaling.py                  six layers of 384 (13.8 M parameters), at most 8 minutes on 2 cores
  python benchmarks/scaling.py --shape mini     the embedded base

Every point is `lorakit.train` on sentences made for it (where the corpus grows: taken from it), in a fresh process, so
that peak memory is its own. All points are measured in turn, round after round. FLOPs are predicted from shapes and
counted, too; one number, the full mode's FLOPs a second at 32 sentences of 40 tokens, turns the predicted FLOPs of
every point and mode into the predicted time. Writes benchmarks/results/NAME.json, .md and .png.
"""

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flops import MATRICES
from matplotlib.figure import Figure
from provenance import origin, origin_lines, shown_options, write_results
from systems import (
    ROOT,
    SHAPES,
    Clock,
    Job,
    by_lorakit,
    config_of,
    encode_job,
    flops_of,
    own_shapes,
    own_steps,
    tokenizer_of,
)
from throughput import peak_bytes, read, reset_peak, resident_bytes

from lorakit.data.corpus import Sentence
from lorakit.data.tokenization import encode
from lorakit.report.tables import markdown_table

TARGETS = tuple(name.rsplit(".", 1)[1] if "self" in name else name for name, *_ in MATRICES)
GROWS = {
    "rank": (1, 4, 16, 64, 128),
    "targets": (1, 2, 3, 4, 5, 6),  # adapted matrices a layer
    "layers": (1, 2, 4, 6),  # trained, from the top
    "length": (16, 32, 64, 128, 256, 512),  # tokens a sentence, 8 sentences
    "batch": (2, 4, 8, 16, 32, 64),  # sentences of 40 tokens
    "corpus": (64, 128, 256, 512),  # sentences, one epoch all in: start-up too
}
TITLES = {
    "rank": "rank, query and value",
    "targets": "adapted matrices a layer, r=16",
    "layers": "trained layers, from the top",
    "length": "tokens a sentence, 8 sentences",
    "batch": "sentences a step, of 40 tokens",
    "corpus": "sentences of the corpus, one epoch all in",
}
LENGTH, SENTENCES = 40, 32  # of the base point


@dataclass(frozen=True)
class Point:
    grows: str
    x: int
    mode: str
    job: Job


def main(arguments: list[str] | None = None, fresh: Callable[..., Any] | None = None) -> int:
    """Measure, print and write; `fresh` calls a function in a fresh process (a fork server's by default)."""
    options = parse(arguments)
    points = make_points(options)
    predicted = [predict(point) for point in points]
    print(f"{len(points)} points; predicted GFLOP a step, before any run:", file=sys.stderr)
    for point, flops in zip(points, predicted, strict=True):
        print(f"  {point.grows} {point.x} {point.mode}: {flops / 1e9:,.3f}", file=sys.stderr)
    rows: list[dict[str, Any]] = [
        {"grows": p.grows, "x": p.x, "mode": p.mode, "predicted_flops": flops, "seconds": []}
        for p, flops in zip(points, predicted, strict=True)
    ]
    for number in range(options.rounds):
        for point, row in zip(points, rows, strict=True):
            found = (fresh or in_fresh_process)(measure, point, number == 0)
            row["seconds"].append(found.pop("seconds"))
            row |= found
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    base = next(r for r in rows if (r["grows"], r["x"], r["mode"]) == ("batch", SENTENCES, "full"))
    rate = base["predicted_flops"] / statistics.median(base["seconds"])
    for row in rows:
        row["predicted_s"] = row["predicted_flops"] / rate
    summary = {
        **origin("scaling.py", arguments),
        "options": shown_options(options),
        "base_flops_per_s": rate,
        "points": rows,
    }
    write_results(options, summary, report(summary), draw)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"), help="or 'embedded'")
    parser.add_argument("--grows", nargs="+", choices=GROWS, default=list(GROWS))
    parser.add_argument("--largest", type=int, help="leave out larger values, for a short run")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one of warm-up (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the base (default: roberta's 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="scaling")
    parser.add_argument("--output-dir", default=str(ROOT / "benchmarks" / "results"))
    options = parser.parse_args(arguments)
    if "batch" not in options.grows:
        options.grows.append("batch")  # it has the base point
    return options


# The points -----------------------------------------------------------------------------------------------------------


def make_points(options: argparse.Namespace) -> list[Point]:
    train, _, labels = read(options.dataset)
    base = Job(train, labels, options.shape, SENTENCES, 1, options.steps, dropout=options.dropout, seed=options.seed)
    layers, words, points = config_of(base).num_hidden_layers, one_token_words(base), []

    def add(grows: str, x: int, job: Job, length: int | None = LENGTH, modes: tuple[str, ...] = ("lora",)) -> None:
        if length:
            count = job.batch_size * (job.warmup + job.steps)
            job = replace(job, train=made_sentences(words, count, length, job.seed))
        points.extend(Point(grows, x, mode, job) for mode in modes)

    both = ("full", "lora")
    for grows in options.grows:
        for x in GROWS[grows]:
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
    """Words of the corpus that are one subword each, so that a sentence's length in tokens is known."""
    words = sorted({word for sentence in job.train[:500] for word in sentence.words})
    lengths = encode(tokenizer_of(job), [[word] for word in words], 512).lengths
    return [word for word, length in zip(words, lengths, strict=True) if length == 3]  # with the two around it


def made_sentences(words: list[str], count: int, length: int, seed: int) -> tuple[Sentence, ...]:
    draw = np.random.default_rng(seed)
    chosen = draw.choice(words, (count, length - 2))
    return tuple(Sentence(tuple(map(str, row)), ("O",) * len(row)) for row in chosen)


def predict(point: Point) -> float:
    """FLOPs of a timed step; of the whole epoch where the corpus grows."""
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
    """Call a function in a process forked for it from one that has loaded the libraries and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "transformers.models.roberta.modeling_roberta"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure(point: Point, counts: bool) -> dict[str, Any]:
    """Seconds a step (a whole epoch where the corpus grows) and peak memory; the first time also what is counted."""
    if counts:  # what loads at first use is no one's memory
        warm_up = replace(point.job, shape="tiny", batch_size=2, steps=1, lowest_layer=0, r=4)
        by_lorakit(warm_up, Clock(warm_up), point.mode)
    base = resident_bytes()
    reset_peak()
    clock = Clock(point.job)
    by_lorakit(point.job, clock, point.mode)
    cost = clock.cost()
    whole = point.grows == "corpus"
    found = {"seconds": cost["startup_s"] + cost["timed_s"] if whole else cost["step_s"]}
    if not counts:
        return found
    found["peak_bytes"] = peak_bytes() - base
    clock = Clock(replace(point.job, steps=1), counts=True)
    with clock.operations:
        by_lorakit(clock.job, clock, point.mode)
    counted = clock.cost()
    if not whole:  # the corpus' steps differ, and one of them says little
        found |= {"operators": counted["operators"], "flops": counted["flops"]}
    return found


# The report -----------------------------------------------------------------------------------------------------------


def seconds(row: dict[str, Any]) -> float:
    return statistics.median(row["seconds"])


def sweep(summary: dict[str, Any], grows: str) -> dict[str, list[dict[str, Any]]]:
    """A sweep's points by mode; where LoRA alone has the quantity, full is its one base point, for each x."""
    rows = [row for row in summary["points"] if row["grows"] == grows]
    lora, full = ([row for row in rows if row["mode"] == mode] for mode in ("lora", "full"))
    if not full:
        base = next(r for r in summary["points"] if (r["grows"], r["x"], r["mode"]) == ("batch", SENTENCES, "full"))
        full = [base] * len(lora)
    return {"full": full, "lora": lora}


def report(summary: dict[str, Any]) -> str:
    options, lines = summary["options"], []
    for grows in options["grows"]:
        parts = sweep(summary, grows)
        rows = []
        for full, lora in zip(parts["full"], parts["lora"], strict=True):
            rows.append(
                [
                    f"{lora['x']:,}",
                    *(f"{row['predicted_flops'] / 1e9:,.1f}" for row in (full, lora)),
                    *(f"{value:.3f}" for row in (full, lora) for value in (row["predicted_s"], seconds(row))),
                    f"{lora['predicted_flops'] / full['predicted_flops']:.3f}",
                    f"{seconds(lora) / seconds(full):.3f}",
                    *(f"{row['peak_bytes'] / 2**20:,.0f}" for row in (full, lora)),
                ]
            )
        header = [TITLES[grows], "full GFLOP", "LoRA GFLOP", "full predicted (s)", "full (s)", "LoRA predicted (s)",
                  "LoRA (s)", "LoRA / full predicted", "LoRA / full", "full peak (MiB)", "LoRA peak (MiB)"]  # fmt: skip
        if not any(row["mode"] == "full" and row["grows"] == grows for row in summary["points"]):
            header[1] += " (its base point)"
        lines += [f"## {TITLES[grows][0].upper()}{TITLES[grows][1:]}", "", markdown_table(header, rows), ""]
    counted = [row for row in summary["points"] if "flops" in row]
    worst = max(abs(row["flops"] / row["predicted_flops"] - 1) for row in counted)
    head = [
        f"# Scaling: {options['shape']}'s shape, fp32",
        "",
        f"Predicted FLOPs are from shapes alone; counted ones differ from them by at most {worst:.2g} of their size"
        f" ({len(counted)} points). Predicted times are these FLOPs at one rate,"
        f" {summary['base_flops_per_s'] / 1e9:,.0f} GFLOP/s, the full mode's at {SENTENCES} sentences of {LENGTH}"
        " tokens.",
        "",
        *gaps(summary),
        "",
        f"Medians of {options['rounds']} rounds of {options['steps']} steps after one, optimiser and clipping included;"
        f" unless it grows: {SENTENCES} sentences of {LENGTH} tokens, LoRA r=16 on query and value of every layer, base"
        f" dropout {options['dropout']:g}. Peak: the process's resident peak (VmHWM) less what it held before it made"
        " its model.",
        "",
    ]
    return "\n".join([*head, *lines, *origin_lines(summary)]) + "\n"


def gaps(summary: dict[str, Any]) -> list[str]:
    """Measured over predicted time, for each sweep and mode, at its ends."""
    lines = []
    for grows in summary["options"]["grows"]:
        for mode, rows in sweep(summary, grows).items():
            rows = [row for row in rows if row["grows"] == grows]
            if rows:
                ratio = [f"{seconds(row) / row['predicted_s']:.2f} at {row['x']:,}" for row in (rows[0], rows[-1])]
                name = {"full": "full", "lora": "LoRA"}[mode]
                lines.append(f"- {TITLES[grows]}, {name}: measured / predicted time {', '.join(ratio)}")
    return lines


def draw(summary: dict[str, Any], path: Path) -> None:
    names = summary["options"]["grows"]
    figure = Figure(figsize=(3.4 * len(names), 6.2), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for column, grows in enumerate(names):
        time, memory = panels[:, column]
        for mode, colour, name in (("full", "#4c72b0", "full"), ("lora", "#dd8452", "LoRA")):
            lora, rows = sweep(summary, grows)["lora"], sweep(summary, grows)[mode]
            x = [row["x"] for row in lora]
            time.plot(x, [row["predicted_s"] for row in rows], "--", color=colour, label=f"{name}, predicted")
            time.plot(x, [seconds(row) for row in rows], "o", color=colour, label=f"{name}, measured")
            for number, row in enumerate(rows):
                time.plot([x[number]] * len(row["seconds"]), row["seconds"], ".", color=colour, markersize=3, alpha=0.6)
            memory.plot(x, [row["peak_bytes"] / 2**20 for row in rows], "o-", color=colour, linewidth=1)
        time.set_title(TITLES[grows], fontsize=9)
        if grows not in ("targets", "layers"):
            time.set_xscale("log", base=2)
            time.set_xticks([row["x"] for row in lora], [f"{row['x']:,}" for row in lora])
            time.minorticks_off()
        for axes in (time, memory):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
    panels[0, 0].set_ylabel("seconds a step (corpus: an epoch)")
    panels[1, 0].set_ylabel("peak memory (MiB)")
    panels[0, 0].legend(fontsize=7)
    figure.suptitle(f"LoRA beside full, {summary['options']['shape']}'s shape: predicted from FLOPs, and measured")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
