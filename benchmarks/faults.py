"""Kill training runs with SIGKILL at random moments, resume them, and compare with runs that were never stopped.

  python benchmarks/faults.py

Full fine-tuning and LoRA run in every precision, alone and on two processes of which one is killed: first a run without
interruption, then rounds in which the same run is killed again and again until it gets through. After each round the
final weights must be the same bits and metrics.jsonl the same lines, apart from speed and time. Every second kill aims
at the writing of a checkpoint, and after every fourth one the newest checkpoint is damaged as a failing disk would.

Runs are forked from this process, which has imported everything; that makes hundreds of starts cheap.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from jobs import Job, make_model, read_corpus, tokenizer_of
from processes import rendezvous
from provenance import BenchmarkParser, write_results
from tables import table
from torch import nn

import lorakit
from lorakit.data.corpus import NerData

ROWS = [
    ("full", "fp32", 1),
    ("lora", "fp32", 1),
    ("full", "bf16", 1),
    ("lora", "fp16", 1),
    ("full", "fp32", 2),
    ("lora", "fp32", 2),
]
FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60  # within which the other process must end by itself
TIMELESS = ("tokens_per_s", "wall_s")


def train(mode: str, precision: str, folder: Path, model: nn.Module, tokenizer: Any, data: NerData) -> None:
    """One run, resumed if there is a checkpoint; at the end result.json holds a hash of the trained weights."""
    warnings.simplefilter("always")
    with (folder / f"warnings-{os.environ['RANK']}.txt").open("a") as noted:
        warnings.showwarning = lambda message, *_: print(message, file=noted, flush=True)
        torch.manual_seed(0)  # for LoRA's initial weights
        if mode == "lora":
            lorakit.apply_lora(model, r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"])
        config = lorakit.TrainConfig(
            epochs=3, batch_size=8 // int(os.environ["WORLD_SIZE"]), precision=precision, output_dir=folder,
            learning_rate=1e-3, save_every=2, log_every=2, resume=True, progress=False,
        )  # fmt: skip
        result = lorakit.train(model, tokenizer, data, config)
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    scores = {"test": result.test.to_json(), "steps": result.steps, "train_tokens": result.train_tokens}
    if os.environ["RANK"] == "0":
        (folder / "result.json").write_text(json.dumps({"weights_sha256": digest.hexdigest(), **scores}))


def start(mode: str, precision: str, ranks: int, folder: Path, *parts: Any) -> list[BaseProcess]:
    """Train in forked processes; they are returned by rank."""
    folder.mkdir(exist_ok=True)
    given = (mode, precision, folder, *parts)
    processes = [FORK.Process(target=train_rank, args=(place, *given)) for place in rendezvous(ranks)]
    for process in processes:
        process.start()
    return processes


def train_rank(place: dict[str, str], mode: str, precision: str, folder: Path, *parts: Any) -> None:
    os.environ.update({**place, "LORAKIT_TIMEOUT_S": "30"})
    errors = folder / f"errors-{place['RANK']}.txt"
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    train(mode, precision, folder, *parts)


def end(processes: list[BaseProcess], within_s: float) -> list[int]:
    """The statuses of the processes that end by themselves within this time; the others are killed after it."""
    deadline, statuses = time.monotonic() + within_s, []
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
        else:
            statuses.append(process.exitcode)
    return statuses


def is_writing(folder: Path, writer: BaseProcess) -> bool:
    return any((folder / "checkpoints").glob(f".step-*.{writer.pid}"))


def outcome(folder: Path) -> tuple[Any, Any]:
    """What must not depend on interruptions: the result, and the log without speeds and times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in TIMELESS} for line in lines]
    return json.loads((folder / "result.json").read_text()), log


def watch(processes: list[BaseProcess], folder: Path) -> tuple[float, float]:
    """Wait for a run to end; how long it took, and the longest time that writing a checkpoint took."""
    began, writing_since, longest = time.monotonic(), None, 0.0
    while any(process.is_alive() for process in processes):
        now = time.monotonic()
        writing_since = (writing_since or now) if is_writing(folder, processes[0]) else None
        longest = max(longest, now - (writing_since or now))
        time.sleep(0.0005)
    took_s = time.monotonic() - began
    statuses = end(processes, 0)
    assert statuses == [0] * len(processes), f"the run without interruption failed: {statuses}, {folder}"
    return took_s, longest


def wait_to_kill(processes: list[BaseProcess], folder: Path, moment_s: float, in_write_s: float | None) -> bool:
    """Sleep until the moment of a kill, or until a moment within the next write; whether the run is still going."""
    moment = time.monotonic() + moment_s
    while time.monotonic() < moment or in_write_s is not None and not is_writing(folder, processes[0]):
        if not processes[0].is_alive():
            return False
        time.sleep(0.0005)
    time.sleep(in_write_s or 0.0)
    return True


def damage(folder: Path, draw: random.Random, already: set[int]) -> bool:
    """Truncate a file of the newest checkpoint or flip a bit in it, if there is an older one to fall back on."""
    found = sorted((folder / "checkpoints").glob("step-*"))
    if len(found) < 2 or found[-1].stat().st_ino in already:
        return False
    already.add(found[-1].stat().st_ino)
    path = found[-1] / draw.choice(["state.json", "tensors.safetensors"])
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return True


