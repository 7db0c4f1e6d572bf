"""`lorakit train`: fine-tune a base on a corpus, with LoRA, in full, or both to compare them.

For one mode OUTPUT_DIR holds metrics.jsonl, energy.jsonl, checkpoints/ and adapter/ (LoRA) or model/ (full); for both,
OUTPUT_DIR/lora and OUTPUT_DIR/full hold the same. comparison.{json,md,png} and report.html in OUTPUT_DIR hold scores,
energy and parameters. With several seeds each has all of this in OUTPUT_DIR/seed-N, and those in OUTPUT_DIR are of all.
"""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.cli.checks import check_batches, check_interleaving, check_machine, check_rank, check_resume
from lorakit.cli.config import add_config_flag
from lorakit.cli.corpora import add_corpus_flags, read_corpus, reading_record
from lorakit.cli.flags import (
    add_lora_flags,
    add_mode_flag,
    add_output_flags,
    add_seeds_flags,
    add_training_flags,
    check_settings,
    check_utf8,
    check_writable,
    lora_options,
    modes_of,
    train_config,
)
from lorakit.cli.notes import Notes, case_note, check_entities, describe_corpus, unscored_note
from lorakit.cli.parser import add_command, folder_or_id, input_errors, processes
from lorakit.cli.run_folder import (
    SUMMARY,
    UNCHANGED,
    choose_folder,
    clear_after_error,
    clear_folder,
    forget_summary,
    what_stays,
)
from lorakit.cli.saving import save_or_rescue, saved_as
from lorakit.cli.seeds import SeedRuns, check_seeds, delete_checkpoints_of, plan_seeds, seeds_record
from lorakit.cli.stopping import advice_if_stopped, check_stopped
from lorakit.data.ner_data import NerData
from lorakit.report.carbon import Carbon
from lorakit.training.config import TrainConfig, TrainResult

if TYPE_CHECKING:
    from torch import nn

    from lorakit.cli.building import ModelBuilder
    from lorakit.power.reading import Reading

EXAMPLES = """
lorakit train --model roberta-base --dataset path/to/corpus --output-dir runs/mine
lorakit train --mode both --model roberta-base --dataset path/to/corpus    compare LoRA with full fine-tuning
lorakit train --mode both --seeds 5 --margin 0.005 --config settings.yaml  and say whether one is better
lorakit train --config settings.yaml --epochs 3                            a flag overrides the file
torchrun --nproc-per-node 2 -m -- lorakit train --config settings.yaml  on two processes
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `train` to the commands."""
    parser = add_command(commands, "train", "fine-tune a base on a corpus: LoRA, in full, or both", EXAMPLES, run)
    add_config_flag(parser)
    add_mode_flag(parser, default="lora")
    parser.add_argument("--model", required=True, type=folder_or_id, metavar="FOLDER_OR_ID", help="base model")
    add_corpus_flags(
        parser, "corpus: a folder or file in any format of docs/corpora.md, or a hub id", required=True, divisible=True
    )
    add_training_flags(parser)
    add_seeds_flags(parser)
    add = parser.add_argument
    about = "batches per optimizer step (default: %(default)s)"
    add("--accumulate", type=int, default=TrainConfig.accumulate, metavar="N", help=about)
    about = "on weight matrices only (default: %(default)s)"
    add("--weight-decay", type=float, default=TrainConfig.weight_decay, metavar="X", help=about)
    about = "share of the steps in which the learning rate rises (default: %(default)s)"
    add("--warmup-ratio", type=float, default=TrainConfig.warmup_ratio, metavar="X", help=about)
    about = "clip the gradient to this norm (default: %(default)s)"
    add("--max-grad-norm", type=float, default=TrainConfig.max_grad_norm, metavar="X", help=about)
    about = "stop after N epochs without a better validation F1, or loss at equal F1 (default: never)"
    add("--patience", type=int, default=TrainConfig.patience, metavar="N", help=about)
    about = "save a checkpoint every N steps, besides the one after each epoch"
    add("--save-every", type=int, default=TrainConfig.save_every, metavar="N", help=about)
    add_lora_flags(parser)
    add_output_flags(parser, default="runs/train")


def run(arguments: argparse.Namespace) -> int:
    """Train, save and compare; returns the exit status."""
    both = arguments.mode == "both"

    def folder_of(folder: Path, mode: str) -> Path:
        return folder / mode if both else folder

    command = shlex.join(["lorakit", *arguments.argv])
    return fine_tune(arguments, read_corpus, folder_of, command, arguments.model, keep_full=True)


