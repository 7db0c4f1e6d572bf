"""`lorakit tune`: find the learning rate, the rank and the targets for a corpus, and how sure one can be of them.

OUTPUT_DIR holds trials/ and finalists/ with a folder per run, search.json and tuning.json with what was found,
tune.html to look at, and winner.yaml for `lorakit train --config`. A search that was stopped continues with --resume.
"""

import argparse
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit.adapters.config import ALL_LINEAR
from lorakit.cli.config import add_config_flag
from lorakit.cli.corpora import add_corpus_flags, read_corpus
from lorakit.cli.flags import (
    add_decode_flag,
    add_device_flag,
    add_packing_flag,
    add_precision_flag,
    check_utf8,
    check_writable,
    target_modules,
)
from lorakit.cli.notes import Notes, check_entities, describe_corpus
from lorakit.cli.parser import add_command, at_least_0, file_or_folder, folder_or_id, input_errors, processes
from lorakit.cli.run_folder import (
    NOTHING_KEPT,
    SEARCH_FOLDERS,
    SEARCH_SIGNS,
    UNCHANGED,
    check_own_place,
    clear_folder,
    holds_results,
    how_to_continue,
    remove_if_empty,
)
from lorakit.cli.stopping import advice_if_stopped, check_stopped
from lorakit.data.ner_data import NerData
from lorakit.training.config import TrainConfig, check_dropout

if TYPE_CHECKING:
    from lorakit.cli.measured_training import RunMeter
    from lorakit.training.adapter_run import AdapterRun
    from lorakit.training.tuning import Search, Space

