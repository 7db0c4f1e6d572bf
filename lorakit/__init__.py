"""Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.

`import lorakit` only defines names: each is imported from its module when it is first used, so that neither torch nor
transformers nor datasets is loaded, no device is touched and no network is needed until something asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters import load_adapter, save_adapter
    from lorakit.counting import count_parameters, lora_plus_groups, peft_total, without_gradient
    from lorakit.disabling import disable_lora
    from lorakit.energy import EnergyMeter
    from lorakit.layers import LoRALinear
    from lorakit.lora import apply_lora, remove_lora
    from lorakit.merging import merge_lora, unmerge_lora
    from lorakit.ner import read_ner
    from lorakit.prediction import Entity, predict
    from lorakit.several import adapter_names, combine_adapters, delete_adapter, set_adapter
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
    "LoRALinear": "layers",
    "TrainConfig": "training",
    "adapter_names": "several",
    "apply_lora": "lora",
    "combine_adapters": "several",
    "count_parameters": "counting",
    "delete_adapter": "several",
    "disable_lora": "disabling",
    "evaluate": "training",
    "load_adapter": "adapters",
    "lora_plus_groups": "counting",
    "merge_lora": "merging",
    "peft_total": "counting",
    "predict": "prediction",
    "read_ner": "ner",
    "remove_lora": "lora",
    "save_adapter": "adapters",
    "set_adapter": "several",
    "shrink_base": "smallbase",
    "train": "training",
    "unmerge_lora": "merging",
    "without_gradient": "counting",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"lorakit.{_OWNER[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
