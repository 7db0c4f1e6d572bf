"""Master weights: float32 copies of what is trained inside a base that is kept in half precision.

An optimizer step of 1e-3 of a bfloat16 weight is mostly rounded away, and GradScaler refuses float16 gradients. So what
is trained becomes float32, and a module that holds such a parameter sees it in the base's type during its forward.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _ShowInBaseType:
    """Forward pre-hook: shadow the module's master weights by casts (attributes are found before parameters)."""

    def __init__(self, dtypes: dict[str, torch.dtype]) -> None:
        self.dtypes = dtypes  # by the parameter's own name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for key, dtype in self.dtypes.items():
            module.__dict__[key] = module._parameters[key].to(dtype)


class _HideAgain:
    """Forward hook: remove the casts, even after an error."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for key in self.keys:
            module.__dict__.pop(key, None)


def promote(model: nn.Module, parameters: list[nn.Parameter], casts_itself: type[nn.Module]) -> None:
    """Make these parameters float32, in place; their modules still compute in the type they had.

    Args:
        model: holds the parameters; every module that shares one is found.
        parameters: those to be trained; float32 and float64 ones are left alone.
        casts_itself: modules of this class cast their own parameters and need no hook.
    """
    dtypes = {id(p): p.dtype for p in parameters if p.dtype in (torch.float16, torch.bfloat16)}
    for module in model.modules():
        mine = {key: dtypes[id(p)] for key, p in module._parameters.items() if id(p) in dtypes}
        if mine and not isinstance(module, casts_itself):
            module.register_forward_pre_hook(_ShowInBaseType(mine))
            module.register_forward_hook(_HideAgain(tuple(mine)), always_call=True)
    for parameter in parameters:
        if id(parameter) in dtypes:
            parameter.data = parameter.data.float()


def demote(model: nn.Module, parameter: nn.Parameter, original: Tensor) -> None:
    """Undo `promote` for one parameter: put `original` back in its own type and remove our hooks."""
    parameter.data = original.to(parameter.device, copy=True)
    for module in model.modules():
        if any(p is parameter for p in module._parameters.values()):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                ours = [key for key, hook in hooks.items() if isinstance(hook, _ShowInBaseType | _HideAgain)]
                for key in ours:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
