"""Frozen weights held in the half precision that autocast casts them to anyway: the same bits, fewer casts and bytes.

Autocast keeps casts of trained weights only. A frozen matrix it casts anew in every forward, and keeps that copy for
backward. Held in that type, it is what every use of it sees, to the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorakit.training.warmup import trial

Autocast = Callable[[], AbstractContextManager[Any]]


@contextmanager
def frozen_in_half(model: nn.Module, autocast: Autocast, use: Callable[[], Any]) -> Iterator[None]:
    """Within the context, hold frozen parameters in autocast's type; afterwards the originals are back, bit for bit.

    Held are those that `use` does nothing with but cast them to this type: not layer norms and embeddings, nor a matrix
    that is an embedding, too, or whose norms are taken (DoRA). The originals wait on the host, so a GPU's memory holds
    half the bytes.

    Args:
        autocast: the context in which the model will run; one without autocast changes nothing.
        use: runs the model once, on whatever input; it is called in training and in evaluation mode, under autocast.
    """
    originals: dict[nn.Parameter, Tensor] = {}
    for parameter, dtype in only_cast(model, autocast, use):
        # a GPU's memory is what is short; on a CPU a copy would be one more
        originals[parameter] = parameter.data.cpu() if parameter.is_cuda else parameter.data
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, original in originals.items():
            parameter.data = original.to(parameter.device)


def only_cast(model: nn.Module, autocast: Autocast, use: Callable[[], Any]) -> list[tuple[nn.Parameter, torch.dtype]]:
    """The frozen parameters that `use` casts to autocast's type and reads in no other way, with that type."""
    kind = next(model.parameters()).device.type
    with autocast():
        if not torch.is_autocast_enabled(kind):
            return []
        dtype = torch.get_autocast_dtype(kind)
        frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point() and p.dtype != dtype]
        reads = _Reads(frozen, dtype)
        with trial(model), torch.no_grad(), reads:
            for training in (True, False):
                model.train(training)
                use()
    return [(p, dtype) for p in frozen if _storage(p) in reads.cast - reads.otherwise]


class _Reads(TorchDispatchMode):
    """Notes how operations read parameters' memory, through views of it, too: to cast it to a type, or otherwise."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
        super().__init__()
        self.watched, self.dtype = {_storage(p) for p in parameters}, dtype
        self.cast: set[int] = set()
        self.otherwise: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not function.is_view:
            casts = function.overloadpacket is torch.ops.aten._to_copy and kwargs.get("dtype") == self.dtype
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and _storage(value) in self.watched:
                    (self.cast if casts else self.otherwise).add(_storage(value))
        return function(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
