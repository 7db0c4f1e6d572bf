"""How long a corpus takes to read, against another commit: CPU seconds of both, in turns, each in a process of its own.

  git worktree add ../before 2a9e5fd
  python benchmarks/reading.py --before ../before

A process reads the corpus twice, so that imports do not count, and reports the second time. The two commits take turns,
which of them is first too, so that both meet the same machine; the ratio of each turn's times counts. The corpus is
read as it is, and as two columns that this script writes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from provenance import BIONLP, ROOT, BenchmarkParser, write_results

from lorakit.data.corpus import read_ner
from lorakit.report.tables import markdown_table

READ = """
import sys, time
from lorakit import read_ner
read_ner(sys.argv[1])
start = time.process_time()
data = read_ner(sys.argv[1])
print(time.process_time() - start, sum(len(s.words) for part in (data.train, data.validation, data.test) for s in part))
"""


def main(argv: list[str] | None = None) -> int:
    parser = BenchmarkParser("reading.py", __doc__)
    parser.add_argument("--before", required=True, metavar="DIR", help="a working tree of the other commit")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each commit; default: %(default)s")
    parser.add_common(dataset=BIONLP)
    options = parser.parse_args(argv)
    before = Path(options.before).resolve()
    with tempfile.TemporaryDirectory() as folder:
        write_columns(options.dataset, Path(folder))
        sources = {"JSON lines": options.dataset, "two columns": folder}
        found = {name: compare(before, source, options.rounds) for name, source in sources.items()}
    commit = subprocess.run(
        ["git", "-C", before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    write_results(options, {"dataset": Path(options.dataset).name, "before": commit, "forms": found}, report)
    return 0


def write_columns(dataset: str, folder: Path) -> None:
    """Write the splits of a corpus as words, tabs and tags."""
    data = read_ner(dataset)
    for name, part in (("train", data.train), ("dev", data.validation), ("test", data.test)):
        lines = ("".join(f"{w}\t{t}\n" for w, t in zip(s.words, s.tags, strict=True)) for s in part)
        (folder / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")


def compare(before: Path, source: str, rounds: int) -> dict[str, Any]:
    """The CPU seconds of each turn of both commits, which read the same number of words."""
    times: dict[str, list[float]] = {"before": [], "now": []}
    words = set()
    for turn in range(rounds):
        order = [("before", before), ("now", ROOT)]
        for name, tree in order if turn % 2 == 0 else reversed(order):
            seconds, count = read(tree, source)
            times[name].append(seconds)
            words.add(count)
    if len(words) > 1:
        raise SystemExit(f"{source}: the commits read different numbers of words: {sorted(words)}")
    ratios = [now / then for now, then in zip(times["now"], times["before"], strict=True)]
    return {"words": words.pop(), "seconds": times, "ratio": median(ratios), "ratios": ratios}


def read(tree: Path, source: str) -> tuple[float, int]:
    """The CPU seconds and the number of words of a process that reads a corpus with the library of a working tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READ, str(Path(source).resolve())]
    answer = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True).stdout
    seconds, words = answer.split()[-2:]
    return float(seconds), int(words)


def report(summary: dict[str, Any]) -> list[str]:
    rows = [
        [
            form,
            f"{found['words']:,}",
            f"{min(found['seconds']['before']):.2f}",
            f"{min(found['seconds']['now']):.2f}",
            f"{found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})",
        ]
        for form, found in summary["forms"].items()
    ]
    header = [
        "read as",
        "words",
        f"CPU seconds at {summary['before']}, fastest",
        "now, fastest",
        "ratio, median (range)",
    ]
    return [f"# Time to read {summary['dataset']}", "", markdown_table(header, rows)]


if __name__ == "__main__":
    sys.exit(main())