@advice_if_stopped(lambda: UNCHANGED)
def fine_tune(
    arguments: argparse.Namespace,
    read: Callable[[argparse.Namespace], NerData],
    folder_of: Callable[[Path, str], Path],
    command: str,
    name: str,
    keep_full: bool = False,
    study: bool = False,
) -> int:
    """Fine-tune in each mode of --mode with each seed, and compare: the body of `lorakit train` and examples/bionlp.py.

    An error in the input, also one that only the files of the base can show, ends the program before anything is
    written.

    Args:
        arguments: What the flags of cli/flags.py set, and `parser`.
        read: Reads the corpus.
        folder_of: The folder of a mode inside --output-dir or, of several seeds, inside the seed's folder.
        command: The command line, for the record.
        name: The base's name, for the record.
        keep_full: Save the model that was fine-tuned in full, and print how to use what was saved.
        study: Show the study's published figures beside ours.

    Returns:
        The exit status.
    """
    with input_errors(arguments.parser):
        modes = modes_of(arguments)
        check_settings(arguments, modes)
        check_seeds(arguments, modes)
        carbon = Carbon(arguments.co2, arguments.embodied, arguments.sci)

    from lorakit.cli.comparison import environment
    from lorakit.cli.measured_training import exit_status
    from lorakit.report.comparison import comparison_record
    from lorakit.training.checkpoint import OtherRunError, run_lock
    from lorakit.training.distributed import is_main
    from lorakit.training.gradients import NoGradientError
    from lorakit.training.preemption import Preempted

    with processes(arguments), ExitStack() as locked:
        with input_errors(arguments.parser):
            check_utf8(arguments.output_dir, "--output-dir")
            job = prepare(arguments, read, folder_of)
            locked.enter_context(run_lock(arguments.output_dir))
        about = {"command": command, "environment": environment(), "model": name, "dataset": job.data.source}
        about |= {"study": study, "interleaved": job.interleaved, "carbon": carbon}
        about["reading"] = reading_record(arguments)
        check_stopped()
        locked.enter_context(advice_if_stopped(lambda: what_stays(arguments)))
        if is_main():
            prepare_folder(job)
        try:
            for plan in job.unfinished:
                modes = job.train(plan, keep_full)
                plan.record = comparison_record(**about, modes=modes, settings=plan.settings)
                if is_main():
                    write_results(plan.record, plan.folder)
                    if not arguments.keep_checkpoints:
                        delete_checkpoints_of(plan)
        except (Preempted, MemoryError, OSError) as stopped:  # OSError: a full disk, for example, after the training
            return exit_status(stopped, arguments)
        # what was asked for cannot be trained: a rate at which it diverges, or parameters without a gradient
        except (FloatingPointError, NoGradientError, OtherRunError) as error:
            if is_main() and not arguments.resume:
                clear_after_error(plan.folder, arguments.output_dir)
            arguments.parser.error(str(error))
        except KeyboardInterrupt:  # before the training caught signals, or a second Ctrl-C, which does not wait
            if is_main() and not arguments.resume:
                clear_after_error(plan.folder, arguments.output_dir)
            raise
        if is_main():
            with input_errors(arguments.parser):
                complete_results(job)
            show_results(job, about, keep_full)
    return 0


def prepare_folder(job: "Job") -> None:
    """Make room for the runs, once everything has been checked."""
    folder = job.arguments.output_dir
    if job.arguments.overwrite:
        clear_folder(folder)
    if job.unfinished:
        for stale in (folder, *(plan.folder for plan in job.unfinished)):
            forget_summary(stale)
    else:
        job.note(f"the run in {folder} has finished, and nothing is left to train")


def complete_results(job: "Job") -> None:
    """Write what a finished run lacks because it was stopped between its comparison.json and its end."""
    for plan in job.plans:
        if plan.record is not None and any(not (plan.folder / name).exists() for name in SUMMARY):
            write_results(plan.record, plan.folder)
            if not job.arguments.keep_checkpoints:
                delete_checkpoints_of(plan)


def write_results(record: Mapping[str, Any], folder: Path) -> None:
    """Write comparison.{json,md,png} and report.html into a folder."""
    from lorakit.report.output import write_comparison
    from lorakit.report.page import write_page

    write_comparison(record, folder)
    write_page([folder])


@dataclass
class Job:
    """What one command trains.

    Attributes:
        arguments: the command line.
        data: the corpus.
        options: arguments of `apply_lora`.
        plans: the runs of each seed.
        interleaved: the modes take turns.
        note: prints what the user should know of the base, once for all seeds.
        builder: of the first seed's models, until they are trained; None if every seed has finished.
    """

    arguments: argparse.Namespace
    data: NerData
    options: Mapping[str, Any]
    plans: Sequence[SeedRuns]
    interleaved: bool
    note: Notes
    builder: "ModelBuilder | None" = None

    @property
    def unfinished(self) -> list[SeedRuns]:
        """The seeds that are left to train."""
        return [plan for plan in self.plans if plan.record is None]

    def build(self, plan: SeedRuns) -> "ModelBuilder":
        """The builder of a seed's models."""
        given = self.arguments
        more = (plan.seed, given.dropout, given.cache_prefix)
        return tagger_builder(list(plan.configs), given.model, self.data.labels, self.options, *more, note=self.note)

    def train(self, plan: SeedRuns, keep_full: bool) -> dict[str, Any]:
        """Train the modes with a seed and save what came out; returns each mode's part of comparison.json."""
        builder, self.builder = self.builder, None
        if builder is None:
            with input_errors(self.arguments.parser):
                builder = self.build(plan)
        train = train_interleaved if self.interleaved else train_sequentially
        return train(builder, self.data, plan.configs, self.options, keep_full)


