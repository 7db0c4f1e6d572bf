"""The flags that several commands share, and the calls they stand for.

`lorakit train`, `lorakit params`, … and examples/bionlp.py take them from here, so that a flag has one name and one
meaning. The defaults are those of LoRAConfig and TrainConfig. Nothing here loads torch.
"""

import argparse
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lorakit.adapters.config import BIASES, LoRAConfig
from lorakit.data.corpus import NerData, read_ner
from lorakit.training.config import DEFAULT_LEARNING_RATE, ENGINES, PRECISIONS, STRATEGIES, TrainConfig
from lorakit.training.trackers import LOGGERS

MODES = ("full", "lora")  # in the order in which --mode both trains them
LORA_ONLY = (
    "r",
    "lora_alpha",
    "init_lora_weights",
    "lora_dropout",
    "target_modules",
    "layers_to_transform",
    "modules_to_save",
    "bias",
    "cache_prefix",
)  # settings that mean nothing to full fine-tuning


# Flags ---------------------------------------------------------------------------------------------------------------


def add_mode_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--mode", choices=("both", *MODES), default=default, help="default: %(default)s")
    about = "with --mode both: train one model after the other, instead of a few steps of each in turn"
    parser.add_argument("--sequential", action="store_true", help=about)


def add_corpus_flags(parser: argparse.ArgumentParser, about: str, required: bool = False) -> None:
    add = parser.add_argument
    add("--dataset", required=required, metavar="FOLDER_OR_ID", help=about)
    add("--sentences", type=int, metavar="N", help="use only the first N sentences of each split")


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--r", type=int, default=LoRAConfig.r, metavar="N", help="LoRA rank (default: %(default)s)")
    about = "updates are scaled by alpha/r (default: %(default)s)"
    add("--lora-alpha", type=float, default=LoRAConfig.lora_alpha, metavar="X", help=about)
    start = LoRAConfig.init_lora_weights
    about = "kaiming, gaussian, orthogonal, pissa, pissa_niter_4 or olora (default: %(default)s)"
    add("--init-lora-weights", default="kaiming" if start is True else start, metavar="NAME", help=about)
    about = "dropout on the input of the updates (default: %(default)s)"
    add("--lora-dropout", type=float, default=LoRAConfig.lora_dropout, metavar="X", help=about)
    about = "layers to adapt, by the end of their names (default: %(default)s)"
    add("--target-modules", nargs="+", default=LoRAConfig.target_modules, metavar="NAME", help=about)
    about = "adapt only these encoder layers, counted from 0 (default: all)"
    add("--layers-to-transform", nargs="+", type=int, metavar="N", help=about)
    about = "train these modules in full, as the head is: word_embeddings, …"
    add("--modules-to-save", nargs="+", metavar="NAME", help=about)
    add("--bias", choices=BIASES, default=LoRAConfig.bias, help="biases to train with LoRA (default: %(default)s)")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epochs", type=int, default=TrainConfig.epochs, metavar="N", help="default: %(default)s")
    about = "sentences per process and batch (default: %(default)s)"
    add("--batch-size", type=int, default=TrainConfig.batch_size, metavar="N", help=about)
    rates = ", ".join(f"{DEFAULT_LEARNING_RATE[mode]:g} for {mode}" for mode in MODES)
    add("--learning-rate", type=float, metavar="X", help=f"default: {rates}")
    add("--dropout", type=float, metavar="X", help="dropout in the base (default: the base's own)")
    add_precision_flag(parser)
    about = "with several processes: replicate the model or shard it (default: %(default)s)"
    add("--strategy", choices=STRATEGIES, default=TrainConfig.strategy, help=about)
    about = "compile: torch.compile the steps, minutes first, then less time per step; cuda_graphs: record the steps, "
    about += "which then launch a batch at once (default: %(default)s)"
    add("--engine", choices=ENGINES, default=TrainConfig.engine, help=about)
    about = "LoRA on the top layers: compute those below once and keep their output; needs --dropout 0"
    add("--cache-prefix", action="store_true", help=about)
    add("--seed", type=int, default=TrainConfig.seed, metavar="N", help="default: %(default)s")


