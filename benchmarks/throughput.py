"""lorakit beside what a user would pick instead: one model, corpus, batch size and precision, interleaved, medians.

  python benchmarks/throughput.py                                    roberta-base's shape on BioNLP2004, 3 rounds
  python benchmarks/throughput.py --shape mini --steps 20 --warmup 2 the embedded base
  python benchmarks/throughput.py --precision bf16 --steps 100 --warmup 10     on a GPU

Every system lives in a process of its own, so that peak memory is its own; they train in turn, one at a time, in each
round in another order. First comes what the arithmetic predicts, then what was measured. The base has random weights
(no hub is needed) and reads the embedded tokenizer's subwords, of which a word has another number than roberta-base's.
Writes benchmarks/results/NAME.json, .md and .png. Peak memory on a CPU is the process's resident peak in its first
round above what it held before; on a GPU what torch allocated. Energy without a sensor is an estimate and is called so.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from seeds import machine
from systems import FAULTS, ROOT, SHAPES, SYSTEMS, Clock, Job, make_model, predict_cost, synchronize

import lorakit
from lorakit.batching import layout_for
from lorakit.metrics import score_classes
from lorakit.report import markdown_table
from lorakit.tagging import encode_split, evaluate_split

sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus

RESULT = "RESULT "  # before a worker's answer; everything else it says goes to stderr


def main(arguments: list[str] | None = None, start: Any = None) -> int:
    """Compare, print and write; `start` makes the thing that answers for a system (a process by default)."""
    options = parse(arguments)
    if options.worker:
        return work(options)
    job = job_of(options)
    predicted = {name: predict_cost(job, name) for name in options.systems}
    print(predictions(predicted) + "\n", flush=True)
    workers = {name: (start or Worker)(name, options) for name in options.systems}
    counts, rounds, evaluation = {}, [], None
    try:
        for number in range(options.rounds):
            order = options.systems if number % 2 == 0 else options.systems[::-1]
            rounds.append({name: workers[name].ask("train") for name in order})
            steps = {name: f"{row['step_s']:.3f} s" for name, row in rounds[-1].items()}
            print(f"round {number + 1}: {steps}", file=sys.stderr, flush=True)
        for name, worker in workers.items():  # only now: memory once used would hide the peak of the first round
            counts[name] = worker.ask("count")
        if "lorakit-lora" in workers:
            evaluation = workers["lorakit-lora"].ask("evaluate")
    finally:
        for worker in workers.values():
            worker.close()
    summary = {
        "schema": 1,
        "command": shlex.join(
            ["python", "benchmarks/throughput.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "machine": where(),
        "versions": versions(),
        "job": {k: v for k, v in vars(options).items() if k not in ("worker", "output_dir")},
        "predicted": predicted,
        "counts": counts,
        "rounds": rounds,
        "evaluation": evaluation,
    }
    summary["medians"] = {name: median_row(summary, name) for name in options.systems}
    text, folder = report(summary), Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{options.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / f"{options.name}.md").write_text(text, encoding="utf-8")
    draw(summary, folder / f"{options.name}.png")
    print(text)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"), help="or 'embedded'")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="timed, a system and round; a multiple of --warmup")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock starts (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="of the base, for all systems (default: roberta's 0.1)"
    )
    parser.add_argument("--lora-dropout", type=float, default=0.0, help="for all systems (default: PEFT's own 0)")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--lora-alpha", type=float, default=16)
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"])
    parser.add_argument("--train-config", type=json.loads, default={}, help="more of lorakit's TrainConfig, as JSON")
    parser.add_argument(
        "--evaluate", type=int, default=96, help="sentences to time evaluation on (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="throughput")
    parser.add_argument("--output-dir", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.steps, options.warmup, options.rounds) < 1 or options.steps % options.warmup:
        parser.error("--steps, --warmup and --rounds must be at least 1, and --steps a multiple of --warmup")
    return options


def read(dataset: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Training and validation sentences and the labels."""
    if dataset != "embedded":
        data = lorakit.read_ner(dataset)
        return data.train, data.validation, data.labels
    corpus = make_corpus(seed=0)
    train, validation = (
        tuple(lorakit.ner.Sentence(*pair) for pair in split) for split in (corpus.train, corpus.validation)
    )
    return train, validation, tuple(LABELS)