def prepare(
    arguments: argparse.Namespace,
    read: Callable[[argparse.Namespace], NerData],
    folder_of: Callable[[Path, str], Path],
) -> Job:
    """Check everything that can be checked before training, and build the first seed's models; writes nothing.

    Raises:
        ValueError, OSError, ImportError: The input is wrong.
    """
    from lorakit.training.loss import check_weights_of_classes

    modes = modes_of(arguments)
    choose_folder(arguments)
    check_writable(arguments.output_dir)
    for mode in modes:
        check_machine(train_config(arguments, mode, arguments.output_dir))
    data, options = read(arguments), lora_options(arguments)
    check_entities(data)
    plans = plan_seeds(arguments, modes, data, options, folder_of)
    for config in plans[0].configs.values():
        check_weights_of_classes(config.class_weights, data.labels)
    interleaved = len(modes) > 1 and not arguments.sequential
    job = Job(arguments, data, options, plans, interleaved, Notes(arguments.parser))
    if job.unfinished:
        first = job.unfinished[0]
        job.builder = job.build(first)
        check_batches(job.builder, data, first.configs)
        if arguments.resume:
            check_resume(job.builder, [plan.configs for plan in job.unfinished])
        if lost := case_note(job.builder.built[modes[0]][1], data.train):
            job.note(lost)
        if job.interleaved:
            check_interleaving(job.builder, data, first.configs)
        describe_corpus(data, arguments.parser.prog, job.note)
        if unscored := unscored_note(data):
            job.note(unscored)
    return job


def show_results(job: Job, about: Mapping[str, Any], keep_full: bool) -> None:
    """Print what the runs gave and, for several seeds, write their comparison."""
    from lorakit.cli.comparison import print_comparison, print_verdict

    folder, (first, *others) = job.arguments.output_dir, job.plans
    record = seeds_record(about, job.plans, job.arguments.margin) if others else first.record
    if others:
        write_results(record, folder)
    print_comparison(record, folder)
    for mode, config in first.configs.items() if keep_full else ():
        saved = shlex.join(saved_as(mode, Path(config.output_dir)))
        print(f"try it: lorakit predict {saved} 'a sentence of yours'")
    if others:
        print_verdict(record)


def tagger_builder(
    modes: Sequence[str],
    source: str,
    labels: Sequence[str],
    options: Mapping[str, Any],
    seed: int = 0,
    dropout: float | None = None,
    cache_prefix: bool = False,
    note: Callable[[str], None] | None = None,
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
        note: Is told what became of a base's own head; None warns.

    Raises:
        ValueError, OSError: The base cannot be loaded, or LoRA does not fit it.
    """
    from lorakit.cli.building import ModelBuilder
    from lorakit.lora import apply_lora
    from lorakit.training.frozen_layer_cache import constant_layers
    from lorakit.training.models import load_token_classifier, warn

    folder = Path(source)
    base = folder.resolve() if folder.is_dir() else source  # an adapter names its base, and is loaded from any folder

    def adapt(model: Any) -> None:
        check_rank(model, options.get("r", 1))
        apply_lora(model, **options, seed=seed)
        if cache_prefix:
            constant_layers(model)  # raises if a layer below the trained ones changes

    def load() -> tuple[Any, Any]:
        return load_token_classifier(base, labels, seed, dropout, note=note or warn)

    return ModelBuilder(modes, load, adapt)


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
    found, failed = {}, []
    for mode, one in contestants.items():
        try:
            found[mode] = save_mode(mode, one.model, one.tokenizer, *trained[mode], one.config, options, keep_full)
        except (FloatingPointError, OSError) as error:
            failed.append(error)  # the other modes are saved first
    if failed:
        raise failed[0]
    return found


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
            save_or_rescue(lambda place: save_adapter(model, place), Path(folder), config)
        elif keep_full:
            save_or_rescue(lambda place: save_model(model, tokenizer, place), Path(folder), config)
    adapter = {**options, "peft_total_parameters": peft_total(model)} if mode == "lora" else None
    return mode_record(result, count_parameters(model), reading, config, adapter)
