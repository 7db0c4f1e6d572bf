"""What a whole run costs from the start of its process to the last score: time and energy of each part.

  python benchmarks/whole_run.py                                   ten epochs of LoRA, roberta-base's shape: for a GPU
  python benchmarks/whole_run.py --engine cuda_graphs              the same with CUDA graphs (or compile)
  python benchmarks/whole_run.py --shape mini --epochs 1           the embedded base, 45 s on 2 cores

The run has a process of its own and the meter runs outside it, so that importing Python's libraries counts, too, which
no meter inside the run could see. The run logs when each part begins and ends; energy between two readings is divided
by time. Except for the embedded one, bases have random weights: their scores say nothing about LoRA.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs import SHAPES, job_of, own_config, own_model, read_corpus, tokenizer_of
from provenance import BIONLP, BenchmarkParser, energy_sources, shown_options, write_results
from tables import at, table

import lorakit
from lorakit.report.costs import spent_until
from lorakit.report.runs import Run, read_sources
from lorakit.training.config import ENGINES

STUDY_GPU_WH = 1874.6  # LoRA on eight V100, the study's figure
PARTS = {
    "start-up": "start-up: Python, libraries, model, corpus",
    "compile": "compiling or recording",
    "evaluation": "evaluation",
    "training": "training steps, checkpoints and everything between",
    "end": "the end of the process",
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return work(options)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with lorakit.EnergyMeter(out=place / "energy.jsonl", out_every_s=0.5, period_s=0.5) as meter:
            began = time.time()
            given = shlex.split(options.command)[2:]
            subprocess.run([sys.executable, __file__, *given, "--worker", folder], check=True)
            ended = time.time()
        told = json.loads((place / "told.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        ((run,),) = (source.runs for source in read_sources([place]))
        parts = costs_of(run, parts_of(lines, began, told["ready_s"], told["done_s"], ended))
    energy, seconds = meter.reading.to_json(), ended - began
    found = {"options": shown_options(options), "energy": energy, "seconds": seconds, "parts": parts}
    write_results(options, found | {"result": told["result"]}, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="whole_run.py", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--mode", choices=("full", "lora"), default="lora")
    parser.add_argument("--engine", choices=ENGINES, default="eager")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_common(dataset=BIONLP, sentences=None, epochs=10, batch_size=32, precision="auto", r=16)
    parser.add_common(target_modules=["query", "value"], seed=0)
    parser.stem = "whole-run"
    return parser.parse_args(arguments)


def work(options: argparse.Namespace) -> int:
    """The run itself; it leaves its log and told.json in the folder that --worker names."""
    data = read_corpus(options.dataset, options.sentences)
    job = job_of(options, data)
    model = own_model(job, options.mode)
    config = own_config(job, options.mode, options.epochs, output_dir=options.worker, engine=options.engine)
    ready_s = time.time()
    result = lorakit.train(model, tokenizer_of(job), data, config)
    names = ("epochs", "steps", "train_tokens", "train_seconds", "compile_seconds", "duration_s", "train_tokens_per_s")
    told = {"ready_s": ready_s, "done_s": time.time(), "result": {name: getattr(result, name) for name in names}}
    (Path(options.worker) / "told.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def parts_of(
    lines: list[dict[str, Any]], began: float, ready: float, done: float, ended: float
) -> dict[str, list[tuple[float, float]]]:
    """Each part's intervals, (from, to) in seconds since 1970; training is what belongs to no other part."""
    evaluations, compiles, before = [], [], ready
    for line in lines:
        if (
            line["event"] == "evaluation"
        ):  # it began with the line before, because an epoch's last step is always logged
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
    """Seconds and watt-hours of each part; None where no such energy was recorded."""
    found = {}
    for part, intervals in parts.items():
        row: dict[str, float | None] = {"seconds": sum(end - start for start, end in intervals)}
        for kind in ("measured_wh", "estimated_wh"):
            spent = [(spent_at(run, start)[kind], spent_at(run, end)[kind]) for start, end in intervals]
            row[kind] = None if any(None in pair for pair in spent) else sum(end - start for start, end in spent)
        found[part] = row
    return found


def spent_at(run: Run, wall_s: float) -> dict[str, float | None]:
    """The run's energy up to a moment, which is moved between the meter's first and last reading."""
    first, last = run.energy[0].wall_s, run.energy[-1].wall_s
    return spent_until(run, min(max(wall_s, first), last))


def report(summary: dict[str, Any]) -> list[str]:
    options, energy, result = summary["options"], summary["energy"], summary["result"]
    rows = [{"part": PARTS[name], **row} for name, row in summary["parts"].items() if row["seconds"] > 0]
    rows.append({"part": "all", "seconds": summary["seconds"]})
    columns = [("", "part", "{}"), ("seconds", "seconds", "{:.1f}")]
    for kind in ("measured", "estimated"):
        rows[-1][f"{kind}_wh"] = at(f"{kind}_kwh", scale=1e3)(energy)
        if rows[-1][f"{kind}_wh"] is not None:
            columns.append((f"{kind} Wh", f"{kind}_wh", "{:.4f}"))
    gpu = "not measured."
    if energy["gpu"]["kwh"] is not None:
        gpu = (
            f"{1e3 * energy['gpu']['kwh']:.3f} Wh of the whole GPUs, idle time included; the study's LoRA run on eight"
            f" V100 used {STUDY_GPU_WH:,.1f} Wh."
        )
    return [
        f"# A whole run: {options['shape']}'s shape, {options['mode']}, {options['dataset']}, epochs:"
        f" {result['epochs']}",
        "",
        table(rows, *columns),
        "",
        f"- {result['steps']:,} steps of {options['batch_size']} sentences, {result['train_tokens']:,} tokens,"
        f" {result['train_tokens_per_s']:,.0f} per second of training.",
        f"- GPU energy: {gpu}",
        *energy_sources([energy]),
    ]


if __name__ == "__main__":
    sys.exit(main())
