"""Fine-tune transformer models with LoRA or in full, in plain PyTorch, and measure what it costs.

`import lorakit` only defines names. Each one is imported from its module on first use, so nothing loads torch,
transformers or datasets, touches a device or needs the network before it has to.
"""

# ruff: noqa: F401 (type checkers read the imports, `_NAMES` serves them at run time; a test compares the two)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapters.counting import count_parameters, lora_plus_groups, peft_total, without_gradient
    from lorakit.adapters.disabling import disable_lora
    from lorakit.adapters.merging import merge_lora, unmerge_lora
    from lorakit.adapters.quantization import shrink_base
    from lorakit.adapters.storage import load_adapter, save_adapter
    from lorakit.adapters.strength import scale_lora
    from lorakit.data.corpus import read_ner
    from lorakit.energy import EnergyMeter
    from lorakit.lora import adapter_names, apply_lora, combine_adapters, delete_adapter, remove_lora, set_adapter
    from lorakit.nn.layers import LoRALinear
    from lorakit.training.adapter_run import AdapterRun
    from lorakit.training.config import TrainConfig
    from lorakit.training.evaluation import evaluate
    from lorakit.training.loop import train
    from lorakit.training.many import train_many
    from lorakit.training.prediction import Entity, predict

__version__ = "0.1.0"

_NAMES = {  # module: its public names
    "adapters.counting": "count_parameters lora_plus_groups peft_total without_gradient",
    "adapters.disabling": "disable_lora",
    "adapters.merging": "merge_lora unmerge_lora",
    "adapters.quantization": "shrink_base",
    "adapters.storage": "load_adapter save_adapter",
    "adapters.strength": "scale_lora",
    "data.corpus": "read_ner",
    "energy": "EnergyMeter",
    "lora": "adapter_names apply_lora combine_adapters delete_adapter remove_lora set_adapter",
    "nn.layers": "LoRALinear",
    "training.adapter_run": "AdapterRun",
    "training.config": "TrainConfig",
    "training.evaluation": "evaluate",
    "training.loop": "train",
    "training.many": "train_many",
    "training.prediction": "Entity predict",
}
_OWNER = {name: owner for owner, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_OWNER)


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"lorakit.{_OWNER[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
