"""Run examples/bionlp.py with several seeds and give mean ± standard deviation of every figure.

A single run says little: seeds alone move F1 by some tenths of a point. Everything after `--` goes to the example:

  python benchmarks/seeds.py --seeds 0 1 2 --name bionlp2004 -- --dataset ../shared/bionlp2004

Each seed's own output stays in runs/NAME/seed-N; a seed that is complete there is not run again, so that an interrupted
benchmark goes on where it was. The table goes to benchmarks/results/NAME.md and .json.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from lorakit.report.comparison import NAMES
from lorakit.report.tables import markdown_table

ROOT = Path(__file__).parent.parent
ROWS = {
    "trainable parameters": (lambda mode: mode["trainable_parameters"], "{:,.0f}"),
    "epochs": (lambda mode: mode["epochs"], "{:.0f}"),
    "validation F1": (lambda mode: mode["validation"]["f1"], "{:.4f}"),
    "validation F1, strict IOB2": (lambda mode: mode["validation"]["strict"]["f1"], "{:.4f}"),
    "validation precision": (lambda mode: mode["validation"]["precision"], "{:.4f}"),
    "validation recall": (lambda mode: mode["validation"]["recall"], "{:.4f}"),
    "validation accuracy": (lambda mode: mode["validation"]["accuracy"], "{:.4f}"),
    "validation loss": (lambda mode: mode["validation"]["loss"], "{:.4f}"),
    "test F1": (lambda mode: mode["test"]["f1"], "{:.4f}"),
    "test F1, strict IOB2": (lambda mode: mode["test"]["strict"]["f1"], "{:.4f}"),
    "test precision": (lambda mode: mode["test"]["precision"], "{:.4f}"),
    "test recall": (lambda mode: mode["test"]["recall"], "{:.4f}"),
    "test accuracy": (lambda mode: mode["test"]["accuracy"], "{:.4f}"),
    "training tokens/s": (lambda mode: mode["train_tokens_per_s"], "{:,.0f}"),
    "computed / real tokens": (lambda mode: mode["computed_tokens"] / mode["train_tokens"], "{:.3f}"),
    "run, evaluation included (s)": (lambda mode: mode["duration_s"], "{:,.0f}"),
    "GPU (Wh)": (lambda mode: watt_hours(mode, "gpu"), "{:.2f}"),
    "CPU (Wh)": (lambda mode: watt_hours(mode, "cpu"), "{:.2f}"),
    "RAM (Wh)": (lambda mode: watt_hours(mode, "ram"), "{:.2f}"),
}


def watt_hours(mode: dict[str, Any], part: str) -> float | None:
    kwh = mode["energy"][part]["kwh"]
    return None if kwh is None else 1000 * kwh


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="bionlp", help="of the result files (default: %(default)s)")
    parser.add_argument("--note", default="", help="a sentence for the head of the table, such as the machine's name")
    parser.add_argument("example", nargs="*", help="arguments of examples/bionlp.py, after --")
    arguments = parser.parse_args()
    records = [run(seed, arguments) for seed in arguments.seeds]
    results = ROOT / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "benchmarks/seeds.py", *sys.argv[1:]])
    summary = {"schema": 1, "command": command, "machine": machine(), "note": arguments.note, "runs": records}
    (results / f"{arguments.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = table(summary)
    (results / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def run(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One seed's comparison.json, from a process of its own."""
    folder = Path("runs") / arguments.name / f"seed-{seed}"
    wanted = [*arguments.example, "--seed", str(seed), "--output-dir", str(folder)]
    path = ROOT / folder / "comparison.json"
    command = shlex.join(["python", "examples/bionlp.py", *wanted])
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["command"] == command:
            return record
    subprocess.run([sys.executable, "examples/bionlp.py", *wanted], cwd=ROOT, check=True)
    return json.loads(path.read_text(encoding="utf-8"))


def table(summary: dict[str, Any]) -> str:
    """Mean ± sample standard deviation over the seeds, for each mode and for LoRA minus full of the same seed."""
    runs = summary["runs"]
    modes = list(runs[0]["modes"])
    both = modes == ["full", "lora"]
    rows = []
    for name, (get, form) in ROWS.items():
        values = {mode: [get(run["modes"][mode]) for run in runs] for mode in modes}
        row = [name, *(spread(values[mode], form) for mode in modes)]
        if both:
            pairs = zip(values["full"], values["lora"], strict=True)
            row.append(spread([None if None in pair else pair[1] - pair[0] for pair in pairs], form, sign=True))
        rows.append(row)
    first = runs[0]
    header = [f"{len(runs)} seeds, mean ± sd", *(NAMES[mode] for mode in modes), *["difference"] * both]
    energy = first["modes"][modes[-1]]["energy"]
    lines = [f"# {first['model']} on {Path(first['dataset']).name}", "", summary["note"], ""]
    lines += [markdown_table(header, rows), ""]
    lines += [
        f"- {part.upper()}: {energy[part]['method']} ({energy[part]['source']})" for part in ("gpu", "cpu", "ram")
    ]
    for mode in modes:
        used = first["modes"][mode]
        adapter = {k: v for k, v in (used["adapter"] or {}).items() if k != "peft_total_parameters"}
        settings = f"learning rate {used['learning_rate']:g}, batch {used['batch_size']}"
        lines.append(f"- {NAMES[mode]}: {settings}" + (f", {adapter}" if adapter else ""))
    lines += ["", f"Command: `{summary['command']}`", "", "Each run:", "", "```"]
    lines += [run["command"] for run in runs]
    lines += ["```", "", f"Machine: {summary['machine']}", ""]
    lines.append("Versions: " + ", ".join(f"{name} {value}" for name, value in first["environment"].items()))
    return "\n".join(line for line in lines if line is not None) + "\n"


def spread(values: list[float | None], form: str, sign: bool = False) -> str:
    """Mean ± sd; a constant is shown alone, what is unknown as a dash."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    form = form.replace("{:", "{:+") if sign else form
    mean = form.format(statistics.mean(known))
    if len(set(known)) == 1:
        return mean
    return f"{mean} ± {form.replace('{:+', '{:').format(statistics.stdev(known))}"


def machine() -> str:
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} logical CPUs, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
