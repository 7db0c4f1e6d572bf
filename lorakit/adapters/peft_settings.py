"""PEFT's own objects, given where lorakit's are expected: its LoraConfig is understood, its models are refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from lorakit.adapters.config import ALL_LINEAR, LoRAConfig
from lorakit.adapters.tasks import PEFT_HEADS, refuse_other_task

OURS = tuple(field.name for field in fields(LoRAConfig))
IGNORED = frozenset(
    "auto_mapping base_model_name_or_path corda_config eva_config fan_in_fan_out inference_mode loftq_config peft_type"
    " peft_version revision runtime_config task_type".split()
)
"""Fields that say what lorakit finds out itself, that matter to files only, or to a value of init_lora_weights only."""
HEADS = {name for heads in PEFT_HEADS.values() for name in heads}
INSTEAD = {
    "lora_bias": 'write bias="lora_only"',
    "target_parameters": "name nn.Linear layers in target_modules",
}


def config_of(peft_config: Any, model: nn.Module, beside: LoRAConfig) -> LoRAConfig:
    """The settings that train what PEFT trains with a LoraConfig.

    PEFT trains a head only if task_type says that there is one, or modules_to_save names it.

    Args:
        peft_config: a `peft.LoraConfig`.
        model: the plain model that it is for.
        beside: the settings that were given besides it, which must be the defaults.

    Raises:
        ValueError: it is another method's or task's, or sets what lorakit does not have; with what to write instead.
    """
    if more := [name for name in OURS if getattr(beside, name) != getattr(LoRAConfig(), name)]:
        raise ValueError(
            f"apply_lora got a {type(peft_config).__name__} and {', '.join(more)}; set {more[0]} in one of the two"
        )
    given: Mapping[str, Any] = peft_config.to_dict()
    kind = getattr(peft_config.peft_type, "value", peft_config.peft_type)
    if kind != "LORA":
        raise ValueError(
            f"apply_lora got a {type(peft_config).__name__}, whose method is {kind}; lorakit has LoRA only"
        )
    plain = type(peft_config)().to_dict()
    for name, value in given.items():
        if name not in OURS and name not in IGNORED and value and value != plain.get(name):
            instead = f": {INSTEAD[name]} instead" if name in INSTEAD else "; leave it out, or train with PEFT"
            raise ValueError(f"apply_lora got a LoraConfig with {name}={value!r}, which lorakit does not have{instead}")
    task = getattr(peft_config.task_type, "value", peft_config.task_type)
    refuse_other_task(
        model, task, "the LoraConfig's task_type", "leave task_type out and name the head in modules_to_save"
    )
    found = {name: given[name] for name in OURS if given.get(name) is not None}
    for name in ("target_modules", "exclude_modules"):  # sets, once PEFT has seen them
        if isinstance(found.get(name), set | tuple | list):
            found[name] = sorted(found[name])
    found.setdefault("target_modules", None)
    if found["target_modules"] == ALL_LINEAR and isinstance(found.get("exclude_modules"), list):
        # PEFT raises TypeError without this for a head that it trains in full; here a head is no target anyway
        found["exclude_modules"] = [name for name in found["exclude_modules"] if name not in HEADS]
    if task not in PEFT_HEADS:
        found.setdefault("modules_to_save", [])
    return LoRAConfig(**found)


def refuse_peft_model(model: nn.Module, what: str) -> None:
    """Refuse a model in which PEFT has put its own layers.

    Raises:
        ValueError: With what to pass instead.
    """
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        raise ValueError(
            f"{what} got a {type(model).__name__}, which has PEFT's layers; pass the model as it was before PEFT:"
            " model.unload() drops PEFT's adapter, model.merge_and_unload() keeps what it learned in the weights, and"
            " an adapter that PEFT saved goes into a plain base with load_adapter(base, folder)"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{what} got a {type(model).__name__} with an adapter that transformers put in through PEFT; load the base"
            " without it, then load_adapter(base, folder)"
        )
