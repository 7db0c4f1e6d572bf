"""Greedy tags against the best sequence that the scheme allows (Viterbi): F1 in both modes, after few steps and many.

  python benchmarks/decoding.py --sentences 2000 --epochs 1 3 --seeds 3

Trains a LoRA adapter per seed and number of epochs, and scores the validation and the test set with both decoders.
"broken" is the share of the greedy sequences' entity tags that break IOB2. By these figures Viterbi is what training on
entity tags decodes with.
"""

import sys
import tempfile
from dataclasses import replace
from statistics import mean
from typing import Any

from provenance import BIONLP, BenchmarkParser, write_results
from tables import mean_sd, table

from lorakit.data.corpus import NerData, read_ner
from lorakit.data.decoding import decoder_for
from lorakit.data.tags import irregular, scheme_of_labels
from lorakit.lora import apply_lora
from lorakit.training.config import TrainConfig
from lorakit.training.evaluation import encode_split, evaluate_split, tag_words
from lorakit.training.layout import layout_for
from lorakit.training.loop import train
from lorakit.training.models import load_token_classifier

DECODERS = ("greedy", "viterbi")


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="decoding.py", description=__doc__)
    parser.add_common(dataset=BIONLP, sentences=2000)
    parser.add_argument("--model", default="examples/mini")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scored", type=int, default=1000, help="sentences of each scored split")
    options = parser.parse_args(arguments)
    data = read_ner(options.dataset)
    data = replace(data, train=data.train[: options.sentences])
    data = replace(data, validation=data.validation[: options.scored], test=data.test[: options.scored])
    rows = [
        row
        for epochs in options.epochs
        for seed in range(options.seeds)
        for row in measure(options.model, data, epochs, seed)
    ]
    chosen_by = decoder_for(TrainConfig().decode, data.labels)
    write_results(options, {"schema": 1, "best_epoch_by": chosen_by, "rows": rows}, report, None, "")
    return 0


def measure(base: str, data: NerData, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Train one adapter and score it with both decoders; a row per split and decoder."""
    model, tokenizer = load_token_classifier(base, data.labels, seed=seed)
    apply_lora(model)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(epochs=epochs, seed=seed, output_dir=folder, progress=False)
        train(model, tokenizer, replace(data, test=()), config)
    rows, layout, scheme = [], layout_for(model), scheme_of_labels(data.labels)
    for name in ("validation", "test"):
        sentences = getattr(data, name)
        tags = tag_words(model, tokenizer, [sentence.words for sentence in sentences], decode="greedy").tags
        inside = sum(tag != "O" for row in tags for tag in row)
        broken = sum(len(irregular(row, scheme)) for row in tags) / max(1, inside)
        for decode in DECODERS:
            split = encode_split(model, tokenizer, sentences, layout, decode=decode)
            scores = evaluate_split(model, split)
            rows.append(
                {"epochs": epochs, "seed": seed, "split": name, "decode": decode, "broken": broken}
                | {"f1": scores.f1, "strict_f1": scores.strict.f1}
            )
    return rows


def report(found: dict[str, Any]) -> list[str]:
    """Mean ± sd over the seeds, and the smallest and largest gain of a seed."""
    rows = found["rows"]
    records = []
    for epochs, split in dict.fromkeys((row["epochs"], row["split"]) for row in rows):
        here = [row for row in rows if (row["epochs"], row["split"]) == (epochs, split)]
        record = {"epochs": epochs, "split": split, "broken": 100 * mean(row["broken"] for row in here)}
        for key in ("f1", "strict_f1"):
            sides = [[row[key] for row in here if row["decode"] == decode] for decode in DECODERS]
            gains = [100 * (b - a) for a, b in zip(*sides, strict=True)]
            for decode, side in zip(DECODERS, sides, strict=True):
                record[f"{key}_{decode}"] = mean_sd([100 * f1 for f1 in side], "{:.2f}")
            record[f"{key}_gain"] = f"{mean(gains):+.2f} ({min(gains):+.2f} … {max(gains):+.2f})"
        records.append(record)
    return [
        "# Greedy and Viterbi",
        "",
        table(
            records,
            ("epochs", "epochs", "{}"),
            ("split", "split", "{}"),
            ("broken tags", "broken", "{:.2f} %"),
            ("F1 greedy", "f1_greedy", "{}"),
            ("F1 Viterbi", "f1_viterbi", "{}"),
            ("gain", "f1_gain", "{}"),
            ("strict F1 greedy", "strict_f1_greedy", "{}"),
            ("strict F1 Viterbi", "strict_f1_viterbi", "{}"),
            ("gain", "strict_f1_gain", "{}"),
        ),
        "",
        "Both decoders score the same adapters. Training chose each one's best epoch by the F1 of "
        f"{found['best_epoch_by']} tags, which was its default when this was measured.",
    ]


if __name__ == "__main__":
    sys.exit(main())
