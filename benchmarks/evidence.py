"""What the default settings rest on: one training run per cell, on a pretrained base and a real corpus.

  python benchmarks/evidence.py --model path/to/base --dataset path/to/bionlp2004 --stage screen
  python benchmarks/evidence.py --model path/to/base --dataset path/to/bionlp2004 --stage final --seeds 0 1 2
  python benchmarks/evidence.py --table

The screen trains on the first sentences of the corpus, changes one or two settings at a time, and looks only at
validation F1. The final stage trains the chosen settings on the whole corpus; it alone reads the test set.

Each finished cell is one line of benchmarks/results/evidence-cells.jsonl. A cell whose settings are already there is
skipped, so the same command continues where a killed one stopped. FLOPs are counted on four batches spread evenly over
the corpus, in a separate run that is neither timed nor metered, and scaled to the tokens trained on up to the best
epoch. Set OMP_NUM_THREADS=1 to reproduce the recorded speeds.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flops import Operations
from provenance import origin

from lorakit import EnergyMeter, TrainConfig, apply_lora, count_parameters, read_ner, train
from lorakit._files import write_text
from lorakit.cli.parser import Parser, input_errors
from lorakit.data.corpus import NerData
from lorakit.report.tables import markdown_table
from lorakit.training.metrics import Scores
from lorakit.training.models import load_token_classifier

CELLS = Path(__file__).parent / "results" / "evidence-cells.jsonl"
COUNTED_BATCHES = 4
Cell = dict[str, Any]

QUERY_VALUE = ["query", "value"]
ATTENTION = ["query", "key", "value", "attention.output.dense"]


def full(learning_rate: float, batch_size: int = 32, **more: Any) -> Cell:
    """A cell of full fine-tuning."""
    return {"mode": "full", "learning_rate": learning_rate, "batch_size": batch_size, **more}


def lora(
    learning_rate: float = 2e-3,
    batch_size: int = 32,
    *,
    r: int = 16,
    alpha: float = 16,
    targets: str | list[str] = "all-linear",
    start: str = "pissa",
    dropout: float | None = None,
    **options: Any,
) -> Cell:
    """A cell of LoRA.

    Args:
        start: "plain" (B = 0), "rslora" (B = 0, scaled by alpha/sqrt(r)), or a name that init_lora_weights takes.
        dropout: of the base; None keeps its own.
        options: further arguments of `apply_lora`.
    """
    options = {"r": r, "lora_alpha": alpha, "target_modules": targets, **options}
    if start == "rslora":
        options["use_rslora"] = True
    elif start != "plain":
        options["init_lora_weights"] = start
    cell = {"mode": "lora", "learning_rate": learning_rate, "batch_size": batch_size, "lora": options}
    return cell if dropout is None else {**cell, "dropout": dropout}


SCREEN = [
    lora(2e-3),
    lora(2e-3, batch_size=16),
    full(5e-4),
    lora(2e-3, batch_size=16, start="plain"),
    full(5e-4, batch_size=16),
    lora(4e-3, batch_size=16),
    lora(4e-3, batch_size=16, start="plain"),
    lora(1e-3, batch_size=16),
    lora(2e-3, batch_size=16, r=32, alpha=32),
    lora(2e-3, batch_size=16, start="plain", alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=8, alpha=16),
    full(2e-4, batch_size=16),
    lora(4e-3, batch_size=16, start="plain", alpha=32, targets=QUERY_VALUE),
    lora(2e-3, batch_size=8, start="plain", alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=32, alpha=64),
    lora(2e-3, batch_size=16, start="plain", r=8, alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=32, alpha=32),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=["word_embeddings"]),
    full(1e-3, batch_size=16),
    lora(4e-3, batch_size=16, start="plain", r=8, alpha=16),
    full(3e-4, batch_size=16),
    lora(2e-3, batch_size=16, start="rslora"),
    lora(2e-3, batch_size=16, start="plain", alpha=32, targets=ATTENTION),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=["LayerNorm"]),
    lora(2e-3, batch_size=16, start="plain", r=4, alpha=8),
    lora(1e-3, batch_size=16, start="plain", alpha=32),
]
FINAL = [
    lora(2e-3, batch_size=16, start="plain", alpha=32),
    full(5e-4, batch_size=16),
]


# Running -------------------------------------------------------------------------------------------------------------


def planned(arguments: argparse.Namespace, source: str) -> list[Cell]:
    """The stage's cells with everything their results depend on, all cells of a seed before the next seed."""
    screening = arguments.stage == "screen"
    common = {
        "model": "/".join(Path(arguments.model).parts[-2:]),
        "dataset": Path(source).name,
        "sentences": arguments.sentences if screening else None,
        "validation_sentences": arguments.validation_sentences if screening else None,
        "epochs": arguments.epochs,
        "precision": arguments.precision,
        "test": not screening,
    }
    chosen = SCREEN if screening else FINAL
    return [{**common, **cell, "seed": seed} for seed in arguments.seeds for cell in chosen]


