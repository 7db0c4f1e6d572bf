"""Parameters that a module holds in one type and computes with in another.

*Master weights* are float32 copies of what is trained inside a base that is kept in half precision. An optimizer step
of 1e-3 of a bfloat16 weight is mostly rounded away, and GradScaler refuses float16 gradients. So what is trained
becomes float32, and a module that holds such a parameter sees it in the base's type during its forward.

*Frozen matrices in half precision* are the opposite: held in fewer bits, they compute in their input's type. Quantized
ones do, too, but under autocast they have to give its type.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.nn.weights import HALF, is_adapted, widened

TYPE = "lora_type_of_"
"""Prefix of the empty buffer that has a master weight's type in the base: `.to(dtype)` converts it with the base."""


class _ShowCast:
    """Forward pre-hook: shadow some of the module's parameters by casts (attributes are found before parameters)."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys  # the parameters' own names

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for key in self.keys:
            module.__dict__[key] = self.cast(module, key, args)

    def cast(self, module: nn.Module, key: str, args: tuple[Any, ...]) -> Tensor:
        raise NotImplementedError


class _InBaseType(_ShowCast):
    """Show master weights in the base's type."""

    def cast(self, module: nn.Module, key: str, args: tuple[Any, ...]) -> Tensor:
        return module._parameters[key].to(getattr(module, TYPE + key).dtype)


class _InInputType(_ShowCast):
    """Show half-precision parameters in a wider input's type; adapted layers and autocast cast them by themselves."""

    def cast(self, module: nn.Module, key: str, args: tuple[Any, ...]) -> Tensor:
        parameter = module._parameters[key]
        x = args[0] if args else parameter
        itself = is_adapted(module) or torch.is_autocast_enabled(x.device.type)
        return parameter if itself else widened(parameter, x.dtype)


class _HideAgain:
    """Forward hook: remove the casts, even after an error."""

    def __init__(self, show: _ShowCast) -> None:
        self.show = show

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for key in self.show.keys:
            module.__dict__.pop(key, None)


def promote(model: nn.Module, parameters: list[nn.Parameter], casts_itself: type[nn.Module]) -> None:
    """Make these parameters float32, in place; their modules still compute in the type they had.

    Args:
        model: holds the parameters; every module that shares one is found.
        parameters: those to be trained; float32 and float64 ones are left alone.
        casts_itself: modules of this class cast their own parameters and need no hook.
    """
    dtypes = {id(p): p.dtype for p in parameters if p.dtype in HALF}
    for module in model.modules():
        mine = {key: dtypes[id(p)] for key, p in module._parameters.items() if id(p) in dtypes}
        for key, dtype in mine.items():
            module.register_buffer(TYPE + key, torch.empty(0, dtype=dtype), persistent=False)
        if mine and not isinstance(module, casts_itself):
            _add_hooks(module, _InBaseType(tuple(mine)))
    for parameter in parameters:
        if id(parameter) in dtypes:
            parameter.data = parameter.data.float()


def demote(model: nn.Module, parameter: nn.Parameter, original: Tensor) -> None:
    """Undo `promote` for one parameter: put `original` back in the base's type and remove our hooks."""
    parameter.data = original.to(parameter.device, base_type(model, parameter), copy=True)
    for module in model.modules():
        keys = [key for key, p in module._parameters.items() if p is parameter]
        for key in keys:
            if hasattr(module, TYPE + key):
                delattr(module, TYPE + key)
                module._non_persistent_buffers_set.discard(TYPE + key)
        if keys:
            _remove_hooks(module, _InBaseType)


def base_type(model: nn.Module, parameter: Tensor) -> torch.dtype:
    """The type that a trained parameter or buffer has in the base, which `model.to(dtype)` may have converted."""
    for module in model.modules():
        for key, mine in module._parameters.items():
            if mine is parameter and hasattr(module, TYPE + key):
                return getattr(module, TYPE + key).dtype
    return parameter.dtype


def compute_in_input_type(module: nn.Module) -> None:
    """Let a layer whose frozen parameters are in half precision take a float32 input too, outside autocast."""
    _remove_hooks(module, _InInputType)
    keys = tuple(key for key, p in module._parameters.items() if p is not None and p.dtype in HALF)
    _add_hooks(module, _InInputType(keys))


def compute_in_autocast_type(module: nn.Module) -> None:
    """Let a quantized layer give autocast's type, as other layers do: torchao's give their input's."""
    module.register_forward_hook(_in_autocast_type)


def _in_autocast_type(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    kind = output.device.type
    casts = torch.is_autocast_enabled(kind) and output.dtype == torch.float32
    return output.to(torch.get_autocast_dtype(kind)) if casts else output


def _add_hooks(module: nn.Module, show: _ShowCast) -> None:
    module.register_forward_pre_hook(show)
    module.register_forward_hook(_HideAgain(show), always_call=True)


def _remove_hooks(module: nn.Module, kind: type[_ShowCast]) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "show", hook), kind)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
