"""Time and energy to reach a fixed validation F1: full, LoRA on all layers, LoRA on the top ones, and those cached.

  python benchmarks/prefix.py                                          embedded base and corpus, about 4 minutes
  python benchmarks/prefix.py --dataset ../shared/bionlp2004 --sentences 2000

`TrainConfig(cache_prefix=True)` computes the frozen lower layers once and reuses their output in every epoch. It
changes no score, only what reaching it costs; whether it pays depends on how much F1 the frozen layers lose. Each
variant runs once, its evaluations included, under an energy meter; the cost of an F1 is that of the first epoch that
reaches it.
Energy without a sensor is an estimate and is called so. Writes benchmarks/results/NAME.json, .md and .png.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from provenance import origin, origin_lines, shown_options, write_results
from systems import MINI, ROOT
from throughput import read

import lorakit
from lorakit.cli.measured_training import train_measured
from lorakit.data.corpus import NerData
from lorakit.report.costs import cost_of, cost_to_reach
from lorakit.report.runs import read_sources
from lorakit.report.tables import markdown_table
from lorakit.training.models import load_token_classifier

NAMES = {
    "full": "full",
    "lora": "LoRA, all layers",
    "top": "LoRA, top layers",
    "cached": "LoRA, top layers, cache_prefix",
}
RATES = {"full": 1e-3, "lora": 2e-3, "top": 2e-3, "cached": 2e-3}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        runs = {variant: run(variant, options, Path(folder) / variant) for variant in options.variants}
    best = max(line["f1"] for found in runs.values() for line in found["epochs"])
    summary = {
        **origin("prefix.py", arguments),
        "options": shown_options(options),
        "best_f1": best,
        "runs": runs,
    }
    write_results(options, summary, report(summary), draw)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="embedded", help="a folder, or 'embedded'")
    parser.add_argument("--sentences", type=int, default=1500, help="of the training set (default: %(default)s)")
    parser.add_argument("--validation", type=int, default=300, help="sentences (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--layers", type=int, default=2, help="trained by 'top' and 'cached' (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--r", type=int, default=32)
    parser.add_argument("--f1", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.75, 0.8, 0.85], help="to reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="prefix")
    parser.add_argument("--output-dir", default=str(ROOT / "benchmarks" / "results"))
    return parser.parse_args(arguments)


def run(variant: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one variant from the same base; what each epoch had reached and cost."""
    train, validation, labels = read(options.dataset)
    data = NerData(train[: options.sentences], validation[: options.validation], (), labels, options.dataset)
    model, tokenizer = load_token_classifier(MINI, labels, options.seed, dropout=0.0)
    depth = model.config.num_hidden_layers
    if variant != "full":
        lorakit.apply_lora(
            model,
            r=options.r,
            lora_alpha=options.r,
            target_modules=["query", "key", "value", "dense"],
            layers_to_transform=range(depth) if variant == "lora" else range(depth - options.layers, depth),
            init_lora_weights="pissa",
            seed=options.seed,
        )
    config = lorakit.TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=RATES[variant],
        seed=options.seed,
        output_dir=folder,
        cache_prefix=variant == "cached",
        progress=False,
    )
    result, reading = train_measured(model, tokenizer, data, config)
    (source,) = read_sources([folder])
    (found,) = source.runs
    epochs = [vars(cost_of(found, line)) for line in found.evaluations]
    reached = {f"{f1:g}": cost_to_reach(found, f1) for f1 in options.f1}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    cache = next((line for line in lines if line["event"] == "cache_prefix"), None)
    print(f"{NAMES[variant]}: F1 {max(e['f1'] for e in epochs):.4f}, {result.train_seconds:.1f} s", file=sys.stderr)
    return {
        "trained_parameters": lorakit.count_parameters(model).trainable,
        "train_seconds": result.train_seconds,
        "duration_s": result.duration_s,
        "cache": None if cache is None else {key: cache[key] for key in ("layers", "bytes", "seconds")},
        "energy": reading.to_json(),
        "epochs": epochs,
        "reached": {f1: None if cost is None else vars(cost) for f1, cost in reached.items()},
    }


