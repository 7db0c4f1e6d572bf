"""Float32 products and whole training steps through oneDNN (lorakit's loop, where it pays) and through torch's own MKL.

  python benchmarks/onednn.py --tokens 1280 --repeats 9 --steps 5 --output-dir benchmarks/results

First one nn.Linear of each of roberta-base's shapes (the best of the repeats), then steps of roberta-base's shape with
random weights (medians, the four kinds in turn). Writes onednn.md and onednn.json.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from seeds import machine
from systems import Job, make_model

import lorakit
from lorakit.onednn import SWITCH, faster_products, linear, matmul
from lorakit.report import markdown_table

RESULTS = Path(__file__).parent / "results"
SHAPES = ((768, 768), (768, 3072), (3072, 768))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1280, help="in a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="of a product (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="of each kind (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    products = [product_row(*shape, options.tokens, options.repeats) for shape in SHAPES]
    steps = step_rows(options.tokens, options.steps)
    text = "\n\n".join(
        [
            "# Float32 products by oneDNN and by MKL",
            f"`{' '.join(['python benchmarks/onednn.py', *(arguments or sys.argv[1:])])}`",
            f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}; lorakit takes oneDNN here by itself: {default()}.",
            f"One linear layer, {options.tokens:,} tokens, GFLOP/s (higher is better):",
            markdown_table(list(products[0]), [[str(value) for value in row.values()] for row in products]),
            f"A training step, roberta-base's shape, {options.tokens:,} tokens, LoRA r=16 on query and value, "
            "no dropout, AdamW included, seconds:",
            markdown_table(list(steps[0]), [[str(value) for value in row.values()] for row in steps]),
        ]
    )
    print(text)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "onednn.md").write_text(text + "\n")
    record = {"machine": machine(), "torch": torch.__version__, "products": products, "steps": steps}
    (options.output_dir / "onednn.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def default() -> str:
    os.environ.pop(SWITCH, None)
    return "yes" if lorakit.onednn.pays() else "no"


def switched(on: bool, model: torch.nn.Module):
    os.environ[SWITCH] = "01"[on]
    return faster_products(model)


def product_row(inputs: int, outputs: int, tokens: int, repeats: int) -> dict[str, str | int]:
    x, weight, grad = torch.randn(tokens, inputs), torch.randn(outputs, inputs), torch.randn(tokens, outputs)
    row: dict[str, str | int] = {"layer": f"{inputs} → {outputs}"}
    kinds = {
        "output": lambda: linear(x, weight),
        "input's gradient": lambda: matmul(grad, weight),
        "weight's gradient": lambda: matmul(grad.T, x),
    }
    for name, call in kinds.items():
        for by, on in (("MKL", False), ("oneDNN", True)):
            with switched(on, torch.nn.Linear(1, 1)):
                row[f"{name}, {by}"] = round(2 * tokens * inputs * outputs / best(repeats, call) / 1e9)
    return row


def best(repeats: int, call: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats + 2):  # the first two build kernels and fill caches
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times[2:])


def step_rows(tokens: int, steps: int) -> list[dict[str, str]]:
    """Medians of whole steps, LoRA and full, both ways, in turn."""
    models = {mode: step_of(mode, tokens) for mode in ("LoRA", "full")}
    times: dict[tuple[str, bool], list[float]] = {(mode, on): [] for mode in models for on in (False, True)}
    for number in range(steps + 1):
        for mode, on in times:
            model, step = models[mode]
            with switched(on, model):
                began = time.perf_counter()
                step()
                if number:
                    times[mode, on].append(time.perf_counter() - began)
    median = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for by, on in (("MKL", False), ("oneDNN", True)):
        lora, full = median["LoRA", on], median["full", on]
        rows.append({"by": by, "LoRA": f"{lora:.3f}", "full": f"{full:.3f}", "LoRA / full": f"{lora / full:.3f}"})
    ratios = [median[mode, True] / median[mode, False] for mode in models]
    rows.append(
        {"by": "oneDNN / MKL", **dict(zip(models, (f"{r:.3f}" for r in ratios), strict=True)), "LoRA / full": ""}
    )
    return rows


def step_of(mode: str, tokens: int) -> tuple[torch.nn.Module, Callable[[], None]]:
    model = make_model(Job(train=(), labels=tuple(f"label {number}" for number in range(11)), dropout=0.0)).train()
    if mode == "LoRA":
        lorakit.apply_lora(model, r=16, lora_alpha=16, target_modules=["query", "value"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids, labels = torch.randint(5, 50_000, (tokens // 80, 80)), torch.randint(0, 11, (tokens // 80, 80))

    def step() -> None:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


if __name__ == "__main__":
    sys.exit(main())
