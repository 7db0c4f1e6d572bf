"""Who attends to whom in a packed row, in the form that a model takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_MASK = "block_mask"  # argument of the mask that `lorakit.training.architectures` hands to a part of the model


@dataclass(frozen=True)
class Masks:
    """Masks that keep attention inside each sentence of a packed row.

    Attributes:
        causal: a token sees itself and those before it, as in a decoder.
        reach: how many tokens away a token sees, None for any number. One pair (kind of layer, reach) for each kind of
            layer of the model; the kind is None where all layers take the same mask.
        additive: the dtype in which eager attention *adds* its mask (a bool would be added as 0 and 1); None for sdpa,
            which takes bools.
        argument: the model's argument; `BLOCK_MASK` where the model itself takes a mask of padding only.
    """

    causal: bool = False
    reach: tuple[tuple[str | None, int | None], ...] = ((None, None),)
    additive: torch.dtype | None = None
    argument: str = "attention_mask"

    def inputs(self, segments: Tensor) -> dict[str, Tensor | dict[str, Tensor] | bool]:
        """The model's keyword arguments for rows of these sentences.

        Shape:
            segments (rows, width): number of the sentence a token belongs to, -1 for padding.
        """
        by_kind = {kind: self._mask(segments, reach) for kind, reach in self.reach}
        mask = by_kind.get(None, by_kind)
        if self.argument == "perm_mask":  # XLNet's: 1 where a query must not see a key, without a dimension for heads
            return {"perm_mask": (~mask.squeeze(1)).float()}
        inputs = {self.argument: mask}
        if self.argument == BLOCK_MASK:
            inputs["attention_mask"] = (segments >= 0).long()
        if self.causal:
            inputs["use_cache"] = False  # nothing is generated
        return inputs

    def _mask(self, segments: Tensor, reach: int | None) -> Tensor:
        """Shape: (rows, 1, width, width), True where a query (row) sees a key, or 0 there and the lowest elsewhere."""
        sees = segments[:, :, None] == segments[:, None, :]
        if self.causal or reach is not None:
            place = torch.arange(segments.shape[1], device=segments.device)
            back = place[:, None] - place  # how far a key is before the query
            if self.causal:
                sees = sees & (back >= 0)
            if reach is not None:
                sees = sees & (back.abs() <= reach)
        sees = sees.unsqueeze(1)
        if self.additive is None:
            return sees
        lowest = torch.finfo(self.additive).min
        return torch.zeros(sees.shape, dtype=self.additive, device=sees.device).masked_fill_(~sees, lowest)
