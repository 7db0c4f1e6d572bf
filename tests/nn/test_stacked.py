"""Layers that are computed for several adapters at once give what each adapter's own layer gives, gradients too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lorakit.nn.stacked import Stack, stacked


@settings(deadline=None, max_examples=40)
@given(
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    rows=st.integers(1, 3),
    width=st.integers(1, 4),
    conv1d=st.booleans(),
    in_full=st.sampled_from([(), ("bias",), ("weight", "bias")]),
)
def test_each_adapter_computes_its_own_rows(ranks, rows, width, conv1d, in_full):
    """Rank 0 stands for an adapter that does not adapt the layer: its padding gets no gradient."""
    torch.manual_seed(0)
    module = (Conv1D(6, 5) if conv1d else nn.Linear(5, 6)).requires_grad_(False)
    n, r = len(ranks), max(ranks)
    A, B = torch.randn(n, r, 5), torch.randn(n, 6, r)
    for number, rank in enumerate(ranks):
        A[number, rank:], B[number, :, rank:] = 0, 0
    own = {name: torch.randn(n, *getattr(module, name).shape) for name in in_full}
    tensors = {"A": A, "B": B, **own}
    x = torch.randn(n * rows, width, 5)
    ours = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    with stacked({"layer": module}, {"layer": Stack(**ours)}, len(x)):
        y = module(x)
    expected = []
    for number in range(n):
        weight, bias = (theirs[k][number] if k in own else getattr(module, k) for k in ("weight", "bias"))
        part = x[number * rows : (number + 1) * rows]
        own_update = part @ theirs["A"][number].T @ theirs["B"][number].T
        expected.append(F.linear(part, weight.T if conv1d else weight, bias) + own_update)
    torch.testing.assert_close(y, torch.cat(expected))
    scale = torch.randn_like(y)
    (y * scale).sum().backward()
    (torch.cat(expected) * scale).sum().backward()
    for name in tensors:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-5, atol=1e-5)
    for number, rank in enumerate(ranks):
        assert not ours["A"].grad[number, rank:].any() and not ours["B"].grad[number, :, rank:].any()
    assert "forward" not in vars(module) and module(x).shape == y.shape


def test_a_norm_of_each_adapter() -> None:
    norm, x = nn.LayerNorm(4), torch.randn(4, 3, 4)
    weight, bias = torch.randn(2, 4), torch.randn(2, 4)
    with stacked({"norm": norm}, {"norm": Stack(weight=weight, bias=bias)}, 4):
        y = norm(x)
    expected = [F.layer_norm(x[2 * n : 2 * n + 2], (4,), weight[n], bias[n]) for n in range(2)]
    torch.testing.assert_close(y, torch.cat(expected))


def test_dropout_of_each_adapter_has_its_own_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
    nn.init.zeros_(layer.weight)
    stack = Stack(torch.ones(2, 1, 1), torch.ones(2, 1, 1), dropout=torch.tensor([0.0, 0.75])[:, None, None])
    with stacked({"layer": layer}, {"layer": stack}, 2):
        y = layer(torch.ones(2, 20_000, 1))
        assert torch.equal(layer.eval()(torch.ones(2, 3, 1)), torch.ones(2, 3, 1))
    assert (y[0] == 1).all() and set(y[1].unique().tolist()) == {0.0, 4.0}
    assert float(y[1].mean()) == pytest.approx(1.0, abs=0.05)


def test_an_input_that_is_not_divided_into_rows_is_refused() -> None:
    layer = nn.Linear(4, 4)
    with stacked({"layer": layer}, {"layer": Stack(torch.zeros(3, 1, 4), torch.zeros(3, 4, 1))}, 3):
        for shape in ((4, 2, 4), (6, 4), (1, 3, 4)):  # the second could be divided by 3, but is not a batch
            with pytest.raises(ValueError, match=r"'layer' gets an input of .* is not the 3 rows of the batch"):
                layer(torch.zeros(shape))
    assert layer(torch.zeros(4, 2, 4)).shape == (4, 2, 4)