def measure(cell: Cell, data: NerData, model_source: str) -> dict[str, Any]:
    """Train one cell; its line of the results."""
    data = replace(
        data,
        train=data.train[: cell["sentences"]],
        validation=data.validation[: cell["validation_sentences"]],
        test=data.test if cell["test"] else (),
    )
    config = TrainConfig(
        epochs=cell["epochs"],
        batch_size=cell["batch_size"],
        learning_rate=cell["learning_rate"],
        precision=cell["precision"],
        seed=cell["seed"],
        progress=False,
    )
    load = os.getloadavg()[0]
    model, tokenizer = build(cell, data, model_source)
    counted = count_parameters(model)
    cpu_seconds = time.process_time()
    with EnergyMeter() as meter:
        result = train(model, tokenizer, data, config)
    cpu_seconds = time.process_time() - cpu_seconds  # varies less than duration_s with other load
    flops_per_token = count_flops(cell, data, model_source, config)
    reading = meter.reading
    energy = {
        name: {"wh": part.wh, "method": part.method, "source": part.source}
        for name, part in (("gpu", reading.gpu), ("cpu", reading.cpu), ("ram", reading.ram))
    }
    return {
        "trained_parameters": counted.trainable,
        "all_parameters": counted.total,
        "best_epoch": result.best_epoch,
        "validation": [brief(scores) for scores in result.history],
        "test": brief(result.test) if result.test else None,
        "steps": result.steps,
        "skipped_steps": result.skipped_steps,
        "train_tokens": result.train_tokens,
        "computed_tokens": result.computed_tokens,
        "train_tokens_per_s": result.train_tokens_per_s,
        "train_seconds": result.train_seconds,
        "duration_s": result.duration_s,
        "cpu_seconds": cpu_seconds,
        "flops_per_token": flops_per_token,
        "flops_to_best_epoch": flops_per_token * result.train_tokens * result.best_epoch / result.epochs,
        "energy": {**energy, "measured_wh": reading.measured_wh, "estimated_wh": reading.estimated_wh},
        "load_average_before": load,
    }


def build(cell: Cell, data: NerData, model_source: str) -> tuple[Any, Any]:
    """A fresh base with its head, adapted where the cell is LoRA's, and the tokenizer."""
    model, tokenizer = load_token_classifier(model_source, data.labels, cell["seed"], cell.get("dropout"))
    if cell["mode"] == "lora":
        apply_lora(model, **cell["lora"], seed=cell["seed"])
    return model, tokenizer


