"""What runs must have in common to be trained together, and what of an adapter can be; the rest is refused by name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from lorakit.adapters.adapter import STATE, Adapter, trained_in_place, untouched
from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.full_training import modules_trained_in_full
from lorakit.adapters.initialization import new_adapter
from lorakit.adapters.mixed import why_alone
from lorakit.adapters.token_indices import rows_trained
from lorakit.data.decoding import KEY as DECODER
from lorakit.data.decoding import decoder_for
from lorakit.data.habits import KEY as HABITS
from lorakit.data.habits import learn_habits
from lorakit.data.ner_data import NerData
from lorakit.training.adapter_run import AdapterRun
from lorakit.training.config import TrainConfig
from lorakit.training.distributed import world_size
from lorakit.training.identity import hash_of_tensors
from lorakit.training.many_queue import RunQueue
from lorakit.training.output_layer import new_rows
from lorakit.training.same_run import compare_ranks, config_of_rank, corpus_of_rank, model_of_rank
from lorakit.training.stacked_parameters import tensors_of

SHARED = ("precision", "packing", "decode", "resume", "engine")
"""Settings that all runs must have in common."""
FIXED = ("engine", "strategy", "cache_prefix", "class_weights", "log_to", "loss")
"""Settings that must have their default, because there is no such thing for several runs at once."""


def check_runs(runs: Sequence[AdapterRun], at_once: int) -> None:
    """Raise ValueError unless these runs can be trained together, by their settings."""
    if not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1:
        raise ValueError(f"at_once is {at_once!r}; it must be an integer of at least 1")
    if not runs:
        raise ValueError("runs is empty; give at least one AdapterRun")
    for what, values in (
        ("name", [run.name for run in runs]),
        ("output_dir", [str(Path(run.config.output_dir).resolve()) for run in runs if run.config.output_dir]),
    ):
        if repeated := next((value for value in values if values.count(value) > 1), None):
            raise ValueError(f"two runs have the {what} {repeated!r}; give each its own")
    first = runs[0]
    for run in runs:
        if (run.config.output_dir is None) != (first.config.output_dir is None):
            raise ValueError(
                f"of runs {first.name!r} and {run.name!r} only one has an output_dir; give all one, or none: they are"
                " saved together"
            )
        for name in SHARED:
            if getattr(run.config, name) != getattr(first.config, name):
                raise ValueError(
                    f"runs {first.name!r} and {run.name!r} have {name} {getattr(first.config, name)!r} and"
                    f" {getattr(run.config, name)!r}; runs that share a batch must have the same; call train_many once"
                    " for each"
                )
        if run.config.precision == "fp16":
            raise ValueError("precision 'fp16' scales the loss of each run; use precision='bf16' or 'fp32'")
        for name in FIXED:
            default, value = TrainConfig.__dataclass_fields__[name].default, getattr(run.config, name)
            if value != default and (name, value) not in (("loss", "cross_entropy"), ("engine", "compile")):
                raise ValueError(
                    f"run {run.name!r}: {name}={value!r} cannot be batched with other runs; leave it at {default!r}, or"
                    " train this run alone with train"
                )


def check_ranks_of_runs(model: nn.Module, data: NerData, queue: RunQueue, at_once: int) -> None:
    """Compare what the ranks were given; does nothing in a single process.

    Args:
        model: the base.
        data: the corpus of all runs that have none of their own.
        queue: of the runs.
        at_once: runs that share a step.

    Raises:
        OtherRunError: on every rank, if they differ; the message names the first difference.
    """
    if world_size() == 1:
        return
    runs = queue.largest()
    mine = {"runs": [run.name for run in runs], "at_once": at_once, **queue.settings(), **corpus_of_rank(data)}
    for run in runs:
        found = {**config_of_rank(run.config), **(corpus_of_rank(run.data) if run.data else {})}
        mine |= {f"{run.name}: {name}": value for name, value in found.items()}
    compare_ranks({**mine, **model_of_rank(model)})


def check_ranks_of_start(run: AdapterRun, adapter: Adapter) -> None:
    """Compare the run that starts now, and its adapter as it starts; does nothing in a single process.

    Raises:
        OtherRunError: on every rank, if they differ.
    """
    if world_size() == 1:
        return
    settings = {f"{run.name}: {name}": value for name, value in config_of_rank(run.config).items()}
    weights = {f"{run.name}: weights (hash)": hash_of_tensors(tensors_of(adapter).items())}
    compare_ranks({"the next run": run.name, **settings, **weights})


def new_adapters(model: nn.Module, runs: Sequence[AdapterRun]) -> list[Adapter]:
    """Each run's adapter as it starts, with the values of the base that it trains in place.

    A run whose corpus has other labels than the base has a new output layer for them.

    Raises:
        ValueError: as `apply_lora`; or an adapter cannot be stacked, with the run's name and the reason.
    """
    found = []
    for run in runs:
        settings = dict(run.lora)
        seed = settings.pop("seed", 0)
        if unknown := settings.keys() - LoRAConfig.__dataclass_fields__.keys():
            names = ", ".join(sorted(LoRAConfig.__dataclass_fields__))
            raise ValueError(f"run {run.name!r}: lora has {sorted(unknown)[0]!r}; its settings are {names}, seed")
        try:
            config = LoRAConfig(**settings)
            adapter = new_adapter(model, config, modules_trained_in_full(model, config), seed)
            rows = rows_trained(model, config, (*adapter.saved, *adapter.targets))
        except ValueError as error:
            raise ValueError(f"run {run.name!r}: {error}") from error
        values = {name: untouched(model, name).clone() for name, _ in trained_in_place(model, adapter)}
        found.append(replace(adapter, values=values, rows=rows))
        if run.data is not None:
            found[-1] = _for_corpus(model, run, found[-1])
        if reason := why_alone(model, found[-1]):
            raise ValueError(
                f"run {run.name!r}: its adapter cannot be batched with other runs, because {reason}; train it alone"
                " with train"
            )
    return found


def _for_corpus(model: nn.Module, run: AdapterRun, adapter: Adapter) -> Adapter:
    """The adapter with what of the model's configuration depends on the run's own corpus, and a head for its labels."""
    data, entries = run.data, {}
    entries[HABITS] = learn_habits(data.train).to_json() or None
    decoder = decoder_for(run.config.decode, data.labels)
    entries[DECODER] = None if decoder == "greedy" else decoder
    if list(data.labels) == base_labels(model):
        return replace(adapter, model_config=entries)
    rows = new_rows(model, data.labels, run.config.seed)
    if not rows.keys() <= adapter.values.keys():
        raise ValueError(
            f"run {run.name!r}: its corpus has labels of its own ({', '.join(data.labels)}), and its adapter trains no"
            " head for them; leave modules_to_save out, or give the corpus the model's labels"
        )
    names = dict(enumerate(data.labels))
    entries |= {"id2label": names, "label2id": {label: number for number, label in names.items()}}
    where = next(iter(adapter.values.values())).device
    return replace(
        adapter,
        values={**adapter.values, **{name: value.to(where) for name, value in rows.items()}},
        model_config=entries,
    )


def base_labels(model: nn.Module) -> list[str]:
    """The labels of the model without an adapter."""
    state = getattr(model, STATE, None)
    names = (state.model_config.get("id2label") if state else None) or model.config.id2label
    return [names[number] for number in sorted(names)]
