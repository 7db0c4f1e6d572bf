"""Fine-tune RoBERTa for named entities in full and with LoRA, and compare quality, parameters and energy.

Without arguments it runs offline, on the small base model and the generated corpus that lie in examples/mini. Each mode
is a few lines: load a base, apply LoRA or not, train under an energy meter, keep the adapter, note what came out.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import lorakit
from lorakit.adapters.counting import peft_total
from lorakit.adapters.storage import save_adapter
from lorakit.cli.flags import (
    MODE_DEFAULTS,
    Parser,
    add_corpus_flags,
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_training_flags,
    check_writable,
    first_sentences,
    input_errors,
    lora_options,
    train_config,
)
from lorakit.cli.measured_run import environment, show, status_of, train_measured
from lorakit.data.corpus import NerData, Sentence
from lorakit.report.comparison import comparison_record
from lorakit.report.output import mode_record, write_comparison
from lorakit.report.page import write_page
from lorakit.training import distributed
from lorakit.training.frozen_layer_cache import constant_layers
from lorakit.training.models import load_token_classifier
from lorakit.training.preemption import Preempted

MINI = Path(__file__).parent / "mini"
# Found on BioNLP2004's validation set with the embedded base (benchmarks/results/search.md).
EMBEDDED_DEFAULTS = {
    "full": {"learning_rate": 1e-3, "epochs": 5},
    "lora": {"learning_rate": 2e-3, "epochs": 5},
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


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Parser]:
    parser = Parser(prog="bionlp.py", description=__doc__, epilog=EXAMPLES)
    add_mode_flag(parser, default="both")
    parser.add_argument(
        "--model", default=str(MINI), metavar="FOLDER_OR_ID", help="base model (default: the embedded one)"
    )
    add_corpus_flags(parser, "corpus (default: the embedded one, generated)")
    add_training_flags(parser, dropout="0 for the embedded one, else its own")
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/bionlp")
    parser.add_argument(
        "--study", action="store_true", help="the study's settings, and its figures beside ours; other flags overrule"
    )
    if parser.parse_known_args(argv)[0].study:
        parser.set_defaults(**STUDY)
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments, parser = parse(argv)
    with distributed.process_group():
        with input_errors(parser):  # whatever is wrong with the input shows here, before anything is written
            data = read_corpus(arguments)
            modes = ("full", "lora") if arguments.mode == "both" else (arguments.mode,)
            defaults = EMBEDDED_DEFAULTS if is_embedded(arguments.model) else MODE_DEFAULTS
            configs = {mode: train_config(arguments, mode, arguments.output_dir / mode, defaults) for mode in modes}
            for mode in modes:
                build(mode, data, arguments)
            check_writable(arguments.output_dir)
        try:
            records = {mode: run(mode, data, configs[mode], arguments) for mode in modes}
        except (Preempted, FloatingPointError, MemoryError) as stopped:
            return status_of(stopped, parser.prog)
        if distributed.is_main():
            command = shlex.join(["python", "examples/bionlp.py", *(sys.argv[1:] if argv is None else argv)])
            record = comparison_record(
                command, environment(), name_of(arguments.model), data.source, records, study=arguments.study
            )
            write_comparison(record, arguments.output_dir)
            write_page([arguments.output_dir])
            show(record, arguments.output_dir)
            if arguments.study:
                show_codecarbon(records)
    return 0


def run(mode: str, data: NerData, config: lorakit.TrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one mode; its part of comparison.json."""
    model, tokenizer, adapter = build(mode, data, arguments)
    result, reading = train_measured(model, tokenizer, data, config)  # lorakit.train under an EnergyMeter
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
    adapter = lora_options(arguments)
    lorakit.apply_lora(model, **adapter, seed=arguments.seed)
    if arguments.cache_prefix:
        constant_layers(model)  # what cannot be kept shows before the training
    return model, tokenizer, {**adapter, "peft_total_parameters": peft_total(model)}


def show_codecarbon(records: dict[str, Any]) -> None:
    """Print what CodeCarbon 2.x, which the study used, would have reported for our runs."""
    from codecarbon2 import codecarbon_v2_model

    for mode, record in records.items():
        duration_s, gpu_kwh = record["energy"]["duration_s"], record["energy"]["gpu"]["kwh"]
        print(f"{mode}: {codecarbon_v2_model(duration_s, psutil.virtual_memory().total, gpu_kwh=gpu_kwh)}")


def read_corpus(arguments: argparse.Namespace) -> NerData:
    if arguments.dataset:
        data = lorakit.read_ner(arguments.dataset)
    else:
        from mini.corpus import LABELS, make_corpus

        train, validation, test = (tuple(Sentence(*pair) for pair in split) for split in make_corpus(seed=0))
        data = NerData(train, validation, test, tuple(LABELS), "the embedded corpus")
    return first_sentences(data, arguments.sentences)


def is_embedded(model: str) -> bool:
    return Path(model).exists() and Path(model).resolve() == MINI.resolve()


def name_of(model: str) -> str:
    return "the embedded base (roberta-mini-bio)" if is_embedded(model) else model


if __name__ == "__main__":
    sys.exit(main())
