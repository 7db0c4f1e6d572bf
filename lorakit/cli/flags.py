"""The flags that several commands share, and the calls they stand for.

`lorakit train`, `lorakit params`, … and examples/bionlp.py take them from here, so that a flag has one name and one
meaning. The defaults are those of LoRAConfig and TrainConfig. Nothing here loads torch.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lorakit._files import is_utf8
from lorakit.adapters.config import ALL_LINEAR, BIASES, INITS, LoRAConfig, pissa_steps
from lorakit.cli.parser import add_co2_flag, add_sci_flags, comma_hint, file_or_folder, folder_or_id
from lorakit.data.tags import DECODERS
from lorakit.training.config import (
    DEFAULT_LEARNING_RATE,
    ENGINES,
    PACKING,
    PRECISIONS,
    STRATEGIES,
    TrainConfig,
    check_dropout,
)
from lorakit.training.trackers import LOGGERS

DEVICES = ("cpu", "cuda")
KAIMING = "kaiming"  # what init_lora_weights=True does, in a word that a shell can pass
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
    "loraplus_lr_ratio",
    "cache_prefix",
    "module_learning_rates",
)  # settings that mean nothing to full fine-tuning


# Flags ---------------------------------------------------------------------------------------------------------------


def add_mode_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--mode", choices=("both", *MODES), default=default, help="default: %(default)s")
    about = "with --mode both: train one model after the other, instead of a few steps of each in turn"
    parser.add_argument("--sequential", action="store_true", help=about)


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--r", type=int, default=LoRAConfig.r, metavar="N", help="LoRA rank (default: %(default)s)")
    about = "updates are scaled by alpha/r (default: %(default)s)"
    add("--lora-alpha", type=float, default=LoRAConfig.lora_alpha, metavar="X", help=about)
    start = LoRAConfig.init_lora_weights
    about = "kaiming, gaussian, orthogonal, pissa, pissa_niter_4 or olora (default: %(default)s)"
    add("--init-lora-weights", type=_start, default=KAIMING if start is True else start, metavar="NAME", help=about)
    about = "dropout on the input of the updates (default: %(default)s)"
    add("--lora-dropout", type=float, default=LoRAConfig.lora_dropout, metavar="X", help=about)
    about = "layers to adapt, by the end of their names: query value, or query,value; or one regular expression for "
    about += "whole names, such as '.*attention.*' (default: %(default)s)"
    add("--target-modules", nargs="+", default=LoRAConfig.target_modules, metavar="NAME", help=about)
    about = "adapt only these encoder layers, counted from 0 (default: all)"
    add("--layers-to-transform", nargs="+", type=int, metavar="N", help=about)
    about = "train these modules in full, as the head is: word_embeddings, …"
    add("--modules-to-save", nargs="+", metavar="NAME", help=about)
    add("--bias", choices=BIASES, default=LoRAConfig.bias, help="biases to train with LoRA (default: %(default)s)")


def _start(text: str) -> str:
    """A flag's type: how the updates start.

    Raises:
        ArgumentTypeError: there is no such start.
    """
    if text not in (KAIMING, *INITS) and pissa_steps(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no way to start; give {KAIMING}, {', '.join(INITS[:-1])} or {INITS[-1]}"
        )
    return text


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epochs", type=int, default=TrainConfig.epochs, metavar="N", help="default: %(default)s")
    about = "sentences per process and batch (default: %(default)s)"
    add("--batch-size", type=int, default=TrainConfig.batch_size, metavar="N", help=about)
    rates = ", ".join(f"{DEFAULT_LEARNING_RATE[mode]:g} for {mode}" for mode in MODES)
    add("--learning-rate", type=float, metavar="X", help=f"default: {rates}")
    about = "with LoRA, other rates for these modules: word_embeddings=5e-4, lora_B=8e-3, … (default: that of full "
    about += "fine-tuning for --modules-to-save, unless --learning-rate is given)"
    add("--module-learning-rates", nargs="+", type=_module_rate, metavar="NAME=X", help=about)
    add("--dropout", type=float, metavar="X", help="dropout in the base (default: the base's own)")
    about = "weights of the labels in the loss: balanced, or LABEL=X …, or a number for each label in their order"
    add("--class-weights", nargs="+", metavar="W", help=about)
    add_precision_flag(parser)
    add_device_flag(parser)
    add_packing_flag(parser)
    add_decode_flag(parser)
    about = "with several processes: replicate the model or shard it (default: %(default)s)"
    add("--strategy", choices=STRATEGIES, default=TrainConfig.strategy, help=about)
    about = "compile: torch.compile the steps, minutes first, then less time per step; cuda_graphs: record the steps, "
    about += "which then launch a batch at once (default: %(default)s)"
    add("--engine", choices=ENGINES, default=TrainConfig.engine, help=about)
    about = "LoRA+: train B at this many times the learning rate, 16 in its paper (default: at the same rate)"
    add("--loraplus-lr-ratio", type=float, default=TrainConfig.loraplus_lr_ratio, metavar="X", help=about)
    about = "LoRA on the top layers: compute those below once and keep their output; needs --dropout 0"
    add("--cache-prefix", action="store_true", help=about)
    add("--seed", type=int, default=TrainConfig.seed, metavar="N", help="default: %(default)s")


def _module_rate(text: str) -> tuple[str, float]:
    name, equals, rate = text.partition("=")
    try:
        if name and equals:
            return name, float(rate)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RATE, such as word_embeddings=5e-4")


def add_seeds_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    about = "train with N seeds, from --seed on, each in a folder of its own, and compare their means (default: 1)"
    add("--seeds", type=int, default=1, metavar="N", help=about)
    about = "with --mode both and several seeds: call F1 equal if the interval of the difference is inside ±X"
    add("--margin", type=float, metavar="X", help=about)


def add_precision_flag(parser: argparse.ArgumentParser) -> None:
    about = "auto is bf16, or else fp16, on a GPU and fp32 on the CPU (default: %(default)s)"
    parser.add_argument("--precision", choices=PRECISIONS, default=TrainConfig.precision, help=about)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    about = "compute on the CPU or on an NVIDIA GPU (default: on the GPU if there is one)"
    parser.add_argument("--device", choices=DEVICES, help=about)


def add_packing_flag(parser: argparse.ArgumentParser) -> None:
    about = "several sentences in a row: auto where that is proven to change nothing, on or an error, off "
    about += "(default: %(default)s)"
    parser.add_argument("--packing", choices=PACKING, default=TrainConfig.packing, help=about)


def add_decode_flag(parser: argparse.ArgumentParser) -> None:
    about = "viterbi: each sentence's most probable tags of those that keep to the scheme; greedy: each word's most "
    about += "probable tag; auto: viterbi to train on entity tags, and after that as trained (default: %(default)s)"
    parser.add_argument("--decode", choices=DECODERS, default=TrainConfig.decode, help=about)


def add_output_flags(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    about = "a new folder for the results (default: %(default)s, or where that is taken %(default)s-2, …)"
    add("--output-dir", type=file_or_folder, default=Path(default), metavar="DIR", help=about)
    about = "delete the results of another run in the output folder first"
    add("--overwrite", action="store_true", help=about)
    about = "keep the checkpoints after a finished run, to train longer with --resume and more --epochs; each is up to "
    about += "four times as large as what is trained (default: keep none)"
    add("--keep-checkpoints", action="store_true", help=about)
    about = "also log to tensorboard, wandb, or both"
    add("--log-to", nargs="+", default=TrainConfig.log_to, choices=tuple(LOGGERS), metavar="NAME", help=about)
    add_co2_flag(parser)
    add_sci_flags(parser)
    about = "continue the stopped run in the output folder, or train a finished one longer (--keep-checkpoints)"
    add("--resume", action="store_true", help=about)


def add_saved_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--adapter",
        type=folder_or_id,
        metavar="FOLDER_OR_ID",
        help="a LoRA adapter, which names its base and its labels",
    )
    about = "a model fine-tuned in full; with --adapter, where its base is instead"
    add("--model", type=folder_or_id, metavar="FOLDER_OR_ID", help=about)
    about = "the tag of each class in order, for an adapter whose files do not say: made by PEFT"
    add("--labels", nargs="+", metavar="TAG", help=about)
    about = "take the adapter although the base is not the one it was trained on"
    add("--no-check-base", action="store_true", help=about)


# What they stand for -------------------------------------------------------------------------------------------------


def modes_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The modes that --mode names.

    Raises:
        ValueError: The command line or the --config file sets up what none of the modes uses.
    """
    if arguments.mode != "both" and arguments.sequential:
        raise ValueError(f"--sequential: only for --mode both, but the mode is {arguments.mode}; leave it out")
    if arguments.mode != "full":
        return MODES if arguments.mode == "both" else (arguments.mode,)
    wrong = [name for name in LORA_ONLY if name in arguments.given and getattr(arguments, name) is not False]
    if wrong:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        it = "it" if len(wrong) == 1 else "them"
        raise ValueError(f"{flags}: only for LoRA, but the mode is full; leave {it} out, or use --mode lora or both")
    return ("full",)


