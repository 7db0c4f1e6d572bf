"""What each of lorakit's CPU paths is worth: oneDNN matmuls, byte-mask dropout, attention in blocks, rows, parts.

  python benchmarks/cpu.py                      about 3 minutes on 2 cores
  python benchmarks/cpu.py --dropout 0          the same without dropout

First single linear layers of roberta-base's sizes (the best of the repeats), then training steps of roberta-base's
shape with random weights on packed batches of the corpus: with torch's own operations, then with one more path at a
time. All variants train on the same sentences in turns; a row is the median over the batches. Last, lorakit's entity
scores beside seqeval's, on the corpus with random errors.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jobs import encode_job, job_of, own_model, own_steps, read_corpus
from provenance import BIONLP, BenchmarkParser, write_results
from tables import table
from timing import best_of, in_turns

from lorakit.data.corpus import Sentence
from lorakit.data.packing import Layout, TokenTable, epoch_steps
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import SWITCH, faster_dropout, faster_products, linear, matmul, pays
from lorakit.training.engine import LossSum
from lorakit.training.metrics import score, score_by_seqeval, score_classes
from lorakit.training.optimizer import build_optimizer
from lorakit.training.warmup import make_kernels

LAYERS = ((768, 768), (768, 3072), (3072, 768))
LONG_ROWS, IN_PARTS = "and few long rows instead of short ones", "and a batch in parts, for memory"
PATHS = {
    "torch's own operations": (),
    "and float32 matmuls by oneDNN": (faster_products,),
    "and dropout with byte masks": (faster_products, faster_dropout),
    "and attention inside blocks": (faster_products, faster_dropout, faster_attention),
    LONG_ROWS: (faster_products, faster_dropout, faster_attention),
    IN_PARTS: (faster_products, faster_dropout, faster_attention),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = BenchmarkParser(prog="cpu.py", description=__doc__)
    parser.add_argument("--shape", default="roberta-base", choices=("roberta-base", "small", "tiny"))
    parser.add_argument("--repeats", type=int, default=9, help="of a matmul (default: %(default)s)")
    parser.add_common(dataset=BIONLP, batch_size=32, dropout=0.1, steps=7)
    options = parser.parse_args(arguments)
    os.environ.pop(SWITCH, None)
    corpus = read_corpus(options.dataset)
    found = {
        "takes_onednn": pays(),
        "products": [product_row(*layer, options.repeats) for layer in LAYERS],
        "steps": step_rows(options),
        "scores": [score_row(split, corpus.labels, options.repeats) for split in (corpus.validation, corpus.train)],
    }
    write_results(options, found, lambda summary: report(summary, options))
    return 0


def report(summary: dict[str, Any], options: argparse.Namespace) -> list[str]:
    rates = [(name, lambda row, n=name: row["gflops"][n], "{:.0f}") for name in summary["products"][0]["gflops"]]
    first = summary["steps"][0]
    return [
        "# lorakit's own paths on a CPU",
        "",
        "One linear layer, 1,280 tokens, GFLOP/s (higher is better). lorakit chooses oneDNN on this machine: "
        f"{'yes' if summary['takes_onednn'] else 'no'}.",
        "",
        table(summary["products"], ("layer", "layer", "{}"), *rates),
        "",
        f"A training step, {options.shape}'s shape, batches of {options.batch_size} packed sentences, dropout "
        f"{options.dropout:g}, LoRA r=16 on query and value, including clipping and AdamW; the median of "
        f"{options.steps} batches, in seconds:",
        "",
        table(
            summary["steps"],
            ("", "path", "{}"),
            ("LoRA", "LoRA", "{:.3f}"),
            ("full", "full", "{:.3f}"),
            ("LoRA, of the first", lambda row: row["LoRA"] / first["LoRA"], "{:.3f}"),
            ("full, of the first", lambda row: row["full"] / first["full"], "{:.3f}"),
            ("LoRA / full", "LoRA / full", "{:.3f}"),
        ),
        "",
        "Each row has one path more than the row above it. LoRA / full is the median of the batches' ratios.",
        "",
        "Default and strict entity scores of the corpus with 5 % of its tags drawn at random, all three the same; the"
        " last start from arrays of classes, as `evaluate` does:",
        "",
        table(
            summary["scores"],
            ("sentences", "sentences", "{:,}"),
            ("seqeval (ms)", "seqeval_ms", "{:.1f}"),
            ("lorakit, tags (ms)", "tags_ms", "{:.1f}"),
            ("lorakit, classes (ms)", "classes_ms", "{:.1f}"),
            ("seqeval / classes", lambda row: row["seqeval_ms"] / row["classes_ms"], "{:.0f} ×"),
        ),
    ]


def product_row(inputs: int, outputs: int, repeats: int, tokens: int = 1280) -> dict[str, Any]:
    """GFLOP/s of a linear layer's three matmuls, by MKL and by oneDNN."""
    x, weight, grad = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
    kinds: dict[str, Callable[[], object]] = {
        "output": lambda: linear(x, weight),
        "input's gradient": lambda: matmul(grad, weight),
        "weight's gradient": lambda: matmul(grad.T, x),
    }
    rates = {}
    for name, call in kinds.items():
        for by, switch in (("MKL", "0"), ("oneDNN", "1")):
            os.environ[SWITCH] = switch
            with faster_products(torch.nn.Linear(1, 1)):
                seconds, _ = best_of(repeats, call, warmup=2)  # build kernels, fill caches
            rates[f"{name}, {by}"] = 2 * tokens * inputs * outputs / seconds / 1e9
    del os.environ[SWITCH]
    return {"layer": f"{inputs} → {outputs}", "gflops": rates}