EXAMPLES = """
lorakit tune --model roberta-base --dataset path/to/corpus --budget 20m    then lorakit train --config
lorakit tune --model roberta-base --dataset path/to/corpus --trials 64 --learning-rates 5e-4 1e-3 2e-3 --ranks 8 32
lorakit tune --model roberta-base --dataset path/to/corpus --budget-wh 5 --finalists 2 --finalist-seeds 5
"""
LEARNING_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
RANKS = (4, 8, 16, 32)
(SEARCH, RECORD), PAGE, WINNER = SEARCH_SIGNS, "tune.html", "winner.yaml"
TRIALS, FINALISTS = SEARCH_FOLDERS
SCHEMA = 1
PASSED_ON = (  # flags of `lorakit train`, too, which the winner's file repeats
    "dataset", "sentences", "scheme", "columns", "layer", "offsets", "label_map", "split", "split_seed",
    "dropout", "precision", "packing", "decode", "device",
)  # fmt: skip
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `tune` to the commands."""
    about = "find the learning rate, rank and layers for a corpus, under a budget"
    parser = add_command(commands, "tune", about, EXAMPLES, run)
    add_config_flag(parser)
    add = parser.add_argument
    add("--model", required=True, type=folder_or_id, metavar="FOLDER_OR_ID", help="base model")
    add_corpus_flags(
        parser,
        "corpus with a validation split: a folder or file in any format of docs/corpora.md, or a hub id",
        required=True,
        divisible=True,
    )
    about = "combinations to try (default: %(default)s, or as many as there are)"
    add("--trials", type=int, default=32, metavar="N", help=about)
    about = (
        "stop after this time, such as 90s, 20m or 2h: trials start in its first half and end at three quarters, the"
    )
    add("--budget", type=_seconds, metavar="TIME", help=f"{about} rest is for the finalists (default: no limit)")
    about = "the same for energy, measured or else estimated, Wh"
    add("--budget-wh", type=at_least_0, metavar="X", help=about)
    shown = " ".join(f"{rate:g}" for rate in LEARNING_RATES)
    about = f"learning rates to choose from (default: {shown})"
    add("--learning-rates", type=float, nargs="+", default=list(LEARNING_RATES), metavar="X", help=about)
    about = f"LoRA ranks to choose from; alpha is twice the rank (default: {' '.join(map(str, RANKS))})"
    add("--ranks", type=int, nargs="+", default=list(RANKS), metavar="N", help=about)
    about = "sets of layers to choose from, as for --target-modules of train, names within a set joined by commas "
    about += "(default: the attention's query and value, by architecture; and all-linear)"
    add("--targets", nargs="+", metavar="NAMES", help=about)
    add("--epochs", type=int, default=6, metavar="N", help="default: %(default)s")
    about = "of the trials judged after 1, N, N², … epochs, one in N continues (default: %(default)s)"
    add("--factor", type=int, default=3, metavar="N", help=about)
    add("--finalists", type=int, default=3, metavar="N", help="best trials to train again (default: %(default)s)")
    about = "train each finalist with N other seeds, and compare their means (default: %(default)s)"
    add("--finalist-seeds", type=int, default=3, metavar="N", help=about)
    about = "runs that share a step (default: %(default)s)"
    add("--at-once", type=int, default=16, metavar="N", help=about)
    about = "sentences per process and batch (default: %(default)s)"
    add("--batch-size", type=int, default=TrainConfig.batch_size, metavar="N", help=about)
    add("--dropout", type=float, metavar="X", help="dropout in the base (default: the base's own)")
    add_precision_flag(parser)
    add_device_flag(parser)
    add_packing_flag(parser)
    add_decode_flag(parser)
    add("--seed", type=int, default=TrainConfig.seed, metavar="N", help="default: %(default)s")
    about = "a new folder for the results (default: %(default)s)"
    add("--output-dir", type=file_or_folder, default=Path("runs/tune"), metavar="DIR", help=about)
    about = "delete the results of another run in the output folder first"
    add("--overwrite", action="store_true", help=about)
    add("--resume", action="store_true", help="continue the stopped search in the output folder")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90s, 20m or 2h")
    return float(found[1]) * UNITS_S[found[2]]


@advice_if_stopped(lambda: UNCHANGED)
def run(arguments: argparse.Namespace) -> int:
    """Search, train the finalists and report; returns the exit status."""
    with input_errors(arguments.parser):
        config = checked_config(arguments)

    from lorakit.cli.measured_training import exit_status
    from lorakit.training.checkpoint import OtherRunError, run_lock
    from lorakit.training.distributed import is_main
    from lorakit.training.preemption import Preempted

    with processes(arguments), ExitStack() as locked:
        with input_errors(arguments.parser):
            job = prepare(arguments, config)
            locked.enter_context(run_lock(arguments.output_dir))
        check_stopped()
        locked.enter_context(advice_if_stopped(lambda: what_stays(arguments)))
        if arguments.overwrite and is_main():
            clear(arguments.output_dir)
        try:
            has_winner = job.run()
        except (Preempted, MemoryError, OSError) as stopped:
            return exit_status(stopped, arguments)
        except (ValueError, OtherRunError) as error:  # these runs cannot be trained together, or are others
            folder: Path = arguments.output_dir
            if is_main() and not arguments.resume and not is_searched(folder):
                clear(folder)
                if not any(folder.iterdir()):
                    folder.rmdir()
            arguments.parser.error(str(error))
    return 0 if has_winner else 1


class TuningJob:
    """One search; every process has it, and the main one writes and prints.

    Args:
        arguments: the command line.
        data: the corpus.
        config: of every trial.
        note: prints what the user should know of the base, once.

    Attributes:
        space: what is searched; set before `run`.
    """

    def __init__(self, arguments: argparse.Namespace, data: NerData, config: TrainConfig, note: Notes) -> None:
        from lorakit.training.tuning import Budget

        self.arguments, self.data, self.config, self.note = arguments, data, config, note
        self.folder: Path = arguments.output_dir
        self.space: Space | None = None
        limits = {"seconds": arguments.budget, "wh": arguments.budget_wh}
        self.budget = Budget({name: most for name, most in limits.items() if most is not None}, self.spent)
        self._began, self._meters = time.monotonic(), []

    def spent(self) -> dict[str, float]:
        """What was spent since the start: the main process's time, and the energy of all as far as it is known.

        Every process calls it at the same moments, so that all stop by the same figures.
        """
        from lorakit.training.distributed import gather_bytes

        mine = {
            "seconds": time.monotonic() - self._began,
            "wh": sum(meter.turn_wh() or 0.0 for meter in self._meters),
        }
        of_ranks = [json.loads(part) for part in gather_bytes(json.dumps(mine).encode())]
        return {"seconds": of_ranks[0]["seconds"], "wh": sum(part["wh"] for part in of_ranks)}

    def meter(self, name: str) -> "RunMeter":
        """A meter whose journal is in this folder."""
        from lorakit.cli.measured_training import RunMeter

        self._meters.append(RunMeter(TrainConfig(output_dir=self.folder / name, resume=self.arguments.resume)))
        return self._meters[-1]

    def search(self) -> "Search":
        """The queue of trials."""
        from lorakit.training.tuning import Search

        given = self.arguments
        return Search(self.space, given.trials, self.config, self.folder / TRIALS, self.budget, given.factor)

    def load(self, seed: int) -> tuple[Any, Any]:
        """The base with a new head, and its tokenizer."""
        from lorakit.training.models import load_token_classifier

        base, dropout = _base(self.arguments.model), self.arguments.dropout
        return load_token_classifier(base, self.data.labels, seed, dropout, note=self.note)

    def run(self) -> bool:
        """Search, train the finalists, write the files and print what was found; returns False without a winner."""
        from lorakit.training.distributed import is_main

        found = self.searched()
        seeds, wh = self.train_finalists(found)
        return not is_main() or self.report(found, seeds, wh)

    def report(self, found: Mapping[str, Any], seeds: Sequence[int], wh: float | None) -> bool:
        """Write the files and print what was found.

        Args:
            found: the content of search.json.
            seeds: of the finalists.
            wh: energy of the finalists; None where it is unknown.

        Returns:
            False if there is no winner.
        """
        from lorakit._files import write_text
        from lorakit.cli.comparison import environment
        from lorakit.cli.tuning_record import record_of, winner_file
        from lorakit.report.tuning import tuning_page, tuning_text
        from lorakit.training.checkpoint import delete_checkpoints

        names = found["best"][: self.arguments.finalists]
        splits = [split for split in ("validation", "test") if len(getattr(self.data, split)) > 1]
        record = {
            "schema": SCHEMA,
            "command": shlex.join(["lorakit", *self.arguments.argv]),
            "environment": environment(),
            "model": self.arguments.model,
            "dataset": self.data.source,
            "epochs": self.config.epochs,
            "energy": {"method": found["method"], "search_wh": found["wh"], "finalists_wh": wh},
            **record_of(found, names, seeds, splits, self.place),
        }
        write_text(self.folder / PAGE, tuning_page(record))
        if record["finalists"]:
            given = [*(name for name in PASSED_ON if name in self.arguments.given), "epochs", "batch_size"]
            settings = {name: getattr(self.arguments, name) for name in given}
            write_text(self.folder / WINNER, winner_file(record, settings))
        write_text(self.folder / RECORD, json.dumps(record, indent=1) + "\n")
        for name in (TRIALS, FINALISTS):
            for checkpoints in list((self.folder / name).rglob("checkpoints")):
                delete_checkpoints(checkpoints)
                remove_if_empty(checkpoints)
        print(tuning_text(record), end="")
        if record["finalists"]:
            print(f"train it: lorakit train --config {shlex.quote(str(self.folder / WINNER))}")
        return bool(record["finalists"])

    def searched(self) -> dict[str, Any]:
        """The content of search.json: that of a search that has ended, or of the one that is made now."""
        from lorakit._files import write_text
        from lorakit.cli.tuning_record import energy_of, trials_of, weights_of
        from lorakit.training.distributed import is_main, main_writes, of_main
        from lorakit.training.identity import check_same_run
        from lorakit.training.many import train_queue

        given, path, search = self.arguments, self.folder / SEARCH, self.search()
        settings = {**search.settings(), **self.identity()}
        has_ended = given.resume and is_main() and path.exists()
        if found := of_main(json.loads(path.read_text(encoding="utf-8")) if has_ended else None):
            check_same_run(self.folder, found["settings"], settings)
            self.budget.before = found["spent"]
            return found
        model, tokenizer = self.load(given.seed)
        sizes = weights_of(model, search)
        meter = self.meter(TRIALS)
        with meter.turn():
            # the test split is for the finalists alone
            results = train_queue(model, tokenizer, replace(self.data, test=()), search, given.at_once)
        method, wh = energy_of(meter.reading)
        found = of_main(
            {  # the energy that a stopped search had used is in the main process's journal
                "settings": settings,
                "spent": self.budget.spent(),
                "combinations": len(self.space),
                "trials": trials_of(search, results, sizes, wh),
                "best": [trial.name for trial in search.best(len(search.trials))],
                "method": method,
                "wh": wh,
            }
        )
        main_writes(lambda: write_text(path, json.dumps(found, indent=1) + "\n"))
        return found

    def train_finalists(self, found: Mapping[str, Any]) -> tuple[list[int], float | None]:
        """Train the finalists with other seeds, at least one; returns which were trained, and the energy, Wh."""
        from lorakit.cli.tuning_record import energy_of
        from lorakit.training.distributed import of_main
        from lorakit.training.many import train_many
        from lorakit.training.sentences import NAME

        given, seeds, names = self.arguments, [], found["best"][: self.arguments.finalists]
        trials = {trial["name"]: trial for trial in found["trials"]}
        meter = self.meter(FINALISTS)
        with meter.turn():
            for seed in range(given.seed + 1, given.seed + 1 + given.finalist_seeds if names else 0):
                if seeds and self.budget.share() >= 1:
                    break
                seeds.append(seed)
                runs = [self.finalist(trials[name], seed) for name in names]
                # a process may look after the main one has begun to write
                if not of_main(all((Path(run.config.output_dir) / NAME).exists() for run in runs)):
                    model, tokenizer = self.load(seed)
                    train_many(model, tokenizer, self.data, runs, given.at_once)
        return seeds, energy_of(meter.reading)[1]

    def finalist(self, trial: Mapping[str, Any], seed: int) -> "AdapterRun":
        """The run of a finalist with a seed, which is also that of its head."""
        from lorakit.training.tuning import run_of

        settings = {"learning_rates": trial["learning_rate"], "ranks": trial["r"], "targets": trial["target_modules"]}
        config = replace(self.config, seed=seed, output_dir=self.place(trial["name"], seed))
        return run_of(trial["name"], settings, config)

    def place(self, name: str, seed: int) -> Path:
        """The folder of a finalist's run with a seed."""
        return self.folder / FINALISTS / name / f"seed-{seed}"

    def identity(self) -> dict[str, Any]:
        """What else must be the same for a search to be continued."""
        from lorakit.training.identity import digest_of

        splits = ("train", "validation", "test")
        corpus = {f"{split} set (hash)": digest_of(getattr(self.data, split)) for split in splits}
        return {"model": str(_base(self.arguments.model)), "dropout": self.arguments.dropout, **corpus}


