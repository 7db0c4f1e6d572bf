"""A model spread over processes: replicated (DDP) or sharded (FSDP2), by PyTorch's own engines.

DDP keeps the whole model on every rank. FSDP2 (`fully_shard`) keeps a slice of every parameter on each and gathers a
layer only while it is used; parameters then are `DTensor`s. The functions here hide that difference from the loop.
"""

import math
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lorakit.training.distributed import world_size


def spread(model: nn.Module, strategy: str) -> nn.Module:
    """What to call forward on: the model itself when alone or sharded (in place), DDP around it otherwise.

    Raises:
        ValueError: FSDP without several processes.
    """
    if strategy == "fsdp":
        if world_size() == 1:
            raise ValueError("strategy 'fsdp' shards over processes, and this one is alone; start it with torchrun")
        for module in model.modules():
            if isinstance(module, nn.ModuleList):  # an encoder's layers
                for layer in module:
                    fully_shard(layer)
        # by default the outermost group stays gathered after a forward, and would miss weights that are put back later
        fully_shard(model, reshard_after_forward=True)
        return model
    if world_size() == 1:
        return model
    trained_mib = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) / 2**20
    return DistributedDataParallel(
        model,
        forward_sync_buffers=False,  # RoBERTa's two are constants; by default they would be broadcast in every forward
        gradient_as_bucket_view=True,
        # what LoRA trains is small: one exchange a step costs less than overlapping two
        bucket_cap_mb=math.ceil(trained_mib) if trained_mib < 25 else None,
    )


def sync_if(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Let ranks exchange gradients only in a step's last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext()
