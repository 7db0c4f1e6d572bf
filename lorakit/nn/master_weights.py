"""Float32 masters: parameters that are trained in float32 inside a base kept in a half-precision type.

An optimiser step of 1e-3 of a bfloat16 weight is mostly rounded away, and GradScaler refuses float16 gradients. So what
is trained is float32; a module that holds such a parameter sees it, while it computes, in the type the base had.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _ShowInBaseType:
    """Forward pre-hook: lay casts of the module's masters over its parameters (attributes are found before them)."""

    def __init__(self, dtypes: dict[str, torch.dtype]) -> None:
        self.dtypes = dtypes  # by the parameter's own name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for key, dtype in self.dtypes.items():
            module.__dict__[key] = module._parameters[key].to(dtype)


class _HideAgain:
    """Forward hook: take the casts away, whatever happened in between."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for key in self.keys:
            module.__dict__.pop(key, None)


def promote(model: nn.Module, parameters: list[nn.Parameter], casts_itself: type[nn.Module]) -> None:
    """Make these parameters float32, in place, and let their modules compute in the type they had.

    Args:
        model: Holds the parameters; all modules that share one are found.
        parameters: Those to be trained. float32 and float64 ones stay as they are.
        casts_itself: Modules of this class cast their own parameters and need no hook.
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
    """Undo `promote` for one parameter: untouched values in their own type, no hook of ours left on its modules."""
    parameter.data = original.to(parameter.device, copy=True)
    for module in model.modules():
        if any(p is parameter for p in module._parameters.values()):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                ours = [key for key, hook in hooks.items() if isinstance(hook, _ShowInBaseType | _HideAgain)]
                for key in ours:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
