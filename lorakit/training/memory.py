"""How much memory training takes, estimated before it starts."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import nn

from lorakit.training.distributed import all_sum, device
from lorakit.training.precision import autocast_for

GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that training a model takes.

    Attributes:
        weights: all parameters, and the copies that `frozen_in_half` makes on a CPU.
        training: gradients, AdamW's two moments and the best epoch's copy of what is trained: 16 bytes per parameter.
        activations: what backward needs of one batch; free between two steps.
    """

    weights: int
    training: int
    activations: int

    @property
    def held(self) -> int:
        """Bytes held from the first step to the last."""
        return self.weights + self.training


def batch_tokens(lengths: np.ndarray, batch_size: int) -> int:
    """Tokens that all but a few batches stay below: three standard errors above the mean of random batches.

    Args:
        lengths: tokens of sentences, a sample of the corpus'.
        batch_size: sentences in a batch.
    """
    return math.ceil(batch_size * lengths.mean() + 3 * lengths.std() * batch_size**0.5)


def memory_need(model: nn.Module, tokens: int, width: int, precision: str) -> MemoryNeed:
    """Estimate what training takes with engine "eager" and in a single process.

    A transformer layer keeps about 34 · hidden + 5 · heads · width bytes per token in 16 bits, and twice that in fp32
    (arXiv:2205.05198, eq. 1). LoRA keeps less, because frozen matrices need no input; that is not deducted.

    Args:
        model: with the right parameters requiring a gradient; it may be on the meta device.
        tokens: in a batch, padding included.
        width: tokens of a sentence.
        precision: as in `TrainConfig`.
    """
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    autocast, _ = autocast_for(precision, device())
    with autocast():
        half = torch.is_autocast_enabled(device().type)
    if half and device().type == "cpu":
        weights += sum(p.numel() * 2 for p in parameters if not p.requires_grad)
    config = model.config
    per_token = 34 * config.hidden_size + 5 * config.num_attention_heads * width
    activations = tokens * config.num_hidden_layers * per_token * (1 if half else 2)
    return MemoryNeed(weights, 16 * trained, activations)


def check_memory(needs: Mapping[str, MemoryNeed], loaded: int, fix: str) -> None:
    """Refuse to hold several models in training at the same time where memory is short.

    One batch is in work at a time, so the largest activations count once. Every rank calls it.

    Args:
        needs: by the model's name.
        loaded: bytes of weights that are in the CPU's memory already.
        fix: what to do instead, for the message.

    Raises:
        ValueError: on any rank the models do not fit.
    """
    here, activations = device(), max(need.activations for need in needs.values())
    wanted, free = sum(need.held for need in needs.values()) + activations, free_memory()
    if here.type == "cpu":  # local ranks share it
        wanted = (wanted - loaded) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if all_sum(torch.tensor(float(wanted > free), device=here)) > 0:
        parts = ", ".join(f"{name} {need.held / GIB:.1f}" for name, need in needs.items())
        raise ValueError(
            f"{len(needs)} models in training at the same time need about {wanted / GIB:.1f} GiB more memory on the"
            f" {here.type.upper()} ({parts}, activations {activations / GIB:.1f}), and {free / GIB:.1f} GiB are free;"
            f" {fix}"
        )


def free_memory() -> int:
    """Bytes that this process may still take on its device."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info(device())[0]
    return psutil.virtual_memory().available
