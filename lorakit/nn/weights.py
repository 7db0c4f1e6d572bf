"""Weights that are more than plain tensors: their shapes, quantized and sharded forms, and a layer's LoRA update.

Sharded weights are FSDP2's `DTensor`s: each process holds a slice. Quantized ones are torchao's tensor subclasses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONV1D = "transformers.pytorch_utils.Conv1D"
"""GPT-2's linear layer with a transposed weight, known by name so that this file need not import transformers."""


@dataclass(frozen=True)
class Update:
    """One layer's LoRA update in float32: what an adapter file holds for the layer, and its constants."""

    A: Tensor  # (r, in); embedding (r, rows); convolution (r, in, height, width)
    B: Tensor  # (out, r); embedding (width, r); convolution (out, r, 1, 1)
    lora_alpha: float  # only shown and saved
    scaling: float  # the factor on BA
    magnitude: Tensor | None = None  # (out,), convolution (1, out, 1, 1): DoRA's
    start: tuple[Tensor, Tensor] | None = None  # A and B to subtract: what PiSSA and OLoRA take out of the weight


# Layers that can carry an update --------------------------------------------------------------------------------------


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is in its LoRA form."""
    return hasattr(module, "lora_A") and hasattr(module, "lora_off")


def is_adaptable(module: nn.Module) -> bool:
    """Whether the module is of exactly a kind that has a LoRA form (a subclass may compute something else)."""
    kind = type(module)
    if is_adapted(module) or f"{kind.__module__}.{kind.__qualname__}" == CONV1D:
        return True
    if kind is nn.Conv2d:
        return module.groups == 1  # BA is not a grouped kernel
    if kind is nn.Embedding:
        return not module.max_norm  # which rescales rows in place, frozen or not
    return kind is nn.Linear


def update_shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of rank r for this layer."""
    if isinstance(module, nn.Embedding):
        return (r, module.num_embeddings), (module.embedding_dim, r)
    if isinstance(module, nn.Conv2d):
        return (r, module.in_channels, *module.kernel_size), (module.out_channels, r, 1, 1)
    if isinstance(module, nn.Linear):
        return (r, module.in_features), (module.out_features, r)
    return (r, module.nx), (module.nf, r)


def magnitude_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the layer's DoRA magnitude: one value per output."""
    outputs = update_shapes(module, 1)[1][0]
    return (1, outputs, 1, 1) if isinstance(module, nn.Conv2d) else (outputs,)


# Quantized ------------------------------------------------------------------------------------------------------------


def is_quantized(weight: Tensor) -> bool:
    """Whether the weight is one of torchao's quantized tensors."""
    return type(weight.data).__module__.startswith("torchao.")


def dequantized(weight: Tensor) -> Tensor:
    """The weight's values where torchao has quantized it, otherwise the weight itself."""
    if not is_quantized(weight):
        return weight
    return weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()


def plain_weight(module: nn.Module) -> Tensor:
    """The layer's weight without its update: unmerged, gathered and dequantized."""
    weight = getattr(module, "lora_original", None)
    weight = module.weight if weight is None else weight
    return dequantized(whole(weight))


HALF = (torch.float16, torch.bfloat16)


def widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A half-precision weight in a wider type to compute in; any other weight as it is."""
    return weight.to(dtype) if weight.dtype in HALF and dtype in (torch.float32, torch.float64) else weight


# Sharded --------------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one; gathering takes every rank."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, which every rank has in full, on `other`'s device and sharded like it, without communication."""
    value = value.to(other.device)
    if not hasattr(other, "full_tensor") or not value.ndim:
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 or tensor parallelism distributes the model's parameters over processes."""
    return any(hasattr(m, "set_reshard_after_forward") for m in model.modules()) or any(
        hasattr(p, "full_tensor") for p in model.parameters()
    )


def regather(model: nn.Module) -> None:
    """Make FSDP2 drop what it has gathered, such as the root's parameters after a forward, and gather it again."""
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward"):
            module.reshard()


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Raise ValueError if the model is sharded: FSDP keeps the parameters it was given and would miss new ones."""
    if is_sharded(model) or any(getattr(p, "_fsdp_flattened", False) for p in model.parameters()):
        raise ValueError(
            f"{what}: the parameters of this {type(model).__name__} are sharded over processes by FSDP, which keeps "
            "the parameters it was given; do it before fully_shard, or save_adapter and load it into an unsharded model"
        )
