"""AdamW, the rates of its groups, and the learning rate schedule."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lorakit.adapters.counting import lora_plus_groups
from lorakit.adapters.names import unmatched


def build_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    module_rates: Mapping[str, float] | None = None,
    loraplus_lr_ratio: float | None = None,
) -> torch.optim.AdamW:
    """Fused AdamW over what requires a gradient; matrices decay, biases and norms (one dimension) do not.

    With `loraplus_lr_ratio` B and the vectors have that many times the rate of A and of the head's matrices (LoRA+,
    arXiv:2402.12354), and adapted embeddings one of their own, as `lora_plus_groups` has them. `module_rates` comes
    before both. Each group's `rate_ratio` is its highest rate divided by `learning_rate`.

    Raises:
        ValueError: a name in `module_rates` matches no trained parameter, or there is a ratio and no B.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for module in module_rates or {}:
        if not any(_is_part(module, name) for name in trained):
            raise unmatched("module_learning_rates", module, (name.rpartition(".")[0] for name in trained))
    if loraplus_lr_ratio is not None:
        _check_lora_plus(loraplus_lr_ratio, trained)
        groups = lora_plus_groups(model, learning_rate, loraplus_lr_ratio, weight_decay)
    else:
        groups = [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    names = {p: name for name, p in trained.items()}
    split: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group["params"]:
            rate = _rate_for(names[parameter], group.get("lr", learning_rate), module_rates or {})
            split.setdefault((rate, group["weight_decay"]), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay, "rate_ratio": rate / learning_rate}
            for (rate, decay), parameters in split.items()
        ],
        lr=learning_rate,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step; groups with a rate of their own keep their ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_ratio"]


def _check_lora_plus(ratio: float, trained: Iterable[str]) -> None:
    if not any(name.endswith("lora_B") for name in trained):
        raise ValueError(
            f"loraplus_lr_ratio={ratio:g} is the rate of LoRA's B matrices over that of A, and this"
            " model trains no B: leave it out for full fine-tuning, or call apply_lora(model) first"
        )


def _rate_for(name: str, otherwise: float, module_rates: Mapping[str, float]) -> float:
    """The rate of a parameter; where several modules have one, the name with most parts, and then letters, decides."""
    found = [module for module in module_rates if _is_part(module, name)]
    return module_rates[max(found, key=lambda module: (module.count("."), len(module)))] if found else otherwise


def _is_part(module: str, name: str) -> bool:
    """Whether some consecutive parts of a parameter's name are the module's name."""
    return f".{module}." in f".{name}."


def rate_of(step: int, steps: int, highest: float, warmup_ratio: float) -> float:
    """The learning rate of a step: a linear rise over the first steps, then a linear fall towards 0.

    Args:
        step: its number, from 0.
        steps: of the whole run.
        highest: the rate at the end of the rise.
        warmup_ratio: share of the steps in which the rate rises.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    return highest * (steps - step) / (steps - warmup)
