"""Time of lorakit's entity scores against seqeval's own, on the real splits with noise.

  python benchmarks/scoring.py --dataset ../shared/bionlp2004 --noise 0.05 --repeats 5

Both score the default and the strict mode and give the same figures; the best of the repeats is printed for each. The
last column starts from arrays of classes, as `evaluate` does.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from seeds import machine

import lorakit
from lorakit.report.tables import markdown_table
from lorakit.training.metrics import score, score_by_seqeval, score_classes

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "bionlp2004"))
    parser.add_argument("--noise", type=float, default=0.05, help="share of tags drawn anew (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    data, rows = lorakit.read_ner(options.dataset), []
    draw = np.random.default_rng(0)
    for split in (data.validation, data.test):
        gold = [list(sentence.tags) for sentence in split]
        lengths = np.array([len(tags) for tags in gold])
        classes = np.array([data.labels.index(tag) for tags in gold for tag in tags])
        guessed = np.where(draw.random(len(classes)) < options.noise, draw.integers(len(data.labels)), classes)
        names = [data.labels[number] for number in guessed]
        ends = np.cumsum(lengths)
        guess = [names[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        by_seqeval = best(options.repeats, lambda g=gold, p=guess: score_by_seqeval(g, p))
        by_name = best(options.repeats, lambda g=gold, p=guess: score(g, p))
        by_class = best(options.repeats, lambda g=classes, p=guessed, n=lengths: score_classes(g, p, n, data.labels))
        assert by_seqeval[1] == by_name[1] == by_class[1], "the scores differ"
        times = [seconds for seconds, _ in (by_seqeval, by_name, by_class)]
        rows.append([f"{len(gold):,}", *(f"{1000 * seconds:.1f}" for seconds in times), f"{times[0] / times[2]:.0f} ×"])
    header = ["sentences", "seqeval (ms)", "lorakit, tags (ms)", "lorakit, classes (ms)", "seqeval / classes"]
    print(markdown_table(header, rows))
    print(f"\n{machine()}; numpy {np.__version__}")
    return 0


def best(repeats: int, call: Callable[[], object]) -> tuple[float, object]:
    """The shortest time of some calls, in seconds, and what the last gave."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - began)
    return min(times), answer


if __name__ == "__main__":
    sys.exit(main())