def checked_config(arguments: argparse.Namespace) -> TrainConfig:
    """Check the flags by themselves, before torch is loaded; returns the settings of every trial.

    Raises:
        ValueError: a value is out of its range.
    """
    for name in ("finalists", "finalist_seeds", "trials", "at_once"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.factor < 2:
        raise ValueError(f"--factor is {arguments.factor}; it must be at least 2")
    if arguments.budget_wh == 0:
        raise ValueError("--budget-wh is 0; it must be above 0")
    if (lowest := min(arguments.ranks)) < 1:
        raise ValueError(f"--ranks has {lowest}; each must be an integer of at least 1")
    if arguments.dropout is not None:
        check_dropout(arguments.dropout)
    given = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "precision", "packing", "decode")}
    config = TrainConfig(**given, seed=arguments.seed, output_dir=arguments.output_dir, resume=arguments.resume)
    for rate in arguments.learning_rates:
        try:
            replace(config, learning_rate=rate)
        except ValueError as error:
            raise ValueError(str(error).replace("learning_rate is", "--learning-rates has", 1)) from error
    return config


def prepare(arguments: argparse.Namespace, config: TrainConfig) -> TuningJob:
    """Check everything else that can be checked before training; writes nothing.

    Raises:
        ValueError, OSError, ImportError: the input is wrong.
    """
    from lorakit.training.tuning import Space, load_optuna

    load_optuna()
    check_folder(arguments)
    check_budget(arguments.budget_wh)
    data = read_corpus(arguments)
    check_entities(data)
    if len(data.validation) < 2:
        raise ValueError(
            f"{data.source} has {counted(len(data.validation), 'validation sentence')}, and a search needs at least 2"
            " to choose by; divide the corpus with --split 80/10/10"
        )
    job = TuningJob(arguments, data, config, Notes(arguments.parser))
    model, _ = job.load(arguments.seed)  # finds a broken base, and targets that match nothing
    job.space = Space(tuple(arguments.learning_rates), tuple(arguments.ranks), targets_of(arguments.targets, model))
    check_trials(job, model)
    describe_corpus(data, arguments.parser.prog, job.note)
    return job


