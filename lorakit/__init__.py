"""Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.

`import lorakit` only defines names: each is imported from its module when it is first used, so that neither torch nor
transformers nor datasets is loaded, no device is touched and no network is needed until something asks for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters.counting import count_parameters, lora_plus_groups, peft_total, without_gradient
    from lorakit.adapters.disabling import disable_lora
    from lorakit.adapters.merging import merge_lora, unmerge_lora
    from lorakit.adapters.quantization import shrink_base
    from lorakit.adapters.storage import load_adapter, save_adapter
    from lorakit.data.corpus import read_ner
    from lorakit.energy import EnergyMeter
    from lorakit.lora import adapter_names, apply_lora, combine_adapters, delete_adapter, remove_lora, set_adapter
    from lorakit.nn.layers import LoRALinear
    from lorakit.training.config import TrainConfig
    from lorakit.training.evaluation import evaluate
    from lorakit.training.loop import train
    from lorakit.training.prediction import Entity, predict

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
    "Entity": "training.prediction",
    "LoRALinear": "nn.layers",
    "TrainConfig": "training.config",
    "adapter_names": "lora",
    "apply_lora": "lora",
    "combine_adapters": "lora",
    "count_parameters": "adapters.counting",
    "delete_adapter": "lora",
    "disable_lora": "adapters.disabling",
    "evaluate": "training.evaluation",
    "load_adapter": "adapters.storage",
    "lora_plus_groups": "adapters.counting",
    "merge_lora": "adapters.merging",
    "peft_total": "adapters.counting",
    "predict": "training.prediction",
    "read_ner": "data.corpus",
    "remove_lora": "lora",
    "save_adapter": "adapters.storage",
    "set_adapter": "lora",
    "shrink_base": "adapters.quantization",
    "train": "training.loop",
    "unmerge_lora": "adapters.merging",
    "without_gradient": "adapters.counting",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"lorakit.{_OWNER[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
