"""What every benchmark shares: its command line, where its result comes from, and the files NAME.{json,md,png}."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorakit._files import atomic_write, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BIONLP = str(ROOT.parent / "shared" / "bionlp2004")
COMMON: dict[str, dict[str, Any]] = {  # flags of several benchmarks; each has its own default
    "dataset": {"help": "a folder, or 'embedded'"},
    "dropout": {"help": "of the base"},
    "note": {"help": "a sentence to put at the top of the report"},
    "output_dir": {"help": "for the result files"},
    "precision": {"choices": ("auto", "fp32", "bf16", "fp16")},
    "sentences": {"help": "of the training set", "type": int},
    "steps": {"help": "to time"},
}
Summary = dict[str, Any]


class BenchmarkParser(argparse.ArgumentParser):
    """An argument parser whose result also holds `command`, the command line, and where to write the result files.

    Their name is the script's, followed by a shape other than the default and by "no-dropout", so that such a result
    does not overwrite the usual one.
    """

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.stem = Path(prog).stem
        self.add_argument("--name", help="of the result files (default: the script's)")
        self.add_common(output_dir=str(RESULTS))

    def add_common(self, **defaults: Any) -> None:
        """Add a flag for each keyword, with that default; its type is the default's."""
        for name, default in defaults.items():
            several = isinstance(default, list)
            about = {"type": type(default[0] if several else default), **COMMON.get(name, {})}
            if several:
                about["nargs"] = "+"
            if default not in (None, ""):
                about["help"] = f"{about.get('help', '')} (default: %(default)s)".lstrip()
            self.add_argument(f"--{name.replace('_', '-')}", default=default, **about)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        options = super().parse_args(args, namespace)
        given = sys.argv[1:] if args is None else args
        options.command = shlex.join(["python", f"benchmarks/{self.prog}", *given])
        shape = getattr(options, "shape", None)
        parts = (self.stem, shape if shape != self.get_default("shape") else "")
        without = "no-dropout" * (getattr(options, "dropout", None) == 0)
        options.name = options.name or "-".join(filter(None, (*parts, without)))
        return options


def origin(command: str) -> Summary:
    """The first entries of every summary: command, machine and versions."""
    return {"schema": 1, "command": command, "machine": machine(), "versions": _versions()}


def origin_lines(summary: Summary) -> list[str]:
    """The end of every report."""
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    return [
        f"Command: `{summary['command']}`",
        "",
        f"Machine: {summary['machine']}",
        "",
        f"Versions: {versions}",
    ]


def energy_sources(energies: Iterable[dict[str, Any]]) -> list[str]:
    """One line per component: how its energy was obtained, with all the ways that occur in these readings."""
    readings, lines = list(energies), []
    for part in ("gpu", "cpu", "ram"):
        ways = dict.fromkeys("{method} ({source})".format(**energy[part]) for energy in readings)
        lines.append(f"- {part.upper()}: {'; or '.join(ways)}")
    return lines


def shown_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options a result depends on, without paths of this machine."""
    hidden = ("command", "worker", "output_dir")
    return {k: v for k, v in vars(options).items() if k not in hidden} | {"dataset": Path(options.dataset).name}


def write_results(
    options: argparse.Namespace,
    found: Summary,
    report: Callable[[Summary], list[str]],
    draw: Callable[[Summary, Any], None] | None = None,
    caption: str = "",
) -> None:
    """Print the report, and write it as NAME.md beside NAME.json and NAME.png.

    Args:
        options: names the files (`name`, `output_dir`) and holds the `command`.
        found: what was measured; the summary is this and the result's origin.
        report: makes the report's lines from the summary.
        draw: draws the summary on a matplotlib figure; None: there is no picture.
        caption: of the picture, which the report shows.
    """
    summary = {**origin(options.command), **found}
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    picture = [f"![{caption}]({options.name}.png)", ""] if draw else []
    text = "\n".join([*report(summary), "", *picture, *origin_lines(summary)]) + "\n"
    write_text(folder / f"{options.name}.json", json.dumps(summary, indent=1) + "\n")
    write_text(folder / f"{options.name}.md", text)
    if draw:
        from matplotlib.figure import Figure  # heavy: only when a picture is drawn

        figure = Figure(layout="constrained")
        draw(summary, figure)
        atomic_write(folder / f"{options.name}.png", lambda path: figure.savefig(path, dpi=110, format="png"))
    print(text)


def machine() -> str:
    """CPU, memory, system, GPU and threads of this machine, in words."""
    import torch  # heavy: only when a result is written

    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{name}, {os.cpu_count()} logical CPUs, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    wanted = os.environ.get("OMP_NUM_THREADS", "unset")
    return f"{system}, {gpu}, {torch.get_num_threads()} torch threads, OMP_NUM_THREADS={wanted}"


def _versions() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # not every benchmark needs all of them
            continue
    return versions | {"lorakit": commit.strip() or "unknown"}
