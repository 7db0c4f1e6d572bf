"""Kill training runs with SIGKILL at random moments, resume them, and compare with runs that were never stopped.

  python benchmarks/faults.py

For full fine-tuning and LoRA, in every precision, alone and on two processes of which one is killed: a run without
interruption, then rounds in which the same run is killed again and again until it gets through. After each round the
final weights must be the same bits and metrics.jsonl the same lines (speed and time of day aside). Every other kill is
aimed at the writing of a checkpoint, and after every fourth the newest checkpoint is damaged as a failing disk would.
The table goes to benchmarks/results/faults.md, all of it to faults.json.

Runs are forked off this process, which has imported everything: that is what makes hundreds of starts cheap.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from seeds import machine
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

import lorakit
from lorakit.data.corpus import NerData, Sentence
from lorakit.report.tables import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "examples"))

from mini.corpus import LABELS, make_corpus  # noqa: E402  (its folder is on the path only now)

ROWS = [
    ("full", "fp32", 1),
    ("lora", "fp32", 1),
    ("full", "bf16", 1),
    ("lora", "fp16", 1),
    ("full", "fp32", 2),
    ("lora", "fp32", 2),
]
PATIENCE_S = 60  # in which the other process must have ended by itself
TIMELESS = ("tokens_per_s", "wall_s")


def small_model() -> nn.Module:
    """The embedded base's architecture, 64 wide and 2 deep: a run of about a second, with dropout."""
    config = AutoConfig.from_pretrained(ROOT / "examples" / "mini")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads = 64, 128, 2, 2
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.1
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def train(mode: str, precision: str, folder: Path, model: nn.Module, tokenizer: Any, data: NerData) -> None:
    """One run, resumed where there is a checkpoint; at its end result.json holds a hash of the trained weights."""
    warnings.simplefilter("always")
    with (folder / f"warnings-{os.environ['RANK']}.txt").open("a") as noted:
        warnings.showwarning = lambda message, *_: print(message, file=noted, flush=True)
        torch.manual_seed(0)  # of LoRA's initial weights
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


def start(mode: str, precision: str, ranks: int, folder: Path, *parts: Any) -> list[int]:
    """Train in forked children; their process ids, in the order of ranks."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            os.environ.update({**place, "RANK": str(rank), "LORAKIT_TIMEOUT_S": "30"})
            os.dup2(os.open(folder / f"errors-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            try:
                train(mode, precision, folder, *parts)
                status = 0
            except BaseException:  # of two processes one also tells of the other that was killed
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        children.append(child)
    return children


def is_over(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(children: list[int], within_s: float) -> dict[int, int]:
    """The statuses of the children that end by themselves in this time; after it the others are killed."""
    deadline = time.monotonic() + within_s
    while not all(map(is_over, children)) and time.monotonic() < deadline:
        time.sleep(0.005)
    statuses = {child: is_over(child) for child in children}
    for child in children:
        if not statuses[child]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not statuses.pop(child):
            continue
        statuses[child] = status
    return statuses


def is_writing(folder: Path, writer: int) -> bool:
    return any((folder / "checkpoints").glob(f".step-*.{writer}"))


def outcome(folder: Path) -> tuple[Any, Any]:
    """What must not depend on interruptions: the result, and the log without speeds and times of day."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{key: value for key, value in line.items() if key not in TIMELESS} for line in lines]
    return json.loads((folder / "result.json").read_text()), log


def watch(children: list[int], folder: Path) -> tuple[float, float]:
    """Let a run come to its end: how long it took, and the longest that a checkpoint was being written."""
    began, writing_since, longest = time.monotonic(), None, 0.0
    while not all(map(is_over, children)):
        now = time.monotonic()
        if not is_writing(folder, children[0]):
            writing_since = None
        elif writing_since is None:
            writing_since = now
        else:
            longest = max(longest, now - writing_since)
        time.sleep(0.0005)
    took_s = time.monotonic() - began
    statuses = end(children, 0)
    assert list(statuses.values()) == [0] * len(children), f"the run without interruption failed: {statuses}, {folder}"
    return took_s, longest


def wait_to_kill(children: list[int], folder: Path, moment_s: float, in_write_s: float | None) -> bool:
    """Sleep up to the moment of a kill, then up to a place in the next write; whether the run still goes on."""
    moment = time.monotonic() + moment_s
    while time.monotonic() < moment or in_write_s is not None and not is_writing(folder, children[0]):
        if is_over(children[0]):
            return False
        time.sleep(0.0005)
    time.sleep(in_write_s or 0.0)
    return True


