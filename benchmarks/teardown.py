"""End pairs of gloo processes again and again, and count the processes that do not end as they should.

  python benchmarks/teardown.py

Two processes train a small layer under DDP or FSDP2, keep the model to the end as scripts do, and end in turn with
status 0, with an error (1) or as a stopped run does (143). Any other status, such as SIGABRT (-6), is dirty. They run
inside lorakit's `process_group`, and after every fourth pair one runs with torch alone (`init_process_group`,
`destroy_process_group`) on the same machine: the latter shows that the trap exists, the former what is left of it.
Every process is started afresh: one forked from a process that has imported torch does not fail (0 of 360 processes).
"""

import os
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

KINDS = [("ddp", "returns"), ("ddp", "raises"), ("fsdp", "returns"), ("ddp", "is stopped")]
ENDS = {"returns": 0, "raises": 1, "is stopped": 143}
CONTROL_EVERY = 4  # pairs


def work(group: str, strategy: str, end: str) -> None:
    """What one rank does; the model lives until the process ends. With group "torch" it never imports lorakit."""
    global model
    if group == "lorakit":
        from lorakit.training.distributed import process_group

        with process_group():
            model = train(strategy)
            leave(end)
        return
    dist.init_process_group("gloo")
    try:
        model = train(strategy)
        leave(end)
    finally:
        dist.destroy_process_group()


def train(strategy: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 5))
    model = fully_shard(model) if strategy == "fsdp" else nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(5):
        model(torch.randn(4, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts = torch.ones(2)
        dist.all_reduce(counts)
        counts.tolist()
    return model


def leave(end: str) -> None:
    if end == "raises":
        raise ValueError("on purpose")
    if end == "is stopped":
        raise SystemExit(143)


# The process that starts the pairs: it imports in its functions, because a pair must not import lorakit ---------------


def main(arguments: list[str] | None = None) -> int:
    from processes import rendezvous
    from provenance import BenchmarkParser, write_results

    parser = BenchmarkParser(prog="teardown.py", description=__doc__)
    parser.add_argument("--runs", type=int, default=208, help="pairs of processes (default: %(default)s)")
    options, began = parser.parse_args(arguments), time.monotonic()
    ends: Counter[tuple[str, str, str, int]] = Counter()

    def run_pair(group: str, kind: tuple[str, str]) -> None:
        command = [sys.executable, __file__, "--job", group, *kind]
        variables = [{**os.environ, **place, "OMP_NUM_THREADS": "1"} for place in rendezvous(2)]
        for process in [subprocess.Popen(command, env=own, stderr=subprocess.DEVNULL) for own in variables]:
            ends[(group, *kind, process.wait())] += 1

    for number in range(options.runs):
        run_pair("lorakit", KINDS[number % len(KINDS)])
        if number % CONTROL_EVERY == CONTROL_EVERY - 1:
            run_pair("torch", KINDS[number // CONTROL_EVERY % len(KINDS)])
    rows = []
    for (strategy, end), group in product(KINDS, ("torch", "lorakit")):
        statuses = {key[-1]: number for key, number in sorted(ends.items()) if key[:-1] == (group, strategy, end)}
        dirty = {status: number for status, number in statuses.items() if status != ENDS[end]}
        rows.append({"group": group, "strategy": strategy, "end": end, "processes": sum(statuses.values()),
                     "dirty": sum(dirty.values()), "statuses": dirty})  # fmt: skip
    write_results(options, {"seconds": time.monotonic() - began, "rows": rows}, report)
    return 1 if any(row["dirty"] for row in rows if row["group"] == "lorakit") else 0


def report(summary: dict[str, Any]) -> list[str]:
    from tables import table

    groups = ("lorakit", "torch")
    total, dirty = (
        {group: sum(row[key] for row in summary["rows"] if row["group"] == group) for group in groups}
        for key in ("processes", "dirty")
    )
    proof = (
        "Torch alone fails here, so the trap exists, and lorakit's figure shows what is left of it."
        if dirty["torch"]
        else "**Torch alone did not fail either: this run proves nothing about lorakit's group.**"
    )
    which = lambda row: ", ".join(f"{n} × status {status}" for status, n in row["statuses"].items()) or None  # noqa: E731
    columns = [(name, name, "{}") for name in ("group", "strategy", "end", "processes", "dirty")]
    return [
        "# How gloo processes end",
        "",
        f"**Inside lorakit's `process_group` {dirty['lorakit']} of {total['lorakit']} processes"
        f" ({total['lorakit'] // 2} pairs) ended dirty, with torch alone, run in between, {dirty['torch']} of"
        f" {total['torch']}.** {proof}",
        "",
        table(summary["rows"], *columns, ("which", which, "{}")),
        "",
        '- *torch*: `init_process_group("gloo")`, five training steps, `destroy_process_group`, the model kept to the'
        ' end, as scripts do. Status -6 is SIGABRT ("terminate called without an active exception"), after the results'
        " were right.",
        "- *lorakit*: the same work inside `lorakit.training.distributed.process_group`, which every `train` and"
        " `evaluate` uses.",
        "- Dirty is any status but 0 (returns), 1 (raises) and 143 (is stopped).",
        f"- It took {summary['seconds']:.0f} s, with one thread per process.",
    ]


if __name__ == "__main__":
    sys.exit(work(*sys.argv[2:]) if sys.argv[1:2] == ["--job"] else main())
