"""lorakit beside what a user would pick instead: same model, corpus, batch size and precision, in turns, medians.

  python benchmarks/throughput.py                                      roberta-base's shape, 8 to 10 minutes on 2 cores
  python benchmarks/throughput.py --shape mini --steps 16 --warmup 2   the embedded base, about 3 minutes
  python benchmarks/throughput.py --shape deberta-v3-base --systems lorakit-lora trainer-peft      another family
  python benchmarks/throughput.py --precision bf16 --steps 500 --warmup 10 --rounds 1     on a GPU

Each system has a process of its own and thus a peak memory of its own. They train in turns, one at a time, in reverse
order in every second round. A round has its own sentences, the same for all systems. The predictions are printed before
anything is measured. Peak memory on a CPU grows as long as batches bring new shapes, so use many steps for it (--steps
40 --rounds 1). The base has random weights, so that no hub is needed.
"""

import argparse
import json
import sys
from typing import Any

import torch
from jobs import OTHER_SHAPES, SHAPES, job_of, predict_cost
from processes import Worker
from provenance import BIONLP, BenchmarkParser, shown_options, write_results
from speed_report import median_row, predictions, ratios, report
from systems import SYSTEMS, System
from timing import in_turns

from lorakit.nn.kernels import pays

# where no FLOPs are predicted, nothing is compared with a count
UNCOUNTED = {"operators": None, "kernels": None, "counted_over_predicted_flops": None}


def main(arguments: list[str] | None = None, start: Any = None) -> int:
    """Compare, print and write; `start` makes the object that answers for a system (in a worker by default)."""
    options = parse(arguments)
    job = job_of(options)
    predicted = {name: predict_cost(job, name) for name in options.systems}
    print(predictions(predicted) + "\n", flush=True)
    start = start or (lambda name, job: Worker(name, System, name, job, True))
    workers = {name: start(name, job) for name in options.systems}
    counts = {}
    rounds: list[dict[str, Any]] = [{} for _ in range(options.rounds)]
    try:
        for number, name in in_turns(options.systems, options.rounds):
            rounds[number][name] = workers[name].ask("train", number)
            print(f"round {number + 1}: {name} {rounds[number][name]['step_s']:.3f} s per step", file=sys.stderr)
            whole = {name: row["whole_tokens"] for name, row in rounds[number].items()}
            if len(set(whole.values())) > 1:
                raise RuntimeError(f"the systems did not train on the same tokens: {whole}")
        for name, worker in workers.items():  # only now: memory once used would hide the peak of the first round
            counts[name] = UNCOUNTED if job.shape in OTHER_SHAPES else worker.ask("count") | worker.ask("profile")
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
    }
    found["medians"] = {name: median_row(found, name) for name in options.systems}
    found["ratios"] = ratios(found)
    write_results(options, found, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="throughput.py", description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES, *OTHER_SHAPES], default="roberta-base")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock starts (default: %(default)s)")
    parser.add_argument("--train-config", type=json.loads, default={}, help="more fields of TrainConfig, as JSON")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_common(dataset=BIONLP, batch_size=32, steps=2, rounds=3, lora_dropout=0.0, r=16, lora_alpha=16.0, seed=0)
    parser.add_argument("--dropout", type=float, help="of the base (default: the shape's own, 0.1 in RoBERTa)")
    parser.add_argument("--target-modules", nargs="+", help="layers with LoRA (default: the family's own)")
    options = parser.parse_args(arguments)
    if min(options.steps, options.warmup, options.rounds) < 1 or options.steps % options.warmup:
        parser.error("--steps, --warmup and --rounds must be at least 1, and --steps a multiple of --warmup")
    other = OTHER_SHAPES.get(options.shape)
    if options.dropout is None:
        options.dropout = other.dropout if other else 0.1
    options.target_modules = options.target_modules or list(other.targets if other else ("query", "value"))
    return options


if __name__ == "__main__":
    sys.exit(main())