def damage(folder: Path, draw: random.Random, already: set[int]) -> bool:
    """Cut off or change a byte of a file of the newest checkpoint, where there is another to fall back on."""
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
    """Rounds of kills of one kind of run, compared with a run that was left alone."""
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
            children = start(*job, folder, *parts)
            aimed, share = counts["kills"] % 2 == 1, draw.random()
            if not wait_to_kill(children, folder, 0.9 * draw.random() * whole_s, share * write_s if aimed else None):
                statuses = end(children, PATIENCE_S)
                assert list(statuses.values()) == [0] * ranks, f"a resumed run failed: {statuses}, see {folder}"
                break
            victim = draw.choice(children)
            os.kill(victim, signal.SIGKILL)
            counts["kills"] += 1
            counts["hangs"] += len(end(children, PATIENCE_S)) < ranks
            counts["in a write"] += victim == children[0] and is_writing(folder, victim)
            if counts["kills"] % 4 == 0:
                counts["damaged"] += damage(folder, draw, damaged)
        equal = outcome(folder) == expected
        if counts["kills"] > before or not equal:  # a round that no kill has hit proves nothing
            counts["rounds"] += 1
            counts["bit-equal"] += equal
        counts["passed over"] += (folder / "warnings-0.txt").read_text().count(" is damaged (")
        print(*job, f"{whole_s:.1f} s, a write {1000 * write_s:.0f} ms", counts, flush=True)
    return {"mode": mode, "precision": precision, "processes": ranks, **counts, "run_s": whole_s, "write_s": write_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="at least so many in each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use a thread pool that its parent has started
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # torch imports half of itself here: once, for all children
    draw, began, rows = random.Random(arguments.seed), time.monotonic(), []
    splits = (tuple(Sentence(*pair) for pair in split) for split in make_corpus(seed=0, train=48, validation=8, test=8))
    data = NerData(*splits, tuple(LABELS), "embedded")
    parts = small_model(), AutoTokenizer.from_pretrained(ROOT / "examples" / "mini"), data
    for mode, precision, ranks in ROWS:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(harass(mode, precision, ranks, arguments.kills, draw, Path(scratch), *parts))
    total = {key: sum(row[key] for row in rows) for key in ("rounds", "bit-equal", "kills", "in a write", "hangs")}
    good = total["rounds"] == total["bit-equal"] and total["hangs"] == 0
    record = {
        "command": shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - began),
        "torch": torch.__version__,
        "machine": machine(),
        "total": total,
        "rows": rows,
    }
    (RESULTS / "faults.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(record)
    (RESULTS / "faults.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if good else 1


def page(record: dict[str, Any]) -> str:
    header = ["mode", "precision", "processes", "SIGKILLs", "in a write", "damaged", "passed over", "hangs", "rounds"]
    keys = ("mode", "precision", "processes", "kills", "in a write", "damaged", "passed over", "hangs", "rounds")
    rows, total = record["rows"], record["total"]
    kills, writing, rounds, equal = (total[key] for key in ("kills", "in a write", "rounds", "bit-equal"))
    lines = [[*(str(row[key]) for key in keys), str(row["bit-equal"])] for row in rows]
    return f"""# Killed and resumed

**{kills} SIGKILLs, {writing} of them in the middle of a checkpoint's writing, in {rounds} rounds: {equal} rounds
ended with the weights (SHA-256), scores and metrics.jsonl of the run that was never stopped, bit for bit.** A round is
one run, killed and resumed until it gets through.

{markdown_table([*header, "bit-equal"], lines)}

- A base of the embedded one's kind, 64 wide and 2 deep, dropout 0.1 (LoRA: r=8, dropout 0.1), 18 steps in 3 epochs, a
  checkpoint every 2 steps and after each epoch. A run is forked off a process that has imported everything.
- *in a write*: the killed process had a temporary folder open; the resumed run's next write removes it.
- *damaged*: the harness changed a bit of the newest checkpoint or cut off one of its files; *passed over*: warnings of
  resumed runs that took an older one (several for one damage where a run was killed again before its next write).
- *hangs*: of two processes one is killed; the other did not end by itself within {PATIENCE_S} s.
- The seed sets the moments as shares of a run's time, and the machine's speed moves them: counts differ a little from
  run to run.

Command: `{record["command"]}` ({record["seconds"]} s); torch {record["torch"]}, {record["machine"]}, no GPU,
one thread a process, other work on the machine.
"""


if __name__ == "__main__":
    sys.exit(main())
