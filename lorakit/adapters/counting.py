"""What a model trains: how many parameters, which of them got no gradient, and LoRA+'s optimizer groups."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.adapters.adapter import lora_state, unwrap
from lorakit.adapters.names import named_parameters, submodule
from lorakit.nn.token_rows import ROWS


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has and trains; prints like PEFT's line.

    Attributes:
        trainable: parameters that require a gradient.
        total: all parameters.
    """

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """trainable / total, from 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters, shared ones once: those that require a gradient, and all.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(100, 100)), r=1, target_modules=["0"])
        print(lorakit.count_parameters(net))  # trainable params: 200 || all params: 10,300 || trainable%: 1.9417

    Args:
        model: any module.

    Returns:
        `.trainable`, `.total` and `.share` (trainable / total).
    """
    parameters = list(model.parameters())
    return ParameterCount(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def peft_total(model: nn.Module) -> int:
    """The "all params" that PEFT prints for the same adapter: it also counts an untrained copy of the head.

    PEFT trains a deep copy of every module in modules_to_save and keeps the original, unused, beside it. On
    roberta-base with 11 labels, r=16, query and value, and bias="all", lorakit counts 700,427 of 124,653,323 and PEFT
    700,427 of 124,661,782: 8,459 (768 × 11 + 11) more.

    Example:
        from transformers import AutoModelForTokenClassification

        model = AutoModelForTokenClassification.from_pretrained("examples/mini", num_labels=3)
        lorakit.apply_lora(model, r=8)
        print(lorakit.peft_total(model) - lorakit.count_parameters(model).total)  # 771

    Args:
        model: an adapted model.

    Returns:
        The number of parameters.

    Raises:
        ValueError: the model has no LoRA.
    """
    model = unwrap(model)
    saved = {id(p): p.numel() for name in lora_state(model).current.saved for p in submodule(model, name).parameters()}
    return count_parameters(model).total + sum(saved.values())


def without_gradient(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that should be trained but have no gradient; call it after a backward pass.

    A frozen embedding under reentrant checkpointing, or a layer that the output does not depend on, trains nothing and
    says nothing; DistributedDataParallel stops at it.

    Example:
        import torch

        net = torch.nn.ModuleDict({"used": torch.nn.Linear(4, 1), "unused": torch.nn.Linear(4, 1)})
        net["used"](torch.ones(1, 4)).sum().backward()
        print(lorakit.without_gradient(net))  # ('unused.weight', 'unused.bias')

    Args:
        model: any module, after a backward pass.

    Returns:
        The full names, in the model's order.
    """
    return tuple(name for name, p in named_parameters(unwrap(model)) if p.requires_grad and p.grad is None)


def lora_plus_groups(
    model: nn.Module,
    learning_rate: float,
    ratio: float = 16.0,
    weight_decay: float = 0.0,
    embedding_learning_rate: float = 1e-6,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer in which B learns `ratio` times as fast as A (LoRA+, arXiv:2402.12354).

    As in the paper's code, vectors (biases, DoRA magnitudes) go with B, without weight decay; the head's matrices go
    with A; adapted embeddings have a rate of their own.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        groups = lorakit.lora_plus_groups(net, learning_rate=1e-3)
        print([group["lr"] for group in groups])  # [0.001, 0.016]
        optimizer = torch.optim.AdamW(groups)

    Args:
        model: an adapted model.
        learning_rate: of A and of the head's matrices.
        ratio: B's rate over A's, at least 1.
        weight_decay: of everything but vectors.
        embedding_learning_rate: of adapted embeddings and of trained rows of tokens.

    Returns:
        Groups for `torch.optim`, without empty ones.

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
        if own in ("lora_A", "lora_B", "lora_magnitude", ROWS) and isinstance(submodule(model, owner), nn.Embedding):
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
