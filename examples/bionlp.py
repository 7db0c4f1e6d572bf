"""Fine-tune RoBERTa for named entities in full and with LoRA, and compare quality, parameters and energy.

Without arguments it runs offline, on the small base model and the generated corpus in examples/mini. It is `lorakit
train` with this base, this corpus and both modes as defaults; to write the steps yourself, start from own_ner.py (a
corpus of named entities) or own_loop.py (any model and any loss).
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lorakit.cli.corpora import add_corpus_flags, first_sentences, read_corpus
from lorakit.cli.flags import (
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_seeds_flags,
    add_training_flags,
)
from lorakit.cli.parser import Parser
from lorakit.cli.stopping import stoppable
from lorakit.cli.train import fine_tune
from lorakit.data.corpus import NerData, Sentence

MINI = Path(__file__).resolve().parent / "mini"
# The embedded base is small: dropout only slows it down, and after the default 3 epochs LoRA is still learning. On the
# embedded corpus its validation F1 is 0.794 after 2 epochs and 0.813 after 3 (seed 0); 5 epochs of the former defaults
# (r=32, PiSSA's start, the same rate) reached 0.881.
EMBEDDED = {"epochs": 5, "dropout": 0.0}
# What is known of the study's settings. Its learning rates are not, so ours apply.
STUDY = {
    "model": "roberta-base",
    "dataset": ["tner/bionlp2004"],
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
  python examples/bionlp.py --mode lora --r 8 --target-modules query value --learning-rate 4e-3
  python examples/bionlp.py --seeds 3                         three seeds of each, and a verdict: better, worse, …
  python examples/bionlp.py --study                           the study's settings; needs the hub and preferably a GPU
  torchrun --nproc-per-node 2 -- examples/bionlp.py           the same on two processes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    arguments = parse(argv)
    embedded = is_embedded(arguments.model)
    status = fine_tune(
        arguments,
        read=read_corpus if arguments.dataset else generated_corpus,
        folder_of=lambda folder, mode: folder / mode,
        command=shlex.join(["python", "examples/bionlp.py", *(sys.argv[1:] if argv is None else argv)]),
        name="the embedded base (roberta-mini-bio)" if embedded else arguments.model,
        study=arguments.study,
    )
    if status == 0 and arguments.study and os.environ.get("RANK", "0") == "0":  # one of the processes under torchrun
        show_codecarbon(json.loads((arguments.output_dir / "comparison.json").read_text())["modes"])
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings: those given, then those of --study or of the embedded base, then lorakit's defaults."""
    parser = Parser(prog="bionlp.py", description=__doc__, epilog=EXAMPLES)
    parser.set_defaults(parser=parser)
    add_mode_flag(parser, default="both")
    about = "base model (default: the embedded one, with {epochs} epochs and dropout {dropout:g})"
    parser.add_argument("--model", default=str(MINI), metavar="FOLDER_OR_ID", help=about.format(**EMBEDDED))
    add_corpus_flags(parser, "corpus (default: the embedded one, generated)", divisible=True)
    add_training_flags(parser)
    add_seeds_flags(parser)
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/bionlp")
    about = "use the study's settings, which other flags override, and show its figures beside ours"
    parser.add_argument("--study", action="store_true", help=about)
    if parser.parse_known_args(argv)[0].study:
        parser.set_defaults(**STUDY)
    arguments = parser.parse_args(argv)
    if is_embedded(arguments.model):
        chosen = arguments.given | (STUDY.keys() if arguments.study else set())
        vars(arguments).update({name: value for name, value in EMBEDDED.items() if name not in chosen})
    return arguments


def generated_corpus(arguments: argparse.Namespace) -> NerData:
    """The embedded corpus: sentences made from templates, cut to --sentences per split."""
    from mini.corpus import LABELS, make_corpus

    if arguments.scheme:
        raise ValueError("--scheme is of your own corpus; give --dataset too, or leave it out")
    train, validation, test = (tuple(Sentence(*pair) for pair in split) for split in make_corpus(seed=0))
    data = NerData(train, validation, test, tuple(LABELS), "the embedded corpus")
    return first_sentences(data, arguments.sentences)


def show_codecarbon(records: Mapping[str, Any]) -> None:
    """Print what CodeCarbon 2.x, which the study used, would have reported for our runs."""
    from codecarbon2 import codecarbon_v2_model

    for mode, record in records.items():
        duration_s, gpu_kwh = record["energy"]["duration_s"], record["energy"]["gpu"]["kwh"]
        print(f"{mode}: {codecarbon_v2_model(duration_s, psutil.virtual_memory().total, gpu_kwh=gpu_kwh)}")


def is_embedded(model: str) -> bool:
    return Path(model).exists() and Path(model).resolve() == MINI


if __name__ == "__main__":
    sys.exit(stoppable("bionlp.py", main))
