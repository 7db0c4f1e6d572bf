"""Module names: without wrappers, how a name or pattern matches them, and the error for one that matches nothing."""

import difflib
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names under which torch.compile, FSDP1 and activation checkpointing hold the module that they wrap."""


def plain_name(name: str) -> str:
    """A full name without the parts that wrappers add: the same before and after wrapping."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside these wrappers."""
    while inner := next((module._modules[key] for key in WRAPPERS if key in module._modules), None):
        module = inner
    return module


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of this name, without wrappers around it."""
    return unwrapped(model.get_submodule(name))


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules`, without wrappers and their parts of the names."""
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if unwrapped(module) is module:
            yield plain_name(name), module


def named_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """As `model.named_parameters`, without wrappers' parts of the names."""
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        yield plain_name(name), parameter


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by full name, without wrappers' parts of the names."""
    found = {plain_name(name): tensor for name, tensor in model.named_parameters()}
    return found | {plain_name(name): tensor for name, tensor in model.named_buffers()}


def is_within(name: str, module: str) -> bool:
    """Whether the name is that of the module or of something in it."""
    return name == module or name.startswith(f"{module}.")


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repeats and without those inside another one."""
    names = list(dict.fromkeys(names))
    return tuple(name for name in names if not any(name != other and is_within(name, other) for other in names))


def name_matches(name: str, suffix: str) -> bool:
    """Whether `suffix` is the name or its last parts: `query` and `self.query` match `layer.0.self.query`."""
    return name == suffix or name.endswith(f".{suffix}")


def unmatched(what: str, wanted: str, candidates: Iterable[str]) -> ValueError:
    """The error for a name that matches nothing: it suggests the closest names, then lists all."""
    names = list(dict.fromkeys(candidates))
    near = difflib.get_close_matches(wanted, names, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}? It" if near else "; it"
    return ValueError(f"{what} {wanted!r} matches nothing in this model{hint} has: {listing(names)}")


def listing(names: Sequence[str], limit: int = 30) -> str:
    """Join names for a message; beyond `limit` they are only counted."""
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown}, … ({len(names) - limit} more)"