def count_flops(cell: Cell, data: NerData, model_source: str, config: TrainConfig) -> float:
    """FLOPs per real token of a training step, counted on a few batches of sentences from all over the corpus."""
    wanted = COUNTED_BATCHES * config.batch_size
    some = data.train[:: max(1, len(data.train) // wanted)][:wanted]
    model, tokenizer = build(cell, data, model_source)
    with Operations() as operations:
        result = train(model, tokenizer, replace(data, train=some, validation=(), test=()), replace(config, epochs=1))
    return operations.flops / result.train_tokens


def brief(scores: Scores) -> dict[str, float | None]:
    return {
        "f1": scores.f1,
        "strict_f1": scores.strict.f1,
        "precision": scores.precision,
        "recall": scores.recall,
        "loss": scores.loss,
    }


# Results -------------------------------------------------------------------------------------------------------------


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the results for one writer.

    Raises:
        ValueError: another process is writing to them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path} is being written by another process; wait for it to end") from None
        yield
    finally:
        os.close(lock)


def read_cells(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_cell(path: Path, record: dict[str, Any]) -> None:
    """Append a line; a kill leaves the file with it or without it."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, before + json.dumps(record) + "\n")


def table(records: Sequence[dict[str, Any]]) -> str:
    """All cells in Markdown, grouped by corpus size and sorted by validation F1."""
    rows = []
    for record in sorted(records, key=sort_key):
        cell = record["cell"]
        options = dict(cell.get("lora", {}))
        targets = options.pop("target_modules", "")
        start = "rslora" if options.pop("use_rslora", False) else "plain" if options else ""
        start = options.pop("init_lora_weights", start)
        named = [
            cell["mode"],
            targets if isinstance(targets, str) else ", ".join(targets),
            str(options.pop("r", "")),
            f"{options.pop('lora_alpha', 0):g}" if cell["mode"] == "lora" else "",
            start,
            f"{cell['learning_rate']:g}",
            str(cell["batch_size"]),
            ", ".join(also(options, cell)),
            str(cell["sentences"] or "all"),
            str(cell["epochs"]),
            cell["precision"],
            str(cell["seed"]),
        ]
        if "error" in record:
            rows.append([*named, record["error"].split(";")[0][:60], *[""] * 7])
            continue
        best = record["validation"][record["best_epoch"] - 1]
        rows.append([
            *named, f"{best['f1']:.4f}", f"{best['strict_f1']:.4f}",
            f"{record['test']['f1']:.4f}" if record["test"] else "", f"{record['trained_parameters']:,}",
            f"{record['train_tokens_per_s']:,.0f}", f"{record['flops_to_best_epoch'] / 1e12:.1f}",
            f"{record['duration_s']:.0f}", f"{record['energy']['estimated_wh'] or 0:.2f}",
        ])  # fmt: skip
    header = ["mode", "targets", "r", "alpha", "start", "rate", "batch", "also", "sentences", "epochs", "precision",
              "seed", "validation F1", "strict", "test F1", "trained", "tokens/s", "TFLOPs to best", "s",
              "Wh estimated"]  # fmt: skip
    return markdown_table(header, rows)


def also(options: dict[str, Any], cell: Cell) -> list[str]:
    """Settings without a column of their own."""
    named = {**options, **({"dropout": cell["dropout"]} if "dropout" in cell else {})}
    return [f"{name} {' + '.join(value) if isinstance(value, list) else value}" for name, value in named.items()]


def sort_key(record: dict[str, Any]) -> tuple[float, float]:
    scores = record.get("validation") or [{"f1": 0.0}]
    return -(record["cell"]["sentences"] or 1e9), -max(s["f1"] for s in scores)


# Command line --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="evidence.py", description=__doc__)
    add = parser.add_argument
    add("--model", metavar="FOLDER_OR_ID", help="the pretrained base")
    add("--dataset", metavar="FOLDER_OR_ID", help="the corpus")
    add("--stage", choices=("screen", "final"), default="screen", help="default: %(default)s")
    add(
        "--sentences",
        type=int,
        default=3072,
        metavar="N",
        help="training sentences in the screen (default: %(default)s)",
    )
    add("--validation-sentences", type=int, default=1000, metavar="N", help="in the screen (default: %(default)s)")
    add("--epochs", type=int, default=2, help="default: %(default)s")
    add("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    add("--at-most", type=int, metavar="N", help="stop after N new cells")
    add("--table", action="store_true", help="only print the table of the cells so far")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(table(read_cells(CELLS)))
        return 0
    if not arguments.model or not arguments.dataset:
        parser.error("--model and --dataset are needed, except with --table")
    with input_errors(parser), alone(CELLS):
        data = read_ner(arguments.dataset)
        run(planned(arguments, arguments.dataset), data, arguments)
    return 0


def run(cells: Sequence[Cell], data: NerData, arguments: argparse.Namespace) -> None:
    """Run what is missing, one cell after another."""
    where = origin("")
    del where["command"]  # the settings say it, without the paths of one machine
    done = [record["cell"] for record in read_cells(CELLS)]
    missing = [cell for cell in cells if cell not in done][: arguments.at_most]
    for number, cell in enumerate(missing, start=1):
        print(f"{number} of {len(missing)}: {json.dumps(cell)}", flush=True)
        began = time.perf_counter()
        try:
            result = measure(cell, data, arguments.model)
        except FloatingPointError as error:  # too high a rate
            result = {"error": str(error)}
        add_cell(CELLS, {"cell": cell, **result, **where})
        scores = [f"{score['f1']:.4f}" for score in result.get("validation", [])]
        said = result.get("error") or f"validation F1 {', '.join(scores)}"
        print(f"  {said}; {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
