"""Compute the frozen lower layers of an encoder once, and reuse their output in every epoch.

With LoRA on the top layers alone, embeddings and lower layers are constants: without dropout their output for a
sentence never changes. Kept for every token of the corpus, it replaces the lower layers in each later step, which then
costs only the trained layers (and looking up the embeddings). Exact to rounding: other batches may add in another
order.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.data.packing import Batch, Layout, TokenTable, collate, sorted_batches
from lorakit.data.tokenization import Encoded
from lorakit.training.dry_run import dry_run
from lorakit.training.layout import is_rounding, relative_error

BATCH_TOKENS = 4096  # in the one pass that fills the cache
PROVED = 8  # sentences


class _Reached(Exception):
    """The forward has come to the lowest trained layer."""


class FrozenLayerCache:
    """The output of the layers below the lowest trained one, for every token of a corpus.

    Args:
        model: an encoder of BERT's form, in training mode.
        encoded: the corpus.
        layout: how the model takes its batches.
        autocast: the context in which the model runs.

    Attributes:
        depth: encoder layers that are skipped.
        hidden: (subwords, hidden size), on the model's device: subwords × hidden size × 4 bytes in float32, which is
            2.0 GB for BioNLP2004's 655,151 tokens and a width of 768.

    Raises:
        ValueError: nothing is frozen below, or it is not constant, or the cache changes the output; the message names
            it and the fix.
    """

    def __init__(
        self, model: nn.Module, encoded: Encoded, layout: Layout, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.layers = _parts(model)[1]
        self.depth = constant_layers(model)
        self.more: tuple[Any, ...] | None = None  # what a layer returns besides; None if it returns a tensor
        self.hidden = self._fill(model, encoded, layout, autocast)
        self._prove(model, encoded, layout, autocast)

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes

    @contextmanager
    def skipped(self, batch: Batch) -> Iterator[None]:
        """While active, the lower layers return the batch's cached output without computing anything."""
        hidden = self.hidden[batch.source.clamp_min(0)]  # padding gets some token's: nothing attends to it
        below = self.layers[: self.depth]
        for layer in below:
            layer.forward = lambda *args, **kwargs: hidden if self.more is None else (hidden, *self.more)
        try:
            yield
        finally:
            for layer in below:
                del layer.forward  # the class's own again

    @torch.no_grad()
    def _fill(
        self, model: nn.Module, encoded: Encoded, layout: Layout, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> Tensor:
        device, found = next(model.parameters()).device, None

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal found
            x = args[0] if args else kwargs["hidden_states"]
            if x.shape[:2] != here.source.shape:
                raise _unfit(model, "changes the shape of a batch inside")
            if found is None:
                found = torch.empty(len(encoded.ids), x.shape[-1], dtype=x.dtype, device=device)
            found[here.source[here.source >= 0]] = x[here.source >= 0]
            raise _Reached

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.more = output[1:] if isinstance(output, tuple) else None
            if any(value is not None for value in self.more or ()):
                raise _unfit(model, "passes more than hidden states from layer to layer")

        hooks = [
            self.layers[self.depth].register_forward_pre_hook(keep, with_kwargs=True),
            self.layers[0].register_forward_hook(note),
        ]
        try:
            table = TokenTable(encoded, layout, device)
            for plan in sorted_batches(encoded, layout, BATCH_TOKENS):
                here = table.batch(plan)
                try:
                    with autocast():
                        model(**layout.inputs(here))
                except _Reached:
                    continue
        finally:
            for hook in hooks:
                hook.remove()
        assert found is not None, "a corpus to train on has at least one window"
        return found

    def _prove(
        self, model: nn.Module, encoded: Encoded, layout: Layout, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Refuse a model that computes something else with the cache, as where a convolution is between its layers."""
        windows = range(min(PROVED, len(encoded))) if not layout.by_length else range(1)
        batch = collate(encoded, windows, layout, device=self.hidden.device)
        with dry_run(model), torch.no_grad(), autocast():
            model.eval()
            expected = model(**layout.inputs(batch))[0][batch.segments >= 0]
            with self.skipped(batch):
                found = model(**layout.inputs(batch))[0][batch.segments >= 0]
        error = relative_error(found, expected)
        if not is_rounding(error, torch.finfo(self.hidden.dtype).eps):
            raise _unfit(model, f"computes more between its layers: its output would differ by {error:.1g} of its size")


def _unfit(model: nn.Module, reason: str) -> ValueError:
    return ValueError(f"cache_prefix: {type(model).__name__} {reason}; train it without cache_prefix")


def constant_layers(model: nn.Module) -> int:
    """How many encoder layers at the bottom always give the same output for a sentence, and so can be cached.

    Raises:
        ValueError: there are none; the message names what changes their output and the fix.
    """
    embeddings, layers = _parts(model)
    depth = _depth(embeddings, layers)
    _refuse_dropout(embeddings, layers[:depth])
    return depth


def _parts(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    body = getattr(model, "base_model", model)
    embeddings = getattr(body, "embeddings", None)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"cache_prefix needs an encoder of BERT's form, with embeddings and encoder.layer; {type(body).__name__} "
            "has another; train it without cache_prefix"
        )
    return embeddings, layers


def _depth(embeddings: nn.Module, layers: nn.ModuleList) -> int:
    """Number of the lowest layer that is trained."""
    trained = next((name for name, p in embeddings.named_parameters() if p.requires_grad), None)
    if trained:
        raise ValueError(
            f"cache_prefix: embeddings.{trained} is trained, so nothing below the first layer is constant; freeze it "
            "(bias 'none' or 'lora_only', and leave it out of modules_to_save)"
        )
    depth = next((i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), None)
    if depth is None:
        depth = len(layers) - 1  # only the head is trained: the last layer is computed, the others are cached
    if depth == 0:
        raise ValueError(
            "cache_prefix: layer 0 is trained, so no layer is constant; train the top layers only, with "
            f"layers_to_transform={list(range(len(layers) // 2, len(layers)))}"
        )
    return depth


def _refuse_dropout(embeddings: nn.Module, layers: nn.ModuleList) -> None:
    for module in (embeddings, *layers):
        for name, part in module.named_modules():
            if isinstance(part, nn.Dropout) and part.p > 0:
                raise ValueError(
                    f"cache_prefix: {name} below the trained layers has dropout {part.p:g}, so their output differs in "
                    "every step; load the model with dropout 0"
                )
