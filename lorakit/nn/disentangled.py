"""DeBERTa's disentangled attention inside the blocks of packed rows.

A score is the sum of three products: content with content, content with the relative position of the key, and position
of the query with content (arXiv:2006.03654, §3.1). transformers computes each of them for all pairs of tokens in a row,
and gathers the last two by index. Here they are computed for the pairs inside blocks only, and for the 2·width - 1
distances that a block has; a product with distances, read with another stride, is the one with pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.nn.blocks import Blocks, Group, blocks_of
from lorakit.nn.kernels import PLAIN, nothing_transforms


@dataclass
class Use:
    """Whether any attention was computed in blocks so far."""

    used: bool = False


@contextmanager
def faster_disentangled(model: nn.Module) -> Iterator[Use]:
    """While active, DeBERTa-v2's and -v3's attention is computed in blocks, for float32 on the CPU and packed rows.

    Results differ from transformers' own by rounding only; with dropout, the same seed drops other values. Everything
    else stays as it is: other types and devices, other masks, autocast, torch.compile.
    """
    use, found = Use(), []
    if getattr(getattr(model, "config", None), "model_type", None) == "deberta-v2":
        found = [m for m in model.modules() if type(m).__name__ == "DisentangledSelfAttention" and m.relative_attention]
    plain = {module: vars(module).get("forward") for module in found}
    for module in found:
        of_class = partial(type(module).forward, module)
        module.forward = partial(_forward, module, plain[module] or of_class, use)
    try:
        yield use
    finally:
        for module, before in plain.items():
            del module.forward
            if before is not None:  # an evaluation within training
                module.forward = before


def _forward(
    module: Any,
    plain: Callable[..., Any],
    use: Use,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> Any:
    """As the module's own; `module` is a DisentangledSelfAttention."""
    batch, width, _ = hidden_states.shape
    blocks = None
    if (
        nothing_transforms()
        and type(hidden_states) in PLAIN
        and hidden_states.dtype == torch.float32
        and hidden_states.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not output_attentions
        and query_states is None
        and relative_pos is not None
        and relative_pos.shape == (1, width, width)
        and attention_mask.shape == (batch, 1, width, width)
    ):
        blocks = _blocks(attention_mask, batch, width)
    if blocks is None:
        return plain(hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings)
    use.used = True
    heads = module.num_attention_heads
    query, key, value = (
        _Take.apply(projection(hidden_states).view(batch * width, heads, -1), blocks)
        for projection in (module.query_proj, module.key_proj, module.value_proj)
    )
    to_key, to_query = _positions(module, module.pos_dropout(rel_embeddings), heads)
    scale = (query.shape[-1] * (1 + (to_key is not None) + (to_query is not None))) ** -0.5
    span = module.pos_ebd_size
    outputs = []
    for group in blocks.groups:
        distance = torch.cat([relative_pos[0, : group.width, 0].flip(0), relative_pos[0, 0, 1 : group.width]])
        place = (distance + span).clamp(0, 2 * span - 1)  # of the distances width - 1 to 1 - width
        q, k, v = (_by_head(x[group.rows], group) for x in (query * scale, key, value))
        scores = torch.bmm(q, k.mT)
        if to_key is not None:
            scores = scores + _of_pairs(q, to_key[:, place], group, by_key=False)
        if to_query is not None:
            scores = scores + _of_pairs(k, to_query[:, place.flip(0)] * scale, group, by_key=True)
        if group.bias is not None:
            scores = scores.view(heads, -1, group.width, group.width) + group.bias.squeeze(1)
        probabilities = module.dropout(scores.view(-1, group.width, group.width).softmax(-1))
        out = torch.bmm(probabilities, v)
        outputs.append(out.view(heads, -1, out.shape[-1]).transpose(0, 1))
    return _GiveBack.apply(torch.cat(outputs), blocks).view(batch, width, -1), None


_last: list[tuple[Tensor, Blocks | None]] = []  # of the previous layer: all layers of a model get the same mask


def _blocks(mask: Tensor, batch: int, width: int) -> Blocks | None:
    if not _last or _last[0][0] is not mask:
        _last[:] = [(mask, blocks_of(mask, batch, 1, width))]
    return _last[0][1]


def _positions(module: Any, embeddings: Tensor, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """The keys and queries of relative positions, (heads, 2 · span, head_dim); None for what the model has not."""
    shared = module.share_att_key
    embeddings = embeddings[: 2 * module.pos_ebd_size]

    def project(kind: str, own: str, common: str) -> Tensor | None:
        if kind not in module.pos_att_type:
            return None
        projection = getattr(module, common if shared else own)
        return projection(embeddings).view(len(embeddings), heads, -1).transpose(0, 1)

    return project("c2p", "pos_key_proj", "key_proj"), project("p2c", "pos_query_proj", "query_proj")


def _by_head(x: Tensor, group: Group) -> Tensor:
    """(blocks · width, heads, dim) -> (heads · blocks, width, dim)."""
    return x.transpose(0, 1).reshape(-1, group.width, x.shape[-1])


def _of_pairs(x: Tensor, positions: Tensor, group: Group, by_key: bool) -> Tensor:
    """The products of each query, or key, with the position of each key, or query.

    Shape:
        x (heads · blocks, width, dim); positions (heads, 2 · width - 1, dim) -> (heads · blocks, width, width).
    """
    width, distances = group.width, 2 * group.width - 1
    heads = len(positions)
    products = torch.bmm(x.reshape(heads, -1, x.shape[-1]), positions.mT)  # (heads, blocks · width, distances)
    # row i starts width - 1 - i products after its first, so a stride of one less per row finds the pair's
    strides = (1, distances - 1) if by_key else (distances - 1, 1)
    return products.as_strided((len(x), width, width), (width * distances, *strides), width - 1)


class _Take(torch.autograd.Function):
    """Rows of tokens, (batch · width, heads, dim), in the blocks' order; padding slots get some token's."""

    @staticmethod
    def forward(ctx, x: Tensor, blocks: Blocks) -> Tensor:
        ctx.blocks = blocks
        return x.index_select(0, blocks.take)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _GiveBack.apply(grad, ctx.blocks), None  # nothing uses padding, so its gradient is 0


class _GiveBack(torch.autograd.Function):
    """The inverse of `_Take`."""

    @staticmethod
    def forward(ctx, x: Tensor, blocks: Blocks) -> Tensor:
        ctx.blocks = blocks
        return x.index_select(0, blocks.back)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        rows = grad.index_select(0, ctx.blocks.take)
        return rows.index_fill(0, ctx.blocks.padding, 0), None
