"""What a whole run costs, from the start of the process to the last score: each part of it, time and energy.

  python benchmarks/whole_run.py                                   ten epochs of LoRA, roberta-base's shape: for a GPU
  python benchmarks/whole_run.py --engine cuda_graphs              the same, one launch per batch (or compile)
  python benchmarks/whole_run.py --shape mini --epochs 1           the embedded base, 45 s on 2 cores

The run is a process of its own, and the meter runs in this one: so loading Python's libraries is counted, too, which no
meter inside the run could see. Its parts are told apart by the moments that the run writes down; energy between two
readings is divided by time. The base has random weights but for the embedded one, so its scores say nothing about LoRA.
Energy without a sensor is an estimate and is called so. Writes benchmarks/results/NAME.json and .md; NAME is whole-run,
or whole-run-SHAPE.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from provenance import origin, origin_lines, shown_options, write_results
from systems import ROOT, SHAPES, Job, own_model, tokenizer_of
from throughput import read

import lorakit
from lorakit.data.corpus import NerData
from lorakit.report.costs import spent_until
from lorakit.report.runs import Run, read_sources
from lorakit.report.tables import markdown_table

STUDY_GPU_WH = 1874.6  # LoRA on eight V100, the study's own figure
PARTS = {
    "start-up": "start-up: Python, libraries, model, corpus",
    "compile": "compiling or recording",
    "evaluation": "evaluation",
    "training": "training steps, checkpoints and what is between",
    "end": "the end of the process",
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return work(options)
    given = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with lorakit.EnergyMeter(out=place / "energy.jsonl", out_every_s=0.5, period_s=0.5) as meter:
            began = time.time()
            subprocess.run([sys.executable, __file__, *given, "--worker", folder], check=True)
            ended = time.time()
        told = json.loads((place / "told.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        ((run,),) = (source.runs for source in read_sources([place]))
        parts = costs_of(run, parts_of(lines, began, told["ready_s"], told["done_s"], ended))
    summary = {
        **origin("whole_run.py", arguments),
        "options": shown_options(options),
        "energy": meter.reading.to_json(),
        "seconds": ended - began,
        "parts": parts,
        "result": told["result"],
    }
    write_results(options, summary, report(summary))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"), help="or 'embedded'")
    parser.add_argument("--mode", choices=("full", "lora"), default="lora")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--engine", choices=("eager", "compile", "cuda_graphs"), default="eager")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"])
    parser.add_argument("--sentences", type=int, help="of the training set (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result files (default: whole-run, or whole-run-SHAPE)")
    parser.add_argument("--output-dir", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.name = options.name or "whole-run" + f"-{options.shape}" * (options.shape != "roberta-base")
    return options


def work(options: argparse.Namespace) -> int:
    """The run itself; leaves its log and told.json in the folder that --worker names."""
    train, validation, labels = read(options.dataset)
    data = NerData(train[: options.sentences], validation, (), labels, options.dataset)
    job = Job(
        data.train,
        labels,
        shape=options.shape,
        r=options.r,
        target_modules=tuple(options.target_modules),
        seed=options.seed,
    )
    model = own_model(job, options.mode)
    config = lorakit.TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=job.rates[options.mode],
        precision=options.precision,
        engine=options.engine,
        seed=options.seed,
        output_dir=options.worker,
        progress=False,
    )
    ready_s = time.time()
    result = lorakit.train(model, tokenizer_of(job), data, config)
    names = ("epochs", "steps", "train_tokens", "train_seconds", "compile_seconds", "duration_s", "train_tokens_per_s")
    told = {"ready_s": ready_s, "done_s": time.time(), "result": {name: getattr(result, name) for name in names}}
    (Path(options.worker) / "told.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def parts_of(
    lines: list[dict[str, Any]], began: float, ready: float, done: float, ended: float
) -> dict[str, list[tuple[float, float]]]:
    """Intervals, (from, to) in seconds since 1970, of each part; training is what no other part has."""
    evaluations, compiles, before = [], [], ready
    for line in lines:
        if line["event"] == "evaluation":  # since the last line: the epoch's last step is always written
            evaluations.append((before, line["wall_s"]))
        elif line["event"] == "compile":
            compiles.append((line["wall_s"] - line["seconds"], line["wall_s"]))
        before = line["wall_s"]
    others = sorted(evaluations + compiles)
    edges = [ready, *(edge for interval in others for edge in interval), done]
    return {
        "start-up": [(began, ready)],
        "compile": compiles,
        "evaluation": evaluations,
        "training": list(zip(edges[::2], edges[1::2], strict=True)),
        "end": [(done, ended)],
    }


def costs_of(run: Run, parts: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float | None]]:
    """Seconds and watt-hours of each part; None where nothing of the kind was recorded."""
    found = {}
    for part, intervals in parts.items():
        row: dict[str, float | None] = {"seconds": sum(end - start for start, end in intervals)}
        for kind in ("measured_wh", "estimated_wh"):
            spent = [(spent_at(run, start)[kind], spent_at(run, end)[kind]) for start, end in intervals]
            row[kind] = None if any(None in pair for pair in spent) else sum(end - start for start, end in spent)
        found[part] = row
    return found


def spent_at(run: Run, wall_s: float) -> dict[str, float | None]:
    """What the run had cost at a moment; the meter's first and last readings are around it."""
    first, last = run.energy[0].wall_s, run.energy[-1].wall_s
    return spent_until(run, min(max(wall_s, first), last))


def report(summary: dict[str, Any]) -> str:
    options, energy, parts = summary["options"], summary["energy"], summary["parts"]
    kinds = [kind for kind in ("measured_wh", "estimated_wh") if energy[kind.replace("wh", "kwh")] is not None]
    rows = [
        [PARTS[name], f"{row['seconds']:.1f}", *(f"{row[kind]:.4f}" for kind in kinds)]
        for name, row in parts.items()
        if row["seconds"] > 0
    ]
    whole = ["all", f"{summary['seconds']:.1f}", *(f"{1e3 * energy[k.replace('wh', 'kwh')]:.4f}" for k in kinds)]
    gpu = energy["gpu"]["kwh"]
    corpus, result = Path(options["dataset"]).name, summary["result"]
    lines = [
        f"# A whole run: {options['shape']}'s shape, {options['mode']}, {corpus}, epochs: {result['epochs']}",
        "",
        markdown_table(["", "seconds", *(f"{kind.removesuffix('_wh')} Wh" for kind in kinds)], [*rows, whole]),
        "",
        f"- {result['steps']:,} steps of {options['batch_size']} sentences, {result['train_tokens']:,} tokens,"
        f" {result['train_tokens_per_s']:,.0f} a second of training.",
        f"- GPU energy: {1e3 * gpu:.3f} Wh of the GPUs as a whole, waiting included; the study's LoRA run on eight V100"
        f" used {STUDY_GPU_WH:,.1f} Wh."
        if gpu is not None
        else "- GPU energy: not measured.",
        *(f"- {part.upper()}: {energy[part]['method']} ({energy[part]['source']})" for part in ("gpu", "cpu", "ram")),
        "",
        *origin_lines(summary),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
