"""LoRA against full fine-tuning on a pretrained base and a real corpus: one training run per cell of a table.

  python benchmarks/evidence.py --model path/to/base --dataset path/to/bionlp2004 --stage screen
  python benchmarks/evidence.py --model path/to/base --dataset path/to/bionlp2004 --stage whole
  python benchmarks/evidence.py --model path/to/base --dataset path/to/bionlp2004 --stage final --seeds 0 1 2 3 4
  python benchmarks/evidence.py --report

Three stages choose and then test. "screen" trains on the first sentences of the corpus, changes one or two settings at
a time, and looks only at validation F1. "whole" does the same on the whole corpus, for what a part cannot tell, such as
the number of epochs. "final" trains the chosen settings with several seeds; it alone reads the test set. The final
cells of a seed take turns of a few steps, so that other load on the machine slows all of them down alike.

Each finished cell is one line of benchmarks/results/evidence-cells.jsonl. A cell whose settings are already there is
skipped, so the same command continues where a killed one stopped. --report writes evidence.json, .md and .png from
these lines. FLOPs are counted on four batches spread evenly over the corpus, in a separate run that is neither timed
nor metered, and scaled to the tokens trained on up to the best epoch; --recount does it again for all finished cells of
a base. Set OMP_NUM_THREADS=1 to reproduce the recorded speeds.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from evidence_cells import FINAL, SCREEN, WHOLE, Cell, decoder
from evidence_report import SPLIT_MODES, draw, report, summary_of
from flops import Operations
from provenance import origin, write_results

from lorakit import EnergyMeter, TrainConfig, apply_lora, count_parameters, read_ner, train
from lorakit._files import write_text
from lorakit.cli.measured_training import Contestant, train_in_turns
from lorakit.cli.parser import Parser, input_errors
from lorakit.data.corpus import NerData
from lorakit.power.reading import Reading
from lorakit.training.config import TrainResult
from lorakit.training.loop import Trainer
from lorakit.training.metrics import Scores
from lorakit.training.models import load_token_classifier
from lorakit.training.sentences import read_sentences

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "evidence-cells.jsonl"
COUNTED_BATCHES = 4
STAGES = {"screen": SCREEN, "whole": WHOLE, "final": FINAL}


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
        "test": arguments.stage == "final",
    }
    cells = [cell for cell in STAGES[arguments.stage] if arguments.decode in (None, decoder(cell))]
    return [{**common, **cell, "seed": seed} for seed in arguments.seeds for cell in cells]


def measure(cell: Cell, data: NerData, model_source: str) -> dict[str, Any]:
    """Train one cell alone; its line of the results."""
    data, config, load = part_of(cell, data), config_of(cell), os.getloadavg()[0]
    model, tokenizer = build(cell, data, model_source)
    cpu_seconds = time.process_time()
    with EnergyMeter() as meter:
        result = train(model, tokenizer, data, config)
    cpu_seconds = time.process_time() - cpu_seconds  # varies less than duration_s with other load
    flops = count_flops(cell, data, model_source)
    counted = outcome(result, meter.reading, flops, count_parameters(model))
    return {**counted, "cpu_seconds": cpu_seconds, "load_average_before": load}


def measure_in_turns(cells: Sequence[Cell], data: NerData, model_source: str) -> list[dict[str, Any]]:
    """Train the cells of a seed in turns; a line of the results for each."""
    load = os.getloadavg()[0]
    flops = [count_flops(cell, part_of(cell, data), model_source) for cell in cells]
    with TemporaryDirectory() as folder:
        contestants = {
            f"{number}. {cell['mode']}": Contestant(
                *build(cell, data, model_source),
                part_of(cell, data),
                replace(config_of(cell), output_dir=Path(folder) / str(number)),
            )
            for number, cell in enumerate(cells, start=1)
        }
        trained = train_in_turns(contestants)
        return [
            {
                **outcome(result, reading, operations, count_parameters(one.model)),
                **sentences_of(Path(one.config.output_dir)),
                "in_turns_with": len(cells) - 1,
                "load_average_before": load,
            }
            for (result, reading), one, operations in zip(trained.values(), contestants.values(), flops, strict=True)
        ]


def part_of(cell: Cell, data: NerData) -> NerData:
    """The sentences that a cell trains and is scored on."""
    return replace(
        data,
        train=data.train[: cell["sentences"]],
        validation=data.validation[: cell["validation_sentences"]],
        test=data.test if cell["test"] else (),
    )


def config_of(cell: Cell) -> TrainConfig:
    return TrainConfig(
        epochs=cell["epochs"],
        batch_size=cell["batch_size"],
        learning_rate=cell["learning_rate"],
        precision=cell["precision"],
        seed=cell["seed"],
        progress=False,
        **{**cell.get("config", {}), "decode": decoder(cell)},
    )


def build(cell: Cell, data: NerData, model_source: str) -> tuple[Any, Any]:
    """A fresh base with its head, adapted where the cell is LoRA's, and the tokenizer."""
    model, tokenizer = load_token_classifier(model_source, data.labels, cell["seed"], cell.get("dropout"))
    if cell["mode"] == "lora":
        rows = {"trainable_token_indices": tokens_of(data, tokenizer)} if cell.get("token_rows") else {}
        apply_lora(model, **cell["lora"], **rows, seed=cell["seed"])
    for name in cell.get("frozen", ()):
        model.base_model.get_submodule(name).requires_grad_(False)
    return model, tokenizer


