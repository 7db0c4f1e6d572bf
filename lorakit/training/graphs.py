"""A batch's forward and backward as a CUDA graph: recorded once for each shape, then launched as one.

By estimate a GPU computes a batch of 32 sentences in a millisecond or two, and handing it a thousand kernels one by one
takes several times that. Recorded, they are handed over at once. torch.compile comes to graphs, too, by way of better
kernels, but has to compile them for each shape; to record one takes a few steps.

A graph works on fixed places. A batch comes in as the places of its tokens, in one copy; gradients and loss are added
into tensors that stay where they are. Random numbers go on from the generator as they would without a graph.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.packing import Batch, Plan, TokenTable
from lorakit.training.warmup import rehearse

WARM_UPS = 3  # runs before a recording: kernels are loaded and chosen in them, workspaces allocated (PyTorch's advice)


@dataclass(frozen=True)
class _Recorded:
    """A graph and what it reads: the places of a batch's tokens, row by row, then the words of the step (int32)."""

    graph: Any
    given: Tensor


class StepGraphs:
    """The graphs of a run, in one pool of memory: no graph needs what another left there.

    Args:
        contribute: computes a batch's share of the step's loss, adds its gradients, returns the loss.
        total: what the loss is added to.

    Raises:
        ValueError: training is not on an NVIDIA GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        table: TokenTable,
        contribute: Callable[[Batch, Tensor], Tensor],
        total: Tensor,
        trained: Iterable[nn.Parameter],
    ) -> None:
        if total.device.type != "cuda":
            raise ValueError(
                f"cuda_graphs needs an NVIDIA GPU, and this process trains on {total.device.type}; leave it out"
            )
        self.model, self.table, self.contribute, self.total = model, table, contribute, total
        self.trained = list(trained)
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.recorded: dict[torch.Size, _Recorded] = {}

    def record(self, plan: Plan, targets: int) -> float | None:
        """Record a shape that is new; gradients, loss, buffers and random numbers stay as they are.

        Returns:
            The seconds it took; None where the shape is known.

        Raises:
            ValueError: something in the model makes the host wait for the GPU.
        """
        shape = plan.source.shape
        if shape in self.recorded:
            return None
        torch.cuda.synchronize()  # what is still under way is training
        began = time.perf_counter()
        given = torch.empty(plan.source.numel() + 1, dtype=torch.int32, device=self.total.device)
        _send(plan, targets, given)

        def share() -> Tensor:
            return self.contribute(self.table.look_up(given[:-1].view(shape)), given[-1])

        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # as the recording; what is kept is kept and put back there, too, in order
            rehearse(self.model, self.trained, share, WARM_UPS)
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self.total += share()
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError):
                raise
            why = str(problem).strip().splitlines()[0]
            raise ValueError(
                f"{type(self.model).__name__} cannot be recorded as a CUDA graph ({why}); train it without cuda_graphs"
            ) from problem
        self.recorded[shape] = _Recorded(graph, given)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def replay(self, plan: Plan, targets: int) -> None:
        """Add a batch's gradients and loss; its shape is recorded."""
        recorded = self.recorded[plan.source.shape]
        _send(plan, targets, recorded.given)
        recorded.graph.replay()


def _send(plan: Plan, targets: int, given: Tensor) -> None:
    """Copy a batch's plan to where its graph reads it; the host does not wait."""
    sent = torch.empty(given.shape, dtype=torch.int32, pin_memory=True)
    sent[:-1] = plan.source.flatten()
    sent[-1] = targets
    given.copy_(sent, non_blocking=True)
