"""Energy of LoRA against full fine-tuning: the same tokens, one machine, interleaved and repeated.

  python benchmarks/energy.py                                        the embedded corpus, six repeats, about 6 minutes
  python benchmarks/energy.py --dataset ../shared/bionlp2004 --sentences 4000 --repeats 5 --idle 60

Each repeat trains both modes for one epoch, in alternating order, with a rest before each, so that neither always runs
on the warmer chip. The meter runs around `train`: encoding and steps, no evaluation. Where there is a sensor the
resting machine is measured first, which gives the energy above idle. Where there is none, only times are measured; the
watt-hours are estimates, shown as such with their range, and their ratio is one of times at an assumed power.
Writes benchmarks/results/NAME.md, .json and .png.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from seeds import machine

import lorakit
from lorakit.data.corpus import NerData, Sentence
from lorakit.report.comparison import NAMES
from lorakit.report.tables import markdown_table
from lorakit.training.models import load_token_classifier

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus  # noqa: E402  (its folder is on the path only now)

MODES = ("full", "lora")
RATES = {"full": 1e-3, "lora": 2e-3}
PARTS = ("gpu", "cpu", "ram")
MEASURED = ("counter", "sampled")
WARM_UP_SENTENCES = 200
Get = Callable[[dict[str, Any]], float | None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "mini"))
    parser.add_argument("--dataset", help="default: the embedded corpus")
    parser.add_argument("--sentences", type=int, default=3000, help="to train on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--rest", type=float, default=5.0, help="seconds before each run (default: %(default)s)")
    parser.add_argument(
        "--idle", type=float, default=30.0, help="seconds of rest to measure, where a sensor is (default: %(default)s)"
    )
    parser.add_argument("--note", default="", help="a sentence for the head of the table")
    parser.add_argument("--name", default="energy")
    arguments = parser.parse_args()
    data = read(arguments)
    few = NerData(data.train[:WARM_UP_SENTENCES], (), (), data.labels, data.source)
    for mode in MODES:  # the first run pays for caches and clocks; it is not counted
        train_once(mode, few, arguments, 0, {})
    idle = measure_idle(arguments.idle)
    runs = []
    for repeat in range(arguments.repeats):
        for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
            time.sleep(arguments.rest)
            runs.append(train_once(mode, data, arguments, repeat, idle))
            print(json.dumps({key: runs[-1][key] for key in ("mode", "repeat", "seconds", "tokens")}), flush=True)
    check_fair(runs)
    command = shlex.join(["python", "benchmarks/energy.py", *sys.argv[1:]])
    versions = {"torch": torch.__version__, "lorakit": lorakit.__version__, "threads": torch.get_num_threads()}
    adapter = {"r": arguments.r, "target_modules": arguments.target_modules}
    settings = {"sentences": len(data.train), "batch_size": arguments.batch_size, "adapter": adapter}
    summary = {"schema": 1, "command": command, "machine": machine(), "versions": versions, "settings": settings}
    summary.update(note=arguments.note, runs=runs)
    results = ROOT / "benchmarks" / "results"
    (results / f"{arguments.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = report(summary, f"{arguments.name}.png")
    (results / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    draw(summary, results / f"{arguments.name}.png")
    print(text)
    return 0


def read(arguments: argparse.Namespace) -> NerData:
    if arguments.dataset:
        data = lorakit.read_ner(arguments.dataset)
        train, labels, source = data.train, data.labels, data.source
    else:
        train = tuple(Sentence(*pair) for pair in make_corpus(seed=0, train=arguments.sentences).train)
        labels, source = tuple(LABELS), "embedded"
    return NerData(train[: arguments.sentences], (), (), labels, source)


def measure_idle(seconds: float) -> dict[str, tuple[float, float]]:
    """Power at rest of everything that has a sensor, by device; of estimates there is nothing to measure."""
    with lorakit.EnergyMeter() as probe:
        time.sleep(1.0)
    if probe.reading.measured_wh is None or seconds == 0:
        return {}
    with lorakit.EnergyMeter(idle_s=seconds) as meter:
        return meter.idle


def train_once(mode: str, data: NerData, arguments: argparse.Namespace, repeat: int, idle: Any) -> dict[str, Any]:
    """One epoch in one mode under a meter of its own."""
    model, tokenizer = load_token_classifier(arguments.model, data.labels, seed=repeat, dropout=0.0)
    if mode == "lora":
        lorakit.apply_lora(model, arguments.r, lora_alpha=16, target_modules=arguments.target_modules, seed=repeat)
    config = lorakit.TrainConfig(
        epochs=1,
        batch_size=arguments.batch_size,
        learning_rate=RATES[mode],
        precision=arguments.precision,
        seed=repeat,
        progress=False,
    )
    cpu_s = time.process_time()
    with lorakit.EnergyMeter(idle=idle) as meter:
        result = lorakit.train(model, tokenizer, data, config)
    return {
        "mode": mode,
        "repeat": repeat,
        "trainable_parameters": lorakit.count_parameters(model).trainable,
        "tokens": result.train_tokens,
        "computed_tokens": result.computed_tokens,
        "seconds": result.train_seconds,
        "cpu_s": time.process_time() - cpu_s,
        "energy": meter.reading.to_json(),
    }


def check_fair(runs: list[dict[str, Any]]) -> None:
    """Stop unless all runs saw the same tokens and were measured on the same devices by the same methods."""
    tokens = {run["tokens"] for run in runs}
    if len(tokens) > 1:
        raise SystemExit(f"the modes did not see the same tokens: {sorted(tokens)}")
    for part in PARTS:
        seen = {(run["energy"][part]["method"], *device_ids(run, part)) for run in runs}
        if len(seen) > 1:
            raise SystemExit(
                f"the runs' {part.upper()} energy is not of the same devices by one method: {sorted(seen)}"
            )


def device_ids(run: dict[str, Any], part: str) -> list[str]:
    return sorted(device["id"] for device in run["energy"][part]["devices"])


def values(summary: dict[str, Any], mode: str, get: Get) -> list[float | None]:
    return [get(run) for run in sorted(summary["runs"], key=lambda run: run["repeat"]) if run["mode"] == mode]


def methods(summary: dict[str, Any]) -> dict[str, str]:
    return {part: summary["runs"][0]["energy"][part]["method"] for part in PARTS}


def row(summary: dict[str, Any], name: str, get: Get, digits: int) -> list[str]:
    """Mean ± sd of each mode, and of LoRA over full within each repeat; dashes where a run has no number."""
    full, lora = (values(summary, mode, get) for mode in MODES)
    if None in full or None in lora:
        return [name, "–", "–", "–"]
    ratios = [b / a for a, b in zip(full, lora, strict=True)] if 0.0 not in full else []
    return [name, spread(full, digits), spread(lora, digits), spread(ratios, 3) if ratios else "–"]


def range_row(summary: dict[str, Any], name: str, get: Callable[[dict[str, Any]], Any]) -> list[str]:
    """Lowest to highest plausible value, as the mean over the runs; a ratio of two ranges would say nothing."""
    cells = []
    for mode in MODES:
        ends = [get(run) for run in summary["runs"] if run["mode"] == mode]
        low, high = (1e3 * statistics.mean(end[side] for end in ends) for side in (0, 1))
        cells.append(f"{low:.3f} to {high:.3f}")
    return [name, *cells, ""]


def table(summary: dict[str, Any]) -> str:
    how = methods(summary)
    rows = [
        row(summary, "training steps (s)", lambda run: run["seconds"], 2),
        row(summary, "metered block (s)", lambda run: run["energy"]["duration_s"], 2),
        row(summary, "CPU time in it (s)", lambda run: run["cpu_s"], 2),
    ]
    for part, method in how.items():
        label = f"{part.upper()}, {method}"
        rows.append(row(summary, f"{label} (Wh)", lambda run, p=part: wh(run["energy"][p]["kwh"]), 4))
        if method == "estimated":
            rows.append(range_row(summary, "– lowest to highest", lambda run, p=part: run["energy"][p]["range_kwh"]))
        if method != "unavailable":
            rows.append(row(summary, "– mean power (W)", lambda run, p=part: run["energy"][p]["mean_w"], 2))
    for end in ("start", "end"):
        if summary["runs"][0]["energy"]["conditions"].get(end):
            rows.append(row(summary, f"GPU temperature, {end} (°C)", lambda run, e=end: temperature(run, e), 1))
    rows.append(row(summary, "measured, gross (Wh)", lambda run: wh(run["energy"]["measured_kwh"]), 4))
    rows.append(row(summary, "measured, above idle (Wh)", lambda run: wh(run["energy"]["above_idle_kwh"]), 4))
    rows.append(row(summary, "estimated (Wh)", lambda run: wh(run["energy"]["estimated_kwh"]), 4))
    if summary["runs"][0]["energy"]["estimated_range_kwh"]:
        rows.append(range_row(summary, "– lowest to highest", lambda run: run["energy"]["estimated_range_kwh"]))
    for kind in ("measured", "estimated"):
        get = lambda run, k=kind: per_million(run["energy"][f"{k}_kwh"], run["tokens"])  # noqa: E731
        rows.append(row(summary, f"{kind}, a million tokens (kWh)", get, 5))
    repeats = len(values(summary, "full", lambda run: 0.0))
    return markdown_table([f"{repeats} repeats, mean ± sd", "full", "LoRA", "LoRA / full"], rows)


def report(summary: dict[str, Any], picture: str) -> str:
    first, settings, how = summary["runs"][0], summary["settings"], methods(summary)
    trained = {run["mode"]: run["trainable_parameters"] for run in summary["runs"]}
    lines = ["# Energy of LoRA against full fine-tuning", "", *[summary["note"], ""] * bool(summary["note"])]
    lines += [table(summary), ""]
    lines += reading_guide(summary)
    lines += [f"- {part.upper()}: {how[part]} ({first['energy'][part]['source']})" for part in PARTS]
    if first["energy"]["conditions"].get("driver"):
        lines.append(
            f"- Driver {first['energy']['conditions']['driver']}; power limits and clocks of each run: the JSON"
        )
    lines.append(
        f"- Each run: {settings['sentences']:,} sentences, {first['tokens']:,} real tokens, one epoch, batches of "
        f"{settings['batch_size']}; the two modes in turns, the order swapped from repeat to repeat"
    )
    lines.append(
        f"- Trained: full {trained['full']:,} parameters, LoRA {trained['lora']:,} "
        f"(r={settings['adapter']['r']} on {', '.join(settings['adapter']['target_modules'])})"
    )
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    lines += ["", f"![Every run's time and energy by part]({picture})", "", f"Command: `{summary['command']}`", ""]
    lines += [f"Machine: {summary['machine']}{no_gpu(first)}. {versions}", ""]
    return "\n".join(lines)


def reading_guide(summary: dict[str, Any]) -> list[str]:
    """What the watt-hours above are, for whoever reads nothing but the table."""
    how = methods(summary)
    guess = [part.upper() for part, method in how.items() if method == "estimated"]
    if not guess:
        return []
    if any(method in MEASURED for method in how.values()):
        text = f"The {' and '.join(guess)} energy is an estimate and in no measured total."
    else:
        text = "**No energy was measured here: this machine has no sensor. Seconds are measured, watt-hours are not.**"
    return [
        f"{text} An estimate is time multiplied by an assumed power (for the CPU one that rises with its load), so "
        "the ratio of two estimates is one of times at that power, not of energies; what the two modes differ in watts "
        "it does not show. Any value from lowest to highest is plausible.",
        "",
    ]


def no_gpu(run: dict[str, Any]) -> str:
    return "" if run["energy"]["gpu"]["devices"] or run["energy"]["gpu"]["not_counted"] else ", no GPU"


def wh(kwh: float | None) -> float | None:
    return None if kwh is None else 1e3 * kwh


def per_million(kwh: float | None, tokens: int) -> float | None:
    return None if kwh is None else kwh / tokens * 1e6


def temperature(run: dict[str, Any], end: str) -> float | None:
    """Mean over the GPUs, °C."""
    degrees = [gpu["temperature_c"] for gpu in run["energy"]["conditions"].get(end, {}).values()]
    return statistics.mean(degrees) if degrees and None not in degrees else None


def spread(numbers: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"


def draw(summary: dict[str, Any], path: Path) -> None:
    """Every run as a point, by part: filled where measured, hollow on a bar of the plausible range where estimated."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2 + len(PARTS))
    getters: list[tuple[str, str, Get]] = [
        ("training steps (s)", "measured", lambda run: run["seconds"]),
        ("CPU time (s)", "measured", lambda run: run["cpu_s"]),
    ]
    for part, method in methods(summary).items():
        getters.append((f"{part.upper()} (Wh)", method, lambda run, p=part: wh(run["energy"][p]["kwh"])))
    for axes, (title, method, get) in zip(panels, getters, strict=True):
        axes.set_title(f"{title}\n{method if method in ('estimated', 'unavailable') else 'measured'}", fontsize=10)
        axes.set_xticks(range(len(MODES)), [NAMES[mode] for mode in MODES])
        axes.set_xlim(-0.6, 1.6)
        if method == "unavailable":
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no number", ha="center", transform=axes.transAxes)
            continue
        part = title[:3].lower()
        for place, mode in enumerate(MODES):
            points = [value for value in values(summary, mode, get) if value is not None]
            if method == "estimated":
                ends = [run["energy"][part]["range_kwh"] for run in summary["runs"] if run["mode"] == mode]
                low, high = 1e3 * min(end[0] for end in ends), 1e3 * max(end[1] for end in ends)
                axes.bar(place, high - low, 0.5, bottom=low, color=f"C{place}", alpha=0.2)
            across = [place + 0.3 * (k / max(1, len(points) - 1) - 0.5) for k in range(len(points))]
            fill = "none" if method == "estimated" else f"C{place}"
            axes.scatter(across, points, facecolors=fill, edgecolors=f"C{place}", s=22)
        axes.set_ylim(bottom=0)
    if "estimated" in methods(summary).values():
        figure.supxlabel("hollow: estimated, on a bar from the lowest to the highest plausible value", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