def tokens_of(data: NerData, tokenizer: Any) -> list[int]:
    """The tokens of the training sentences, special ones with them."""
    sentences = [list(example.words) for example in data.train]
    return sorted({token for ids in tokenizer(sentences, is_split_into_words=True)["input_ids"] for token in ids})


def count_flops(cell: Cell, data: NerData, model_source: str) -> float:
    """FLOPs per real token of a training step, counted on a few batches of sentences from all over the corpus."""
    wanted = COUNTED_BATCHES * cell["batch_size"]
    some = replace(data, train=data.train[:: max(1, len(data.train) // wanted)][:wanted], validation=(), test=())
    model, tokenizer = build(cell, data, model_source)
    config = config_of(cell)
    with steps_counted() as operations:
        # a cache is filled once per run, whatever the number of epochs
        result = train(model, tokenizer, some, config if config.cache_prefix else replace(config, epochs=1))
    return operations.flops / result.train_tokens


@contextmanager
def steps_counted() -> Iterator[Operations]:
    """Count the steps of a training, and the filling of its cache.

    What a run does once whatever its length, such as the proof of its packed rows, would weigh too much here.
    """
    operations = Operations()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with operations:
                return method(*arguments)

        return run

    with (
        patch.object(Trainer, "train_step", counting(Trainer.train_step)),
        patch.object(Trainer, "fill_cache", counting(Trainer.fill_cache)),
    ):
        yield operations


def finished(like: Cell) -> list[Cell]:
    """The cells of the results with this one's base and corpus that trained to the end."""
    same = ("model", "dataset")
    cells = [record["cell"] for record in read_cells(CELLS) if "error" not in record]
    return [cell for cell in cells if all(cell[name] == like[name] for name in same)]


def recount(cells: Sequence[Cell], data: NerData, model_source: str) -> None:
    """Count the FLOPs of finished cells again."""
    found = {}
    for number, cell in enumerate(cells, start=1):
        found[str(cell)] = per_token = count_flops(cell, part_of(cell, data), model_source)
        print(f"{number} of {len(cells)}: {per_token / 1e6:.2f} MFLOPs per token: {json.dumps(cell)}", flush=True)
    with locked(CELLS):
        records = [
            with_flops(record, found[str(record["cell"])]) if str(record["cell"]) in found else record
            for record in read_cells(CELLS)
        ]
        write_text(CELLS, "".join(json.dumps(record) + "\n" for record in records))


def with_flops(record: dict[str, Any], per_token: float) -> dict[str, Any]:
    """The record with another count."""
    epochs = record["cell"]["epochs"]
    return {**record, **flops_of(per_token, record["train_tokens"], record["best_epoch"], epochs)}


def flops_of(per_token: float, train_tokens: int, best_epoch: int, epochs: int) -> dict[str, float]:
    """A run's FLOPs for its record, from those per token."""
    return {"flops_per_token": per_token, "flops_to_best_epoch": per_token * train_tokens * best_epoch / epochs}


def outcome(result: TrainResult, reading: Reading, flops_per_token: float, counted: Any) -> dict[str, Any]:
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
        **flops_of(flops_per_token, result.train_tokens, result.best_epoch, result.epochs),
        "energy": {**energy, "measured_wh": reading.measured_wh, "estimated_wh": reading.estimated_wh},
    }


def brief(scores: Scores) -> dict[str, Any]:
    return {
        "f1": scores.f1,
        "strict_f1": scores.strict.f1,
        "precision": scores.precision,
        "recall": scores.recall,
        "loss": scores.loss,
        "by_type": {name: found.f1 for name, found in scores.by_type.items()},
    }


def sentences_of(folder: Path) -> dict[str, Any]:
    """The entities found, predicted and gold of each test sentence, one base-36 digit per sentence."""
    split = read_sentences(folder).splits["test"]
    columns = {mode: getattr(split.counts, mode).T for mode in SPLIT_MODES}
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    texts = {mode: ["".join(digits[n] for n in column) for column in table] for mode, table in columns.items()}
    return {"test_sentences": {"digest": split.digest, **texts}}


# Results -------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for other processes that write to these results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def read_cells(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def add_cells(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append lines; a kill leaves the file with all of them or without."""
    with locked(path):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, before + "".join(json.dumps(record) + "\n" for record in records))


# Command line --------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="evidence.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", metavar="FOLDER_OR_ID", help="the pretrained base")
    add("--dataset", metavar="FOLDER_OR_ID", help="the corpus")
    add("--stage", choices=tuple(STAGES), default="screen", help="default: %(default)s")
    add("--sentences", type=int, default=3072, metavar="N", help="training sentences in the screen (%(default)s)")
    add("--validation-sentences", type=int, default=1000, metavar="N", help="in the screen (default: %(default)s)")
    add("--epochs", type=int, default=2, help="of cells that do not say (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    add("--decode", choices=("greedy", "viterbi"), help="only cells with this decoder (default: all)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    add("--at-most", type=int, metavar="N", help="stop after N new cells, or N new seeds of the final stage")
    add(
        "--part",
        type=int,
        nargs=2,
        default=[1, 1],
        metavar=("K", "N"),
        help="run every Nth cell or seed from the Kth on, beside a process that runs the others (default: all)",
    )
    add("--recount", action="store_true", help="only count the FLOPs of all finished cells of the base again")
    add("--report", action="store_true", help="only write evidence.json, .md and .png from the cells so far")
    add("--output-dir", default=RESULTS, metavar="FOLDER", help="of the report (default: benchmarks/results)")
    arguments = parser.parse_args(argv)
    if arguments.report:
        arguments.name, arguments.command = "evidence", "python benchmarks/evidence.py --report"
        write_results(arguments, summary_of(read_cells(CELLS)), report, draw, "F1 against operations and energy")
        return 0
    if not arguments.model or not arguments.dataset:
        parser.error("--model and --dataset are needed, except with --report")
    with input_errors(parser):
        data = read_ner(arguments.dataset)
        if arguments.recount:
            recount(finished(planned(arguments, arguments.dataset)[0]), data, arguments.model)
        else:
            run(planned(arguments, arguments.dataset), data, arguments)
    return 0


def run(cells: Sequence[Cell], data: NerData, arguments: argparse.Namespace) -> None:
    """Run what is missing: one cell after another, or in the final stage the missing cells of one seed in turns."""
    where = origin("")
    del where["command"]  # the settings say it, without the paths of one machine
    done = [record["cell"] for record in read_cells(CELLS)]
    groups = [[cell] for cell in cells]
    if arguments.stage == "final":
        groups = [[cell for cell in cells if cell["seed"] == seed] for seed in arguments.seeds]
    part, parts = arguments.part
    missing = [left for group in groups[part - 1 :: parts] if (left := [cell for cell in group if cell not in done])]
    for number, group in enumerate(missing[: arguments.at_most], start=1):
        print(f"{number} of {len(missing)}: {json.dumps(group)}", flush=True)
        began = time.perf_counter()
        try:
            if group[0]["test"]:
                results = measure_in_turns(group, data, arguments.model)
            else:
                results = [measure(group[0], data, arguments.model)]
        except FloatingPointError as error:  # too high a rate
            results = [{"error": str(error)}] * len(group)
        add_cells(CELLS, [{"cell": cell, **result, **where} for cell, result in zip(group, results, strict=True)])
        for result in results:
            scores = [f"{score['f1']:.4f}" for score in result.get("validation", [])]
            print(f"  {result.get('error') or 'validation F1 ' + ', '.join(scores)}", flush=True)
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
