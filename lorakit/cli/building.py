"""Build the token classifier of each mode once, and find what is wrong with it before anything is written."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.lora import apply_lora
from lorakit.training.frozen_layer_cache import constant_layers
from lorakit.training.models import load_token_classifier


class TaggerBuilder:
    """Builds the model of each mode; all modes start from the same weights and the same head.

    The constructor builds the first mode's model and checks the others on the meta device, without weights. So a
    broken file, a missing tokenizer, targets that match nothing or layers that cannot be cached raise here, and `build`
    returns the first model instead of loading it again.

    Args:
        modes: "full", "lora", or both, in the order in which they are built.
        source: Folder or hub id of the base.
        labels: The tag of each class.
        options: Arguments of `apply_lora`.
        seed: Of the head, and of the first A of each update.
        dropout: Dropout in the base; None keeps its own.
        cache_prefix: Also check that LoRA leaves the lower layers constant.

    Raises:
        ValueError, OSError: The base cannot be loaded, or LoRA does not fit it.
    """

    def __init__(
        self,
        modes: Sequence[str],
        source: str,
        labels: Sequence[str],
        options: Mapping[str, Any],
        seed: int = 0,
        dropout: float | None = None,
        cache_prefix: bool = False,
    ) -> None:
        folder = Path(source)
        self.source = folder.resolve() if folder.is_dir() else source  # an adapter names its base, from any folder
        self.labels, self.options, self.seed = labels, options, seed
        self.dropout, self.cache_prefix = dropout, cache_prefix
        first, *others = modes
        self.built = {first: self._load(first)}
        model, _ = self.built[first]
        for mode in others:
            with torch.device("meta"):
                shape = type(model)(deepcopy(model.config))
            self._adapt(shape, mode)

    def build(self, mode: str) -> tuple[nn.Module, Any]:
        """The model of a mode, and its tokenizer. The caller owns them: nothing here keeps them in memory."""
        return self.built.pop(mode) if mode in self.built else self._load(mode)

    def _load(self, mode: str) -> tuple[nn.Module, Any]:
        model, tokenizer = load_token_classifier(self.source, self.labels, self.seed, self.dropout)
        self._adapt(model, mode)
        return model, tokenizer

    def _adapt(self, model: nn.Module, mode: str) -> None:
        if mode == "lora":
            apply_lora(model, **self.options, seed=self.seed)
            if self.cache_prefix:
                constant_layers(model)  # raises where a layer below the trained ones changes
