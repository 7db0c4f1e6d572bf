"""Tensors sharded over processes by FSDP2 (`DTensor`s): their whole values, and whole values sharded alike."""

from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; one that is sharded is gathered, so every rank has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(value: Tensor, other: Tensor) -> Tensor:
    """Values that every rank has whole, on another tensor's device and sharded as it is, without an exchange."""
    value = value.to(other.device)
    if not hasattr(other, "full_tensor") or not value.ndim:
        return value
    from torch.distributed.tensor import distribute_tensor  # slow to import

    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 or tensor parallelism spreads the model's parameters over processes."""
    return any(hasattr(m, "set_reshard_after_forward") for m in model.modules()) or any(
        hasattr(p, "full_tensor") for p in model.parameters()
    )


def regather(model: nn.Module) -> None:
    """Let FSDP2 drop what it has gathered, such as the root's parameters after a forward, and gather anew."""
    for module in model.modules():
        if hasattr(module, "set_reshard_after_forward"):
            module.reshard()


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Raise where parameters are sharded: the engine goes on with those it was given and would not know of others."""
    if is_sharded(model):
        raise ValueError(
            f"{what}: the parameters of this {type(model).__name__} are sharded over processes, by an engine that goes "
            "on with those it was given; do it before fully_shard, or save_adapter and go on in an unsharded model"
        )
