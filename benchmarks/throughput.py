"""lorakit beside what a user would pick instead: one model, corpus, batch size and precision, interleaved, medians.

  python benchmarks/throughput.py                                      roberta-base's shape, 8 to 10 minutes on 2 cores
  python benchmarks/throughput.py --shape mini --steps 16 --warmup 2   the embedded base, about 3 minutes
  python benchmarks/throughput.py --precision bf16 --steps 500 --warmup 10 --rounds 1     on a GPU

Every system lives in a process of its own, so that peak memory is its own; they train in turn, one at a time, forwards
in one round and backwards in the next. A round has sentences of its own, the same for all systems. First comes what the
arithmetic predicts, then what was measured. The base has random weights (no hub is needed) and reads the embedded
tokenizer's subwords, of which a word has another number than roberta-base's.
Writes benchmarks/results/NAME.json, .md and .png; NAME is throughput, or throughput-mini for the embedded base. Peak
memory on a CPU is the process's resident peak (VmHWM) in its first round less what it held before it made its model,
after a tiny one was trained; it grows while batches bring new shapes, so ask for many steps (--steps 40 --rounds 1); on
a GPU it is what torch allocated. Energy without a sensor is an estimate and is called so.
"""

import argparse
import ctypes
import gc
import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from provenance import origin, shown_options, write_results
from speed_report import draw, median_row, predictions, ratios, report
from systems import (
    ROOT,
    SHAPES,
    SYSTEMS,
    Clock,
    Given,
    Job,
    flops_of,
    make_model,
    predict_cost,
    synchronize,
    tokenizer_of,
)

import lorakit
from lorakit.nn.kernels import pays
from lorakit.training.evaluation import encode_split, evaluate_split
from lorakit.training.layout import layout_for
from lorakit.training.metrics import score_classes

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
            rounds.append({name: workers[name].ask(f"train {number}") for name in order})
            whole = {name: row["whole_tokens"] for name, row in rounds[-1].items()}
            if len(set(whole.values())) > 1:
                raise RuntimeError(f"the systems did not train on the same tokens: {whole}")
            steps = {name: f"{row['step_s']:.3f} s" for name, row in rounds[-1].items()}
            print(f"round {number + 1}: {steps}", file=sys.stderr, flush=True)
        for name, worker in workers.items():  # only now: memory once used would hide the peak of the first round
            counts[name] = worker.ask("count") | worker.ask("profile")
        if "lorakit-lora" in workers:
            evaluation = workers["lorakit-lora"].ask("evaluate")
    finally:
        for worker in workers.values():
            worker.close()
    summary = {
        **origin("throughput.py", arguments),
        "gpu": torch.cuda.is_available(),
        "onednn": not torch.cuda.is_available() and pays(),
        "job": shown_options(options),
        "predicted": predicted,
        "counts": counts,
        "rounds": rounds,
        "evaluation": evaluation,
    }
    summary["medians"] = {name: median_row(summary, name) for name in options.systems}
    summary["ratios"] = ratios(summary)
    write_results(options, summary, report(summary), draw)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"), help="or 'embedded'")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="timed, a system and round; a multiple of --warmup")
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
        "--evaluate", type=int, default=192, help="sentences to time evaluation on (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result files (default: throughput, or throughput-SHAPE)")
    parser.add_argument("--output-dir", default=str(ROOT / "benchmarks" / "results"))
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.name = options.name or "throughput" + f"-{options.shape}" * (options.shape != "roberta-base")
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
        tuple(lorakit.data.corpus.Sentence(*pair) for pair in split) for split in (corpus.train, corpus.validation)
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
        with suppress(BrokenPipeError):
            print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line.startswith(RESULT):
            status = self.process.wait()
            why = "killed, by the kernel if memory ran out" if status == -signal.SIGKILL else "its error is above"
            raise RuntimeError(f"the process of {self.name} ended at {what!r} with status {status}: {why}")
        return json.loads(line.removeprefix(RESULT))

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def work(options: argparse.Namespace) -> int:
    answers, sys.stdout = sys.stdout, sys.stderr
    system = System(options.worker, options, alone=True)
    for line in sys.stdin:
        print(RESULT + json.dumps(system.ask(line.strip())), file=answers, flush=True)
        release_memory()
    return 0


