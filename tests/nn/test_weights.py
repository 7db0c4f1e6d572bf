"""Which layers can carry an update, the shapes of A and B, and the values behind special weights."""

import math

import pytest
import torch
from torch import nn

from lorakit.lora import apply_lora
from lorakit.nn.layers import detach
from lorakit.nn.weights import (
    dequantized,
    is_adaptable,
    is_adapted,
    is_quantized,
    is_sharded,
    like,
    magnitude_shape,
    plain_weight,
    refuse_sharded,
    regather,
    update_shapes,
    whole,
)
from tests.support.layers import KINDS, adapted_layer, make_layer


def test_grouped_convolutions_and_renorming_embeddings_are_refused() -> None:
    model = nn.ModuleDict({"grouped": nn.Conv2d(4, 4, 3, groups=2), "normed": nn.Embedding(4, 4, max_norm=1.0)})
    for name in model:
        with pytest.raises(ValueError, match=f"target '{name}' is a .* cannot be adapted"):
            apply_lora(model, target_modules=[name])


class Subclass(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        *[(make_layer(kind)[0], True) for kind in KINDS],
        (adapted_layer(make_layer("conv1d")[0]), True),
        (Subclass(2, 2), False),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Embedding(4, 4, max_norm=1.0), False),
        (nn.LayerNorm(2), False),
        (nn.Conv1d(2, 2, 1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_exact_kinds_of_layers_are_adaptable(module: nn.Module, expected: bool) -> None:
    assert is_adaptable(module) is expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 3])
def test_B_times_A_has_the_size_of_the_weight(kind: str, r: int) -> None:
    layer = make_layer(kind)[0]
    shape_A, shape_B = update_shapes(layer, r)
    assert shape_A[0] == shape_B[1] == r
    BA = torch.ones(shape_B).flatten(1) @ torch.ones(shape_A).flatten(1)
    assert BA.numel() == layer.weight.numel()
    assert math.prod(magnitude_shape(layer)) == shape_B[0]
    assert torch.broadcast_shapes(magnitude_shape(layer), (1, shape_B[0], *shape_B[2:]))[1] == shape_B[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_weight_is_the_original_one_also_while_merged(kind: str) -> None:
    layer = make_layer(kind)[0]
    original = layer.weight.detach().clone()
    adapted_layer(layer).merge()
    assert not torch.equal(layer.weight, original)
    assert torch.equal(plain_weight(layer), original)


def test_a_plain_tensor_is_neither_quantized_nor_sharded() -> None:
    layer = nn.Linear(3, 2)
    assert not is_quantized(layer.weight) and dequantized(layer.weight) is layer.weight
    assert not is_sharded(layer) and whole(layer.weight) is layer.weight
    value = torch.ones(2, 3)
    assert like(value, layer.weight) is value
    refuse_sharded(layer, "apply_lora")


def test_a_layer_is_adapted_until_it_is_detached() -> None:
    layer = make_layer("linear")[0]
    assert not is_adapted(layer)
    assert is_adapted(adapted_layer(layer))
    detach(layer)
    assert not is_adapted(layer)


class Sharded(nn.Module):
    """A module that FSDP2 seems to have wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.reshards = 0

    def set_reshard_after_forward(self) -> None: ...

    def reshard(self) -> None:
        self.reshards += 1


def test_a_sharded_model_is_refused_with_the_fix_and_regathered_on_request() -> None:
    model = nn.Sequential(Sharded(), nn.Linear(2, 2))
    assert is_sharded(model)
    message = "merging: the parameters of this Sequential are sharded .* do it before fully_shard"
    with pytest.raises(ValueError, match=message):
        refuse_sharded(model, "merging")
    regather(model)
    assert model[0].reshards == 1