def energy_of(cost: dict[str, Any]) -> tuple[float | None, str]:
    """Measured watt-hours where there are any, else estimated ones, and which."""
    if cost["measured_wh"] is not None:
        return cost["measured_wh"], "measured"
    return cost["estimated_wh"], "estimated"


def report(summary: dict[str, Any]) -> str:
    options, runs = summary["options"], summary["runs"]
    kind = energy_of(next(iter(runs.values()))["epochs"][-1])[1]
    corpus = "the embedded corpus" if options["dataset"] == "embedded" else Path(options["dataset"]).name
    rows = []
    for f1 in (f"{value:g}" for value in options["f1"]):
        cells = []
        for found in runs.values():
            cost = found["reached"][f1]
            if cost is None:
                cells.append("not reached")
                continue
            wh, _ = energy_of(cost)
            energy = "–" if wh is None else f"{wh:.3f} Wh"
            cells.append(f"{cost['seconds']:.1f} s, {energy} (epoch {cost['epoch']})")
        rows.append([f"F1 >= {f1}", *cells])
    rows.append(["best F1", *(f"{max(e['f1'] for e in found['epochs']):.4f}" for found in runs.values())])
    rows.append(["training, all epochs (s)", *(f"{found['train_seconds']:.1f}" for found in runs.values())])
    rows.append(["trained parameters", *(f"{found['trained_parameters']:,}" for found in runs.values())])
    lines = [
        "# Time and energy to a fixed validation F1",
        "",
        f"Embedded base, {corpus}, {options['sentences']:,} training sentences at most, {options['epochs']} epochs of"
        f" batch {options['batch_size']}, LoRA r={options['r']} on all linear layers (PiSSA); top: {options['layers']}"
        f" layers. Energy is **{kind}**; seconds and energy are from the start of training to the end of the evaluation"
        " that first reached the F1.",
        "",
        markdown_table(["to reach", *(NAMES[variant] for variant in runs)], rows),
        "",
        *verdict(summary),
        "",
        *(f"- {part.upper()}: {value['method']} ({value['source']})" for part, value in parts_of(runs)),
        "",
        *origin_lines(summary),
    ]
    return "\n".join(lines) + "\n"


def parts_of(runs: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    energy = next(iter(runs.values()))["energy"]
    return [(part, energy[part]) for part in ("gpu", "cpu", "ram")]


def verdict(summary: dict[str, Any]) -> list[str]:
    """Who was first at each F1, in words."""
    lines, runs = [], summary["runs"]
    for f1 in (f"{value:g}" for value in summary["options"]["f1"]):
        costs = {variant: found["reached"][f1] for variant, found in runs.items() if found["reached"][f1]}
        if costs:
            first = min(costs, key=lambda variant: costs[variant]["seconds"])
            missing = [NAMES[variant] for variant in runs if variant not in costs]
            lines.append(
                f"- F1 >= {f1}: {NAMES[first]} was first" + (f"; never there: {', '.join(missing)}" if missing else "")
            )
    if {"top", "cached"} <= set(runs):
        ratio = runs["cached"]["train_seconds"] / runs["top"]["train_seconds"]
        cache = runs["cached"]["cache"]
        lines.append(
            f"- The cache takes {cache['bytes'] / 2**20:,.0f} MiB and {cache['seconds']:.1f} s to fill; with it the"
            f" same epochs take {ratio:.3f} of the training time without, filling included"
        )
    return lines


def draw(summary: dict[str, Any], path: Path) -> None:
    """Validation F1 over time and over energy."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    time, energy = figure.subplots(1, 2, sharey=True)
    kind = "measured"
    for variant, found in summary["runs"].items():
        f1 = [epoch["f1"] for epoch in found["epochs"]]
        time.plot([epoch["seconds"] for epoch in found["epochs"]], f1, "o-", label=NAMES[variant])
        spent = [energy_of(epoch) for epoch in found["epochs"]]
        kind = spent[0][1]
        energy.plot([wh for wh, _ in spent], f1, "o-" if kind == "measured" else "o--", mfc="none")
    time.set_xlabel("seconds since the start of training")
    energy.set_xlabel(f"{kind} energy (Wh)")
    time.set_ylabel("validation F1")
    for axes in (time, energy):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    time.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
