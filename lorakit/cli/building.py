"""Build the model of each mode once, and find what is wrong with any of them before anything is written."""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lorakit.adapters.names import listing
from lorakit.adapters.unused import unused_parameters
from lorakit.training.distributed import is_main


class ModelBuilder:
    """Builds the model of each mode once; all modes start from the same weights and the same head.

    The constructor builds the first mode's model and checks the others on the meta device, without weights. So a
    broken file, a missing tokenizer, targets that match nothing or layers that cannot be cached raise here, and `build`
    returns the first model instead of loading it again.

    Args:
        modes: "full", "lora", or both, in the order in which they are built.
        load: Loads the base, with a head, and its tokenizer.
        adapt: Applies LoRA to a model, which may have no weights.

    Attributes:
        shapes: With several modes, each mode's model on the meta device.

    Raises:
        ValueError, OSError: As `load` and `adapt`.
    """

    def __init__(
        self, modes: Sequence[str], load: Callable[[], tuple[nn.Module, Any]], adapt: Callable[[nn.Module], None]
    ) -> None:
        self.load, self.adapt = load, adapt
        first, *others = modes
        self.built = {first: self._load(first)}
        self.shapes = {mode: self._shape(mode, self.built[first][0]) for mode in modes if others}

    def build(self, mode: str) -> tuple[nn.Module, Any]:
        """The model of a mode, and its tokenizer. The caller owns them: nothing here keeps them in memory."""
        return self.built.pop(mode) if mode in self.built else self._load(mode)

    def _shape(self, mode: str, model: nn.Module) -> nn.Module:
        with torch.device("meta"):
            shape = type(model)(deepcopy(model.config))
        if mode == "lora":
            self.adapt(shape)
        else:
            freeze_unused(shape)
        return shape

    def _load(self, mode: str) -> tuple[nn.Module, Any]:
        model, tokenizer = self.load()
        if mode == "lora":
            self.adapt(model)
        elif (frozen := freeze_unused(model)) and is_main():
            print(
                f"not trained, because the model's output does not depend on them: {listing(frozen)}", file=sys.stderr
            )
        return model, tokenizer


def freeze_unused(model: nn.Module) -> list[str]:
    """Freeze the parameters that the output does not depend on; returns their names.

    They would be counted as trained and get no gradient.
    """
    unused = unused_parameters(model)
    names = [name for name, _ in model.named_parameters() if name in unused]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return names
