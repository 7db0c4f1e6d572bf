"""End pairs of gloo processes again and again, and count those that do not end as they should.

  python benchmarks/teardown.py --runs 210

Two processes train a small layer under DDP or FSDP2 with the exchanges of a training loop, then end: with status 0,
with an error (1) or as a stopped run does (143), in turn. Anything else, such as SIGABRT (-6), is a dirty end.
`--plain` does the same with torch alone, a barrier before `destroy_process_group`, to show what the library avoids. It
prints a row of a table; no figure of it is published yet.

Processes are forked off one that has imported torch, and end as Python ends; `--exec` starts each of them anew.
"""

import argparse
import itertools
import os
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lorakit import distributed, parallel  # noqa: E402  (a worker started anew has no path to it)

ENDS = {"returns": 0, "raises": 1, "is stopped": 143}


def work(strategy: str, end: str) -> None:
    """What one rank does: a few steps, each with a gradient exchange and sums; the model lives on until the exit."""
    global model
    with distributed.process_group():
        model = train(strategy)
        if end == "raises":
            raise ValueError("on purpose")
        if end == "is stopped":
            raise SystemExit(143)


def work_plainly(strategy: str, end: str) -> None:
    """The same with torch alone, as a script would have it."""
    global model
    dist.init_process_group("gloo")
    model = train(strategy)
    dist.barrier()
    dist.destroy_process_group()
    if end == "raises":
        raise ValueError("on purpose")
    if end == "is stopped":
        raise SystemExit(143)


def train(strategy: str) -> nn.Module:
    spread = parallel.spread(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 5)), strategy)
    optimizer = torch.optim.AdamW(spread.parameters())
    for _ in range(5):
        spread(torch.randn(4, 64)).sum().backward()
        nn.utils.clip_grad_norm_(spread.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        distributed.all_sum(torch.ones(2)).tolist()
    distributed.gather_bytes(b"random state")
    return spread


def start(job: list[str], rank: int, port: int, anew: bool) -> int:
    """Start one rank; its process id."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if anew:
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, __file__, "--job", *job], env=environment, stderr=subprocess.DEVNULL
        ).pid
    child = os.fork()
    if child == 0:
        os.environ.update(place)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the tracebacks are on purpose
        sys.exit(run(*job))
    return child


def run(plain: str, strategy: str, end: str) -> int:
    """Do the work; an error is reported as Python would report it, a SystemExit passes through."""
    try:
        (work_plainly if plain == "plain" else work)(strategy, end)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--exec", action="store_true", help="start each process anew instead of forking it")
    parser.add_argument("--plain", action="store_true", help="torch alone, to see the trap")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # what a process started anew is told
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use a thread pool that its parent has started
    if arguments.job:
        return run(*arguments.job)
    if not arguments.exec:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # torch imports half of itself here: once, for all children
    began, dirty, total = time.monotonic(), Counter(), Counter()
    kinds = itertools.cycle(itertools.product(("ddp", "fsdp"), ENDS))
    for strategy, end in itertools.islice(kinds, arguments.runs):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        job = ["plain" if arguments.plain else "lorakit", strategy, end]
        children = [start(job, rank, port, arguments.exec) for rank in range(2)]
        for child in children:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            total[strategy, end] += 1
            if status != ENDS[end]:
                dirty[strategy, end, status] += 1
    command = shlex.join(["python", "benchmarks/teardown.py", *sys.argv[1:]])
    shown = ", ".join(f"{number} × status {key[2]} ({key[0]}, {key[1]})" for key, number in sorted(dirty.items()))
    line = (
        f"| `{command}` | {arguments.runs} | {sum(total.values())} | {sum(dirty.values())} | {shown or '–'}"
        f" | {time.monotonic() - began:.0f} |"
    )
    print(line)
    return 1 if dirty and not arguments.plain else 0


if __name__ == "__main__":
    sys.exit(main())
