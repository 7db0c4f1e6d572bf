"""Running a model to find something out about it, without a trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
