"""Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.

`import lorakit` only defines names: each is imported from its module when it is first used, so that neither torch nor
transformers nor datasets is loaded, no device is touched and no network is needed until something asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters import load_adapter, save_adapter
    from lorakit.energy import EnergyMeter
    from lorakit.lora import (
        LoRALinear,
        adapter_names,
        apply_lora,
        combine_adapters,
        count_parameters,
        delete_adapter,
        disable_lora,
        lora_plus_groups,
        merge_lora,
        peft_total,
        remove_lora,
        set_adapter,
        unmerge_lora,
        without_gradient,
    )
    from lorakit.ner import read_ner
    from lorakit.prediction import Entity, predict
    from lorakit.smallbase import shrink_base
    from lorakit.training import TrainConfig, evaluate, train

__version__ = "0.1.0"

__all__ = [
    "EnergyMeter",
    "Entity",
    "LoRALinear",
    "TrainConfig",
    "adapter_names",
    "apply_lora",
    "combine_adapters",
    "count_parameters",
    "delete_adapter",
    "disable_lora",
    "evaluate",
    "load_adapter",
    "lora_plus_groups",
    "merge_lora",
    "peft_total",
    "predict",
    "read_ner",
    "remove_lora",
    "save_adapter",
    "set_adapter",
    "shrink_base",
    "train",
    "unmerge_lora",
    "without_gradient",
]

_OWNER = {
    "EnergyMeter": "energy",
    "Entity": "prediction",
    "LoRALinear": "lora",
    "TrainConfig": "training",
    "adapter_names": "lora",
    "apply_lora": "lora",
    "combine_adapters": "lora",
    "count_parameters": "lora",
    "delete_adapter": "lora",
    "disable_lora": "lora",
    "evaluate": "training",
    "load_adapter": "adapters",
    "lora_plus_groups": "lora",
    "merge_lora": "lora",
    "peft_total": "lora",
    "predict": "prediction",
    "read_ner": "ner",
    "remove_lora": "lora",
    "save_adapter": "adapters",
    "set_adapter": "lora",
    "shrink_base": "smallbase",
    "train": "training",
    "unmerge_lora": "lora",
    "without_gradient": "lora",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"lorakit.{_OWNER[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
