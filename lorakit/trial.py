"""Running a model to find something out about it, without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Within the context a model may run in any mode; then modes, buffers and random generators are as they were."""
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # batch norm counts in them
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
