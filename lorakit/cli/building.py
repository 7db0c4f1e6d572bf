"""Build the model of each mode once, and find what is wrong with any of them before anything is written."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn


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
        return shape

    def _load(self, mode: str) -> tuple[nn.Module, Any]:
        model, tokenizer = self.load()
        if mode == "lora":
            self.adapt(model)
        return model, tokenizer
