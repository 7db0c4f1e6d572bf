"""What our autograd Functions have in common: when they may stand for torch's operations, and what they return."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)  # types without operations of their own


def nothing_transforms() -> bool:
    """Whether operations run as written: outside torch.compile, torch.func and forward-mode AD."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def no_view(y: Tensor) -> Tensor:
    """y as a tensor of its own, without a copy: of a Function's output that is a view autograd refuses `y /= 2`."""
    return torch.ops.aten._unsafe_view(y, y.shape)


def once(message: str) -> Callable[[Callable[..., tuple]], Callable[..., tuple]]:
    """For a backward that cannot be differentiated: raise, with this message, where a graph of it is asked for.

    torch's `once_differentiable` raises only if the second backward comes to it: `torch.autograd.grad` of a loss plus a
    gradient penalty reaches a weight through the loss and leaves the penalty's part out in silence.
    """

    def decorate(backward: Callable[..., tuple]) -> Callable[..., tuple]:
        @wraps(backward)
        def checked(ctx, *grads: Tensor) -> tuple:
            if torch.is_grad_enabled():
                raise RuntimeError(message)
            return backward(ctx, *grads)

        return checked

    return decorate
