"""End pairs of gloo processes again and again, and count those that do not end as they should.

  python benchmarks/teardown.py

Two processes train a small layer under DDP or FSDP2, keep the model to the end as scripts do, and end: with status 0,
with an error (1) or as a stopped run does (143), in turn. Any other status, such as SIGABRT (-6), is dirty. They do so
inside lorakit's `process_group`, and every fourth pair is followed by one with torch alone (`init_process_group`,
`destroy_process_group`), so that both see the same machine: the latter shows that the trap is there, the former what is
left of it. Each process is started anew: forked off one that has imported torch, it does not fail (0 of 360 processes).

The table goes to benchmarks/results/teardown.md.
"""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = [("ddp", "returns"), ("ddp", "raises"), ("fsdp", "returns"), ("ddp", "is stopped")]
ENDS = {"returns": 0, "raises": 1, "is stopped": 143}
GROUPS = ("torch", "lorakit")
CONTROL_EVERY = 4  # pairs


def work(group: str, strategy: str, end: str) -> None:
    """What one rank does; the model lives on until the exit. `torch` stands for a script that knows of no lorakit."""
    global model
    if group == "lorakit":
        sys.path.insert(0, str(ROOT))
        from lorakit.training.distributed import process_group

        with process_group():
            model = train(strategy)
            leave(end)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        model = train(strategy)
        leave(end)
    finally:
        dist.destroy_process_group()


def train(strategy: str) -> object:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 5))
    spread = fully_shard(model) if strategy == "fsdp" else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(spread.parameters())
    for _ in range(5):
        spread(torch.randn(4, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts = torch.ones(2)
        dist.all_reduce(counts)
        counts.tolist()
    return spread


def leave(end: str) -> None:
    if end == "raises":
        raise ValueError("on purpose")
    if end == "is stopped":
        raise SystemExit(143)


def start(job: tuple[str, ...], rank: int, port: int) -> subprocess.Popen[bytes]:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, "--job", *job], env=environment, stderr=subprocess.DEVNULL)


def run_pair(group: str, kind: tuple[str, str], ends: Counter[tuple[str, str, str, int]]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for process in [start((group, *kind), rank, port) for rank in range(2)]:
        ends[(group, *kind, process.wait())] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=208, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # what a process started anew is told
    arguments = parser.parse_args()
    if arguments.job:
        work(*arguments.job)
        return 0
    began, ends = time.monotonic(), Counter()
    for number in range(arguments.runs):
        run_pair("lorakit", KINDS[number % len(KINDS)], ends)
        if number % CONTROL_EVERY == CONTROL_EVERY - 1:
            run_pair("torch", KINDS[number // CONTROL_EVERY % len(KINDS)], ends)
    text = page(ends, time.monotonic() - began)
    (ROOT / "benchmarks" / "results" / "teardown.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(group == "lorakit" and status != ENDS[end] for group, _, end, status in ends) else 0


def page(ends: Counter[tuple[str, str, str, int]], seconds: float) -> str:
    import torch
    from seeds import machine

    sys.path.insert(0, str(ROOT))
    from lorakit.report.tables import markdown_table

    rows, dirty, total = [], Counter(), Counter()
    for strategy, end in KINDS:
        for group in GROUPS:
            found = {key[-1]: number for key, number in ends.items() if key[:-1] == (group, strategy, end)}
            bad = {status: number for status, number in sorted(found.items()) if status != ENDS[end]}
            dirty[group] += sum(bad.values())
            total[group] += sum(found.values())
            shown = ", ".join(f"{number} × status {status}" for status, number in bad.items()) or "–"
            rows.append([group, strategy, end, str(sum(found.values())), str(sum(bad.values())), shown])
    proof = (
        "Torch alone fails here, so the trap is there, and lorakit's figure says what is left of it."
        if dirty["torch"]
        else "**Torch alone did not fail either: this run proves nothing about lorakit's group.**"
    )
    command = shlex.join(["python", "benchmarks/teardown.py", *sys.argv[1:]])
    return f"""# Ends of gloo processes

**Inside lorakit's `process_group` {dirty["lorakit"]} of {total["lorakit"]} processes ({total["lorakit"] // 2} pairs)
ended dirty, with torch alone, run in between, {dirty["torch"]} of {total["torch"]}.** {proof}

{markdown_table(["group", "strategy", "the script", "processes", "dirty", "which"], rows)}

- *torch*: `init_process_group("gloo")`, five training steps, `destroy_process_group`, the model kept to the end, as
  scripts do. Status -6 is SIGABRT ("terminate called without an active exception"), after the results were right.
- *lorakit*: the same work inside `lorakit.training.distributed.process_group`, which every `train` and `evaluate` uses.
- Dirty is any status but 0 (returns), 1 (raises) and 143 (is stopped).

Command: `{command}` ({seconds:.0f} s); torch {torch.__version__}, {machine()},
no GPU, one thread a process, other work on the machine.
"""


if __name__ == "__main__":
    sys.exit(main())