class System:
    """Answers for one system, in this process.

    Args:
        alone: nothing else runs in this process, so its peak memory is the system's.
    """

    def __init__(self, name: str, options: argparse.Namespace, alone: bool = False) -> None:
        self.name, self.options, self.alone, self.job = name, options, alone, job_of(options)
        self.fresh = True
        import accelerate  # noqa: F401  (loaded now, so that they are in no one's memory or start-up time)
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
        _ = transformers.Trainer

    def ask(self, what: str) -> dict[str, Any]:
        name, *numbers = what.split()
        return {"count": self.count, "profile": self.profile, "train": self.train, "evaluate": self.evaluate}[name](
            *map(int, numbers)
        )

    def run(self, job: Job, clock: Clock) -> Given:
        _, train, mode = SYSTEMS[self.name]
        return train(job, clock, mode)

    def count(self) -> dict[str, Any]:
        """Operators of one step, and whether its FLOPs are the predicted ones; a graph's are those it is made of."""
        config = {name: value for name, value in self.job.train_config.items() if value != "cuda_graphs"}
        job = replace(self.job, warmup=1, steps=1, train_config=config)
        clock = Clock(job, counts=True)
        with clock.operations:
            given = self.run(job, clock)
        cost = clock.cost()
        ratio = cost["flops"] / flops_of(job, self.name, given.shapes)
        return {"operators": cost["operators"], "counted_over_predicted_flops": ratio}

    def profile(self) -> dict[str, Any]:
        job = replace(self.job, warmup=1, steps=1)
        clock = Clock(job, profiles=True)
        given, cost = self.run(job, clock), clock.cost()
        seconds = {kind: s / given.computed for kind, s in cost["seconds_by_kind"].items()}
        return {"kernels": cost["kernels"], "seconds_by_kind_a_computed_token": seconds}

    def train(self, number: int) -> dict[str, Any]:
        job = replace(self.job, seed=self.job.seed + number)
        if self.alone and self.fresh and not torch.cuda.is_available():  # what loads at first use is no one's memory
            tiny = replace(job, shape="tiny", batch_size=2, warmup=1, steps=1, lowest_layer=0)
            self.run(tiny, Clock(tiny))
            release_memory()
        base = resident_bytes()
        reset_peak()
        with lorakit.EnergyMeter() as meter:
            clock = Clock(job, window=lambda: meter.window("steps"))
            given = self.run(job, clock)
        cost = clock.cost()
        peak = peak_bytes() if self.alone and (self.fresh or torch.cuda.is_available()) else None
        self.fresh = False
        return {
            **cost,
            "real_tokens": given.real,
            "computed_tokens": given.computed,
            "whole_tokens": given.whole,
            "flops": flops_of(job, self.name, given.shapes),
            "tokens_per_s": given.real / cost["timed_s"],
            "padding": given.computed / given.real,
            "peak_bytes": peak if peak is None or torch.cuda.is_available() else peak - base,
            "resident_peak_bytes": None if torch.cuda.is_available() else peak,
            "energy": meter.windows["steps"].to_json(),
        }

    def evaluate(self) -> dict[str, Any]:
        """Evaluation's share of an epoch: timed on a few sentences, scaled to the whole validation set by tokens."""
        train, validation, labels = read(self.options.dataset)
        model, tokenizer = make_model(self.job), tokenizer_of(self.job)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        layout = layout_for(model, precision=self.options.precision)
        whole = encode_split(model, tokenizer, validation, layout)
        some = encode_split(model, tokenizer, validation[: self.options.evaluate], layout)
        evaluate_split(
            model, encode_split(model, tokenizer, validation[:32], layout), self.options.precision
        )  # warm-up
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


def release_memory() -> None:
    """Give back what a run has used: some systems idle beside the one that trains, and would hold gigabytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
