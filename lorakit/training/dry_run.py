"""Run a model to find something out about it, and leave no trace: modes, buffers, gradients, random numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """While active, the model may be set to training or evaluation; then every module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def dry_run(model: nn.Module) -> Iterator[None]:
    """While active, the model may run in any mode; then modes, flags, buffers and random generators are restored.

    A flag is whatever a module keeps besides parameters: some models choose another attention, or another table of
    positions, by the length of a row, and keep it.
    """
    device = next(model.parameters()).device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # batch norm counts in them
    with keep_modes(model), _keep_attributes(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def _keep_attributes(model: nn.Module) -> Iterator[None]:
    """While active, modules may set attributes, and replace buffers and submodules; then they have the old ones."""
    kept = [vars(module) for module in model.modules()]
    config = getattr(model, "config", None)
    if config is not None:
        kept.append(vars(config))
    # a dict is restored in place: hooks hold a reference to the one they are in
    dicts = [*kept, *(value for attributes in kept for value in attributes.values() if isinstance(value, dict))]
    before = [(attributes, dict(attributes)) for attributes in dicts]
    try:
        yield
    finally:
        for attributes, old in before:
            if not _same(attributes, old):
                attributes.clear()
                attributes.update(old)


def _same(now: dict[Any, Any], old: dict[Any, Any]) -> bool:
    return now.keys() == old.keys() and all(value is old[key] for key, value in now.items())


def dry_run_backward(
    model: nn.Module, parameters: Sequence[nn.Parameter], run: Callable[[], Any], times: int = 1
) -> None:
    """Call `run`, a forward and backward, that many times; gradients are restored, and all that `dry_run` restores.

    A parameter that had no gradient and gets one has zeros afterwards.
    """
    kept = [parameter.grad for parameter in parameters]
    with dry_run(model):
        for _ in range(times):
            for parameter in parameters:
                parameter.grad = None
            run()
    for parameter, grad in zip(parameters, kept, strict=True):
        fresh = None if parameter.grad is None else torch.zeros_like(parameter)
        parameter.grad = fresh if grad is None else grad
