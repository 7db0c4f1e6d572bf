"""Kill training runs with SIGKILL at random moments, resume them, and compare with runs that were never stopped.

  python benchmarks/faults.py --kills 60

For full fine-tuning and LoRA: one run without interruption, then rounds in which the same run is killed again and again
until it gets through. After each round the final weights must be the same bits and metrics.jsonl the same lines (speed
aside). The table goes to benchmarks/results/faults.md.
"""

import argparse
import hashlib
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import lorakit
from lorakit.models import load_token_classifier
from lorakit.ner import NerData, Sentence
from lorakit.report import markdown_table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus  # noqa: E402  (its folder is on the path only now)


def train(mode: str, folder: Path) -> None:
    """One run, resumed where there is a checkpoint; at its end result.json holds a hash of the trained weights."""
    warnings.simplefilter("ignore")  # the warning about a damaged checkpoint is counted by the parent
    splits = (tuple(Sentence(*pair) for pair in split) for split in make_corpus(seed=0, train=48, validation=8, test=8))
    data = NerData(*splits, tuple(LABELS), "embedded")
    model, tokenizer = load_token_classifier(ROOT / "examples" / "mini", data.labels, dropout=0.1)
    if mode == "lora":
        lorakit.apply_lora(model, r=8, lora_dropout=0.1)
    config = lorakit.TrainConfig(
        epochs=3, batch_size=8, output_dir=folder, save_every=2, log_every=2, resume=True, progress=False
    )
    result = lorakit.train(model, tokenizer, data, config)
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    scores = {"test": result.test.to_json(), "steps": result.steps, "train_tokens": result.train_tokens}
    (folder / "result.json").write_text(json.dumps({"weights_sha256": digest.hexdigest(), **scores}))


def start(mode: str, folder: Path) -> int:
    """Train in a forked child, which spares it the imports; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(mode, folder)
            status = 0
        finally:
            os._exit(status)
    return child


def outcome(folder: Path) -> tuple[Any, Any]:
    """What must not depend on interruptions: the result, and the log without speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
    return json.loads((folder / "result.json").read_text()), log


def harass(mode: str, kills: int, draw: random.Random, scratch: Path) -> dict[str, int]:
    """Rounds of kills in one mode, compared with a run that was left alone."""
    began = time.monotonic()
    _, status = os.waitpid(start(mode, scratch / "whole"), 0)
    assert status == 0, "the run without interruption failed"
    whole_s, expected = time.monotonic() - began, outcome(scratch / "whole")
    counts = {"rounds": 0, "kills": 0, "in the middle of a write": 0, "rounds bit-equal": 0}
    while counts["kills"] < kills:
        folder = scratch / f"round-{counts['rounds']}"
        while True:
            child = start(mode, folder)
            time.sleep(draw.uniform(0.1, 1.1) * whole_s)
            if os.waitpid(child, os.WNOHANG)[0]:
                break  # it got through, or failed: then outcome() has no result to read
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts["kills"] += 1
            counts["in the middle of a write"] += any((folder / "checkpoints").glob(".step-*"))
        counts["rounds"] += 1
        counts["rounds bit-equal"] += outcome(folder) == expected
        print(mode, counts, flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least so many in each mode (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use a thread pool that its parent has started
    draw = random.Random(arguments.seed)
    rows = []
    for mode in ("full", "lora"):
        with tempfile.TemporaryDirectory() as scratch:
            rows.append([mode, *map(str, harass(mode, arguments.kills, draw, Path(scratch)).values())])
    header = ["mode", "rounds", "SIGKILLs", "with a write under way", "rounds bit-equal"]
    equal = all(row[1] == row[4] for row in rows)
    command = shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]])
    text = "\n".join(
        [
            "# Killed and resumed",
            "",
            "Final weights (SHA-256) and metrics.jsonl of runs that were killed at random moments, compared with runs"
            " that were not. Embedded base, dropout 0.1, a checkpoint every 2 steps.",
            "",
            markdown_table(header, rows),
            "",
            f"Command: `{command}`; torch {torch.__version__}, CPU, 1 thread. The machine's speed sets the moments.",
            "",
        ]
    )
    (ROOT / "benchmarks" / "results" / "faults.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
