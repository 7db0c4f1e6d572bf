"""`lorakit train`: fine-tune a base on a corpus, with LoRA, in full, or both to compare them.

For one mode OUTPUT_DIR holds metrics.jsonl, energy.jsonl, checkpoints/ and adapter/ (LoRA) or model/ (full); for both,
OUTPUT_DIR/lora and OUTPUT_DIR/full hold the same. comparison.{json,md,png} and report.html in OUTPUT_DIR hold scores,
energy and parameters.
"""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import (
    add_corpus_flags,
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_training_flags,
    check_writable,
    lora_options,
    modes_of,
    read_corpus,
    train_config,
)
from lorakit.cli.parser import add_command, input_errors
from lorakit.data.corpus import NerData
from lorakit.training.config import TrainConfig, TrainResult

if TYPE_CHECKING:
    from torch import nn

    from lorakit.cli.building import ModelBuilder
    from lorakit.power.reading import Reading

SAMPLE = 1000  # sentences whose lengths stand for the corpus' in the estimate of memory

EXAMPLES = """
lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
lorakit train --mode both --model roberta-base --dataset path/to/corpus    compare LoRA with full fine-tuning
lorakit train --config settings.yaml --epochs 3                            a flag overrides the file
torchrun --nproc-per-node 2 -m lorakit.cli train --config settings.yaml    on two processes
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `train` to the commands."""
    parser = add_command(commands, "train", "fine-tune a base on a corpus: LoRA, in full, or both", EXAMPLES, run)
    add_config_flag(parser)
    add_mode_flag(parser, default="lora")
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_ID", help="base model")
    add_corpus_flags(parser, "corpus: a folder or file of CoNLL, IOB2 or JSON lines, or a hub id", required=True)
    add_training_flags(parser)
    add = parser.add_argument
    about = "batches per optimizer step (default: %(default)s)"
    add("--accumulate", type=int, default=TrainConfig.accumulate, metavar="N", help=about)
    about = "on weight matrices only (default: %(default)s)"
    add("--weight-decay", type=float, default=TrainConfig.weight_decay, metavar="X", help=about)
    about = "share of the steps in which the learning rate rises (default: %(default)s)"
    add("--warmup-ratio", type=float, default=TrainConfig.warmup_ratio, metavar="X", help=about)
    about = "clip the gradient to this norm (default: %(default)s)"
    add("--max-grad-norm", type=float, default=TrainConfig.max_grad_norm, metavar="X", help=about)
    about = "stop after N epochs without a better validation F1 (default: never)"
    add("--patience", type=int, default=TrainConfig.patience, metavar="N", help=about)
    about = "save a checkpoint every N steps, besides the one after each epoch"
    add("--save-every", type=int, default=TrainConfig.save_every, metavar="N", help=about)
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/train")


def run(arguments: argparse.Namespace) -> int:
    """Train, save and compare; returns the exit status."""
    both = arguments.mode == "both"

    def folder_of(mode: str) -> Path:
        return arguments.output_dir / mode if both else arguments.output_dir

    command = shlex.join(["lorakit", *arguments.argv])
    return fine_tune(arguments, read_corpus, folder_of, command, arguments.model, keep_full=True)


def fine_tune(
    arguments: argparse.Namespace,
    read: Callable[[argparse.Namespace], NerData],
    folder_of: Callable[[str], Path],
    command: str,
    name: str,
    keep_full: bool = False,
    study: bool = False,
) -> int:
    """Fine-tune in each mode of --mode, and compare: the body of `lorakit train` and of examples/bionlp.py.

    An error in the input, also one that only the files of the base can show, ends the program before anything is
    written.

    Args:
        arguments: What the flags of cli/flags.py set, and `parser`.
        read: Reads the corpus.
        folder_of: The output folder of a mode, inside --output-dir.
        command: The command line, for the record.
        name: The base's name, for the record.
        keep_full: Save the model that was fine-tuned in full, and print how to use what was saved.
        study: Show the study's published figures beside ours.

    Returns:
        The exit status.
    """
    from lorakit.cli.comparison import environment, print_comparison
    from lorakit.cli.measured_training import exit_status
    from lorakit.report.comparison import comparison_record
    from lorakit.report.output import write_comparison
    from lorakit.report.page import write_page
    from lorakit.training.distributed import is_main, process_group
    from lorakit.training.preemption import Preempted

    with process_group():
        with input_errors(arguments.parser):
            modes = modes_of(arguments)
            data = read(arguments)
            configs = {mode: train_config(arguments, mode, folder_of(mode)) for mode in modes}
            check_writable(arguments.output_dir)
            options = lora_options(arguments)
            more = (arguments.seed, arguments.dropout, arguments.cache_prefix)
            builder = tagger_builder(modes, arguments.model, data.labels, options, *more)
            interleaved = len(modes) > 1 and not arguments.sequential
            if interleaved:
                check_interleaving(builder, data, configs)
        train = train_interleaved if interleaved else train_sequentially
        try:
            records = train(builder, data, configs, options, keep_full)
        except (Preempted, FloatingPointError, MemoryError) as stopped:
            return exit_status(stopped, arguments.parser.prog)
        if is_main():
            made = (command, environment(), name, data.source, records)
            record = comparison_record(*made, study=study, interleaved=interleaved)
            write_comparison(record, arguments.output_dir)
            write_page([arguments.output_dir])
            print_comparison(record, arguments.output_dir)
            for mode in modes if keep_full else ():
                saved = shlex.join(saved_as(mode, folder_of(mode)))
                print(f"try it: lorakit predict {saved} 'a sentence of yours'")
    return 0


