"""Single layers of every kind that can be adapted, with inputs and random updates."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.nn.layers import LoRALayer, attach
from lorakit.nn.weights import Update, update_shapes

KINDS = ("linear", "linear without bias", "conv1d", "embedding", "conv2d", "conv2d strided")


def make_layer(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A layer and an input for it."""
    generator = torch.Generator().manual_seed(0)
    if kind.startswith("linear"):
        layer, x = nn.Linear(6, 5, bias="without" not in kind), torch.randn(2, 3, 6, generator=generator)
    elif kind == "conv1d":
        layer, x = Conv1D(5, 6), torch.randn(2, 3, 6, generator=generator)
    elif kind == "embedding":
        return nn.Embedding(7, 6, padding_idx=1).to(dtype), torch.tensor([[0, 1, 2], [6, 6, 3]])
    else:
        more = {"stride": 2, "dilation": 2, "padding_mode": "reflect"} if "strided" in kind else {}
        layer, x = nn.Conv2d(3, 5, (3, 2), padding=1, **more), torch.randn(2, 3, 8, 7, generator=generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype), x.to(dtype)


def adapted_layer(
    layer: nn.Module, r: int = 2, dora: bool = False, start: bool = False, dropout: float = 0.0
) -> LoRALayer:
    """The layer with a random update."""
    generator = torch.Generator().manual_seed(1)
    shapes = update_shapes(layer, r)
    A, B = (torch.randn(shape, generator=generator) for shape in shapes)
    origin = tuple(torch.randn(shape, generator=generator) for shape in shapes) if start else None
    attach(layer, Update(A, B, 3, 0.75, start=origin), dropout, use_dora=dora)
    if dora:
        with torch.no_grad():
            layer.lora_magnitude *= 1 + 0.3 * torch.rand(layer.lora_magnitude.shape, generator=generator)
    return layer.eval()
