"""Energy of LoRA against full fine-tuning: the same tokens on one machine, in turns and repeated.

  python benchmarks/energy.py                                        the embedded corpus, six repeats, about 6 minutes
  python benchmarks/energy.py --dataset ../shared/bionlp2004 --sentences 4000 --repeats 5 --idle 60

Each repeat trains both modes for one epoch, in alternating order and with a rest before each, so that neither always
runs on the warmer chip. The meter covers `train`: encoding and steps, no evaluation. Where there is a sensor, the idle
machine is measured first, which gives the energy above idle. Without one only times are measured; the watt-hours are
estimates, shown with their range, and their ratio is a ratio of times at an assumed power.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jobs import MINI_RATES, job_of, own_config, own_model, read_corpus, tokenizer_of
from provenance import BenchmarkParser, energy_sources, write_results
from tables import at, mean_sd
from timing import in_turns

import lorakit
from lorakit.data.corpus import NerData
from lorakit.power.reading import MEASURED
from lorakit.report.comparison import NAMES
from lorakit.report.tables import markdown_table

MODES = ("full", "lora")
PARTS = ("gpu", "cpu", "ram")
WARM_UP_SENTENCES = 200
Get = Callable[[dict[str, Any]], Any]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    data = read_corpus(options.dataset, options.sentences)
    few = replace(data, train=data.train[:WARM_UP_SENTENCES])
    for mode in MODES:  # the first run pays for caches and clocks; it is not counted
        train_once(mode, few, options, 0, {})
    idle = measure_idle(options.idle)
    runs = []
    for repeat, mode in in_turns(MODES, options.repeats):
        time.sleep(options.rest)
        runs.append(train_once(mode, data, options, repeat, idle))
        print(json.dumps({key: runs[-1][key] for key in ("mode", "repeat", "seconds", "tokens")}), flush=True)
    check_fair(runs)
    adapter = {"r": options.r, "target_modules": options.target_modules}
    settings = {"sentences": len(data.train), "batch_size": options.batch_size, "adapter": adapter}
    found = {"settings": settings, "note": options.note, "runs": runs}
    write_results(options, found, report, draw, "Every run's time and energy by part")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="energy.py", description=__doc__)
    parser.add_argument("--rest", type=float, default=5.0, help="seconds before each run (default: %(default)s)")
    about = "seconds for which to measure the idle machine, where there is a sensor (default: %(default)s)"
    parser.add_argument("--idle", type=float, default=30.0, help=about)
    parser.add_common(dataset="embedded", sentences=3000, batch_size=32, r=16, target_modules=["query", "value"])
    parser.add_common(precision="auto", repeats=6, note="")
    return parser.parse_args(arguments)


def measure_idle(seconds: float) -> dict[str, tuple[float, float]]:
    """Power of the idle machine by device; empty where there is no sensor, because an estimate has no idle power."""
    with lorakit.EnergyMeter() as probe:
        time.sleep(1.0)
    if probe.reading.measured_wh is None or seconds == 0:
        return {}
    with lorakit.EnergyMeter(idle_s=seconds) as meter:
        return meter.idle


def train_once(mode: str, data: NerData, options: argparse.Namespace, repeat: int, idle: Any) -> dict[str, Any]:
    """One epoch in one mode under its own meter."""
    job = job_of(options, data, shape="mini", dropout=0.0, rates=MINI_RATES, seed=repeat)
    model, cpu_s = own_model(job, mode), time.process_time()
    with lorakit.EnergyMeter(idle=idle) as meter:
        result = lorakit.train(model, tokenizer_of(job), data, own_config(job, mode))
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
        energies = [run["energy"][part] for run in runs]
        seen = {(e["method"], *sorted(device["id"] for device in e["devices"])) for e in energies}
        if len(seen) > 1:
            name = part.upper()
            raise SystemExit(f"the runs' {name} energy is not of the same devices by one method: {sorted(seen)}")


def values(summary: dict[str, Any], mode: str, get: Get) -> list[Any]:
    """A quantity of a mode's runs, in the order of the repeats."""
    return [get(run) for run in sorted(summary["runs"], key=lambda run: run["repeat"]) if run["mode"] == mode]


def methods(summary: dict[str, Any]) -> dict[str, str]:
    return {part: summary["runs"][0]["energy"][part]["method"] for part in PARTS}


def row(summary: dict[str, Any], name: str, get: Get, digits: int) -> list[str]:
    """Mean ± sd of each mode, and of LoRA over full within each repeat; dashes where a run has no number."""
    full, lora = (values(summary, mode, get) for mode in MODES)
    form, unknown = f"{{:.{digits}f}}", None in full or None in lora or 0.0 in full
    ratios = [] if unknown else [b / a for a, b in zip(full, lora, strict=True)]
    return [name, mean_sd(full, form), mean_sd(lora, form), mean_sd(ratios, "{:.3f}")]


def range_row(summary: dict[str, Any], *path: str) -> list[str]:
    """Lowest to highest plausible value, as the mean over the runs; the ratio of two ranges would say nothing."""
    cells = []
    for mode in MODES:
        low, high = (1e3 * statistics.mean(ends) for ends in zip(*values(summary, mode, at(*path)), strict=True))
        cells.append(f"{low:.3f} to {high:.3f}")
    return ["– lowest to highest", *cells, ""]


