"""What `lorakit tune` writes about a search: its trials, its finalists, and the winner's settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lorakit._counts import counted
from lorakit.nn.weights import is_adaptable
from lorakit.power.reading import Reading
from lorakit.report.run_comparison import compare_runs
from lorakit.training.config import TrainResult
from lorakit.training.many_checks import new_adapters
from lorakit.training.sentences import NAME, read_sentences
from lorakit.training.tuning import ALPHA_PER_RANK, Search, Trial, front, operations_of

SETTINGS = ("learning_rate", "r", "lora_alpha", "target_modules")


def record_of(
    found: Mapping[str, Any],
    names: Sequence[str],
    seeds: Sequence[int],
    splits: Sequence[str],
    place: Callable[[str, int], Path],
) -> dict[str, Any]:
    """What tuning.json says of the trials and the finalists.

    Args:
        found: the content of search.json.
        names: of the finalists.
        seeds: of the finalists.
        splits: those on which the finalists are compared: "validation", "test".
        place: the folder of a finalist's run with a seed.
    """
    trials = {trial["name"]: trial for trial in found["trials"]}
    scored = [trial for trial in found["trials"] if trial["best_f1"] is not None]
    on_front = front([(trial["cost"], trial["best_f1"]) for trial in scored])
    folders = {name: [place(name, seed) for seed in seeds] for name in names}
    # one that diverged with a seed has no scores of it, and is not to be recommended
    folders = {name: own for name, own in folders.items() if all((folder / NAME).exists() for folder in own)}

    def mean(name: str) -> float:
        counts = [read_sentences(folder).splits["validation"].counts for folder in folders[name]]
        return sum(count.total("default").f1 for count in counts) / len(counts)

    order = sorted(folders, key=mean, reverse=True)
    compared = {
        split: compare_runs([folder for name in order for folder in folders[name]], split, one_side=True)
        for split in splits
        if order
    }
    finalists = [
        {
            **{key: trials[name][key] for key in ("name", *SETTINGS)},
            "f1": {split: made["sides"][number]["f1"]["default"] for split, made in compared.items()},
        }
        for number, name in enumerate(order)
    ]
    return {
        "combinations": found["combinations"],
        "trials": found["trials"],
        "front": [scored[number]["name"] for number in on_front],
        "seeds": list(seeds),
        "finalists": finalists,
        "comparison": compared.get("validation"),
    }


def trials_of(
    search: Search, results: Mapping[str, TrainResult], sizes: Mapping[str, Any], wh: float | None
) -> list[dict[str, Any]]:
    """What search.json says of every trial.

    Args:
        search: that has ended.
        results: of its runs.
        sizes: from `weights_of`.
        wh: energy of all trials, shared by their estimated operations; None where it is unknown.
    """
    trials = [_trial(trial, results[trial.name], sizes) for trial in search.trials.values()]
    operations = sum(trial["operations"] for trial in trials)
    for trial in trials:
        trial["wh"] = None if wh is None else wh * trial["operations"] / operations
        trial["cost"] = trial["operations"] if wh is None else trial["wh"]
    return trials


def winner_file(record: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The settings of the winner, for `lorakit train --config`.

    Args:
        record: the content of tuning.json.
        given: the other settings that all trials had, by the flags' names.
    """
    best = record["finalists"][0]
    targets = best["target_modules"]
    settings = {
        "model": record["model"],
        **given,
        **{name: best[name] for name in SETTINGS},
        "target_modules": [targets] if isinstance(targets, str) else list(targets),
    }
    plain = {
        name.replace("_", "-"): str(value) if isinstance(value, Path) else value for name, value in settings.items()
    }
    head = f"# the best of {counted(len(record['trials']), 'trial')} of: {' '.join(record['command'].split())}\n"
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def weights_of(model: nn.Module, search: Search) -> dict[str, Any]:
    """Weights of the base that multiply, and by targets those that rank 1 trains, and those of the head."""
    multiply = [m for m in model.modules() if is_adaptable(m) and not isinstance(m, nn.Embedding)]
    trained = {}
    for run in search.largest():
        (adapter,) = new_adapters(model, [replace(run, lora={**run.lora, "r": 1})])
        updates = sum(update.A.numel() + update.B.numel() for update in adapter.updates.values())
        trained[json.dumps(run.lora["target_modules"])] = (updates, sum(x.numel() for x in adapter.values.values()))
    return {"frozen": sum(module.weight.numel() for module in multiply), "trained": trained}


def _trial(trial: Trial, result: TrainResult, sizes: Mapping[str, Any]) -> dict[str, Any]:
    rank, targets = trial.settings["ranks"], trial.settings["targets"]
    targets = targets if isinstance(targets, str) else list(targets)
    updates, head = sizes["trained"][json.dumps(targets)]
    return {
        "name": trial.name,
        "learning_rate": trial.settings["learning_rates"],
        "r": rank,
        "lora_alpha": ALPHA_PER_RANK * rank,
        "target_modules": targets,
        "state": trial.state,
        "epochs": len(trial.f1),
        "f1": trial.f1,
        "best_f1": trial.best_f1,
        "tokens": result.train_tokens,
        "operations": operations_of(result.train_tokens, sizes["frozen"], rank * updates + head),
        "wh": None,
    }


def energy_of(reading: Reading) -> tuple[str | None, float | None]:
    """How the energy of a reading is known, and how much it is, Wh; None where it is not."""
    for method, wh in (("measured", reading.measured_wh), ("estimated", reading.estimated_wh)):
        if wh is not None:
            return method, wh
    return None, None
