"""--seeds: which runs a command makes, each seed's in a folder of its own, and which of them an earlier one finished.

A finished seed is known by its comparison.json, which is written last and holds the settings of its runs.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit.cli.flags import train_config
from lorakit.cli.run_folder import RECORD
from lorakit.data.ner_data import NerData
from lorakit.training.config import TrainConfig

MOST_SEEDS = 1000  # each is a run; a larger number is meant for --seed
NOT_SETTINGS = ("output_dir", "seed", "resume", "overwrite", "save_every", "log_every", "progress", "log_to")


@dataclass
class SeedRuns:
    """The runs of one seed, one per mode.

    Attributes:
        seed: of the runs.
        folder: that holds them.
        configs: how to train each mode.
        settings: what the runs depend on besides the seed.
        record: the content of the folder's comparison.json; None until the runs have finished.
    """

    seed: int
    folder: Path
    configs: Mapping[str, TrainConfig]
    settings: Mapping[str, Any]
    record: dict[str, Any] | None = None


def check_seeds(arguments: argparse.Namespace, modes: Sequence[str]) -> None:
    """Check --seeds and --margin.

    Raises:
        ValueError: one is out of range, or there is nothing to compare.
    """
    if not 1 <= arguments.seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds is {arguments.seeds}; it must be from 1 to {MOST_SEEDS}")
    if arguments.margin is None:
        return
    from lorakit.report.run_comparison import check_margin

    check_margin(arguments.margin)
    if arguments.seeds == 1 or len(modes) == 1:
        raise ValueError("--margin needs --mode both and --seeds of at least 2; leave it out")


def plan_seeds(
    arguments: argparse.Namespace,
    modes: Sequence[str],
    data: NerData,
    options: Mapping[str, Any],
    folder_of: Callable[[Path, str], Path],
) -> list[SeedRuns]:
    """The runs of each seed; with --resume, those that have finished have their record.

    Args:
        arguments: the command line.
        modes: to train.
        data: the corpus.
        options: arguments of `apply_lora`.
        folder_of: the folder of a mode inside that of its seed.

    Raises:
        ValueError: a finished run has other settings.
    """
    several = arguments.seeds > 1
    plans = []
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        folder = arguments.output_dir / f"seed-{seed}" if several else arguments.output_dir
        here = argparse.Namespace(**{**vars(arguments), "seed": seed})
        configs = {mode: train_config(here, mode, folder_of(folder, mode)) for mode in modes}
        plan = SeedRuns(seed, folder, configs, settings_of(arguments, data, options, configs))
        if arguments.resume:
            plan.record = finished_record(plan)
        plans.append(plan)
    return plans


def settings_of(
    arguments: argparse.Namespace, data: NerData, options: Mapping[str, Any], configs: Mapping[str, TrainConfig]
) -> dict[str, Any]:
    """What the runs of all seeds depend on besides the seed, as JSON values by name."""
    from lorakit.training.distributed import world_size
    from lorakit.training.identity import digest_of

    base = Path(arguments.model)
    found: dict[str, Any] = {
        "modes": list(configs),
        "model": str(base.resolve()) if base.is_dir() else arguments.model,
        "dropout": arguments.dropout,
        "processes": world_size(),
        **{f"{split} set": digest_of(getattr(data, split)) for split in ("train", "validation", "test")},
    }
    for mode, config in configs.items():
        known = {name: value for name, value in asdict(config).items() if name not in NOT_SETTINGS}
        found |= {f"{mode}.{name}": value for name, value in known.items()}
    if "lora" in configs:
        found |= {f"lora.{name}": value for name, value in options.items()}
    plain = {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in found.items()}
    return json.loads(json.dumps(plain))


def finished_record(plan: SeedRuns) -> dict[str, Any] | None:
    """The record of a seed whose runs have finished; None if they have not, or are to be trained longer.

    Raises:
        ValueError: they finished with other settings, or their record or the checkpoints to train longer are missing.
    """
    from lorakit.report.comparison import read_comparison

    path = plan.folder / RECORD
    if not path.exists():
        return None
    record = read_comparison(path)
    former = record.get("settings") or {}
    if _is_longer(former, plan.settings):
        _check_checkpoints(plan)
        return None
    differ = [name for name, value in plan.settings.items() if former.get(name) != value]
    before = {**former, "seed": next(iter(record["modes"].values())).get("seed", plan.seed)}
    now = {**plan.settings, "seed": plan.seed}
    differ += ["seed"] * (before["seed"] != plan.seed)
    if differ:
        name = min(differ, key=lambda name: name.endswith(".epochs"))  # these alone would be allowed to grow
        raise ValueError(
            f"the runs in {plan.folder} have finished with {name} = {before.get(name)!r}, now it is"
            f" {now[name]!r}; resume with the former value, give another --output-dir, or start again with"
            " --overwrite instead of --resume"
        )
    return record


def _is_longer(former: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the settings are the former ones with more epochs."""
    differ = {name for name, value in settings.items() if former.get(name) != value}
    epochs = {f"{mode}.epochs" for mode in settings["modes"]}
    return differ == epochs and all(former.get(name, 0) < settings[name] for name in epochs)


def _check_checkpoints(plan: SeedRuns) -> None:
    """Refuse to train longer where the checkpoints to continue from have been deleted."""
    for config in plan.configs.values():
        if not any((Path(config.output_dir) / "checkpoints").glob("step-*")):
            raise ValueError(
                f"the run in {config.output_dir} has finished, and its checkpoints were deleted then, so it cannot be"
                f" trained longer; train all {config.epochs} epochs with --overwrite instead of --resume, and with"
                " --keep-checkpoints if it may become longer again"
            )


def delete_checkpoints_of(plan: SeedRuns) -> None:
    """Delete what finished runs no longer need: weights of the best epoch are saved, and the rest is for resuming."""
    from lorakit.training.checkpoint import delete_checkpoints

    for config in plan.configs.values():
        folder = Path(config.output_dir) / "checkpoints"
        delete_checkpoints(folder)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def seeds_record(about: Mapping[str, Any], plans: Sequence[SeedRuns], margin: float | None) -> dict[str, Any]:
    """The comparison.json of several seeds, all finished.

    Args:
        about: arguments of `comparison_record`.
        plans: the runs of each seed.
        margin: as for `compare_runs`.
    """
    from lorakit.report.comparison import comparison_record
    from lorakit.report.seeds import mean_modes

    seeds = [{"seed": plan.seed, "folder": plan.folder.name, "modes": plan.record["modes"]} for plan in plans]
    interleaved = all(plan.record["interleaved"] for plan in plans)  # some may be of an earlier command
    one = comparison_record(
        **{**about, "interleaved": interleaved}, modes=mean_modes(seeds), settings=plans[0].settings
    )
    return {**one, "seeds": seeds, "margin": margin, "comparison": _compared(one["modes"], plans, margin)}


def _compared(modes: Mapping[str, Any], plans: Sequence[SeedRuns], margin: float | None) -> dict[str, Any]:
    """What `lorakit compare` says of the runs, or why it says nothing."""
    from lorakit.report.comparison import comparison_split
    from lorakit.report.run_comparison import compare_runs

    split = comparison_split(modes)
    if split is None:
        return {"why": "there is no validation or test set on which all were scored"}
    try:
        return compare_runs([plan.folder for plan in plans], split, margin, one_side=True)
    except ValueError as error:
        return {"why": str(error)}
