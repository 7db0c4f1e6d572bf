"""Modules trained in full: which ones, and why some cannot be. Applying and loading an adapter share these rules."""

from collections.abc import Sequence

from torch import nn

from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.names import is_within, named_parameters, outermost, unwrapped
from lorakit.adapters.targets import find_head, find_modules
from lorakit.adapters.ties import closed_under_ties, untie
from lorakit.nn.weights import is_quantized


def modules_trained_in_full(model: nn.Module, config: LoRAConfig) -> tuple[str, ...]:
    """Full names of the head and of the modules in modules_to_save.

    Raises:
        ValueError: a name matches nothing, or as `refuse_untrainable`.
    """
    if config.modules_to_save == ():
        return ()
    extra = find_modules(model, config.modules_to_save or (), "modules_to_save")
    saved = outermost([*find_head(model), *extra])
    refuse_untrainable(model, saved)
    return saved


def refuse_untrainable(model: nn.Module, saved: Sequence[str], read_from_file: bool = False) -> None:
    """Raise ValueError unless these modules can be trained in full without changing anything else.

    Args:
        model: the base.
        saved: full names.
        read_from_file: whether PEFT may have trained them, which gives each a copy of its tied parameters.
    """
    inside = {id(p) for name in saved for p in unwrapped(model.get_submodule(name)).parameters()}
    for name, parameter in named_parameters(model, remove_duplicate=False):
        owner = next((s for s in saved if is_within(name, s)), None)
        if owner and is_quantized(parameter):
            raise ValueError(
                f"{owner!r} is to be trained in full, and {name} is quantized; apply_lora or load_adapter first, then "
                "shrink_base, which leaves alone what is trained"
            )
        if id(parameter) in inside and owner is None:
            both = list(closed_under_ties(model, saved))
            fix = "" if read_from_file else f"pass modules_to_save={both}, or "
            raise ValueError(
                f"modules_to_save {', '.join(map(repr, saved))} shares a tied parameter with {name!r}, which would be "
                f"{'changed' if read_from_file else 'trained'} too; {fix}untie it first: {untie(name)}"
            )