def table(summary: dict[str, Any]) -> str:
    first = summary["runs"][0]["energy"]
    rows = [
        row(summary, "training steps (s)", at("seconds"), 2),
        row(summary, "metered block (s)", at("energy", "duration_s"), 2),
        row(summary, "CPU time in it (s)", at("cpu_s"), 2),
    ]
    for part, method in methods(summary).items():
        rows.append(row(summary, f"{part.upper()}, {method} (Wh)", at("energy", part, "kwh", scale=1e3), 4))
        if method == "estimated":
            rows.append(range_row(summary, "energy", part, "range_kwh"))
        if method != "unavailable":
            rows.append(row(summary, "– mean power (W)", at("energy", part, "mean_w"), 2))
    for end in ("start", "end"):
        if first["conditions"].get(end):
            rows.append(row(summary, f"GPU temperature, {end} (°C)", lambda run, e=end: temperature(run, e), 1))
    for name, key in (("measured, gross", "measured"), ("measured, above idle", "above_idle"), ("estimated",) * 2):
        rows.append(row(summary, f"{name} (Wh)", at("energy", f"{key}_kwh", scale=1e3), 4))
    if first["estimated_range_kwh"]:
        rows.append(range_row(summary, "energy", "estimated_range_kwh"))
    for kind in ("measured", "estimated"):
        rows.append(row(summary, f"{kind}, per million tokens (kWh)", lambda run, k=kind: per_million(run, k), 5))
    repeats = len(values(summary, "full", at("repeat")))
    return markdown_table([f"{repeats} repeats, mean ± sd", "full", "LoRA", "LoRA / full"], rows)


def per_million(run: dict[str, Any], kind: str) -> float | None:
    """kWh per million tokens."""
    kwh = run["energy"][f"{kind}_kwh"]
    return None if kwh is None else kwh / run["tokens"] * 1e6


def temperature(run: dict[str, Any], end: str) -> float | None:
    """Mean over the GPUs, °C."""
    degrees = [gpu["temperature_c"] for gpu in run["energy"]["conditions"].get(end, {}).values()]
    return statistics.mean(degrees) if degrees and None not in degrees else None


def report(summary: dict[str, Any]) -> list[str]:
    first, settings = summary["runs"][0], summary["settings"]
    trained = {run["mode"]: run["trainable_parameters"] for run in summary["runs"]}
    lines = ["# Energy of LoRA against full fine-tuning", "", *[summary["note"], ""] * bool(summary["note"])]
    lines += [table(summary), "", *reading_guide(summary), *energy_sources([first["energy"]])]
    if driver := first["energy"]["conditions"].get("driver"):
        lines.append(f"- Driver {driver}; the JSON has the power limits and clocks of each run")
    return [
        *lines,
        f"- Each run: {settings['sentences']:,} sentences, {first['tokens']:,} real tokens, one epoch, batches of "
        f"{settings['batch_size']}; the two modes in turns, in the opposite order in every second repeat",
        f"- Trained: full {trained['full']:,} parameters, LoRA {trained['lora']:,} "
        f"(r={settings['adapter']['r']} on {', '.join(settings['adapter']['target_modules'])})",
    ]


def reading_guide(summary: dict[str, Any]) -> list[str]:
    """What the watt-hours are, for readers of the table alone."""
    how = methods(summary)
    guess = [part.upper() for part, method in how.items() if method == "estimated"]
    if not guess:
        return []
    if any(method in MEASURED for method in how.values()):
        text = f"The {' and '.join(guess)} energy is an estimate and not part of any measured total."
    else:
        text = "**No energy was measured here: this machine has no sensor. Seconds are measured, watt-hours are not.**"
    return [
        f"{text} An estimate is time multiplied by an assumed power (for the CPU one that rises with its load), so "
        "the ratio of two estimates is a ratio of times at that power, not of energies; it does not show by how many "
        "watts the modes differ. Any value from lowest to highest is plausible.",
        "",
    ]


def draw(summary: dict[str, Any], figure: Any) -> None:
    """A dot per run, by part: filled where measured, hollow on a bar of the plausible range where estimated."""
    panels = [("training steps (s)", "measured", at("seconds"), None), ("CPU time (s)", "measured", at("cpu_s"), None)]
    for part, method in methods(summary).items():
        kind = "measured" if method in MEASURED else method
        ends = at("energy", part, "range_kwh") if method == "estimated" else None
        panels.append((f"{part.upper()} (Wh)", kind, at("energy", part, "kwh", scale=1e3), ends))
    figure.set_size_inches(10, 4)
    for axes, (title, kind, get, ends) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.set_title(f"{title}\n{kind}", fontsize=10)
        axes.set_xticks(range(len(MODES)), [NAMES[mode] for mode in MODES])
        axes.set_xlim(-0.6, 1.6)
        if kind == "unavailable":
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no number", ha="center", transform=axes.transAxes)
            continue
        for place, mode in enumerate(MODES):
            points = [value for value in values(summary, mode, get) if value is not None]
            if ends:
                lows, highs = zip(*values(summary, mode, ends), strict=True)
                low, high = 1e3 * min(lows), 1e3 * max(highs)
                axes.bar(place, high - low, 0.5, bottom=low, color=f"C{place}", alpha=0.2)
            across = [place + 0.3 * (k / max(1, len(points) - 1) - 0.5) for k in range(len(points))]
            axes.scatter(across, points, facecolors="none" if ends else f"C{place}", edgecolors=f"C{place}", s=22)
        axes.set_ylim(bottom=0)
    if "estimated" in methods(summary).values():
        figure.supxlabel("hollow: estimated, on a bar from the lowest to the highest plausible value", fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
