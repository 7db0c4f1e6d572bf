"""Step engines: how a batch's forward and backward run. Eager here; compiled and recorded ones are in `graphs`.

All three run the same `ForwardBackward`. The loop asks its engine to `prepare` for a batch's shape, which takes time
where a shape is new and something has to be built for it, and then to run the batch.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.packing import Batch, Layout, Plan, TokenTable
from lorakit.data.tokenization import IGNORE, Encoded
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

    def prepare(self, plan: Plan, targets: float) -> float | None:
        """Compile or record what a batch of this shape needs; returns the seconds it took, None if nothing was new."""

    def run(self, plan: Plan, targets: float, last: bool) -> None:
        """Add a batch's gradients to those of the step, and its loss to `total`.

        Args:
            plan: the batch.
            targets: what the step's loss is divided by, over all its batches and ranks: the words that count in it, or
                what `Objective.shares` adds up to.
            last: whether the step has no other batch after this, so that ranks exchange their gradients.
        """


@dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Attributes:
        weights: of the classes, float32; None counts every word alike.
        own: None for cross-entropy; "words" or "sentences", over which the model's own loss is a mean; "sum" if it is
            a sum over either.
    """

    weights: Tensor | None = None
    own: str | None = None

    def shares(self, encoded: Encoded) -> np.ndarray | None:
        """What each window adds to the number by which a step's loss is divided; None stands for its words."""
        if self.own == "sentences":
            return np.ones(len(encoded))
        if self.weights is None:
            return None
        weights = np.append(self.weights.double().cpu().numpy(), 0.0)  # the last is that of tokens that do not count
        return np.add.reduceat(weights[np.where(encoded.labels == IGNORE, -1, encoded.labels)], encoded.offsets[:-1])


class LossSum(nn.Module):
    """The loss of a batch, to be divided by what the whole step's windows add up to; in float32.

    A module, so that DDP and torch.compile take mask, model and loss in one piece.
    """

    def __init__(self, model: nn.Module, layout: Layout, objective: Objective | None = None) -> None:
        super().__init__()
        self.model, self.layout, self.objective = model, layout, objective or Objective()
        self.register_buffer("weights", self.objective.weights, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        if self.objective.own:
            return self._of_model(batch, self.objective.own)
        logits = self.model(**self.layout.inputs(batch))[0].flatten(0, 1).float()
        return F.cross_entropy(logits, batch.labels.flatten(), self.weights, ignore_index=IGNORE, reduction="sum")

    def _of_model(self, batch: Batch, unit: str) -> Tensor:
        words = (batch.labels != IGNORE).sum()
        # a batch that only keeps a rank in step has no word; it gets some label, because a mean over none is no number
        labels = torch.where(words > 0, batch.labels, 0)
        loss = own_loss(self.model, self.layout.inputs(batch), labels)[0].float()
        before = F.pad(batch.segments[:, :-1], (1, 0), value=-1)
        windows = ((batch.segments >= 0) & (batch.segments != before)).sum()
        return loss * {"words": words, "sentences": windows, "sum": 1}[unit] * (words > 0)


def own_loss(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss that a model computes itself, a scalar, and its logits.

    Raises:
        ValueError: it returns no such loss.
    """
    output = model(**inputs, labels=labels)
    loss = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r}"
        raise ValueError(f"{type(model).__name__} is given labels and returns {kind} as its loss, not a scalar tensor")
    return loss, output[1]


class ForwardBackward:
    """A batch's forward and backward; replicates or shards the model over the ranks when it is made.

    Args:
        model: on its device; with "fsdp" it is sharded in place.
        layout: of the batches.
        autocast: the precision's context.
        scaler: scales the loss where the precision needs it.
        strategy: "ddp" or "fsdp".
        objective: what a step minimises; None for the cross-entropy of its words.

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
        objective: Objective | None = None,
    ) -> None:
        self.model, self.autocast, self.scaler = model, autocast, scaler
        self.loss = LossSum(model, layout, objective)
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

    def __call__(self, batch: Batch, targets: float | Tensor, last: bool = True) -> Tensor:
        """Add a batch's gradients; returns its share of the loss of a step with so many targets."""
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

    def prepare(self, plan: Plan, targets: float) -> None:
        """Nothing to do."""

    def run(self, plan: Plan, targets: float, last: bool) -> None:
        self.total += self.forward_backward(self.table.batch(plan), targets, last)
