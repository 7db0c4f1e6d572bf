"""Step engines: how a batch's forward and backward run. Eager here; compiled and recorded ones are in `graphs`.

All three run the same `ForwardBackward`. The loop asks its engine to `prepare` for a batch's shape, which takes time
where a shape is new and something has to be built for it, and then to run the batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.packing import Batch, Layout, Plan, TokenTable
from lorakit.data.tokenization import IGNORE
from lorakit.training.distributed import shard, sync_if, world_size, wrap_for_ddp


class StepEngine(Protocol):
    """Runs the batches of a step.

    Attributes:
        total: the loss of the batches since it was last zeroed, a scalar on the device.
        drops_gradients: whether gradients are dropped after a step (`set_to_none`); otherwise they are zeroed in place,
            because a graph adds into fixed memory.
    """

    total: Tensor
    drops_gradients: bool

    def prepare(self, plan: Plan, targets: int) -> float | None:
        """Compile or record what a batch of this shape needs; returns the seconds it took, None if nothing was new."""

    def run(self, plan: Plan, targets: int, last: bool) -> None:
        """Add a batch's gradients to those of the step, and its loss to `total`.

        Args:
            plan: the batch.
            targets: words that count in the step's loss, over all its batches and ranks.
            last: whether the step has no other batch after this, so that ranks exchange their gradients.
        """


class LossSum(nn.Module):
    """The cross-entropy of a batch, summed over its words, in fp32.

    A module, so that DDP and torch.compile take mask, model and cross-entropy in one piece.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, batch: Batch) -> Tensor:
        logits = self.model(**self.layout.inputs(batch))[0].flatten(0, 1).float()
        return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


class ForwardBackward:
    """A batch's forward and backward; replicates or shards the model over the ranks when it is made.

    Args:
        model: on its device; with "fsdp" it is sharded in place.
        layout: of the batches.
        autocast: the precision's context.
        scaler: scales the loss where the precision needs it.
        strategy: "ddp" or "fsdp".

    Attributes:
        loss: the model's `LossSum`.
        around: a context for each batch's forward, in which a frozen-layer cache stands in for lower layers.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        autocast: Callable[[], AbstractContextManager[Any]],
        scaler: torch.amp.GradScaler,
        strategy: str = "ddp",
    ) -> None:
        self.model, self.autocast, self.scaler = model, autocast, scaler
        self.loss = LossSum(model, layout)
        self.around: Callable[[Batch], AbstractContextManager[Any]] = lambda batch: nullcontext()
        if strategy == "fsdp":
            shard(model)
            self.synced, self.forward = model, self.loss
        else:  # DDP broadcasts the weights of rank 0, and exchanges the gradients of the module it wraps
            self.synced = self.forward = wrap_for_ddp(self.loss)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that get gradients."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def __call__(self, batch: Batch, targets: int | Tensor, last: bool = True) -> Tensor:
        """Add a batch's gradients; returns its share of the loss of a step with so many words."""
        with sync_if(self.synced, last):
            with self.autocast(), self.around(batch):
                loss = self.forward(batch) / targets
            # DDP and FSDP average gradients over the ranks; the step's loss is their sum
            self.scaler.scale(loss * world_size()).backward()
        return loss.detach()


class EagerEngine:
    """Runs every operation as it comes."""

    drops_gradients = True

    def __init__(self, forward_backward: ForwardBackward, table: TokenTable) -> None:
        self.forward_backward, self.table = forward_backward, table
        self.total = torch.zeros((), device=table.values.device)

    def prepare(self, plan: Plan, targets: int) -> None:
        """Nothing to do."""

    def run(self, plan: Plan, targets: int, last: bool) -> None:
        self.total += self.forward_backward(self.table.batch(plan), targets, last)
