"""Time and energy to reach a validation F1: full, LoRA on all layers, on the top layers, and on these with the cache.

  python benchmarks/prefix.py                                          embedded base and corpus, about 4 minutes
  python benchmarks/prefix.py --dataset ../shared/bionlp2004 --sentences 2000

`TrainConfig(cache_prefix=True)` computes the frozen lower layers once and reuses their output in every epoch. That
changes no score, only the cost of reaching it; whether it pays off depends on how much F1 the frozen layers cost. Each
variant runs once under an energy meter, evaluations included. The cost of an F1 is that of the first epoch to reach it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import MINI_RATES, config_of, job_of, own_config, own_model, read_corpus, tokenizer_of
from provenance import BenchmarkParser, energy_sources, shown_options, write_results

import lorakit
from lorakit.cli.measured_training import train_measured
from lorakit.data.corpus import NerData
from lorakit.report.costs import cost_of, cost_to_reach
from lorakit.report.runs import read_sources
from lorakit.report.tables import markdown_table

NAMES = {
    "full": "full",
    "lora": "LoRA, all layers",
    "top": "LoRA, top layers",
    "cached": "LoRA, top layers, cache_prefix",
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        runs = {variant: run(variant, options, Path(folder) / variant) for variant in options.variants}
    best = max(epoch["f1"] for found in runs.values() for epoch in found["epochs"])
    found = {"options": shown_options(options), "best_f1": best, "runs": runs}
    write_results(options, found, report, draw, "Validation F1 over time and over energy")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="prefix.py", description=__doc__)
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--validation", type=int, default=300, help="sentences (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="trained by 'top' and 'cached' (default: %(default)s)")
    parser.add_argument("--f1", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.75, 0.8, 0.85], help="to reach")
    parser.add_common(dataset="embedded", sentences=1500, epochs=5, batch_size=16, r=32, seed=0)
    return parser.parse_args(arguments)


def run(variant: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one variant from the same base; the score and cost of each epoch, and the cost of each F1."""
    corpus = read_corpus(options.dataset, options.sentences)
    data = NerData(corpus.train, corpus.validation[: options.validation], (), corpus.labels, corpus.source)
    mode = "full" if variant == "full" else "lora"
    targets = ("query", "key", "value", "dense")
    job = job_of(options, data, shape="mini", precision="auto", dropout=0.0, rates=MINI_RATES, lora_alpha=options.r,
                 target_modules=targets)  # fmt: skip
    depth = config_of(job).num_hidden_layers
    layers = range(0 if variant == "lora" else depth - options.layers, depth)
    model = own_model(job, mode, init_lora_weights="pissa", layers_to_transform=layers)
    config = own_config(job, mode, options.epochs, output_dir=folder, cache_prefix=variant == "cached")
    result, reading = train_measured(model, tokenizer_of(job), data, config)
    ((found,),) = (source.runs for source in read_sources([folder]))
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
    """Measured watt-hours if there are any, else estimated ones, and which of the two."""
    if cost["measured_wh"] is not None:
        return cost["measured_wh"], "measured"
    return cost["estimated_wh"], "estimated"


def report(summary: dict[str, Any]) -> list[str]:
    options, runs = summary["options"], summary["runs"]
    kind = energy_of(next(iter(runs.values()))["epochs"][-1])[1]
    corpus = "the embedded corpus" if options["dataset"] == "embedded" else options["dataset"]
    rows = [
        [f"F1 >= {f1:g}", *(shown_cost(found["reached"][f"{f1:g}"]) for found in runs.values())] for f1 in options["f1"]
    ]
    rows.append(["best F1", *(f"{max(e['f1'] for e in found['epochs']):.4f}" for found in runs.values())])
    rows.append(["training, all epochs (s)", *(f"{found['train_seconds']:.1f}" for found in runs.values())])
    rows.append(["trained parameters", *(f"{found['trained_parameters']:,}" for found in runs.values())])
    return [
        "# Time and energy to reach a validation F1",
        "",
        f"Embedded base, {corpus}, at most {options['sentences']:,} training sentences, {options['epochs']} epochs,"
        f" batch {options['batch_size']}, LoRA r={options['r']} on all linear layers (PiSSA); top: {options['layers']}"
        f" layers. Energy is **{kind}**. Seconds and energy are counted from the start of training to the end of the"
        " first evaluation that reached the F1.",
        "",
        markdown_table(["to reach", *(NAMES[variant] for variant in runs)], rows),
        "",
        *cache_lines(runs),
        *energy_sources([next(iter(runs.values()))["energy"]]),
    ]


def shown_cost(cost: dict[str, Any] | None) -> str:
    if cost is None:
        return "not reached"
    wh, _ = energy_of(cost)
    energy = "–" if wh is None else f"{wh:.3f} Wh"
    return f"{cost['seconds']:.1f} s, {energy} (epoch {cost['epoch']})"


def cache_lines(runs: dict[str, Any]) -> list[str]:
    """What the cache costs and saves."""
    if not {"top", "cached"} <= set(runs):
        return []
    ratio, cache = runs["cached"]["train_seconds"] / runs["top"]["train_seconds"], runs["cached"]["cache"]
    return [
        f"- The cache takes {cache['bytes'] / 2**20:,.0f} MiB and {cache['seconds']:.1f} s to fill. With it the same"
        f" epochs take {ratio:.3f} of the training time, filling included"
    ]


def draw(summary: dict[str, Any], figure: Any) -> None:
    """Validation F1 over time and over energy."""
    figure.set_size_inches(10, 4)
    time, energy = figure.subplots(1, 2, sharey=True)
    for variant, found in summary["runs"].items():
        f1 = [epoch["f1"] for epoch in found["epochs"]]
        spent = [energy_of(epoch) for epoch in found["epochs"]]
        kind = spent[0][1]
        time.plot([epoch["seconds"] for epoch in found["epochs"]], f1, "o-", label=NAMES[variant])
        energy.plot([wh for wh, _ in spent], f1, "o-" if kind == "measured" else "o--", mfc="none")
    time.set(xlabel="seconds since the start of training", ylabel="validation F1")
    energy.set_xlabel(f"{kind} energy (Wh)")
    for axes in (time, energy):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    time.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
