"""Time of lorakit's entity scores beside seqeval's, on the real splits with random errors.

  python benchmarks/scoring.py --dataset ../shared/bionlp2004 --noise 0.05 --repeats 5

Both compute the default and the strict scores, with the same results; each time is the best of the repeats. The last
column starts from arrays of classes, as `evaluate` does.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from provenance import BIONLP, BenchmarkParser, machine
from tables import table
from timing import best_of

import lorakit
from lorakit.metrics import _score_by_seqeval, score, score_classes


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    data, rows = lorakit.read_ner(options.dataset), []
    draw = np.random.default_rng(0)
    for split in (data.validation, data.test):
        gold = [list(sentence.tags) for sentence in split]
        classes, lengths = classes_of(split, data.labels)
        guessed = with_noise(classes, options.noise, len(data.labels), draw)
        tags = iter(data.labels[number] for number in guessed)
        guess = [[next(tags) for _ in sentence] for sentence in gold]
        times, scores = zip(
            best_of(options.repeats, lambda g=gold, p=guess: _score_by_seqeval(g, p)),
            best_of(options.repeats, lambda g=gold, p=guess: score(g, p)),
            best_of(options.repeats, lambda g=classes, p=guessed, n=lengths: score_classes(g, p, n, data.labels)),
            strict=True,
        )
        assert scores[0] == scores[1] == scores[2], "the scores differ"
        rows.append((len(gold), *(1000 * seconds for seconds in times), times[0] / times[2]))
    columns = (
        ("sentences", 0, "{:,}"),
        ("seqeval (ms)", 1, "{:.1f}"),
        ("lorakit, tags (ms)", 2, "{:.1f}"),
        ("lorakit, classes (ms)", 3, "{:.1f}"),
        ("seqeval / classes", 4, "{:.0f} ×"),
    )
    print(table(rows, *columns))
    print(f"\n{machine()}; numpy {np.__version__}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = BenchmarkParser(prog="scoring.py", description=__doc__)
    parser.add_argument("--noise", type=float, default=0.05, help="share of random tags (default: %(default)s)")
    parser.add_common(dataset=BIONLP, repeats=5)
    return parser.parse_args(arguments)


def classes_of(split: Sequence[lorakit.ner.Sentence], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The class of every word of a split, and the number of words of every sentence."""
    classes = np.array([labels.index(tag) for sentence in split for tag in sentence.tags])
    return classes, np.array([len(sentence.tags) for sentence in split])


def with_noise(classes: np.ndarray, share: float, labels: int, draw: np.random.Generator) -> np.ndarray:
    """The classes with this share of them drawn at random."""
    return np.where(draw.random(len(classes)) < share, draw.integers(labels, size=len(classes)), classes)


if __name__ == "__main__":
    sys.exit(main())