def check_trials(job: TuningJob, model: Any) -> None:
    """Refuse a space whose trials cannot be trained together.

    Raises:
        ValueError: with the setting.
    """
    from lorakit.cli.checks import check_rank
    from lorakit.training.many_checks import check_runs, new_adapters

    try:
        check_rank(model, max(job.space.ranks))
    except ValueError as error:
        raise ValueError(str(error).replace("--r ", "the highest of --ranks ", 1)) from error
    runs = job.search().largest()
    check_runs(runs, job.arguments.at_once)
    new_adapters(model, runs)


def targets_of(words: Sequence[str] | None, model: Any) -> tuple[str | tuple[str, ...], ...]:
    """The sets of layers of --targets."""
    from lorakit.adapters.targets import default_targets

    if words is None:
        try:
            return tuple(default_targets(model)), ALL_LINEAR
        except ValueError:  # the architecture has no default
            return (ALL_LINEAR,)
    found = [target_modules([word]) for word in words]
    return tuple(names if isinstance(names, str) else tuple(names) for names in found)


def check_folder(arguments: argparse.Namespace) -> None:
    """Refuse a folder that cannot be written, or that holds another search.

    Raises:
        ValueError: it does.
    """
    folder: Path = arguments.output_dir
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume continues the search in the folder and --overwrite deletes it; give one of them")
    check_utf8(folder, "--output-dir")
    check_writable(folder)
    check_own_place(folder)
    if holds_results(folder):
        raise ValueError(
            f"--output-dir {folder} holds the results of a training run; give another folder, such as"
            f" {folder.with_name(f'{folder.name}-tune')}"
        )
    if not (arguments.resume or arguments.overwrite) and holds_search(folder):
        raise ValueError(
            f"--output-dir {folder} holds another search; give another folder, --overwrite to delete it, or --resume to"
            " continue it"
        )


