"""What is counted as trained must get a gradient; this is checked once, after the backward of a run's first step."""

from collections.abc import Mapping

from torch import nn

from lorakit._counts import counted
from lorakit.adapters.names import listing


class NoGradientError(ValueError):
    """Trained parameters got no gradient."""


def check_gradients(trained: Mapping[str, nn.Parameter]) -> None:
    """Refuse to continue if a trained parameter got no gradient: it would keep its value, or stop DDP.

    Reads nothing from the device. Ranks check for themselves, before DDP's own error, which names no parameter.

    Args:
        trained: the trained parameters by name, after a backward.

    Raises:
        NoGradientError: it names the parameters, and how to leave them out.
    """
    names = [name for name, parameter in trained.items() if parameter.grad is None]
    if not names:
        return
    layers = list(dict.fromkeys(n.rpartition(".")[0] for n in names if n.rpartition(".")[2].startswith("lora_")))
    others = [name for name in names if not name.rpartition(".")[2].startswith("lora_")]
    fixes = []
    if layers:
        fixes.append(f"leave their layers out of target_modules, or in Python name them: exclude_modules={layers}")
    if others:
        which = "those without LoRA" if layers else "them"
        fixes.append(f"freeze {which}: model.get_parameter(name).requires_grad = False")
    raise NoGradientError(
        f"{len(names)} of {counted(len(trained), 'trained parameter')} got no gradient in the first step, because the"
        f" loss does not depend on them: {listing(names)}; {'; '.join(fixes)}"
    )