def lora_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `apply_lora`."""
    start = arguments.init_lora_weights
    lists = {
        "layers_to_transform": arguments.layers_to_transform,
        "modules_to_save": arguments.modules_to_save and _names(arguments.modules_to_save),
    }
    return {
        "r": arguments.r,
        "lora_alpha": arguments.lora_alpha,
        "lora_dropout": arguments.lora_dropout,
        "target_modules": target_modules(arguments.target_modules),
        "bias": arguments.bias,
        "init_lora_weights": True if start == KAIMING else start,
        **{name: value for name, value in lists.items() if value is not None},
    }


def target_modules(words: str | Sequence[str]) -> str | list[str]:
    """The argument of `apply_lora` that --target-modules stands for: names, "all-linear", or one regular expression."""
    if isinstance(words, str):
        return words
    if len(words) == 1 and (words[0] == ALL_LINEAR or re.search(r"[^\w.,\-]", words[0])):
        return words[0]
    return _names(words)


def tag_names(words: Sequence[str] | None) -> list[str] | None:
    """The tags of --labels."""
    return words and _names(words)


def _names(words: Sequence[str]) -> list[str]:
    """Names that are separated by spaces, commas or both."""
    return [name for word in words for name in str(word).split(",") if name]


def check_settings(arguments: argparse.Namespace, modes: Sequence[str]) -> None:
    """Check the flags by themselves, before a corpus or a base is read and before torch is loaded.

    Raises:
        ValueError: A value is out of its range, or two do not go together.
    """
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume continues the run in the folder and --overwrite deletes it; give one of them")
    for mode in modes:
        train_config(arguments, mode, arguments.output_dir)
    if "lora" in modes:
        LoRAConfig(**lora_options(arguments))
    if arguments.dropout is not None:
        check_dropout(arguments.dropout)


def train_config(arguments: argparse.Namespace, mode: str, output_dir: Path) -> TrainConfig:
    """How to train one mode: every flag that has the name of a setting of TrainConfig.

    Raises:
        ValueError: A value is out of its range.
    """
    names = {field.name for field in fields(TrainConfig)}
    rate = arguments.learning_rate
    module_rates = dict(arguments.module_learning_rates or ()) or None
    if module_rates is None and rate is None and arguments.modules_to_save:
        module_rates = dict.fromkeys(arguments.modules_to_save, DEFAULT_LEARNING_RATE["full"])
    settings = {
        **{name: value for name, value in vars(arguments).items() if name in names},
        "learning_rate": DEFAULT_LEARNING_RATE[mode] if rate is None else rate,
        "module_learning_rates": module_rates if mode == "lora" else None,
        "cache_prefix": arguments.cache_prefix and mode == "lora",
        "loraplus_lr_ratio": arguments.loraplus_lr_ratio if mode == "lora" else None,
        "class_weights": class_weights(arguments.class_weights),
        "log_to": tuple(arguments.log_to),
        "output_dir": output_dir,
    }
    return TrainConfig(**settings)


def class_weights(words: Sequence[str] | None) -> str | list[float] | dict[str, float] | None:
    """The setting of TrainConfig that --class-weights stands for.

    Raises:
        ValueError: A word is no number.
    """
    if not words or list(words) == ["balanced"]:
        return words[0] if words else None
    pairs = [str(word).rpartition("=") for word in words]
    try:
        numbers = [float(number) for _, _, number in pairs]
        if len({sign for _, sign, _ in pairs}) > 1:
            raise ValueError("numbers with and without a label")
    except ValueError:
        hints = "".join(comma_hint(number, float) for _, _, number in pairs)
        raise ValueError(
            f"--class-weights {' '.join(map(str, words))}: give balanced, or a number for each label in their order, or"
            f" some labels' numbers, such as B-DNA=5 I-DNA=5{hints}"
        ) from None
    return {label: number for (label, _, _), number in zip(pairs, numbers, strict=True)} if pairs[0][1] else numbers


def check_utf8(folder: Path, flag: str) -> None:
    """Refuse a folder from which no model or adapter could be read.

    Raises:
        ValueError: The path is not UTF-8.
    """
    if not is_utf8(folder):
        raise ValueError(
            f"{flag} {folder}: the path is not UTF-8, and no model can be read from it; give another folder"
        )


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