def check_budget(wh: float | None) -> None:
    """Refuse a budget of energy where none is known.

    Raises:
        ValueError: nothing is measured or estimated here.
    """
    from lorakit.energy import EnergyMeter

    if wh is None:
        return
    with EnergyMeter() as meter:
        time.sleep(0.01)
    reading = meter.gather()  # of several processes only one counts a device
    if reading.measured_wh is None and reading.estimated_wh is None:
        raise ValueError(
            f"--budget-wh {wh:g}: no energy is known on this machine (lorakit energy doctor says why); give --budget or"
            " --trials instead"
        )


def holds_search(folder: Path) -> bool:
    """Whether a search, finished or not, has written into a folder."""
    return any((folder / name).exists() for name in (TRIALS, FINALISTS, SEARCH, RECORD))


def is_searched(folder: Path) -> bool:
    """Whether a folder holds a search that has ended."""
    return (folder / SEARCH).exists()


def what_stays(arguments: argparse.Namespace) -> str:
    """What a search that was stopped outside of its steps has left, and how to go on."""
    return how_to_continue(arguments) if holds_search(arguments.output_dir) else NOTHING_KEPT


def clear(folder: Path) -> None:
    """Delete a search; what lorakit did not write stays."""
    for name in (TRIALS, FINALISTS):
        for run in sorted((path for path in (folder / name).rglob("*") if path.is_dir()), reverse=True):
            if run.is_dir():
                clear_folder(run)
                remove_if_empty(run)
        clear_folder(folder / name)
        remove_if_empty(folder / name)
    for name in (SEARCH, RECORD, PAGE, WINNER):
        (folder / name).unlink(missing_ok=True)


def _base(model: str) -> Path | str:
    folder = Path(model)
    return folder.resolve() if folder.is_dir() else model
