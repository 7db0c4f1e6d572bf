"""Energy of LoRA against full fine-tuning: the same tokens, one machine, interleaved and repeated.

  python benchmarks/energy.py                                        the embedded corpus, three repeats
  python benchmarks/energy.py --dataset ../shared/bionlp2004 --sentences 4000 --repeats 5 --idle 60

Each repeat trains both modes for one epoch, in alternating order, so that neither always runs on the warmer chip.
Evaluation is left out. With sensors, --idle measures the resting machine first and gives the energy above it; without
any, the figures are estimates from CPU load, are called so, and then say little more than the ratio of times.
Writes benchmarks/results/NAME.md, .json and .png.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from seeds import machine

import lorakit
from lorakit.models import load_token_classifier
from lorakit.ner import NerData, Sentence
from lorakit.report import NAMES, markdown_table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus  # noqa: E402  (its folder is on the path only now)

MODES = ("full", "lora")
RATES = {"full": 1e-3, "lora": 2e-3}
PARTS = ("gpu", "cpu", "ram")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "mini"))
    parser.add_argument("--dataset", help="default: the embedded corpus")
    parser.add_argument("--sentences", type=int, default=1500, help="of the training set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--idle", type=float, default=0.0, help="seconds of rest to measure first (default: %(default)s)"
    )
    parser.add_argument("--name", default="energy")
    arguments = parser.parse_args()
    data = read(arguments)
    with lorakit.EnergyMeter(idle_s=arguments.idle) as meter:
        idle = meter.idle
    runs = []
    train_once("lora", data, arguments, 0, idle)  # the first run pays for caches and clocks; it is not counted
    for repeat in range(arguments.repeats):
        for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
            runs.append(train_once(mode, data, arguments, repeat, idle))
            print(json.dumps({key: runs[-1][key] for key in ("mode", "repeat", "seconds", "tokens")}), flush=True)
    tokens = {run["tokens"] for run in runs}
    assert len(tokens) == 1, f"the modes did not see the same tokens: {tokens}"
    command = shlex.join(["python", "benchmarks/energy.py", *sys.argv[1:]])
    summary = {"schema": 1, "command": command, "machine": machine(), "runs": runs}
    results = ROOT / "benchmarks" / "results"
    (results / f"{arguments.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = report(summary)
    (results / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    draw(summary, results / f"{arguments.name}.png")
    print(text)
    return 0


def read(arguments: argparse.Namespace) -> NerData:
    if arguments.dataset:
        data = lorakit.read_ner(arguments.dataset)
        train, labels, source = data.train, data.labels, data.source
    else:
        train = tuple(Sentence(*pair) for pair in make_corpus(seed=0).train)
        labels, source = tuple(LABELS), "embedded"
    return NerData(train[: arguments.sentences], (), (), labels, source)


def train_once(mode: str, data: NerData, arguments: argparse.Namespace, repeat: int, idle: Any) -> dict[str, Any]:
    """One epoch in one mode under a meter of its own."""
    model, tokenizer = load_token_classifier(arguments.model, data.labels, seed=repeat, dropout=0.0)
    if mode == "lora":
        lorakit.apply_lora(model, r=arguments.r, target_modules=arguments.target_modules, seed=repeat)
    config = lorakit.TrainConfig(
        epochs=1,
        batch_size=arguments.batch_size,
        learning_rate=RATES[mode],
        precision=arguments.precision,
        seed=repeat,
        progress=False,
    )
    with lorakit.EnergyMeter(idle=idle) as meter:
        result = lorakit.train(model, tokenizer, data, config)
    return {
        "mode": mode,
        "repeat": repeat,
        "trainable_parameters": lorakit.count_parameters(model).trainable,
        "tokens": result.train_tokens,
        "seconds": result.train_seconds,
        "energy": meter.reading.to_json(),
    }


def values(summary: dict[str, Any], mode: str, get: Any) -> list[float | None]:
    return [get(run) for run in summary["runs"] if run["mode"] == mode]


def report(summary: dict[str, Any]) -> str:
    """Mean ± sd of each mode, and LoRA over full within each repeat."""
    rows = []
    quantities = [("training (s)", lambda run: run["seconds"], 1.0)]
    for part in PARTS:
        quantities.append((f"{part.upper()} (Wh)", lambda run, p=part: run["energy"][p]["kwh"], 1000.0))
        quantities.append((f"{part.upper()} (mean W)", lambda run, p=part: run["energy"][p]["mean_w"], 1.0))
    quantities.append(("measured, gross (Wh)", lambda run: run["energy"]["measured_kwh"], 1000.0))
    quantities.append(("measured, above idle (Wh)", lambda run: run["energy"].get("above_idle_kwh"), 1000.0))
    quantities.append(("estimated (Wh)", lambda run: run["energy"]["estimated_kwh"], 1000.0))
    for name, get, scale in quantities:
        full, lora = (values(summary, mode, get) for mode in MODES)
        if None in full or None in lora:
            rows.append([name, "–", "–", "–"])
            continue
        ratios = [b / a for a, b in zip(full, lora, strict=True)]
        rows.append([name, *(spread([scale * v for v in column]) for column in (full, lora)), spread(ratios)])
    first = summary["runs"][0]
    parameters = {run["mode"]: run["trainable_parameters"] for run in summary["runs"]}
    lines = ["# Energy of LoRA against full fine-tuning", ""]
    lines += [markdown_table([f"{len(full)} repeats, mean ± sd", "full", "LoRA", "LoRA / full"], rows), ""]
    lines += [f"- {p.upper()}: {first['energy'][p]['method']} ({first['energy'][p]['source']})" for p in PARTS]
    lines.append(f"- Each run: {first['tokens']:,} real tokens; trained parameters {parameters}")
    lines += ["", f"Command: `{summary['command']}`", "", f"Machine: {summary['machine']}", ""]
    return "\n".join(lines)


def spread(numbers: list[float]) -> str:
    deviation = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.3f}{deviation}"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Every run as a point, by component; hollow where estimated."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 1 + len(PARTS))
    panels[0].set_title("training (s)")
    for axes, part in zip(panels[1:], PARTS, strict=True):
        method = summary["runs"][0]["energy"][part]["method"]
        axes.set_title(f"{part.upper()} (Wh)\n{method}")
        if method == "unavailable":
            axes.text(0.5, 0.5, "not available", ha="center", transform=axes.transAxes)
    for i, mode in enumerate(MODES):
        for axes, part in zip(panels, (None, *PARTS), strict=True):
            get = (lambda run: run["seconds"]) if part is None else (lambda run, p=part: run["energy"][p]["kwh"])
            points = [v * (1 if part is None else 1000) for v in values(summary, mode, get) if v is not None]
            estimated = part is not None and summary["runs"][0]["energy"][part]["method"] == "estimated"
            style = {"facecolors": "none"} if estimated else {}
            axes.scatter([i] * len(points), points, edgecolors=f"C{i}", **(style or {"color": f"C{i}"}))
            axes.set_xticks(range(len(MODES)), [NAMES[m] for m in MODES])
            axes.set_xlim(-0.6, 1.6)
            axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
