"""Fine-tune RoBERTa for named entities in full and with LoRA, and compare quality, parameters and energy.

Without arguments it runs offline, on the small base model and the generated corpus that lie in examples/mini. Each mode
is a few lines: load a base, apply LoRA or not, train under an energy meter, keep the adapter, note what came out.
"""

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import lorakit
from lorakit import distributed
from lorakit.adapters import save_adapter
from lorakit.energy_cli import merge_runs
from lorakit.journal import read_journal
from lorakit.loggers import LOGGERS
from lorakit.lora import peft_total
from lorakit.models import load_token_classifier
from lorakit.ner import NerData, Sentence
from lorakit.preemption import Preempted
from lorakit.report import (
    comparison_record,
    energy_notes,
    energy_table,
    metrics_table,
    mode_record,
    parameter_lines,
    write_comparison,
)

MINI = Path(__file__).parent / "mini"
# Found on BioNLP2004's validation set with the embedded base (benchmarks/results/bionlp.md).
EMBEDDED_DEFAULTS = {
    "full": {"learning_rate": 1e-3, "epochs": 5},
    "lora": {"learning_rate": 2e-3, "epochs": 5},
}
# Usual values for a base of roberta-base's size; not tuned by us, no hub could be reached.
OTHER_DEFAULTS = {
    "full": {"learning_rate": 5e-5, "epochs": 5},
    "lora": {"learning_rate": 1e-3, "epochs": 5},
}
# What is known of the study's settings; the learning rates are not, they stay at our defaults.
STUDY = {
    "model": "roberta-base",
    "dataset": "tner/bionlp2004",
    "r": 16,
    "lora_alpha": 16.0,
    "lora_dropout": 0.1,
    "bias": "all",
    "init_lora_weights": "kaiming",
    "target_modules": ["query", "value"],
    "epochs": 10,
}
EXAMPLES = """examples:
  python examples/bionlp.py                                   both modes, offline, a few minutes on a laptop
  python examples/bionlp.py --dataset path/to/bionlp2004      your copy (train.json, valid.json, test.json, label.json)
  python examples/bionlp.py --mode lora --r 8 --target-modules query value --learning-rate 5e-3
  python examples/bionlp.py --study                           the study's settings; needs the hub and, better, a GPU
  torchrun --nproc-per-node 2 examples/bionlp.py              the same on two processes
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        if distributed.is_main():
            print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Parser]:
    parser = Parser(
        prog="bionlp.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--mode", choices=("both", "full", "lora"), default="both")
    add("--model", default=str(MINI), metavar="FOLDER_OR_ID", help="base model (default: the embedded one)")
    add("--dataset", metavar="FOLDER_OR_ID", help="corpus (default: the embedded one, generated)")
    add("--sentences", type=int, metavar="N", help="use only the first N sentences of each split")
    add("--epochs", type=int, help="default: each mode's own")
    add("--batch-size", type=int, default=16, help="sentences a process and step (default: %(default)s)")
    add("--learning-rate", type=float, metavar="X", help="default: each mode's own")
    add("--dropout", type=float, metavar="X", help="in the base (default: 0 for the embedded one, else its own)")
    add("--r", type=int, default=32, help="LoRA rank (default: %(default)s)")
    add(
        "--lora-alpha",
        type=float,
        default=32.0,
        metavar="X",
        help="updates are scaled by alpha/r (default: %(default)s)",
    )
    add(
        "--init-lora-weights",
        default="pissa",
        metavar="NAME",
        help="kaiming, gaussian, orthogonal, pissa, olora … (default: %(default)s)",
    )
    add("--lora-dropout", type=float, default=0.0, metavar="X", help="default: %(default)s")
    add("--target-modules", nargs="+", default=["all-linear"], metavar="NAME", help="default: all-linear")
    add("--bias", choices=("none", "all", "lora_only"), default="all", help="biases LoRA trains (default: %(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="default: %(default)s")
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of several processes: replicate or shard the model")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--output-dir", type=Path, default=Path("runs/bionlp"), metavar="DIR", help="default: %(default)s")
    add("--log-to", nargs="+", default=[], choices=tuple(LOGGERS), metavar="NAME", help="tensorboard, wandb, or both")
    add("--resume", action="store_true", help="go on where a run in the same output folder was stopped")
    add("--study", action="store_true", help="the study's settings, and its figures beside ours; other flags overrule")
    if parser.parse_known_args(argv)[0].study:
        parser.set_defaults(**STUDY)
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments, parser = parse(argv)
    with distributed.process_group():
        try:  # whatever is wrong with the input shows here, before anything is written
            data = read_corpus(arguments)
            modes = ("full", "lora") if arguments.mode == "both" else (arguments.mode,)
            configs = {mode: config_for(mode, arguments) for mode in modes}
            for mode in modes:
                build(mode, data, arguments)
            check_writable(arguments.output_dir)
        except (ValueError, OSError, ImportError) as error:  # the last: --log-to names what is not installed
            parser.error(str(error))
        try:
            records = {mode: run(mode, data, configs[mode], arguments) for mode in modes}
        except (Preempted, FloatingPointError, MemoryError) as stopped:
            if distributed.is_main():
                print(f"{parser.prog}: {stopped}", file=sys.stderr)
            if isinstance(stopped, MemoryError):  # one rank alone: do not wait for the others
                raise SystemExit(1) from None
            return stopped.code if isinstance(stopped, Preempted) else 1
        if distributed.is_main():
            command = shlex.join(["python", "examples/bionlp.py", *(sys.argv[1:] if argv is None else argv)])
            record = comparison_record(
                command, environment(), name_of(arguments.model), data.source, records, study=arguments.study
            )
            write_comparison(record, arguments.output_dir)
            show(record, arguments.output_dir)
    return 0


def run(mode: str, data: NerData, config: lorakit.TrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one mode; its part of comparison.json."""
    model, tokenizer, adapter = build(mode, data, arguments)
    journal = arguments.output_dir / mode / "energy.jsonl" if distributed.is_main() else None
    if journal:
        journal.parent.mkdir(parents=True, exist_ok=True)
        if not arguments.resume:
            journal.unlink(missing_ok=True)
    with lorakit.EnergyMeter(out=journal) as meter:
        result = lorakit.train(model, tokenizer, data, config, observe=lambda: {"power_w": meter.power_w()})
    reading = meter.reading
    if journal and arguments.resume:  # what the interrupted runs before this one have used is part of the cost
        reading = merge_runs([(journal, part) for part in read_journal(journal) if part.reading])
    if mode == "lora" and (distributed.is_main() or arguments.strategy == "fsdp"):  # every rank holds a slice
        save_adapter(model, arguments.output_dir / "lora" / "adapter")
    return mode_record(result, lorakit.count_parameters(model), reading, config, adapter)