def tagger_builder(
    modes: Sequence[str],
    source: str,
    labels: Sequence[str],
    options: Mapping[str, Any],
    seed: int = 0,
    dropout: float | None = None,
    cache_prefix: bool = False,
) -> "ModelBuilder":
    """The builder of token classifiers on a base.

    Args:
        modes: "full", "lora", or both.
        source: Folder or hub id of the base.
        labels: The tag of each class.
        options: Arguments of `apply_lora`.
        seed: Of the head, and of the first A of each update.
        dropout: Dropout in the base; None keeps its own.
        cache_prefix: Also check that LoRA leaves the lower layers constant.

    Raises:
        ValueError, OSError: The base cannot be loaded, or LoRA does not fit it.
    """
    from lorakit.cli.building import ModelBuilder
    from lorakit.lora import apply_lora
    from lorakit.training.frozen_layer_cache import constant_layers
    from lorakit.training.models import load_token_classifier

    folder = Path(source)
    base = folder.resolve() if folder.is_dir() else source  # an adapter names its base, and is loaded from any folder

    def adapt(model: Any) -> None:
        apply_lora(model, **options, seed=seed)
        if cache_prefix:
            constant_layers(model)  # raises if a layer below the trained ones changes

    return ModelBuilder(modes, lambda: load_token_classifier(base, labels, seed, dropout), adapt)


def check_interleaving(builder: "ModelBuilder", data: NerData, configs: Mapping[str, TrainConfig]) -> None:
    """Refuse to train in turns where a run cannot be paused, or where the models do not fit in memory together.

    Raises:
        ValueError: With --sequential as the fix.
    """
    from lorakit.training.evaluation import encode_tagged
    from lorakit.training.loop import check_pausable
    from lorakit.training.memory import batch_tokens, check_memory, memory_need

    for config in configs.values():
        try:
            check_pausable(config)
        except ValueError as error:
            raise ValueError(f"{error}; train one after the other with --sequential") from error
    if not data.train:
        return  # training says so
    first = next(iter(configs))
    model, tokenizer = builder.built[first]
    lengths = encode_tagged(model, tokenizer, data.train[:SAMPLE]).lengths
    needs = {}
    for mode, config in configs.items():
        tokens = batch_tokens(lengths, config.batch_size)
        needs[mode] = memory_need(builder.shapes[mode], tokens, int(lengths.mean()), config.precision)
    loaded = sum(p.numel() * p.element_size() for p in model.parameters())
    check_memory(needs, loaded, "train one after the other with --sequential")


def train_interleaved(
    builder: "ModelBuilder",
    data: NerData,
    configs: Mapping[str, TrainConfig],
    options: Mapping[str, Any],
    keep_full: bool,
) -> dict[str, Any]:
    """Train the modes in turns and save what came out; returns each mode's part of comparison.json."""
    from lorakit.cli.measured_training import Contestant, train_in_turns

    contestants = {mode: Contestant(*builder.build(mode), data, config) for mode, config in configs.items()}
    try:
        trained = train_in_turns(contestants)
    except MemoryError as error:
        raise MemoryError(f"{error}; or train one after the other with --sequential") from error
    return {
        mode: save_mode(mode, one.model, one.tokenizer, *trained[mode], one.config, options, keep_full)
        for mode, one in contestants.items()
    }


def train_sequentially(
    builder: "ModelBuilder",
    data: NerData,
    configs: Mapping[str, TrainConfig],
    options: Mapping[str, Any],
    keep_full: bool,
) -> dict[str, Any]:
    """Train one mode after the other, so that one model is in memory at a time; as `train_interleaved`."""
    from lorakit.cli.measured_training import train_measured

    def train_one(mode: str, config: TrainConfig) -> dict[str, Any]:
        model, tokenizer = builder.build(mode)
        return save_mode(
            mode, model, tokenizer, *train_measured(model, tokenizer, data, config), config, options, keep_full
        )

    return {mode: train_one(mode, config) for mode, config in configs.items()}


def save_mode(
    mode: str,
    model: "nn.Module",
    tokenizer: Any,
    result: TrainResult,
    reading: "Reading",
    config: TrainConfig,
    options: Mapping[str, Any],
    keep_full: bool,
) -> dict[str, Any]:
    """Save what a mode's training gave; returns the mode's part of comparison.json."""
    from lorakit.adapters.counting import count_parameters, peft_total
    from lorakit.adapters.storage import save_adapter
    from lorakit.report.output import mode_record
    from lorakit.training.distributed import is_main
    from lorakit.training.models import save_model

    if is_main() or config.strategy == "fsdp":  # with FSDP every rank holds a slice
        _, folder = saved_as(mode, Path(config.output_dir))
        if mode == "lora":
            save_adapter(model, folder)
        elif keep_full:
            save_model(model, tokenizer, folder)
    adapter = {**options, "peft_total_parameters": peft_total(model)} if mode == "lora" else None
    return mode_record(result, count_parameters(model), reading, config, adapter)


def saved_as(mode: str, folder: Path) -> tuple[str, str]:
    """The flag and the path with which `predict` and `evaluate` load what a mode saves."""
    return ("--adapter", str(folder / "adapter")) if mode == "lora" else ("--model", str(folder / "model"))
