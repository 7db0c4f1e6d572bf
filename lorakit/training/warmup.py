"""Running a model to find something out about it, without a trace."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.nn.kernels import uses_onednn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Within the context a model may run in any mode; then every module's is as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Within the context a model may run in any mode; then modes, buffers and random generators are as they were."""
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # batch norm counts in them
    with modes_kept(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def rehearse(model: nn.Module, parameters: Sequence[nn.Parameter], run: Callable[[], Any], times: int = 1) -> None:
    """Run a forward and backward so many times; gradients, modes, buffers and random numbers stay as they are.

    A parameter that had no gradient and gets one has zeros afterwards.
    """
    kept = [parameter.grad for parameter in parameters]
    with trial(model):
        for _ in range(times):
            for parameter in parameters:
                parameter.grad = None
            run()
    for parameter, grad in zip(parameters, kept, strict=True):
        fresh = None if parameter.grad is None else torch.zeros_like(parameter)
        parameter.grad = fresh if grad is None else grad


def make_kernels(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> None:
    """Run each kind of linear layer once, forward and backward, on batches of these shapes; leaves no other trace.

    oneDNN makes a kernel for each shape and keeps it. Kernels made in the middle of a step are allocated between the
    step's tensors and fragment what those free: LoRA's peak over 40 steps at roberta-base's shape was a tenth higher.
    Outside `faster_products` nothing is done.

    Shape:
        shapes: (rows, width) of batches.
    """
    kinds = {_kind(module): module for module in model.modules() if uses_onednn(module)}
    if not kinds:
        return
    with trial(model), torch.enable_grad():
        for shape in sorted(set(shapes), key=math.prod, reverse=True):
            for module in kinds.values():
                x = module.weight.new_zeros((*shape, module.in_features), requires_grad=True)
                y = type(module).forward(module, x)  # not the module itself: its hooks are for training
                torch.autograd.grad(y, [x, *(p for p in module.parameters() if p.requires_grad)], torch.zeros_like(y))


def _kind(module: nn.Linear) -> tuple[Any, ...]:
    return (type(module), *((name, p.shape, p.requires_grad) for name, p in module.named_parameters()))
