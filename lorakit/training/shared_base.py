"""One base in memory for several taggers, so that an adapter for a new entity type costs its own weights only.

Each tagger stays a model of its own, with its own head and labels: only the memory of equal weights is shared.
"""

import torch
from torch import nn


def share_base(model: nn.Module, other: nn.Module) -> int:
    """Let a second tagger use the first one's memory for every tensor of the same name that is equal bit for bit.

    What either computes stays the same to the last bit. Do not train, merge or quantize either afterwards: a change of
    a shared weight in place would change both.

    Example:
        from lorakit.training.models import load_token_classifier
        from lorakit.training.shared_base import share_base
        genes, _ = load_token_classifier("examples/mini", ["O", "B-DNA", "I-DNA"])
        drugs, _ = load_token_classifier("examples/mini", ["O", "B-drug", "I-drug"])
        share_base(genes, drugs) > 20_000_000  # True

    Args:
        model: the first tagger, on any device.
        other: the second; its shared tensors move to the first one's device.

    Returns:
        The bytes that the second one no longer needs.
    """
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = 0
    for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
        mine = theirs.get(name)
        if mine is None or mine.data_ptr() == tensor.data_ptr() or not _same(mine, tensor):
            continue
        saved += tensor.numel() * tensor.element_size()
        tensor.data = mine.data
    return saved


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits; -0.0 is not 0.0, and a NaN equals nothing."""
    if type(one.data) is not torch.Tensor or type(other.data) is not torch.Tensor:
        return False  # quantized, or sharded over processes
    if (one.shape, one.dtype, one.stride()) != (other.shape, other.dtype, other.stride()):
        return False
    here = other.detach().to(one.device)
    return torch.equal(one.detach(), here) and torch.equal(one.detach().signbit(), here.signbit())
