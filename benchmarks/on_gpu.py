"""Everything that only a GPU can show, one command after another, each with a time limit. Not yet run on a GPU.

  python benchmarks/on_gpu.py                             everything, at most 20 minutes
  python benchmarks/on_gpu.py --within 540                as much of it as nine minutes allow
  python benchmarks/on_gpu.py --only tests whole-run
  python benchmarks/on_gpu.py --list                      the commands

A command that fails or takes too long is named at the end, the others run anyway, and the status is 1. The results are
benchmarks/results/throughput-gpu*, whole-run-gpu* and energy-gpu*.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPEED = "benchmarks/throughput.py --precision bf16 --warmup 10 --rounds 1"
ALL = f"{SPEED} --steps 300"  # fewer, because the peers' steps take long
OURS = f"{SPEED} --steps 500 --systems lorakit-lora lorakit-full"  # nearly an epoch, long enough for NVML's counters
RECORDED, COMPILED = '{"engine": "cuda_graphs"}', '{"engine": "compile"}'
TESTED = ("evaluation", "graphs", "precision", "session")


@dataclass(frozen=True)
class Part:
    """The arguments of `python`, and how long they may run."""

    limit_s: float
    words: tuple[str, ...]


PARTS = {
    name: Part(limit_s, tuple(shlex.split(command)))
    for name, limit_s, command in (
        # -W default: another machine's packages may give warnings that do not matter here
        ("tests", 180, f"-m pytest -q -W default {' '.join(f'tests/training/test_{name}.py' for name in TESTED)}"),
        ("throughput-gpu", 300, f"{ALL} --train-config '{RECORDED}' --name throughput-gpu"),
        ("throughput-gpu-recorded", 90, f"{OURS} --train-config '{RECORDED}' --name throughput-gpu-recorded"),
        ("whole-run", 150, "benchmarks/whole_run.py --engine cuda_graphs --name whole-run-gpu"),
        ("throughput-gpu-plain", 90, f"{OURS} --name throughput-gpu-plain"),
        ("meter", 120, "benchmarks/energy_overhead.py --seconds 15 --name energy-gpu"),
        ("throughput-gpu-compiled", 240, f"{OURS} --train-config '{COMPILED}' --name throughput-gpu-compiled"),
    )
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    parts = {name: on_corpus(PARTS[name], options.dataset) for name in options.only}
    if options.list:
        print("\n".join(f"{name}, at most {part.limit_s:.0f} s: {shown(part)}" for name, part in parts.items()))
        return 0
    began, ends = time.monotonic(), {}
    for name, part in parts.items():
        left_s = options.within - (time.monotonic() - began)
        print(f"\n== {name}: {shown(part)}", flush=True)
        ends[name] = run(part, left_s) if left_s > 0 else "not begun: no time was left"
    print("\n" + "\n".join(f"{name}: {end}" for name, end in ends.items()))
    return 0 if all(end.startswith("done") for end in ends.values()) else 1


def on_corpus(part: Part, folder: str | None) -> Part:
    """The part, with this corpus instead of the one beside the project if it reads one."""
    reads = part.words[0] in ("benchmarks/throughput.py", "benchmarks/whole_run.py")
    return replace(part, words=(*part.words, "--dataset", folder)) if folder and reads else part


def run(part: Part, left_s: float) -> str:
    """Run it for at most so many seconds, and say how it ended."""
    began, limit_s = time.monotonic(), min(part.limit_s, left_s)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # lorakit may not be installed
    variables = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, *part.words], cwd=ROOT, env=variables, start_new_session=True)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:  # also end what it has started, also on Ctrl-C
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"{'done' if status == 0 else f'FAILED with status {status}'} after {time.monotonic() - began:.0f} s"


def shown(part: Part) -> str:
    return shlex.join(("python", *part.words))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--dataset", metavar="FOLDER", help="default: ../shared/bionlp2004")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="S", help="seconds for all of them")
    parser.add_argument("--list", action="store_true", help="show the commands and run nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