def job_of(options: argparse.Namespace) -> Job:
    train, _, labels = read(options.dataset)
    given = (
        "shape",
        "batch_size",
        "warmup",
        "steps",
        "precision",
        "dropout",
        "lora_dropout",
        "r",
        "lora_alpha",
        "seed",
    )
    return Job(
        train,
        labels,
        **{name: getattr(options, name) for name in given},
        target_modules=tuple(options.target_modules),
        train_config=options.train_config,
    )


# One system's process -------------------------------------------------------------------------------------------------


class Answers(Protocol):
    def ask(self, what: str) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Worker:
    """A process that trains one system when asked and says what it cost."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        given = {k: v for k, v in vars(options).items() if k not in ("worker", "systems", "train_config")}
        flags = [f"--{key.replace('_', '-')}" for key in given]
        words = [v if isinstance(v, list) else [v] for v in given.values()]
        command = [sys.executable, __file__, "--worker", name, "--train-config", json.dumps(options.train_config)]
        for flag, values in zip(flags, words, strict=True):
            command += [flag, *map(str, values)]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line.startswith(RESULT):
            raise RuntimeError(f"{self.name} failed at {what!r}; its error is above")
        return json.loads(line.removeprefix(RESULT))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(options: argparse.Namespace) -> int:
    answers, sys.stdout = sys.stdout, sys.stderr
    system = System(options.worker, options, alone=True)
    for line in sys.stdin:
        print(RESULT + json.dumps(system.ask(line.strip())), file=answers, flush=True)
    return 0


class System:
    """Answers for one system, in this process.

    Args:
        alone: nothing else runs in this process, so its peak memory is the system's.
    """

    def __init__(self, name: str, options: argparse.Namespace, alone: bool = False) -> None:
        self.name, self.options, self.alone, self.job = name, options, alone, job_of(options)
        self.trained = 0
        import accelerate  # noqa: F401  (loaded now, so that they are in no one's memory or start-up time)
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
        _ = transformers.Trainer

    def ask(self, what: str) -> dict[str, Any]:
        return {"count": self.count, "train": self.train, "evaluate": self.evaluate}[what]()

    def count(self) -> dict[str, Any]:
        clock = Clock(self.job, counts=True)
        with clock.operations:
            SYSTEMS[self.name][1](self.job, clock, SYSTEMS[self.name][2])
        return clock.cost()

    def train(self) -> dict[str, Any]:
        base = resident_bytes()
        reset_peak()
        with lorakit.EnergyMeter() as meter:
            clock = Clock(self.job, window=lambda: meter.window("steps"))
            real, computed = SYSTEMS[self.name][1](self.job, clock, SYSTEMS[self.name][2])
        cost = clock.cost()
        reading = meter.windows["steps"].to_json()
        memory = peak_bytes(base) if self.alone and (self.trained == 0 or torch.cuda.is_available()) else None
        self.trained += 1
        return {
            **cost,
            "real_tokens": real,
            "computed_tokens": computed,
            "tokens_per_s": real / cost["timed_s"],
            "padding": computed / real,
            "peak_bytes": memory,
            "energy": reading,
        }

    def evaluate(self) -> dict[str, Any]:
        """Evaluation's share of an epoch: timed on a few sentences, scaled to the whole validation set by tokens."""
        train, validation, labels = read(self.options.dataset)
        model, tokenizer = make_model(self.job)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        layout = layout_for(model)
        whole = encode_split(model, tokenizer, validation, layout)
        some = encode_split(model, tokenizer, validation[: self.options.evaluate], layout)
        evaluate_split(model, some, self.options.precision)  # warm-up
        synchronize()
        began = time.perf_counter()
        evaluate_split(model, some, self.options.precision)
        seconds = time.perf_counter() - began
        gold = np.array([labels.index(tag) for sentence in validation for tag in sentence.tags])
        noise = np.random.default_rng(0)
        guess = np.where(noise.random(len(gold)) < 0.1, noise.integers(len(labels), size=len(gold)), gold)
        lengths = np.array([len(sentence.tags) for sentence in validation])
        began = time.perf_counter()
        score_classes(gold, guess, lengths, labels)
        scoring = time.perf_counter() - began
        tokens = len(whole.encoded.ids)
        return {
            "timed_sentences": min(self.options.evaluate, len(validation)),
            "timed_s": seconds,
            "validation_tokens": tokens,
            "forward_s": seconds * tokens / len(some.encoded.ids),
            "scoring_s": scoring,
            "train_tokens": len(encode_split(model, tokenizer, train, layout).encoded.ids),
        }

    def close(self) -> None:
        pass


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here


def peak_bytes(base: int) -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 - base


# The report -----------------------------------------------------------------------------------------------------------


