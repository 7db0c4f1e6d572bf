"""lorakit beside what a user would pick instead: same model, corpus, batch size and precision, in turns, medians.

  python benchmarks/throughput.py                                      roberta-base's shape, 8 to 10 minutes on 2 cores
  python benchmarks/throughput.py --shape mini --steps 16 --warmup 2   the embedded base, about 3 minutes
  python benchmarks/throughput.py --precision bf16 --steps 500 --warmup 10 --rounds 1     on a GPU

Each system has a process of its own and thus a peak memory of its own. They train in turns, one at a time, in reverse
order in every second round. A round has its own sentences, the same for all systems. The predictions are printed before
anything is measured. The base has random weights, so that no hub is needed, and uses the embedded tokenizer, which
splits words differently than roberta-base's. NAME is throughput, or throughput-SHAPE for another shape.

Peak memory on a CPU is the process's resident peak (VmHWM) in its first round minus what it held before it built its
model, after training a tiny one. It grows as long as batches bring new shapes, so use many steps (--steps 40
--rounds 1). On a GPU it is what torch allocated. Energy without a sensor is an estimate and is labelled as one.
"""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from processes import Worker, peak_bytes, release_memory, reset_peak, resident_bytes
from provenance import BIONLP, RESULTS, BenchmarkParser, shown_options, write_results
from scoring import classes_of, with_noise
from speed_report import draw, median_row, predictions, ratios, report
from systems import (
    SHAPES,
    SYSTEMS,
    Clock,
    Given,
    Job,
    flops_of,
    job_of,
    make_model,
    predict_cost,
    read_corpus,
    synchronize,
    tokenizer_of,
)
from timing import best_of, in_turns

import lorakit
from lorakit.batching import layout_for
from lorakit.metrics import score_classes
from lorakit.onednn import pays
from lorakit.tagging import encode_split, evaluate_split


def main(arguments: list[str] | None = None, start: Any = None) -> int:
    """Compare, print and write; `start` makes the object that answers for a system (in a worker by default)."""
    options = parse(arguments)
    job = job_of(options)
    predicted = {name: predict_cost(job, name) for name in options.systems}
    print(predictions(predicted) + "\n", flush=True)
    start = start or (lambda name, options: Worker(name, System, name, options, True))
    workers = {name: start(name, options) for name in options.systems}
    counts, evaluation = {}, None
    rounds: list[dict[str, Any]] = [{} for _ in range(options.rounds)]
    try:
        for number, name in in_turns(options.systems, options.rounds):
            rounds[number][name] = workers[name].ask("train", number)
            print(f"round {number + 1}: {name} {rounds[number][name]['step_s']:.3f} s per step", file=sys.stderr)
            whole = {name: row["whole_tokens"] for name, row in rounds[number].items()}
            if len(set(whole.values())) > 1:
                raise RuntimeError(f"the systems did not train on the same tokens: {whole}")
        for name, worker in workers.items():  # only now: memory once used would hide the peak of the first round
            counts[name] = worker.ask("count") | worker.ask("profile")
        if "lorakit-lora" in workers:
            evaluation = workers["lorakit-lora"].ask("evaluate")
    finally:
        for worker in workers.values():
            worker.close()
    found = {
        "gpu": torch.cuda.is_available(),
        "onednn": not torch.cuda.is_available() and pays(),
        "job": shown_options(options),
        "predicted": predicted,
        "counts": counts,
        "rounds": rounds,
        "evaluation": evaluation,
    }
    found["medians"] = {name: median_row(found, name) for name in options.systems}
    found["ratios"] = ratios(found)
    write_results(options, found, report, draw, "Speed, padding, operators and memory of every system")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="throughput.py", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="roberta-base")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock starts (default: %(default)s)")
    parser.add_argument("--train-config", type=json.loads, default={}, help="more fields of TrainConfig, as JSON")
    parser.add_argument("--evaluate", type=int, default=192, help="sentences to evaluate (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_common(dataset=BIONLP, batch_size=32, steps=2, rounds=3, dropout=0.1, lora_dropout=0.0, r=16)
    parser.add_common(lora_alpha=16.0, target_modules=["query", "value"], seed=0, name=None, output_dir=str(RESULTS))
    options = parser.parse_args(arguments)
    options.name = options.name or "throughput" + f"-{options.shape}" * (options.shape != "roberta-base")
    if min(options.steps, options.warmup, options.rounds) < 1 or options.steps % options.warmup:
        parser.error("--steps, --warmup and --rounds must be at least 1, and --steps a multiple of --warmup")
    return options


class System:
    """Answers for one system.

    Args:
        alone: nothing else runs in this process, so its peak memory is the system's.
    """

    def __init__(self, name: str, options: argparse.Namespace, alone: bool = False) -> None:
        self.name, self.options, self.alone, self.job = name, options, alone, job_of(options)
        self.fresh = True
        import accelerate  # noqa: F401  (loaded now, so that no system's memory or start-up time contains it)
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
        _ = transformers.Trainer

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Called where the system is not in a worker."""
        return getattr(self, method)(*arguments)

    def close(self) -> None:
        pass

    def run(self, job: Job, clock: Clock) -> Given:
        _, train, mode = SYSTEMS[self.name]
        return train(job, clock, mode)

    def count(self) -> dict[str, Any]:
        """Operators and FLOPs of one step; with CUDA graphs, of the step that a graph records."""
        config = {name: value for name, value in self.job.train_config.items() if name != "cuda_graphs"}
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
        if self.alone and self.fresh and not torch.cuda.is_available():  # load what torch loads at first use
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
        """What evaluation costs: a few sentences are timed and scaled by tokens to the whole validation set."""
        data, precision = read_corpus(self.options.dataset), self.options.precision
        model, tokenizer = make_model(self.job), tokenizer_of(self.job)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        layout = layout_for(model, precision=precision)
        whole = encode_split(model, tokenizer, data.validation, layout)
        some = encode_split(model, tokenizer, data.validation[: self.options.evaluate], layout)
        evaluate_split(model, encode_split(model, tokenizer, data.validation[:32], layout), precision)  # warm-up
        synchronize()
        seconds, _ = best_of(1, lambda: evaluate_split(model, some, precision))
        gold, lengths = classes_of(data.validation, data.labels)
        guess = with_noise(gold, 0.1, len(data.labels), np.random.default_rng(0))
        scoring, _ = best_of(1, lambda: score_classes(gold, guess, lengths, data.labels))
        tokens = len(whole.encoded.ids)
        return {
            "timed_sentences": min(self.options.evaluate, len(data.validation)),
            "timed_s": seconds,
            "validation_tokens": tokens,
            "forward_s": seconds * tokens / len(some.encoded.ids),
            "scoring_s": scoring,
            "train_tokens": len(encode_split(model, tokenizer, data.train, layout).encoded.ids),
        }


if __name__ == "__main__":
    sys.exit(main())
