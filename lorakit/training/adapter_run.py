"""One of several runs that train together: its name and its settings; loads nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorakit.data.ner_data import NerData
from lorakit.training.config import TrainConfig


@dataclass(frozen=True)
class AdapterRun:
    """One run of `train_many`: an adapter's settings, and how it is trained.

    Example:
        import lorakit

        runs = [
            lorakit.AdapterRun(f"r{r}", {"r": r, "seed": 1}, lorakit.TrainConfig(learning_rate=1e-3)) for r in (4, 16)
        ]
        print([run.name for run in runs])  # ['r4', 'r16']

    Args:
        name: of the adapter, among the runs.
        lora: arguments of `apply_lora`, by name; the rest are its defaults.
        config: as for `train`.
        data: its own corpus; None for that of all runs. If its labels are not the model's, the run has an output layer
            for them, drawn from `config.seed` as `load_token_classifier` draws one.
    """

    name: str
    lora: Mapping[str, Any] = field(default_factory=dict)
    config: TrainConfig = TrainConfig()
    data: NerData | None = None
