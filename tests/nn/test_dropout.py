"""Byte-mask dropout: what it keeps and gives back, what it saves, and when torch's own stays."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit.nn.dropout import FasterDropout, faster_dropout, keep_mask


def net(p: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(p))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 7), max_size=3),
    p=st.floats(0.001, 0.999),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_output_and_gradient_are_the_masks(shape, p, dtype) -> None:
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layer = nn.Sequential(nn.Dropout(p), nn.Linear(1, 1))
    torch.manual_seed(2)
    mask, factor = keep_mask(x, p)
    torch.manual_seed(2)
    with faster_dropout(layer):
        y = layer[0](x)
    assert y.dtype == dtype and torch.equal(y, (x * mask) * factor)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], (grad * mask) * factor)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(p: float) -> None:
    layer, x = net(p), torch.ones(400_000)
    with faster_dropout(layer):
        y = layer[1](x)
    dropped = float((y == 0).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / len(x)) ** 0.5  # five standard deviations of a share
    assert abs(float(y.double().mean()) - 1) < 5 * (p / (1 - p) / len(x)) ** 0.5


def test_a_quarter_of_torchs_bytes_is_kept_for_backward() -> None:
    layer, x, kept = net(), torch.randn(50, 8, requires_grad=True), []
    with faster_dropout(layer), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, id):
        layer[1](x)
    assert kept == [x.numel()]


def test_the_model_is_left_as_it_was_and_rests_as_it_should() -> None:
    model, x = net(), torch.randn(50, 8)
    with pytest.raises(KeyError), faster_dropout(model), faster_dropout(model):
        assert type(model[1]) is FasterDropout
        model.eval()
        state = torch.get_rng_state()
        assert model[1](x) is x and torch.equal(torch.get_rng_state(), state)  # nothing is drawn
        raise KeyError
    assert type(model[1]) is nn.Dropout


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything_dropped_are_torchs(p: float) -> None:
    model, x = net(p), torch.randn(50, 8)
    with faster_dropout(model):
        assert torch.equal(model[1](x), x * (1 - p))


def test_checkpointing_draws_the_same_mask_again_and_a_graph_of_the_gradient_is_right() -> None:
    model, x = net(), torch.randn(50, 8, requires_grad=True)
    with faster_dropout(model):
        torch.manual_seed(1)
        plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        torch.manual_seed(1)
        loss = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().sum()
        again = torch.autograd.grad(loss, list(model.parameters()))
        y = model[1](x)
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    factor = keep_mask(x, 0.3)[1]
    torch.testing.assert_close(second, 6 * x * (y != 0) * factor**3)  # d²/dx² of (fx)³


def test_under_compile_it_is_torchs() -> None:
    model = net()
    with faster_dropout(model):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(50, 8))
