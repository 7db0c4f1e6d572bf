"""`lorakit train`: fine-tune a base on a corpus, with LoRA, in full, or both ways to compare them.

OUTPUT_DIR holds, for one mode, metrics.jsonl, energy.jsonl, checkpoints/ and adapter/ (LoRA) or model/ (full); for
both, the same in OUTPUT_DIR/lora and OUTPUT_DIR/full. comparison.{json,md,png} beside them hold scores, energy and
parameters.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from lorakit.adapters.counting import count_parameters, peft_total
from lorakit.adapters.storage import save_adapter
from lorakit.cli.flags import check_writable, input_errors, lora_options, read_corpus, train_config
from lorakit.cli.measured_run import environment, show, status_of, train_measured
from lorakit.data.corpus import NerData
from lorakit.lora import apply_lora
from lorakit.report.comparison import comparison_record
from lorakit.report.output import mode_record, write_comparison
from lorakit.report.page import write_page
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import is_main, process_group
from lorakit.training.frozen_layer_cache import constant_layers
from lorakit.training.models import load_token_classifier, save_model
from lorakit.training.preemption import Preempted

MORE = ("accumulate", "weight_decay", "warmup_ratio", "max_grad_norm", "patience", "save_every")  # of TrainConfig


def run_train(arguments: argparse.Namespace) -> int:
    """Train and save; returns the exit status."""
    modes = ("full", "lora") if arguments.mode == "both" else (arguments.mode,)
    folders = {mode: arguments.output_dir / mode if len(modes) > 1 else arguments.output_dir for mode in modes}
    with process_group():
        with input_errors(arguments.parser):  # whatever is wrong with the input shows before anything is written
            data = read_corpus(arguments)
            more = {name: getattr(arguments, name) for name in MORE}
            configs = {mode: train_config(arguments, mode, folders[mode], **more) for mode in modes}
            for mode in modes:
                build(mode, data, arguments)
            check_writable(arguments.output_dir)
        try:
            records = {mode: train_mode(mode, data, configs[mode], arguments) for mode in modes}
        except (Preempted, FloatingPointError, MemoryError) as stopped:
            return status_of(stopped, arguments.parser.prog)
        if is_main():
            command = shlex.join(["lorakit", *arguments.argv])
            record = comparison_record(command, environment(), arguments.model, data.source, records)
            write_comparison(record, arguments.output_dir)
            write_page([arguments.output_dir])
            show(record, arguments.output_dir)
            for mode in modes:
                print(f"try it: lorakit predict {shlex.join(saved_as(mode, folders[mode]))} 'a sentence of yours'")
    return 0


def train_mode(mode: str, data: NerData, config: TrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one mode and save what came out; its part of comparison.json."""
    model, tokenizer, adapter = build(mode, data, arguments)
    result, reading = train_measured(model, tokenizer, data, config)
    _, folder = saved_as(mode, Path(config.output_dir))
    if is_main() or arguments.strategy == "fsdp":  # every rank holds a slice
        if mode == "lora":
            save_adapter(model, folder)
        else:
            save_model(model, tokenizer, folder)
    return mode_record(result, count_parameters(model), reading, config, adapter)


def saved_as(mode: str, folder: Path) -> tuple[str, str]:
    """The flag and the folder by which `predict` and `evaluate` find what this mode saves."""
    return ("--adapter", str(folder / "adapter")) if mode == "lora" else ("--model", str(folder / "model"))


def build(mode: str, data: NerData, arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any] | None]:
    """A fresh base, adapted or not; both modes start from the same weights and the same head."""
    base = Path(arguments.model)
    source = base.resolve() if base.is_dir() else arguments.model  # an adapter names its base: from anywhere
    model, tokenizer = load_token_classifier(source, data.labels, arguments.seed, arguments.dropout)
    if mode == "full":
        return model, tokenizer, None
    adapter = lora_options(arguments)
    apply_lora(model, **adapter, seed=arguments.seed)
    if arguments.cache_prefix:
        constant_layers(model)  # what cannot be kept shows before the training
    return model, tokenizer, {**adapter, "peft_total_parameters": peft_total(model)}
