"""Where a result comes from (command, machine, versions), and its files: what speed benchmarks write alike."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from seeds import machine
from systems import ROOT


def origin(script: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """A summary's first entries; `arguments` as given to the script's main, None for the command line's."""
    command = ["python", f"benchmarks/{script}", *(sys.argv[1:] if arguments is None else arguments)]
    return {"schema": 1, "command": shlex.join(command), "machine": _where(), "versions": _versions()}


def origin_lines(summary: dict[str, Any]) -> list[str]:
    """The end of a report."""
    return [
        f"Command: `{summary['command']}`",
        "",
        f"Machine: {summary['machine']}",
        "",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in summary["versions"].items()),
    ]


def shown_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the result depends on, without this machine's paths."""
    hidden = ("worker", "output_dir")
    return {k: v for k, v in vars(options).items() if k not in hidden} | {"dataset": Path(options.dataset).name}


def write_results(
    options: argparse.Namespace,
    summary: dict[str, Any],
    text: str,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Print the report and write it as NAME.md, with NAME.json and, where it is drawn, NAME.png, to the folder."""
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{options.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / f"{options.name}.md").write_text(text, encoding="utf-8")
    if draw:
        draw(summary, folder / f"{options.name}.png")
    print(text)


def _where() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    threads = f", {torch.get_num_threads()} torch threads, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    return machine() + gpu + threads


def _versions() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    names = ("torch", "transformers", "peft", "accelerate")
    return {
        "python": platform.python_version(),
        **{n: version(n) for n in names},
        "lorakit": commit.strip() or "unknown",
    }
