"""The adapted layers against their formulas, for every kind, type and state."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lorakit.lora import (
    apply_lora,
)
from lorakit.nn.layers import LoRALayer, attach, detach
from lorakit.nn.weights import Update
from tests.support.layers import KINDS, adapted_layer, make_layer


def with_weight(layer: LoRALayer, weight: Tensor) -> nn.Module:
    """A plain layer of the same kind with another weight."""
    plain = copy.deepcopy(layer)
    detach(plain)
    plain.weight = nn.Parameter(weight.to(plain.weight.dtype))
    return plain


@pytest.mark.parametrize("start", [False, True], ids=["plain", "from a start"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_equals_that_of_the_weight_with_the_update(kind: str, dora: bool, start: bool) -> None:
    layer, x = make_layer(kind)
    layer = adapted_layer(layer, dora=dora, start=start)
    expected = with_weight(layer, layer.merged_weight())(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer.merge()
    assert torch.equal(layer(x), expected)


def test_update_is_scale_times_BA() -> None:
    layer = adapted_layer(make_layer("linear")[0])
    torch.testing.assert_close(layer.delta_weight(), 0.75 * layer.lora_B @ layer.lora_A)
    layer = adapted_layer(make_layer("embedding")[0])
    torch.testing.assert_close(layer.delta_weight(), 0.75 * (layer.lora_B @ layer.lora_A).T)
    layer = adapted_layer(make_layer("conv1d")[0])
    torch.testing.assert_close(layer.delta_weight(), 0.75 * (layer.lora_B @ layer.lora_A).T)


def test_dora_gives_each_output_the_trained_norm() -> None:
    layer = adapted_layer(make_layer("linear")[0], dora=True)
    torch.testing.assert_close(layer.merged_weight().norm(dim=1), layer.lora_magnitude)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_computes_exactly_what_its_base_does(kind: str, dora: bool) -> None:
    layer, x = make_layer(kind)
    model = nn.ModuleDict({"layer": layer})
    expected = layer(x)
    apply_lora(model, target_modules=["layer"], r=2, use_dora=dora)
    assert torch.equal(layer(x), expected)
    assert isinstance(layer, LoRALayer)


@pytest.mark.parametrize("kind", KINDS)
def test_detach_restores_the_layer(kind: str) -> None:
    layer, x = make_layer(kind)
    before, expected, keys = type(layer), layer(x), set(vars(layer))
    detach(adapted_layer(layer, dora=True, start=True).train())
    assert type(layer) is before
    assert set(vars(layer)) == keys
    assert torch.equal(layer(x), expected)
    assert layer._non_persistent_buffers_set == set()


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_deepcopy_keep_the_output(kind: str) -> None:
    layer, x = make_layer(kind)
    layer = adapted_layer(layer, dora=True)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(twin(x), layer(x))
        assert type(twin) is type(layer)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_gradients_are_right_with_a_fixed_dropout_mask(kind: str) -> None:
    layer, x = make_layer(kind, torch.float64)
    x = x[:1, :, :3] if kind == "conv2d" else x
    layer = adapted_layer(layer, dropout=0.3).train()
    A, B = layer.lora_A.detach().double().requires_grad_(), layer.lora_B.detach().double().requires_grad_()
    del layer.lora_A, layer.lora_B

    def output(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        torch.manual_seed(0)
        layer.lora_A, layer.lora_B = A, B
        return layer(x)

    assert torch.autograd.gradcheck(output, (x.requires_grad_(), A, B))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_types_of_output_and_gradients(kind: str, dtype: torch.dtype, autocast: bool) -> None:
    """The output has the base's type; A, B and their gradients are always float32."""
    layer, x = make_layer(kind, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = layer(x).dtype
        y = adapted_layer(layer, r=4)(x)
    assert y.dtype == expected
    y.float().sum().backward()
    assert {p.dtype for p in (layer.lora_A, layer.lora_B, layer.lora_A.grad, layer.lora_B.grad)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer_keeps_its_input_and_little_else_for_backward(dtype: torch.dtype) -> None:
    layer, x = (
        nn.Linear(64, 64, dtype=dtype).requires_grad_(False),
        torch.randn(256, 64, dtype=dtype, requires_grad=True),
    )
    attach(layer, Update(torch.randn(4, 64), torch.randn(64, 4), 4, 1.0), 0.0)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    parameters = sum(p.nbytes for p in layer.parameters())
    # x once in its own type, xA, and at most copies of the small factors: an upcast x would double it
    assert sum(kept.values()) <= x.nbytes + 256 * 4 * x.element_size() + 2 * parameters
    assert sum(kept.values()) < 2 * x.nbytes + parameters


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 4), max_size=3), r=st.integers(1, 9), scaling=st.sampled_from([0.5, 1.0, 0.3]))
def test_any_leading_shape_even_empty_and_any_rank_work(shape: list[int], r: int, scaling: float) -> None:
    layer = nn.Linear(5, 3)
    generator = torch.Generator().manual_seed(r)
    update = Update(torch.randn(r, 5, generator=generator), torch.randn(3, r, generator=generator), r, scaling)
    attach(layer, update, 0.0)
    x = torch.randn(*shape, 5, generator=generator)
    expected = nn.functional.linear(x, layer.merged_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 40], ids=["by the update", "by the sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_may_be_changed_in_place_like_a_plain_layers(kind: str, tokens: int) -> None:
    """DeBERTa divides a projection in place: autograd must neither refuse it nor give other gradients."""
    layer, x = make_layer(kind)
    x = x.repeat(tokens, *[1] * (x.ndim - 1))
    layer.requires_grad_(False)
    layer = adapted_layer(layer, r=4).train()
    (layer(x) / 3).square().sum().backward()
    expected = layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    layer.zero_grad()
    y = layer(x).transpose(0, 1)
    y /= 3
    y.square().sum().backward()
    torch.testing.assert_close((layer.lora_A.grad, layer.lora_B.grad), expected)
    layer.merge()
    y = layer(x).transpose(0, 1)
    y /= 3
    with pytest.raises(RuntimeError, match="call unmerge_lora"):
        y.sum().backward()


def test_a_gradient_that_is_not_contiguous_is_accepted() -> None:
    layer, x = make_layer("linear")
    y = adapted_layer(layer)(x)
    y.backward(torch.ones(5, 3, 2).permute(2, 1, 0))
    assert layer.lora_B.grad.isfinite().all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d", "conv2d"])
def test_double_backward_is_right_or_raises(kind: str, dropout: float) -> None:
    """A gradient penalty must never get a silently wrong second derivative."""
    layer, x = make_layer(kind)
    layer = adapted_layer(layer, r=4, dropout=dropout).train()
    layer.weight.requires_grad_(False)
    x = (x[:1, :, :3] if kind == "conv2d" else x[:1]).requires_grad_()

    def penalty() -> Tensor:
        torch.manual_seed(0)
        y = layer(x)
        loss = y.pow(2).sum()
        return loss + torch.autograd.grad(loss, x, create_graph=True)[0].pow(2).sum()

    try:
        found = torch.autograd.grad(penalty(), [layer.lora_A, layer.lora_B])
    except RuntimeError as error:
        assert "double backward" in str(error)
        return
    for parameter, gradient in zip((layer.lora_A, layer.lora_B), found, strict=True):
        direction = gradient / gradient.norm()
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter += step * direction
            values.append(penalty().item())
            with torch.no_grad():
                parameter -= step * direction
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_100_times_leaves_the_weight_bit_for_bit(kind: str) -> None:
    layer, _ = make_layer(kind, torch.bfloat16)
    layer = adapted_layer(layer, dora=True)
    before = layer.weight.detach().clone()
    for _ in range(100):
        layer.merge()
        layer.merge()  # the second call does nothing
        assert not torch.equal(layer.weight, before)
        layer.unmerge()
    assert torch.equal(layer.weight, before)


def test_merging_what_does_not_fit_the_type_raises() -> None:
    layer, _ = make_layer("linear", torch.float16)
    layer = adapted_layer(layer)
    with torch.no_grad():
        layer.lora_B.fill_(1e30)
    before = layer.weight.detach().clone()
    model = nn.ModuleDict({"layer": layer})
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        layer.merge()
    assert torch.equal(model["layer"].weight, before)
    assert not layer.merged


def test_an_adapted_layer_of_every_kind_prints_its_update() -> None:
    """transformers' Conv1D prints itself without extra_repr."""
    for kind in KINDS:
        layer = adapted_layer(make_layer(kind)[0])
        assert repr(layer).startswith(f"{type(layer).__name__}(") and ", r=2, lora_alpha=3" in repr(layer), kind
    assert repr(adapted_layer(make_layer("conv1d")[0])).startswith("LoRAConv1D(nf=5, nx=6, r=2,")
