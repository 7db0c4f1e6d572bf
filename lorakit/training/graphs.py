"""Engines that build something for every shape of batch: torch.compile, and CUDA graphs of eager kernels.

Exact shapes give the best kernels and can be recorded as CUDA graphs, so there must be few of them
(`lorakit.data.packing.with_few_shapes`). What is built for a shape is built before its first batch and timed
separately.

By estimate a GPU computes a batch of 32 sentences in a millisecond or two, and launching its thousand kernels one by
one takes several times that. Recorded in a CUDA graph they are launched at once. torch.compile also ends in CUDA
graphs, of better kernels, but compiling takes long for each shape; recording one takes a few steps.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.packing import Plan, TokenTable
from lorakit.training.distributed import world_size
from lorakit.training.dry_run import dry_run_backward
from lorakit.training.engine import ForwardBackward

BACKEND: str | Callable[..., Any] = "inductor"
WARM_UPS = 3  # runs before a recording: they load and choose kernels and allocate workspaces (PyTorch's advice)


class CompiledEngine:
    """Compiles the loss, in place, shape by shape: without a graph break, or with an error that names it.

    On a GPU the graphs are also recorded as CUDA graphs ("reduce-overhead"), whose outputs the next replay overwrites.
    So gradients are added into tensors of their own, which are zeroed after a step and not dropped.

    Raises:
        ValueError: there is no C++ compiler for a CPU.
    """

    drops_gradients = False

    def __init__(self, forward_backward: ForwardBackward, table: TokenTable) -> None:
        self.forward_backward, self.table = forward_backward, table
        self.device = table.values.device
        compile_in_place(forward_backward.loss, self.device)
        self.total = torch.zeros((), device=self.device)
        self.ready: set[torch.Size] = set()

    def prepare(self, plan: Plan, targets: float) -> float | None:
        """Compile forward and backward for a new shape; gradients, buffers and random numbers are left unchanged.

        Returns:
            The seconds it took; None where the shape is known.

        Raises:
            ValueError: the model does not compile into one graph.
        """
        if plan.source.shape in self.ready:
            return None
        batch, loss = self.table.batch(plan), self.forward_backward.loss

        def compile_both() -> None:
            with self.forward_backward.autocast():
                value = loss(batch)
            value.backward()

        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()  # work in flight is training
        began = time.perf_counter()
        with one_graph(self.forward_backward.model):
            # on a GPU the first run warms up, the second records, the third replays
            dry_run_backward(loss, self.forward_backward.trained, compile_both, times=3 if cuda else 1)
        if cuda:
            torch.cuda.synchronize()
        self.ready.add(plan.source.shape)
        return time.perf_counter() - began

    def run(self, plan: Plan, targets: float, last: bool) -> None:
        self.total += self.forward_backward(self.table.batch(plan), targets, last)


def compile_in_place(module: nn.Module, device: torch.device) -> None:
    """Let a module on a device be compiled, shape by shape, when it is called.

    Raises:
        ValueError: there is no C++ compiler for a CPU.
    """
    check_compiler(device)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    module.compile(backend=BACKEND, mode=mode, dynamic=False, fullgraph=True)


@contextmanager
def one_graph(model: nn.Module) -> Iterator[None]:
    """While active, something that runs the model may be compiled for any number of shapes.

    Raises:
        ValueError: it does not compile into one graph.
    """
    # by default torch falls back to eager operations after 8 shapes
    limits = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
    try:
        with limits:
            yield
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as problem:
        name = type(model).__name__
        raise ValueError(
            f"{name} does not compile into one graph ({_first_line(problem)}); train it with engine 'eager'"
        ) from problem


@dataclass(frozen=True)
class _Recorded:
    """A graph and its input, int32: the indices of a batch's tokens, row by row, then the targets' float32 bits."""

    graph: Any
    given: Tensor


class CudaGraphEngine:
    """CUDA graphs of a batch's forward and backward, in one memory pool: no graph needs what another left there.

    A graph works on fixed memory. A batch is sent as the indices of its tokens, in one copy; gradients and loss are
    added into tensors that stay where they are. Random numbers continue from the generator as they would without a
    graph.

    Raises:
        ValueError: training is not on an NVIDIA GPU, or in several processes.
    """

    drops_gradients = False

    def __init__(self, forward_backward: ForwardBackward, table: TokenTable) -> None:
        device = table.values.device
        check_engine("cuda_graphs", device)
        self.forward_backward, self.table = forward_backward, table
        self.total = torch.zeros((), device=device)
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.ready: dict[torch.Size, _Recorded] = {}

    def prepare(self, plan: Plan, targets: float) -> float | None:
        """Record a new shape; gradients, loss, buffers and random numbers are left unchanged.

        Returns:
            The seconds it took; None where the shape is known.

        Raises:
            ValueError: something in the model makes the host wait for the GPU.
        """
        shape = plan.source.shape
        if shape in self.ready:
            return None
        torch.cuda.synchronize()  # work in flight is training
        began = time.perf_counter()
        given = torch.empty(plan.source.numel() + 1, dtype=torch.int32, device=self.total.device)
        _send(plan, targets, given)

        def share() -> Tensor:
            return self.forward_backward(self.table.look_up(given[:-1].view(shape)), given[-1].view(torch.float32))

        model = self.forward_backward.model
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # as the recording, so that what is saved and restored is in order, too
            dry_run_backward(model, self.forward_backward.trained, share, WARM_UPS)
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self.total += share()
        except RuntimeError as problem:
            if isinstance(problem, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{type(model).__name__} cannot be recorded as a CUDA graph ({_first_line(problem)}); train it with"
                " engine 'eager'"
            ) from problem
        self.ready[shape] = _Recorded(graph, given)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def run(self, plan: Plan, targets: float, last: bool) -> None:
        recorded = self.ready[plan.source.shape]
        _send(plan, targets, recorded.given)
        recorded.graph.replay()


def check_engine(name: str, device: torch.device) -> None:
    """Refuse an engine that this machine or this number of processes cannot run.

    Args:
        name: of TrainConfig's engines.
        device: that trains.

    Raises:
        ValueError: it cannot run here.
    """
    if name == "compile":
        check_compiler(device)
    if name == "cuda_graphs" and world_size() > 1:
        raise ValueError("engine 'cuda_graphs' needs a single process; train in one, or with engine 'compile'")
    if name == "cuda_graphs" and device.type != "cuda":
        raise ValueError(
            f"engine 'cuda_graphs' needs an NVIDIA GPU, and this process trains on {device.type}; use engine"
            " 'eager' or 'compile'"
        )


def check_compiler(device: torch.device) -> None:
    """Refuse to start where torch.compile will not find the compiler it needs.

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
            "engine 'compile' needs a C++ compiler on the CPU, and there is none; install g++, name one in the variable"
            " CXX, or use engine 'eager'"
        ) from error


def _send(plan: Plan, targets: float, given: Tensor) -> None:
    """Copy a batch's plan to where its graph reads it; the host does not wait."""
    sent = torch.empty(given.shape, dtype=torch.int32, pin_memory=True)
    sent[:-1] = plan.source.flatten()
    sent[-1:] = torch.tensor([targets], dtype=torch.float32).view(torch.int32)  # exact for up to 2^24 words
    given.copy_(sent, non_blocking=True)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0]