def build(mode: str, data: NerData, arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any] | None]:
    """A fresh base, adapted or not; both modes start from the same weights and the same head."""
    dropout = arguments.dropout
    if dropout is None and is_embedded(arguments.model):
        dropout = 0.0
    model, tokenizer = load_token_classifier(arguments.model, data.labels, arguments.seed, dropout)
    if mode == "full":
        return model, tokenizer, None
    targets = arguments.target_modules
    adapter = {
        "r": arguments.r,
        "lora_alpha": arguments.lora_alpha,
        "lora_dropout": arguments.lora_dropout,
        "target_modules": targets[0] if len(targets) == 1 else targets,
        "bias": arguments.bias,
        "init_lora_weights": True if arguments.init_lora_weights == "kaiming" else arguments.init_lora_weights,
    }
    lorakit.apply_lora(model, **adapter, seed=arguments.seed)
    return model, tokenizer, {**adapter, "peft_total_parameters": peft_total(model)}


def config_for(mode: str, arguments: argparse.Namespace) -> lorakit.TrainConfig:
    defaults = (EMBEDDED_DEFAULTS if is_embedded(arguments.model) else OTHER_DEFAULTS)[mode]
    chosen = {name: getattr(arguments, name) for name in defaults if getattr(arguments, name) is not None}
    return lorakit.TrainConfig(
        **{**defaults, **chosen},
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        output_dir=arguments.output_dir / mode,
        seed=arguments.seed,
        resume=arguments.resume,
        strategy=arguments.strategy,
        log_to=tuple(arguments.log_to),
    )


def read_corpus(arguments: argparse.Namespace) -> NerData:
    if arguments.dataset:
        data = lorakit.read_ner(arguments.dataset)
    else:
        from mini.corpus import LABELS, make_corpus

        train, validation, test = (tuple(Sentence(*pair) for pair in split) for split in make_corpus(seed=0))
        data = NerData(train, validation, test, tuple(LABELS), "the embedded corpus")
    if arguments.sentences is None:
        return data
    if arguments.sentences < 1:
        raise ValueError(f"--sentences is {arguments.sentences}; it must be at least 1")
    n = arguments.sentences
    return replace(data, train=data.train[:n], validation=data.validation[:n], test=data.test[:n])


def check_writable(folder: Path) -> None:
    """Fail now rather than after an hour of training; leaves nothing behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"--output-dir {folder} cannot be written: {existing} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"--output-dir {folder} cannot be written: {error.strerror}") from error


def is_embedded(model: str) -> bool:
    return Path(model).exists() and Path(model).resolve() == MINI.resolve()


def name_of(model: str) -> str:
    return "the embedded base (roberta-mini-bio)" if is_embedded(model) else model


def environment() -> dict[str, str]:
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    return {
        "lorakit": lorakit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.world_size()),
    }


def show(record: dict[str, Any], folder: Path) -> None:
    print(f"\n{record['model']} on {record['dataset']}")
    for split in ("validation", "test"):
        if any(mode[split] for mode in record["modes"].values()):
            print("", metrics_table(record, split), sep="\n")
    print("", energy_table(record), "", *energy_notes(record), "", *parameter_lines(record), sep="\n")
    print(f"\nwritten to {folder}: comparison.md, comparison.json, comparison.png")


if __name__ == "__main__":
    sys.exit(main())
