"""What is checked before a command trains, so that a mistake costs no hour and nothing is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.ner_data import NerData
from lorakit.training.config import TrainConfig

if TYPE_CHECKING:
    from lorakit.cli.building import ModelBuilder

SAMPLE = 1000  # sentences whose lengths stand for the corpus' in the estimate of memory


def check_machine(config: TrainConfig) -> None:
    """Refuse a strategy or an engine that this machine or this number of processes cannot run.

    Raises:
        ValueError: With what can run.
    """
    from lorakit.training.distributed import check_sharding, device
    from lorakit.training.graphs import check_engine

    if config.strategy == "fsdp":
        check_sharding()
    check_engine(config.engine, device())


def check_rank(model: Any, r: int) -> None:
    """Refuse a rank that no weight of the base has, before memory for it is taken.

    Raises:
        ValueError: With the highest rank that can be used.
    """
    highest = max((min(p.shape) for p in model.parameters() if p.ndim == 2), default=r)
    if r > highest:
        raise ValueError(f"--r is {r}, and no weight of this base has a rank above {highest}; give at most {highest}")


def check_resume(builder: "ModelBuilder", runs: Sequence[Mapping[str, TrainConfig]]) -> None:
    """Refuse to continue a run with other settings or other trained parameters.

    Args:
        builder: of models that have not been trained yet.
        runs: the settings of each mode, for each seed.

    Raises:
        ValueError: With what differs.
    """
    from lorakit.training.checkpoint import check_resumable
    from lorakit.training.same_run import settings_identity

    for configs in runs:
        for mode, config in configs.items():
            model = builder.built[mode][0] if mode in builder.built else builder.shapes[mode]
            check_resumable(Path(config.output_dir) / "checkpoints", settings_identity(config, model))


def check_batches(builder: "ModelBuilder", data: NerData, configs: Mapping[str, TrainConfig]) -> None:
    """Find out whether the model can be trained in batches as the configurations want, before anything is written.

    Raises:
        ValueError: It cannot; the message says why and what to do.
    """
    from lorakit.data.packing import check_lengths
    from lorakit.training.distributed import device
    from lorakit.training.evaluation import encode_tagged
    from lorakit.training.layout import check_layout, layout_for

    first, config = next(iter(configs.items()))  # how modes take batches does not differ
    model, tokenizer = builder.built[first]
    model.to(device())
    layout = layout_for(model, config.packing, config.precision)
    check_layout(layout, config.engine, config.strategy == "fsdp")
    if layout.shortest > 1:
        for sentences in filter(None, (data.train, data.validation, data.test)):
            check_lengths(encode_tagged(model, tokenizer, sentences), layout)


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
