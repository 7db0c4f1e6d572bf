"""Whether `--min-precision` keeps its promise: thresholds from one half of a set's entities, judged on the other half.

  lorakit train --model examples/mini --dataset ../shared/bionlp2004 --sentences 1500 --epochs 2 --output-dir runs/mine
  python benchmarks/coverage.py --adapter runs/mine/adapter --dataset ../shared/bionlp2004

1,000 random halves for each set, type and precision: of the validation set, on which the rule was chosen, and of the
test set, on which it was not. "refused" is the share of halves on which nothing was promised; the other columns are
means over the rest. Entities are decoded as the adapter was trained.
"""

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from provenance import BIONLP, BenchmarkParser, write_results
from tables import table

from lorakit.data.corpus import read_ner
from lorakit.report.comparison import read_comparison
from lorakit.training.calibration import calibrate
from lorakit.training.calibration_file import FEWEST, RISK, threshold_of
from lorakit.training.models import load_tagger

PRECISIONS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
NOTE = (
    "The rule was chosen on the validation set, where two earlier ones promised too much on lucky halves: of every"
    f" second entity {FEWEST} or more must have the precision with {1 - RISK:.0%} confidence, and the others give the"
    " threshold. The test set was looked at after that. No other corpus was tried."
)


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="coverage.py", description=__doc__)
    parser.add_common(dataset=BIONLP)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--splits", type=int, default=1000)
    options = parser.parse_args(arguments)
    model, tokenizer = load_tagger(options.adapter)
    data = read_ner(options.dataset)
    sets = {"validation": data.validation, "test": data.test}
    rows, about = [], {}
    for name, sentences in sets.items():
        found = calibrate(model, tokenizer, sentences)
        about[name] = {"sentences": len(sentences), "temperature": found.temperature, "decode": found.decode}
        rows += [
            {"set": name, **measure(kind, list(outcomes), precision, options.splits)}
            for kind, outcomes in sorted(found.outcomes.items())
            for precision in PRECISIONS
        ]
    record = Path(options.adapter).parent / "comparison.json"
    trained = read_comparison(record)["command"] if record.is_file() else None
    summary = {"schema": 2, "note": NOTE, "trained": trained, "sets": about, "rows": rows}
    write_results(options, summary, report)
    return 0


def measure(kind: str, outcomes: list[tuple[float, bool]], precision: float, splits: int) -> dict[str, Any]:
    """The precision and the share of kept entities on the other half, over random halves."""
    random, kept_right, kept_share, refused = np.random.default_rng(0), [], [], 0
    for _ in range(splits):
        order = random.permutation(len(outcomes))
        one, other = ([outcomes[i] for i in part] for part in np.array_split(order, 2))
        try:
            least = threshold_of(one, kind, precision)
        except ValueError:
            refused += 1
            continue
        kept = [right for score, right in other if score >= least]
        kept_right.append(sum(kept) / max(1, len(kept)))
        kept_share.append(len(kept) / len(other))
    return {
        "type": kind,
        "entities": len(outcomes),
        "all": mean(right for _, right in outcomes),
        "promise": precision,
        "refused": refused / splits,
        "precision": mean(kept_right) if kept_right else None,
        "kept": mean(kept_share) if kept_share else None,
    }


def report(found: dict[str, Any]) -> list[str]:
    """A row per type and promise; those refused on every half are left out."""
    shown = [row for row in found["rows"] if row["precision"] is not None]
    never = [f"{row['set']} {row['type']} {row['promise']:g}" for row in found["rows"] if row["precision"] is None]
    return [
        "# Promised and kept precision",
        "",
        found["note"],
        "",
        table(
            shown,
            ("set", "set", "{}"),
            ("type", "type", "{}"),
            ("entities", "entities", "{:,}"),
            ("precision of all", "all", "{:.3f}"),
            ("promised", "promise", "{:.2f}"),
            ("kept", "precision", "{:.3f}"),
            ("share of entities left", "kept", "{:.2f}"),
            ("refused", "refused", "{:.1%}"),
        ),
        "",
        f"Too few to promise on every half: {', '.join(never) or 'none'}.",
        *["", f"Adapter: `{found['trained']}`"] * bool(found["trained"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
