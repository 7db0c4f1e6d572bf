"""Tied parameters: which modules share one, and how to give a module its own."""

from collections.abc import Iterable

from torch import nn

from lorakit.adapters.names import is_within, named_parameters, outermost


def closed_under_ties(model: nn.Module, saved: Iterable[str]) -> tuple[str, ...]:
    """These modules, and those that share a parameter with them, directly or not."""
    names, saved = list(named_parameters(model, remove_duplicate=False)), tuple(saved)
    while True:
        inside = {id(p) for name, p in names if any(is_within(name, s) for s in saved)}
        owners = (name.rpartition(".")[0] for name, p in names if id(p) in inside)
        more = outermost([*saved, *(o for o in owners if o and not any(is_within(o, s) for s in saved))])
        if more == saved:
            return saved
        saved = more


def untie(name: str) -> str:
    """The statement that gives a parameter its own values."""
    owner, _, own = name.rpartition(".")
    where = f"model.get_submodule({owner!r}).{own}" if owner else f"model.{own}"
    return f"{where} = torch.nn.Parameter({where}.detach().clone())"