def harass(
    mode: str, precision: str, ranks: int, kills: int, draw: random.Random, scratch: Path, *parts: Any
) -> dict[str, Any]:
    """Rounds of kills of one kind of run, compared with a run that was never interrupted."""
    job = mode, precision, ranks
    watch(start(*job, scratch / "cold", *parts), scratch / "cold")
    whole_s, write_s = watch(start(*job, scratch / "whole", *parts), scratch / "whole")
    expected = outcome(scratch / "whole")
    assert outcome(scratch / "cold") == expected, "two runs without interruption differ"
    counts = dict.fromkeys(("rounds", "bit-equal", "kills", "in a write", "hangs", "damaged", "passed over"), 0)
    for number in itertools.count():
        if counts["kills"] >= kills:
            break
        folder, damaged, before = scratch / f"round-{number}", set(), counts["kills"]
        while True:
            processes = start(*job, folder, *parts)
            aimed, share = counts["kills"] % 2 == 1, draw.random()
            if not wait_to_kill(processes, folder, 0.9 * draw.random() * whole_s, share * write_s if aimed else None):
                statuses = end(processes, PATIENCE_S)
                assert statuses == [0] * ranks, f"a resumed run failed: {statuses}, see {folder}"
                break
            victim = draw.choice(processes)
            victim.kill()
            counts["kills"] += 1
            victim.join()
            in_a_write = victim is processes[0] and is_writing(folder, victim)
            counts["hangs"] += len(end(processes, PATIENCE_S)) < ranks
            counts["in a write"] += in_a_write
            if counts["kills"] % 4 == 0:
                counts["damaged"] += damage(folder, draw, damaged)
        equal = outcome(folder) == expected
        if counts["kills"] > before or not equal:  # a round without a kill proves nothing
            counts["rounds"] += 1
            counts["bit-equal"] += equal
        counts["passed over"] += (folder / "warnings-0.txt").read_text().count(" is damaged (")
        print(*job, f"{whole_s:.1f} s, {1000 * write_s:.0f} ms per write", counts, flush=True)
    return {"mode": mode, "precision": precision, "processes": ranks, **counts, "run_s": whole_s, "write_s": write_s}


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="faults.py", description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="at least so many per row (default: %(default)s)")
    parser.add_common(seed=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked child cannot use a thread pool that its parent has started
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # torch imports half of itself here: once, for all children
    draw, began, rows = random.Random(options.seed), time.monotonic(), []
    corpus = read_corpus("embedded", 48)
    data = replace(corpus, validation=corpus.validation[:8], test=corpus.validation[8:16])
    job = Job(data.train, data.labels, shape="narrow")
    parts = make_model(job), tokenizer_of(job), data
    for mode, precision, ranks in ROWS:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(harass(mode, precision, ranks, options.kills, draw, Path(scratch), *parts))
    total = {key: sum(row[key] for row in rows) for key in ("rounds", "bit-equal", "kills", "in a write", "hangs")}
    seconds = round(time.monotonic() - began)
    write_results(options, {"seconds": seconds, "torch": torch.__version__, "total": total, "rows": rows}, report)
    return 0 if total["rounds"] == total["bit-equal"] and total["hangs"] == 0 else 1


def report(summary: dict[str, Any]) -> list[str]:
    kills, writing, rounds, equal = (summary["total"][key] for key in ("kills", "in a write", "rounds", "bit-equal"))
    keys = ("mode", "precision", "processes", "kills", "in a write", "damaged", "passed over", "hangs", "rounds",
            "bit-equal")  # fmt: skip
    titles = {"kills": "SIGKILLs", "passed over": "skipped"}
    return [
        "# Killed and resumed",
        "",
        f"**{kills} SIGKILLs, {writing} of them while a checkpoint was being written, in {rounds} rounds: {equal}"
        " rounds ended with the weights (SHA-256), scores and metrics.jsonl of the run that was never stopped, bit"
        " for bit.** A round is one run, killed and resumed until it gets through.",
        "",
        table(summary["rows"], *((titles.get(key, key), key, "{}") for key in keys)),
        "",
        "- A base of the embedded one's architecture, 64 wide and 2 deep, dropout 0.1 (LoRA: r=8, dropout 0.1), 18"
        " steps in 3 epochs, a checkpoint every 2 steps and after each epoch.",
        "- *in a write*: the killed process had a temporary folder open; the resumed run's next write removes it.",
        "- *damaged*: this benchmark changed a bit of the newest checkpoint or truncated one of its files; *skipped*:"
        " warnings of resumed runs that took an older one (several for one damage if a run was killed again before its"
        " next write).",
        f"- *hangs*: of two processes one is killed, and the other did not end by itself within {PATIENCE_S} s.",
        "- The seed sets the moments as shares of a run's time, and the machine's speed shifts them, so counts differ a"
        " little from run to run.",
        f"- It took {summary['seconds']} s, with one thread per process.",
    ]


if __name__ == "__main__":
    sys.exit(main())
