"""What each of lorakit's CPU paths is worth: oneDNN's products, byte-mask dropout, attention in blocks, rows, parts.

  python benchmarks/cpu.py                      about 3 minutes on 2 cores
  python benchmarks/cpu.py --dropout 0          the same without dropout

First one linear layer of each of roberta-base's shapes (the best of the repeats), then training steps of roberta-base's
shape with random weights on packed batches of the corpus: with torch's own operations, and with one path more each
time. All kinds take the same sentences in turn; a row is the median of the batches. Writes NAME.md and NAME.json; NAME
is cpu, or cpu-no-dropout.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from provenance import origin, origin_lines, write_results
from systems import ROOT, Job, encode_job, own_model, own_steps
from throughput import read

from lorakit.data.packing import Layout, TokenTable, epoch_steps
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import SWITCH, faster_dropout, faster_products, linear, matmul, pays
from lorakit.report.tables import markdown_table
from lorakit.training.engine import LossSum
from lorakit.training.optimizer import build_optimizer
from lorakit.training.warmup import make_kernels

SHAPES = ((768, 768), (768, 3072), (3072, 768))
LONG_ROWS, IN_PARTS = "and few long rows instead of short ones", "and a batch in parts, for memory"
PATHS = {
    "torch's own operations": (),
    "and float32 products by oneDNN": (faster_products,),
    "and dropout by masks of a byte": (faster_products, faster_dropout),
    "and attention inside blocks": (faster_products, faster_dropout, faster_attention),
    LONG_ROWS: (faster_products, faster_dropout, faster_attention),
    IN_PARTS: (faster_products, faster_dropout, faster_attention),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"), help="or 'embedded'")
    parser.add_argument("--shape", default="roberta-base", choices=("roberta-base", "small", "tiny"))
    parser.add_argument("--batch-size", type=int, default=32, help="sentences (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the base (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="of a product (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=7, help="of each kind (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    os.environ.pop(SWITCH, None)
    summary = origin("cpu.py", arguments) | {
        "takes_onednn": pays(),
        "products": [product_row(*shape, options.repeats) for shape in SHAPES],
        "steps": step_rows(options),
    }
    options.name = "cpu" if options.dropout else "cpu-no-dropout"
    write_results(options, summary, report(summary, options))
    return 0


def report(summary: dict[str, Any], options: argparse.Namespace) -> str:
    products = [[row["layer"], *(f"{rate:.0f}" for rate in row["gflops"].values())] for row in summary["products"]]
    first = summary["steps"][0]
    steps = [
        [
            row["path"],
            *(f"{row[mode]:.3f}" for mode in ("LoRA", "full")),
            *(f"{row[mode] / first[mode]:.3f}" for mode in ("LoRA", "full")),
            f"{row['LoRA / full']:.3f}",
        ]
        for row in summary["steps"]
    ]
    lines = [
        "# lorakit's own paths on a CPU",
        "",
        "One linear layer, 1,280 tokens, GFLOP/s (higher is better); lorakit takes oneDNN on this machine by itself: "
        f"{'yes' if summary['takes_onednn'] else 'no'}.",
        "",
        markdown_table(["layer", *summary["products"][0]["gflops"]], products),
        "",
        f"A training step, {options.shape}'s shape, batches of {options.batch_size} packed sentences, dropout "
        f"{options.dropout:g}, LoRA r=16 on query and value, clipping and AdamW included; the median of "
        f"{options.steps} batches, in seconds:",
        "",
        markdown_table(["", "LoRA", "full", "LoRA, of the first", "full, of the first", "LoRA / full"], steps),
        "",
        "Each row has one path more than the row above. LoRA / full is the median of the batches' own ratios.",
        "",
        *origin_lines(summary),
        "",
    ]
    return "\n".join(lines)


def product_row(inputs: int, outputs: int, repeats: int, tokens: int = 1280) -> dict[str, Any]:
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
                rates[f"{name}, {by}"] = 2 * tokens * inputs * outputs / best(repeats, call) / 1e9
    del os.environ[SWITCH]
    return {"layer": f"{inputs} → {outputs}", "gflops": rates}


def best(repeats: int, call: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats + 2):  # the first two build kernels and fill caches
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times[2:])


def step_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    train, _, labels = read(options.dataset)
    job = Job(train, labels, options.shape, options.batch_size, warmup=1, steps=options.steps, dropout=options.dropout)
    encoded = encode_job(job, job.sentences())
    layout = Layout(2, 1)
    table = TokenTable(encoded, layout)
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
    for number in range(len(short)):
        for (path, mode), seen in times.items():
            step = long.get(path, short)[number]
            model, loss_of, optimizer = systems[mode]
            trained = [p for p in model.parameters() if p.requires_grad]
            with ExitStack() as stack:
                for context in PATHS[path]:
                    stack.enter_context(context(model))
                began = time.perf_counter()
                for plan in step.micros:
                    (loss_of(table.batch(plan)) / step.targets).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if number >= job.warmup:
                    seen.append(time.perf_counter() - began)
    rows = []
    for path in PATHS:
        lora, full = times[path, "LoRA"], times[path, "full"]
        ratio = statistics.median(a / b for a, b in zip(lora, full, strict=True))
        rows.append(
            {"path": path, "LoRA": statistics.median(lora), "full": statistics.median(full), "LoRA / full": ratio}
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
