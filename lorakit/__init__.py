"""Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.

`import lorakit` only defines names: each is imported from its module when it is first used, so that neither torch nor
transformers nor datasets is loaded, no device is touched and no network is needed until something asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.energy import EnergyMeter
    from lorakit.lora import (
        LoRALinear,
        apply_lora,
        count_parameters,
        disable_lora,
        merge_lora,
        remove_lora,
        unmerge_lora,
    )
    from lorakit.ner import read_ner
    from lorakit.training import TrainConfig, evaluate, predict, train

__version__ = "0.1.0"

__all__ = [
    "EnergyMeter",
    "LoRALinear",
    "TrainConfig",
    "apply_lora",
    "count_parameters",
    "disable_lora",
    "evaluate",
    "merge_lora",
    "predict",
    "read_ner",
    "remove_lora",
    "train",
    "unmerge_lora",
]

_OWNER = {
    "EnergyMeter": "energy",
    "LoRALinear": "lora",
    "TrainConfig": "training",
    "apply_lora": "lora",
    "count_parameters": "lora",
    "disable_lora": "lora",
    "evaluate": "training",
    "merge_lora": "lora",
    "predict": "training",
    "read_ner": "ner",
    "remove_lora": "lora",
    "train": "training",
    "unmerge_lora": "lora",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"lorakit.{_OWNER[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