def score_row(split: Sequence[Sentence], labels: Sequence[str], repeats: int) -> dict[str, Any]:
    """Milliseconds to score a split by seqeval and by lorakit."""
    draw = np.random.default_rng(0)
    gold = [list(sentence.tags) for sentence in split]
    lengths = np.array([len(tags) for tags in gold])
    classes = np.array([labels.index(tag) for tags in gold for tag in tags])
    guessed = np.where(draw.random(len(classes)) < 0.05, draw.integers(len(labels), size=len(classes)), classes)
    names = iter(labels[number] for number in guessed)
    guess = [[next(names) for _ in tags] for tags in gold]
    calls = {
        "seqeval_ms": lambda: score_by_seqeval(gold, guess),
        "tags_ms": lambda: score(gold, guess),
        "classes_ms": lambda: score_classes(classes, guessed, lengths, labels),
    }
    found = {name: best_of(repeats, call, warmup=1) for name, call in calls.items()}
    scores = [answer for _, answer in found.values()]
    assert scores[0] == scores[1] == scores[2], "the scores differ"
    return {"sentences": len(split), **{name: 1e3 * seconds for name, (seconds, _) in found.items()}}


def step_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds per training step of both modes, for each of PATHS."""
    job = job_of(options)
    encoded = encode_job(job, job.sentences())
    layout = Layout(2, 1)
    tokens = TokenTable(encoded, layout)
    models = {"LoRA": own_model(job, "lora"), "full": own_model(job, "full")}
    systems = {
        mode: (model.train(), LossSum(model, layout), build_optimizer(model, 1e-5, 0.01))
        for mode, model in models.items()
    }
    times: dict[tuple[str, str], list[float]] = {(path, mode): [] for path in PATHS for mode in models}
    short = list(epoch_steps(encoded, layout, job.batch_size, 1, job.seed, 1))
    long = {LONG_ROWS: own_steps(job, encoded, whole=True), IN_PARTS: own_steps(job, encoded)}
    for model in models.values():
        with faster_products(model):
            make_kernels(
                model, {tuple(plan.source.shape) for steps in long.values() for step in steps for plan in step.micros}
            )
    for number, (path, mode) in in_turns(list(times), len(short)):
        step = long.get(path, short)[number]
        model, loss_of, optimizer = systems[mode]
        trained = [p for p in model.parameters() if p.requires_grad]
        with ExitStack() as stack:
            for context in PATHS[path]:
                stack.enter_context(context(model))
            began = time.perf_counter()
            for plan in step.micros:
                (loss_of(tokens.batch(plan)) / step.targets).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number >= job.warmup:
                times[path, mode].append(time.perf_counter() - began)
    rows = []
    for path in PATHS:
        lora, full = times[path, "LoRA"], times[path, "full"]
        row = {"path": path, "LoRA": statistics.median(lora), "full": statistics.median(full)}
        rows.append(row | {"LoRA / full": statistics.median(a / b for a, b in zip(lora, full, strict=True))})
    return rows


if __name__ == "__main__":
    sys.exit(main())