def add_precision_flag(parser: argparse.ArgumentParser) -> None:
    about = "auto is bf16, or else fp16, on a GPU and fp32 on the CPU (default: %(default)s)"
    parser.add_argument("--precision", choices=PRECISIONS, default=TrainConfig.precision, help=about)


def add_output_flags(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path(default), metavar="DIR", help="default: %(default)s")
    about = "also log to tensorboard, wandb, or both"
    add("--log-to", nargs="+", default=TrainConfig.log_to, choices=tuple(LOGGERS), metavar="NAME", help=about)
    add("--resume", action="store_true", help="continue the stopped run in the same output folder")


def add_saved_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--adapter", metavar="FOLDER_OR_ID", help="a LoRA adapter, which names its base and its labels")
    about = "a model fine-tuned in full; with --adapter, where its base is instead"
    add("--model", metavar="FOLDER_OR_ID", help=about)


# What they stand for -------------------------------------------------------------------------------------------------


def modes_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The modes that --mode names.

    Raises:
        ValueError: The command line or the --config file sets up LoRA, and none of the modes is LoRA.
    """
    if arguments.mode != "full":
        return MODES if arguments.mode == "both" else (arguments.mode,)
    wrong = [name for name in LORA_ONLY if name in arguments.given and getattr(arguments, name) is not False]
    if wrong:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ValueError(f"{flags}: only for LoRA, but the mode is full; leave it out, or use --mode lora or both")
    return ("full",)


def lora_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `apply_lora`."""
    targets, start = arguments.target_modules, arguments.init_lora_weights
    lists = {name: getattr(arguments, name) for name in ("layers_to_transform", "modules_to_save")}
    return {
        "r": arguments.r,
        "lora_alpha": arguments.lora_alpha,
        "lora_dropout": arguments.lora_dropout,
        "target_modules": targets[0] if isinstance(targets, list) and len(targets) == 1 else targets,
        "bias": arguments.bias,
        "init_lora_weights": True if start == "kaiming" else start,
        **{name: value for name, value in lists.items() if value is not None},
    }


def train_config(arguments: argparse.Namespace, mode: str, output_dir: Path) -> TrainConfig:
    """How to train one mode: every flag that has the name of a setting of TrainConfig.

    Raises:
        ValueError: A value is out of its range.
    """
    names = {field.name for field in fields(TrainConfig)}
    rate = arguments.learning_rate
    settings = {
        **{name: value for name, value in vars(arguments).items() if name in names},
        "learning_rate": DEFAULT_LEARNING_RATE[mode] if rate is None else rate,
        "cache_prefix": arguments.cache_prefix and mode == "lora",
        "log_to": tuple(arguments.log_to),
        "output_dir": output_dir,
    }
    return TrainConfig(**settings)


def read_corpus(arguments: argparse.Namespace) -> NerData:
    """The corpus of --dataset, cut to --sentences.

    Raises:
        ValueError: It cannot be read, or --sentences is below 1.
    """
    return first_sentences(read_ner(arguments.dataset), arguments.sentences)


def first_sentences(data: NerData, count: int | None) -> NerData:
    """The first `count` sentences of each split; None keeps all.

    Raises:
        ValueError: `count` is below 1.
    """
    if count is None:
        return data
    if count < 1:
        raise ValueError(f"--sentences is {count}; it must be at least 1")
    return replace(data, train=data.train[:count], validation=data.validation[:count], test=data.test[:count])


def check_writable(folder: Path, flag: str = "--output-dir") -> None:
    """Check that a folder can be created or written, rather than fail after an hour of training. Creates nothing.

    Raises:
        ValueError: The folder cannot be created or written.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{flag} {folder} cannot be written: {existing} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written: {error.strerror}") from error
