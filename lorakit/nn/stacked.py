"""Several adapters in one forward: each has its rows of the batch, and the frozen base is computed once for all.

A layer's A's and B's are stacked, so that the updates of all adapters are two batched matmuls, y = xWᵀ + b + xAₙᵀBₙᵀ
for the rows of adapter n, however many adapters there are. Adapters of a lower rank are padded with zeros, and so is
one that does not adapt the layer: where A and B are both zero, so are their gradients.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.nn.kernels import linear
from lorakit.nn.weights import CONV1D, widened


@dataclass(frozen=True)
class Stack:
    """What a layer computes with for each of n adapters; None for what is the layer's own.

    Shape:
        A (n, r, in); B (n, out, r), times the scale; weight (n, *the layer's); bias (n, out); dropout (n, 1, 1): the
        probability of zeroing an input of the update; start_A and start_B, as A and B: what the update counts from.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    dropout: Tensor | None = None
    start_A: Tensor | None = None
    start_B: Tensor | None = None

    def select(self, adapters: Tensor) -> "Stack":
        """The stack of these adapters, which may repeat: one for every row of a batch, say."""
        parts = {name: value.index_select(0, adapters) for name, value in vars(self).items() if value is not None}
        return replace(self, **parts)


def corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries of each dimension: what a lower rank fills."""
    return tensor[tuple(slice(size) for size in shape)]


def padded(tensors: Sequence[Tensor | None], shape: Sequence[int], device: torch.device) -> Tensor:
    """Stack tensors of at most this shape, filled up with zeros: (n, *shape), float32; None stands for zeros."""
    stack = torch.zeros(len(tensors), *shape, device=device)
    for row, tensor in zip(stack, tensors, strict=True):
        if tensor is not None:
            corner(row, tensor.shape).copy_(tensor)
    return stack


def is_stackable(module: nn.Module) -> bool:
    """Whether `stacked` can compute the module with other values per adapter."""
    return isinstance(module, nn.Linear | nn.LayerNorm) or _is_conv1d(module)


def takes_updates(module: nn.Module) -> bool:
    """Whether `stacked` can add low-rank updates to the module."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


@contextmanager
def stacked(modules: Mapping[str, nn.Module], stacks: Mapping[str, Stack], rows: int) -> Iterator[None]:
    """While active, these modules compute the first rows of a batch with the first adapter, and so on.

    Args:
        modules: by full name.
        stacks: by the same names.
        rows: of a batch: as many for each adapter.
    """
    for name, stack in stacks.items():
        kind = _layer_norm if isinstance(modules[name], nn.LayerNorm) else _linear
        modules[name].forward = partial(kind, modules[name], stack, Place(name, rows))
    try:
        yield
    finally:
        for name in stacks:
            if torch.compiler.is_compiling():
                modules[name].forward = not_stacked
            else:
                del modules[name].forward  # the class's own again


@contextmanager
def compiled_stacks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While active, code with `stacked` can be compiled, and these modules can only be called inside it.

    torch.compile can change an attribute, but not make one and delete it.
    """
    modules = list(modules)
    for module in modules:
        module.forward = not_stacked
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def not_stacked(*given: Any) -> NoReturn:
    """The forward of a module in `compiled_stacks`, outside `stacked`."""
    raise AssertionError("called without a stack")


@dataclass(frozen=True)
class Place:
    """Where a stack is used: the module's name, and how many rows its input has."""

    name: str
    rows: int


def _linear(module: nn.Module, stack: Stack, place: Place, x: Tensor) -> Tensor:
    transposed = _is_conv1d(module)
    rows = _by_adapter(x, stack, place)
    A, B, weight, bias = (_in_type_of(x, value) for value in (stack.A, stack.B, stack.weight, stack.bias))
    if weight is None:
        own = module.weight.T if transposed else module.weight
        own_bias = None if bias is not None or module.bias is None else _in_type_of(x, module.bias)
        y = linear(x, widened(own, x.dtype), own_bias)
        y = y.reshape(*rows.shape[:2], y.shape[-1])
        y = y if bias is None else y + bias[:, None]
    else:
        weight = weight if transposed else weight.mT
        if bias is None and module.bias is not None:
            bias = _in_type_of(x, module.bias).expand(len(weight), -1)
        y = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias[:, None], rows, weight)
    if A is not None:
        inputs = rows
        if stack.dropout is not None and module.training:
            kept = torch.rand_like(rows) >= stack.dropout
            inputs = rows * kept / (1 - stack.dropout).to(rows.dtype)
        y = torch.baddbmm(y, torch.bmm(inputs, A.mT), B.mT)
    if stack.start_A is not None:
        start_A, start_B = _in_type_of(x, stack.start_A), _in_type_of(x, stack.start_B)
        y = torch.baddbmm(y, torch.bmm(rows, start_A.mT), start_B.mT, alpha=-1)
    return y.view(*x.shape[:-1], y.shape[-1])


def _layer_norm(module: nn.LayerNorm, stack: Stack, place: Place, x: Tensor) -> Tensor:
    y = _by_adapter(F.layer_norm(x, module.normalized_shape, None, None, module.eps), stack, place)
    weight = module.weight if stack.weight is None else stack.weight[:, None]
    bias = module.bias if stack.bias is None else stack.bias[:, None]
    y = y if weight is None else y * weight.to(y.dtype)
    return (y if bias is None else y + bias.to(y.dtype)).view(x.shape)


def _by_adapter(x: Tensor, stack: Stack, place: Place) -> Tensor:
    """The input by adapter: (n, rows of each · width, in)."""
    count = len(next(value for value in vars(stack).values() if value is not None))
    if x.ndim < 2 or len(x) != place.rows:
        raise ValueError(
            f"{place.name!r} gets an input of shape {tuple(x.shape)}, whose first dimension is not the {place.rows}"
            " rows of the batch, so it cannot be computed for several adapters at once: leave it out of target_modules,"
            " or use one adapter at a time"
        )
    return x.reshape(count, -1, x.shape[-1])


def _in_type_of(x: Tensor, value: Tensor | None) -> Tensor | None:
    """Cast to x's type, as the adapted layers do; autocast casts by itself."""
    if value is None or value.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return value
    return value.to(x.dtype)


def _is_conv1d(module: nn.Module) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" == CONV1D for kind in type(module).__mro__)
