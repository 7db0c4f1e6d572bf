"""A token table of which some rows are trained: those of new tokens, or of any others that are named.

The table stays frozen and the trained rows are a parameter of their own, so gradients and optimizer states are as small
as the rows. A table becomes this form by class swap, as the layers in `layers` do.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = "lora_rows"
"""Name of the parameter on the table."""


class TokenRows(nn.Embedding):
    """A frozen embedding table W with trained rows R: y = R[place of i] where token i has one, otherwise W[i].

    The rows are values, not differences from W: a table that was resized anew has other random rows there, and the
    trained ones replace them.

    Shape:
        i (...) -> (..., embedding_dim); lora_rows (tokens, embedding_dim), float32.
    """

    lora_rows: nn.Parameter
    lora_tokens: Tensor  # (tokens,): the token of each row
    lora_places: Tensor  # (num_embeddings,): the row of each token, -1 where it has none
    lora_padding: int | None  # the row of the padding token, which gets no gradient in a table either

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if len(self.lora_places) != self.num_embeddings:  # resize_token_embeddings changes a table in place
            self.lora_places = places_of(self.lora_tokens, self.num_embeddings)
        places = self.lora_places[x]
        rows = F.embedding(places.clamp_min(0), self.lora_rows.to(y.dtype), self.lora_padding)
        return torch.where((places >= 0)[..., None], rows, y)

    def merged_table(self) -> Tensor:
        """The whole table with the trained rows, in its own type."""
        return self.weight.detach().index_copy(0, self.lora_tokens, self.lora_rows.detach().to(self.weight.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, trained rows={len(self.lora_tokens)}"


def places_of(tokens: Tensor, count: int) -> Tensor:
    """The place of each of `count` tokens among `tokens`; -1 for those that are not there."""
    places = tokens.new_full((count,), -1)
    places[tokens] = torch.arange(len(tokens), device=tokens.device)
    return places


def has_rows(module: nn.Module) -> bool:
    """Whether some rows of the module are trained."""
    return isinstance(module, TokenRows)


@torch.no_grad()
def attach_rows(table: nn.Module, tokens: Sequence[int]) -> None:
    """Make these rows of a table trainable, in place; they start with the table's values.

    Args:
        table: an nn.Embedding, or one with such rows already, which are replaced (in the same parameter if they are as
            many).
        tokens: numbers of rows, without repeats.
    """
    weight, same = table.weight, has_rows(table) and len(table.lora_tokens) == len(tokens)
    index = torch.tensor(tokens, device=weight.device)
    values = weight.detach()[index].float()
    table.__class__ = TokenRows
    if same:
        table.lora_rows.copy_(values)
    else:
        table.register_parameter(ROWS, nn.Parameter(values))
    table.register_buffer("lora_tokens", index, persistent=False)
    table.register_buffer("lora_places", places_of(index, len(weight)), persistent=False)
    padding = table.padding_idx
    table.lora_padding = list(tokens).index(padding) if padding in tokens else None


def detach_rows(table: TokenRows) -> None:
    """Turn the table back into a plain one; its weight stays as it is."""
    for name in (ROWS, "lora_tokens", "lora_places", "lora_padding"):
        delattr(table, name)
    table._non_persistent_buffers_set -= {"lora_tokens", "lora_places"}
    table.__class__ = nn.Embedding