def where() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f", {torch.get_num_threads()} torch threads, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    return machine() + gpu + threads


def versions() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        **{n: version(n) for n in names},
        "lorakit": commit.strip() or "unknown",
    }


def predictions(predicted: dict[str, dict[str, float]]) -> str:
    first = next(iter(predicted))
    unit = lambda row: row["flops"] / row["real"]  # noqa: E731
    rows = [
        [
            SYSTEMS[name][0],
            f"{row['padding']:.3f}",
            f"{row['flops'] / 1e9:,.3f}",
            f"{unit(row) / unit(predicted[first]):.3f}",
        ]
        for name, row in predicted.items()
    ]
    header = ["predicted, before any run", "padding", "GFLOP a step", f"work a real token / {SYSTEMS[first][0]}"]
    return markdown_table(header, rows)


def median_row(summary: dict[str, Any], name: str) -> dict[str, Any]:
    runs, counts = [part[name] for part in summary["rounds"]], summary["counts"][name]
    memory = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
    row = {
        key: statistics.median(run[key] for run in runs) for key in ("step_s", "tokens_per_s", "padding", "startup_s")
    }
    row |= {key: counts[key] for key in ("operators", "kernels", "flops")}
    computed = statistics.median(run["computed_tokens"] for run in runs)
    row["computed_per_s"] = computed / summary["job"]["steps"] / row["step_s"]
    row["gflop_per_s"] = counts["flops"] / row["step_s"] / 1e9
    row["peak_bytes"] = max(memory) if memory else None
    for kind in ("measured", "estimated"):
        used = [(run["energy"][f"{kind}_kwh"], run["real_tokens"]) for run in runs]
        known = [kwh * 3.6e6 / (real / 1000) for kwh, real in used if kwh is not None]
        row[f"{kind}_j_per_1k"] = statistics.median(known) if known else None
    return row


def show(value: float | None, form: str = "{:,.2f}") -> str:
    return "–" if value is None else form.format(value)


def report(summary: dict[str, Any]) -> str:
    medians, job, predicted = summary["medians"], summary["job"], summary["predicted"]
    rows = [
        [
            SYSTEMS[name][0],
            show(row["tokens_per_s"], "{:,.0f}"),
            show(row["step_s"], "{:.3f}"),
            show(row["padding"], "{:.3f}"),
            show(row["operators"], "{:,.0f}"),
            show(row["kernels"], "{:,.0f}"),
            show(row["flops"] / 1e9, "{:,.1f}"),
            show(row["gflop_per_s"], "{:,.0f}"),
            show(None if row["peak_bytes"] is None else row["peak_bytes"] / 2**20, "{:,.0f}"),
            show(row["measured_j_per_1k"]),
            show(row["estimated_j_per_1k"]),
            show(row["startup_s"], "{:.1f}"),
        ]
        for name, row in medians.items()
    ]
    header = ["median of the rounds", "real tokens/s", "step (s)", "padding", "operators", "CUDA kernels", "GFLOP",
              "GFLOP/s", "peak (MiB)", "measured J/1k tokens", "estimated J/1k tokens", "start-up (s)"]  # fmt: skip
    lines = [f"# Throughput: {job['shape']}'s shape, batch {job['batch_size']}, {job['precision']}", ""]
    lines += [predictions(predicted), "", markdown_table(header, rows), ""]
    pairs = [
        ("tokens/s, LoRA: lorakit / HF Trainer + PEFT", "tokens_per_s", "lorakit-lora", "trainer-peft"),
        ("tokens/s, LoRA: lorakit / accelerate + PEFT", "tokens_per_s", "lorakit-lora", "accelerate-peft"),
        ("tokens/s, LoRA: lorakit / plain loop + PEFT", "tokens_per_s", "lorakit-lora", "loop-peft"),
        ("tokens/s, full: lorakit / HF Trainer", "tokens_per_s", "lorakit-full", "trainer-full"),
        ("step time: lorakit LoRA / lorakit full", "step_s", "lorakit-lora", "lorakit-full"),
        ("step time: HF Trainer + PEFT / HF Trainer full", "step_s", "trainer-peft", "trainer-full"),
        ("peak memory: lorakit LoRA / lorakit full", "peak_bytes", "lorakit-lora", "lorakit-full"),
        ("measured energy a token: lorakit LoRA / full", "measured_j_per_1k", "lorakit-lora", "lorakit-full"),
        ("estimated energy a token: lorakit LoRA / full", "estimated_j_per_1k", "lorakit-lora", "lorakit-full"),
    ]
    rows = []
    for title, key, a, b in pairs:
        if a not in medians or b not in medians or None in (medians[a][key], medians[b][key]):
            continue
        expected = rate = "–"
        if key in ("tokens_per_s", "step_s"):
            units = [predicted[n]["flops"] / (predicted[n]["real"] if key == "tokens_per_s" else 1) for n in (a, b)]
            expected = f"{units[1] / units[0] if key == 'tokens_per_s' else units[0] / units[1]:.3f}"
            rate = f"{medians[a]['gflop_per_s'] / medians[b]['gflop_per_s']:.3f}"
        rows.append([title, expected, f"{medians[a][key] / medians[b][key]:.3f}", spread(summary, key, a, b), rate])
    lines += [markdown_table(["ratio", "predicted", "measured", "of each round", "GFLOP/s ratio"], rows), ""]
    lines += [
        "Predicted is the ratio of the work (FLOPs x padding) alone, over thousands of sentences. What separates",
        "measured from predicted is how fast the work goes: above 1 in the last column, the first of the pair does",
        "more FLOPs a second. What has no FLOPs is in there (the optimiser, dropout's random numbers, norms), and so",
        "is the luck of which sentences met in the few timed batches.",
        "",
    ]
    lines += share(summary)
    lines += ["- " + FAULTS["trainer"] + "."]
    lines += [
        f"- Dropout of the base {job['dropout']:g}, of LoRA {job['lora_dropout']:g}, in all systems; LoRA r={job['r']}"
        f" on {', '.join(job['target_modules'])}; {job['rounds']} rounds of {job['steps']} timed steps after"
        f" {job['warmup']}.",
        "- Start-up is from the call to the end of the warm-up steps, making the model included; loading Python's"
        " libraries is not in it. Compilation, where it is on, is.",
        "- Operators and FLOPs: counted in a run of their own; views are not counted, attention in one fused CPU"
        " operator has no FLOPs in torch's tables.",
        "- A word has another number of the embedded tokenizer's subwords than of roberta-base's.",
        "",
        f"Command: `{summary['command']}`",
        "",
        f"Machine: {summary['machine']}",
        "",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in summary["versions"].items()),
    ]
    return "\n".join(lines) + "\n"


