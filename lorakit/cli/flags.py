"""The command line's words: the flags that several commands share, and the calls that they stand for.

`lorakit train`, `lorakit params`, … and examples/bionlp.py take them from here, so that a flag has one name, one
meaning and one default everywhere. Nothing heavy is imported here: `--help` and a mistyped flag answer at once.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lorakit.training.config import ENGINES
from lorakit.training.trackers import LOGGERS

if TYPE_CHECKING:
    from lorakit.data.corpus import NerData
    from lorakit.training.config import TrainConfig

# Usual values for a base of roberta-base's size; not tuned by us, no hub could be reached.
MODE_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 5e-5, "epochs": 5},
    "lora": {"learning_rate": 1e-3, "epochs": 5},
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line, on one process, and shows examples as they are written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":
            print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def input_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """What is wrong with the user's input in this block ends the program with one line and status 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # the last: a flag names what is not installed
        parser.error(str(error))


# Flags ---------------------------------------------------------------------------------------------------------------


def add_mode_flag(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--mode", choices=("both", "full", "lora"), default=default, help="default: %(default)s")


def add_corpus_flags(parser: argparse.ArgumentParser, about: str, required: bool = False) -> None:
    add = parser.add_argument
    add("--dataset", required=required, metavar="FOLDER_OR_ID", help=about)
    add("--sentences", type=int, metavar="N", help="use only the first N sentences of each split")


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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
    add(
        "--layers-to-transform", nargs="+", type=int, metavar="N", help="adapt these layers only, from 0 (default: all)"
    )
    add("--modules-to-save", nargs="+", metavar="NAME", help="train these whole, as the head is: word_embeddings, …")
    add(
        "--bias", choices=("none", "all", "lora_only"), default="none", help="biases LoRA trains (default: %(default)s)"
    )


def add_training_flags(parser: argparse.ArgumentParser, dropout: str = "its own") -> None:
    add = parser.add_argument
    add("--epochs", type=int, help="default: each mode's own")
    add("--batch-size", type=int, default=16, help="sentences a process and step (default: %(default)s)")
    add("--learning-rate", type=float, metavar="X", help="default: each mode's own")
    add("--dropout", type=float, metavar="X", help=f"in the base (default: {dropout})")
    add_precision_flag(parser)
    add("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of several processes: replicate or shard the model")
    add(
        "--engine",
        choices=ENGINES,
        default="eager",
        help="compile: torch.compile the steps, minutes first, then less time per step; cuda_graphs: record the steps, "
        "which then launch a batch at once (default: %(default)s)",
    )
    add(
        "--cache-prefix",
        action="store_true",
        help="LoRA on top layers: compute those below once, keep their output; needs --dropout 0, no --bias all",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")


def add_precision_flag(parser: argparse.ArgumentParser) -> None:
    choices = ("auto", "fp32", "bf16", "fp16")
    parser.add_argument("--precision", choices=choices, default="auto", help="default: %(default)s")


def add_output_flags(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path(default), metavar="DIR", help="default: %(default)s")
    add("--log-to", nargs="+", default=[], choices=tuple(LOGGERS), metavar="NAME", help="tensorboard, wandb, or both")
    add("--resume", action="store_true", help="go on where a run in the same output folder was stopped")


def add_saved_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--adapter", metavar="FOLDER_OR_ID", help="a LoRA adapter; it names its base and its labels")
    add("--model", metavar="FOLDER_OR_ID", help="a model fine-tuned in full; with --adapter: another place of its base")


# What they stand for -------------------------------------------------------------------------------------------------


def lora_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `apply_lora`."""
    targets, init = arguments.target_modules, arguments.init_lora_weights
    lists = {name: getattr(arguments, name) for name in ("layers_to_transform", "modules_to_save")}
    return {
        "r": arguments.r,
        "lora_alpha": arguments.lora_alpha,
        "lora_dropout": arguments.lora_dropout,
        "target_modules": targets[0] if len(targets) == 1 else targets,
        "bias": arguments.bias,
        "init_lora_weights": True if init == "kaiming" else init,
        **{name: value for name, value in lists.items() if value is not None},
    }


def train_config(
    arguments: argparse.Namespace,
    mode: str,
    output_dir: Path,
    defaults: Mapping[str, Mapping[str, Any]] = MODE_DEFAULTS,
    **more: Any,
) -> "TrainConfig":
    """How to train one mode; what the user left out is the mode's own default.

    Raises:
        ValueError: a value is out of its range.
    """
    from lorakit.training.config import TrainConfig

    chosen = {name: getattr(arguments, name) for name in defaults[mode] if getattr(arguments, name) is not None}
    return TrainConfig(
        **{**defaults[mode], **chosen, **more},
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        output_dir=output_dir,
        seed=arguments.seed,
        resume=arguments.resume,
        strategy=arguments.strategy,
        engine=arguments.engine,
        cache_prefix=arguments.cache_prefix and mode == "lora",
        log_to=tuple(arguments.log_to),
    )


def read_corpus(arguments: argparse.Namespace) -> "NerData":
    """The corpus of --dataset, cut to --sentences.

    Raises:
        ValueError: it cannot be read, or --sentences is below 1.
    """
    from lorakit.data.corpus import read_ner

    return first_sentences(read_ner(arguments.dataset), arguments.sentences)


def first_sentences(data: "NerData", count: int | None) -> "NerData":
    """The first `count` sentences of each split; None keeps all.

    Raises:
        ValueError: `count` is below 1.
    """
    from dataclasses import replace

    if count is None:
        return data
    if count < 1:
        raise ValueError(f"--sentences is {count}; it must be at least 1")
    return replace(data, train=data.train[:count], validation=data.validation[:count], test=data.test[:count])


def check_writable(folder: Path, flag: str = "--output-dir") -> None:
    """Fail now rather than after an hour of training; leaves nothing behind.

    Raises:
        ValueError: the folder cannot be made or written.
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
