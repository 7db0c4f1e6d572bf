"""The loss of a batch as a module, so that DDP and torch.compile take mask, model and cross-entropy as a whole.

Compiled, every shape of batch has a graph of its own: exact shapes make the best kernels and can be recorded as CUDA
graphs. So there must be few (`batching.with_few_shapes`), and each is compiled in a rehearsal that is timed apart.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.packing import Batch, Layout
from lorakit.data.tokenization import IGNORE
from lorakit.training.warmup import rehearse

BACKEND: str | Callable[..., Any] = "inductor"


class LossSum(nn.Module):
    """The cross-entropy of a batch, summed over its words, in fp32."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, batch: Batch) -> Tensor:
        logits = self.model(**self.layout.inputs(batch))[0].flatten(0, 1).float()
        return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")


class Rehearsals:
    """Compiles a loss, in place, shape by shape.

    Without a graph break, or with an error that names it. On a GPU the graphs are recorded as CUDA graphs, too
    ("reduce-overhead"), whose outputs are overwritten by the next replay: gradients are to be added into tensors of
    their own, so they are zeroed after a step, not dropped.
    """

    def __init__(self, loss: LossSum, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.device = next(loss.parameters()).device
        check_compiler(self.device)
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        loss.compile(backend=BACKEND, mode=mode, dynamic=False, fullgraph=True)
        self.loss, self.autocast = loss, autocast
        self.seen: set[torch.Size] = set()

    def rehearse(self, batch: Batch, trained: Iterable[nn.Parameter]) -> float | None:
        """Compile forward and backward for a shape that is new; gradients, buffers and random numbers stay as they are.

        Returns:
            The seconds it took; None where the shape is known.

        Raises:
            ValueError: the model does not make one graph.
        """
        if batch.input_ids.shape in self.seen:
            return None
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()  # what is still under way is training
        began = time.perf_counter()
        # by default torch goes over to plain operations after 8 shapes
        limits = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
        with limits:  # a CUDA graph warms up, is recorded, and only then replayed
            rehearse(self.loss, list(trained), lambda: self._forward(batch).backward(), times=3 if cuda else 1)
        if cuda:
            torch.cuda.synchronize()
        self.seen.add(batch.input_ids.shape)
        return time.perf_counter() - began

    def _forward(self, batch: Batch) -> Tensor:
        try:
            with self.autocast():
                return self.loss(batch)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as problem:
            why = str(problem).strip().splitlines()[0]
            name = type(self.loss.model).__name__
            raise ValueError(f"{name} does not compile into one graph ({why}); train it without compile") from problem


def check_compiler(device: torch.device) -> None:
    """Refuse to start where torch.compile will not find what it compiles with.

    Raises:
        ValueError: there is no C++ compiler.
    """
    if BACKEND != "inductor" or device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "compile=True needs a C++ compiler on the CPU, and there is none; install g++, name one in the variable"
            " CXX, or train without compile"
        ) from error