def spread(summary: dict[str, Any], key: str, a: str, b: str) -> str:
    """The same ratio within each round."""
    if key in ("tokens_per_s", "step_s"):
        return ", ".join(f"{part[a][key] / part[b][key]:.3f}" for part in summary["rounds"])
    return "–"


def share(summary: dict[str, Any]) -> list[str]:
    evaluation, lines = summary["evaluation"], []
    if evaluation is None:
        return lines
    for name in ("lorakit-full", "lorakit-lora"):
        if name not in summary["medians"]:
            continue
        training = evaluation["train_tokens"] / summary["medians"][name]["tokens_per_s"]
        own = evaluation["forward_s"] + evaluation["scoring_s"]
        lines.append(
            f"- {SYSTEMS[name][0]}: evaluation is {100 * own / (training + own):.2f} % of an epoch, scoring"
            f" {100 * evaluation['scoring_s'] / (training + own):.3f} % ({evaluation['forward_s']:.1f} s and"
            f" {1000 * evaluation['scoring_s']:.1f} ms beside {training:,.0f} s; scaled by tokens from the timed steps"
            f" and {evaluation['timed_sentences']} sentences)"
        )
    return lines


def draw(summary: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    names = list(summary["medians"])
    titles = [SYSTEMS[name][0] for name in names]
    colours = ["#dd8452" if SYSTEMS[name][2] == "lora" else "#4c72b0" for name in names]
    for axes, (key, title) in zip(
        figure.subplots(1, 3, sharey=True),
        (("tokens_per_s", "real tokens/s"), ("padding", "computed / real tokens"), ("operators", "operators a step")),
        strict=True,
    ):
        bars = axes.barh(titles, [summary["medians"][name][key] for name in names], color=colours)
        axes.bar_label(bars, fmt="{:,.3g}" if key == "padding" else "{:,.0f}", padding=2)
        axes.margins(x=0.2)
        axes.set_title(title)
        if key == "tokens_per_s":
            for number, name in enumerate(names):
                points = [part[name][key] for part in summary["rounds"]]
                axes.plot(points, [number] * len(points), "k.", markersize=4)
    figure.axes[0].invert_yaxis()
    figure.suptitle(
        f"{summary['job']['shape']}'s shape, batch {summary['job']['batch_size']}, {summary['job']['precision']}"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
