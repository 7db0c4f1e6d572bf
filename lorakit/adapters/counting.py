"""What an adapted model trains: how many parameters, which got no gradient, and LoRA+'s groups for an optimiser."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.adapters.adapter import lora_state, unwrap

WHY_PEFT_COUNTS_MORE = "it counts the untrained copy that it keeps of what is trained whole, such as the head"


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has and trains; prints like PEFT's line."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable part of the total, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count each distinct parameter once: those that require grad, and all."""
    parameters = list(model.parameters())
    return ParameterCount(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def peft_total(model: nn.Module) -> int:
    """The "all params" that PEFT prints for the same adapter: it also counts an untrained copy of the head.

    PEFT trains a deep copy of every module in modules_to_save and keeps the original, dead, beside it. On roberta-base
    with 11 labels, r=16, query+value and bias="all": lorakit 700,427 of 124,653,323; PEFT 700,427 of 124,661,782, which
    are 8,459 (768 x 11 + 11) more.
    """
    model = unwrap(model)
    saved = {
        id(p): p.numel() for name in lora_state(model).current.saved for p in model.get_submodule(name).parameters()
    }
    return count_parameters(model).total + sum(saved.values())


def without_gradient(model: nn.Module) -> tuple[str, ...]:
    """Names of parameters that should be trained but have no gradient: call it after a first backward pass.

    A frozen embedding under reentrant checkpointing, or a layer that the model's output does not use, trains nothing
    and says nothing; DistributedDataParallel stops at it.
    """
    return tuple(name for name, p in unwrap(model).named_parameters() if p.requires_grad and p.grad is None)


def lora_plus_groups(
    model: nn.Module,
    learning_rate: float,
    ratio: float = 16.0,
    weight_decay: float = 0.0,
    embedding_learning_rate: float = 1e-6,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser in which B learns `ratio` times as fast as A (LoRA+, arXiv:2402.12354).

    As in the paper's code, vectors (biases, DoRA magnitudes) go with B, without weight decay; the head's matrices go
    with A, and adapted embeddings have a rate of their own.

    Raises:
        ValueError: `ratio` is below 1.
    """
    if not ratio >= 1:
        raise ValueError(f"ratio must be at least 1, got {ratio!r}")
    model = unwrap(model)
    A, B, vectors, embeddings = [], [], [], []
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        if not parameter.requires_grad:
            continue
        if own in ("lora_A", "lora_B", "lora_magnitude") and isinstance(model.get_submodule(owner), nn.Embedding):
            embeddings.append(parameter)
        elif parameter.ndim == 1:
            vectors.append(parameter)
        else:
            (B if own == "lora_B" else A).append(parameter)
    groups = (
        (A, learning_rate, weight_decay),
        (B, learning_rate * ratio, weight_decay),
        (vectors, learning_rate * ratio, 0.0),
        (embeddings, embedding_learning_rate, weight_decay),
    )
    return [{"params": p, "lr": rate, "weight_decay": decay} for p, rate, decay in groups if p]
