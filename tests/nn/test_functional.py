"""The fused linear layer against the plain formula: values, gradients, kernels, saved bytes, and when it is used."""

import sys

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from lorakit.nn import functional as fused
from lorakit.nn.functional import choose_path, lora_linear, sum_pays
from lorakit.nn.kernels import keep_mask
from lorakit.nn.layers import LoRALinear, attach
from lorakit.nn.weights import Update

NO_KERNEL = set("t permute transpose view _unsafe_view detach reshape expand unsqueeze alias slice new_empty".split())


class Operations(TorchDispatchMode):
    """The names of the operations that move data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name not in NO_KERNEL:
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


def tensors(shape, inputs: int, outputs: int, r: int, dtype=torch.float64, bias: bool = True) -> list[Tensor | None]:
    """x, weight, bias, A, B; all but the weight require gradients."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(*shape, inputs), (outputs, inputs), (outputs,), (r, inputs), (outputs, r)]
    found = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    for number, tensor in enumerate(found):
        tensor.requires_grad_(number != 1)
    return [t if number != 2 or bias else None for number, t in enumerate(found)]


def plain(x, weight, bias, A, B, scaling, mask=None, factor=1.0, start=None) -> Tensor:
    """The formula, operation by operation."""
    dropped = x if mask is None else x * mask * factor
    update = F.linear(F.linear(dropped, A), B)
    if start:
        update = update - F.linear(F.linear(x, start[0]), start[1])
    return F.linear(x, weight, bias) + update * scaling


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    r=st.integers(1, 6),
    scaling=st.floats(0.01, 8),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    one_addmm=st.booleans(),
    kind=st.sampled_from(["branch", "branch from a start", "merged", "merged from a start"]),
)
def test_output_and_gradients_equal_those_of_the_plain_formula(
    shape, inputs, outputs, r, scaling, bias, dropout, one_addmm, kind
) -> None:
    values = tensors(shape, inputs, outputs, r, bias=bias)
    start = tuple(t.detach() + 0.5 for t in values[3:]) if "start" in kind else None
    merged = kind.startswith("merged")
    dropout = 0.0 if merged else dropout
    torch.manual_seed(0)
    mask, factor = keep_mask(values[0].reshape(-1, inputs), dropout) if dropout else (None, 1.0)
    expected = plain(*values, scaling, None if mask is None else mask.view(values[0].shape), factor, start)
    torch.manual_seed(0)
    found = lora_linear(*values, scaling, dropout, one_addmm, start, merged)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    wanted = [t for t in values if t is not None and t.requires_grad]
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for a, b in zip(torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("merged", "dropout"), [(False, 0.0), (False, 0.4), (True, 0.0)])
def test_gradients_are_right_in_float64(merged: bool, dropout: float) -> None:
    values = tensors((4,), 5, 3, 2)

    def output(*arguments: Tensor) -> Tensor:
        torch.manual_seed(0)
        return lora_linear(arguments[0], values[1], *arguments[1:], 0.75, dropout, merged=merged)

    assert torch.autograd.gradcheck(output, (values[0], *values[2:]))


def test_float32_is_within_a_millionth_of_the_formula() -> None:
    values = tensors((200,), 96, 64, 8, dtype=torch.float32)
    exact = plain(*(t.double() for t in values), 2.0)
    for merged in (False, True):
        found = lora_linear(*values, 2.0, merged=merged).double()
        assert ((found - exact).abs().max() / exact.abs().max()).item() < 1e-6


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_under_autocast_dtype_and_values_equal_those_of_plain_operations(autocast: torch.dtype) -> None:
    """The frozen weight held in half precision gives the same bits as one that is cast."""
    values = tensors((6,), 8, 7, 4, dtype=torch.float32)
    half = [values[0], values[1].to(autocast), *values[2:]]
    wanted = [t for t in values if t.requires_grad]
    with torch.autocast("cpu", autocast):
        expected = plain(*values, 2.0)
        found, small = lora_linear(*values, 2.0), lora_linear(*half, 2.0)
    assert found.dtype == expected.dtype == autocast
    assert torch.equal(found, small)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-1)
    gradients = [torch.autograd.grad(y.float().sum(), wanted) for y in (found, small, expected)]
    for mine, same, theirs in zip(*gradients, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, same)
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=3e-1)


def counts(dropout: float = 0.0, way=lora_linear, x_needs_gradient: bool = True) -> tuple[int, int]:
    """Operations forward and backward, without those that make a gradient tensor contiguous or fill it."""
    values = tensors((40,), 16, 16, 4, dtype=torch.float32)
    values[0].requires_grad_(x_needs_gradient)
    values[2].requires_grad_(False)
    with Operations() as forward:
        y = way(*values, 2.0, dropout) if way is lora_linear else way(*values, 2.0)
    with Operations() as backward:
        y.backward(torch.ones_like(y))
    return len(forward.names), len([n for n in backward.names if n not in ("ones_like", "fill_")])


def test_it_takes_three_kernels_forward_and_five_backward_where_plain_operations_take_more() -> None:
    assert counts() == (3, 5)  # addmm, mm, addmm_; four matmuls, two of them scaled, and an addmm_
    plain_forward, plain_backward = counts(way=plain)
    assert plain_forward == 5 and plain_backward >= 7
    assert counts(x_needs_gradient=False)[1] == 3  # the first layer's input needs none: no matmul with the weight


def test_under_autocast_each_tensor_is_cast_once() -> None:
    values = tensors((40,), 16, 16, 4, dtype=torch.float32)
    values[1], values[2] = values[1].bfloat16(), values[2].detach().bfloat16()  # as frozen_in_half holds them
    with Operations() as forward, torch.autocast("cpu", torch.bfloat16):
        y = lora_linear(*values, 2.0)
    assert forward.names.count("_to_copy") == 3  # x, A and B
    with Operations() as backward:
        y.backward(torch.ones_like(y))
    assert backward.names.count("_to_copy") == 3  # their gradients
    assert len(forward.names) == 3 + 3 and len([n for n in backward.names if n not in ("ones_like", "fill_")]) == 5 + 3


def test_backward_makes_no_elementwise_pass_over_the_output() -> None:
    values = tensors((40,), 16, 16, 4, dtype=torch.float32)
    y = lora_linear(*values, 2.0)
    shapes: list[tuple] = []

    class Elementwise(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation.overloadpacket.__name__ in ("mul", "mul_", "add", "add_"):
                shapes.append(tuple(args[0].shape))
            return operation(*args, **(kwargs or {}))

    grad = torch.ones_like(y)
    with Elementwise():
        y.backward(grad)
    assert (40, 16) not in shapes, shapes


def saved_bytes(dropout: float, merged: bool = False) -> int:
    values = tensors((256,), 64, 64, 4, dtype=torch.float32)
    kept: dict[int, int] = {}
    parameters = {t.untyped_storage().data_ptr() for t in values[1:]}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lora_linear(*values, 2.0, dropout, merged=merged)
    return sum(kept.values())


def test_it_keeps_x_once_and_a_mask_of_one_byte() -> None:
    x, xA, mask = 256 * 64 * 4, 256 * 4 * 4, 256 * 64
    assert saved_bytes(0.0) == x + xA
    assert saved_bytes(0.5) <= x + xA + mask + 8
    assert saved_bytes(0.0, merged=True) == x + 64 * 64 * 4  # the sum, for it is small


def test_large_sums_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SMALL", 64 * 64 - 1)
    assert saved_bytes(0.0, merged=True) == 256 * 64 * 4


@pytest.mark.parametrize("small", [0, 2**18])
def test_gradients_do_not_depend_on_what_is_kept(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(fused, "SMALL", small)
    x, *rest = tensors((40,), 16, 24, 4, dtype=torch.float64)
    found = torch.autograd.grad(lora_linear(x, *rest, 2.0, merged=True).pow(3).sum(), (x, *rest[1:]))
    expected = torch.autograd.grad(plain(x, *rest, 2.0).pow(3).sum(), (x, *rest[1:]))
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)


def layer(inputs: int = 16, outputs: int = 16, dropout: float = 0.0) -> LoRALinear:
    torch.manual_seed(0)
    found = nn.Linear(inputs, outputs).requires_grad_(False)
    attach(found, Update(torch.randn(4, inputs), torch.randn(outputs, 4), 8, 2.0), dropout)
    return found.train()


@pytest.mark.parametrize("merged", [False, True])
def test_a_second_derivative_raises(merged: bool) -> None:
    values = tensors((4,), 5, 3, 2)
    y = lora_linear(*values, 1.0, merged=merged)
    with pytest.raises(RuntimeError, match="double backward .* torch.func.grad"):
        torch.autograd.grad(y.square().sum(), values[0], create_graph=True)


def test_the_sum_is_used_only_where_it_is_cheaper_and_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    monkeypatch.setattr("lorakit.nn.functional.lora_linear", lambda *a: used.append(a[-1]) or lora_linear(*a))
    few, many = torch.randn(16, 16), torch.randn(17, 16)
    assert sum_pays(17, 16, 16) and not sum_pays(16, 16, 16)
    model = layer()
    model(few), model(many), model.eval()(many)
    with torch.no_grad():
        model.train()(many)
    with torch.autocast("cpu", torch.bfloat16):
        model(many)
    layer(dropout=0.1)(many)
    assert used == [False, True, False, False, False, False]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(tokens=st.integers(1, 4096), inputs=st.integers(1, 2048), outputs=st.integers(1, 2048), r=st.integers(1, 64))
def test_sum_pays_exactly_where_it_needs_fewer_operations(tokens: int, inputs: int, outputs: int, r: int) -> None:
    branch = 2 * tokens * r * (inputs + outputs) + 4 * tokens * r * (inputs + outputs)
    merged = 2 * (2 * inputs * outputs * r) + 4 * tokens * r * (inputs + outputs)
    assert sum_pays(tokens, inputs, outputs) == (merged < branch)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward-mode AD
def test_torch_func_forward_mode_and_compile_use_plain_operations() -> None:
    model, x = layer().eval(), torch.randn(3, 16)
    expected = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(torch.func.jacrev(model)(x), expected)
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(model(dual)).tangent
    torch.testing.assert_close(tangent, model.merged_weight().sum(1).expand(3, 16), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.testing.assert_close(torch.compile(model, backend=counter, fullgraph=True)(x), model(x))
    assert counter.frame_count == 1


def test_a_weight_that_is_trained_gets_its_gradient() -> None:
    model, x = layer(), torch.randn(50, 16)
    model.weight.requires_grad_(True)
    assert choose_path(model, x, model.weight) == "plain"
    model(x).sum().backward()
    torch.testing.assert_close(model.weight.grad, x.sum(0).expand(16, 16))


def test_a_half_input_without_autocast_raises_as_in_a_plain_layer() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        layer()(torch.randn(2, 16, dtype=torch.bfloat16))


def test_conv1d_takes_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:

    torch.manual_seed(0)
    model = Conv1D(12, 8).requires_grad_(False)
    attach(model, Update(torch.randn(2, 8), torch.randn(12, 2), 2, 1.0), 0.0)
    x = torch.randn(3, 5, 8, requires_grad=True)
    used: list[bool] = []
    monkeypatch.setattr("lorakit.nn.functional.lora_linear", lambda *a: used.append(a[-1]) or lora_linear(*a))
    for mode in (True, False):  # by the sum, and by the branch
        y = model.train(mode)(x)
        torch.testing.assert_close(y, x @ model.merged_weight() + model.bias, rtol=1e-5, atol=1e-5)
        y.sum().backward()
    assert used == [True, False]
    torch.testing.assert_close(x.grad, 2 * model.merged_weight().sum(1).expand(3, 5, 8), rtol=1e-5, atol=1e-5)


def test_a_layer_runs_the_three_kernels_of_the_fused_path() -> None:
    model, x = layer(), torch.randn(2, 16)
    with Operations() as forward:
        model(x)
    with Operations() as reference:
        model.reference_forward(x)
    assert forward.names == ["addmm", "mm", "addmm_"]
    assert len(reference.names) == 5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [3, 50])  # the branch pays, the sum pays
@pytest.mark.parametrize("start", [False, True])
def test_the_reference_forward_and_the_fused_one_agree(training: bool, tokens: int, start: bool) -> None:
    model = layer().train(training)
    if start:
        model.lora_start_A, model.lora_start_B = torch.randn(4, 16), torch.randn(16, 4)
    inputs = [torch.randn(tokens, 16).requires_grad_(), model.lora_A, model.lora_B]
    found, expected = model(inputs[0]), model.reference_forward(inputs[0])
    path = choose_path(model, inputs[0], model.weight)
    assert path == {(True, 3): "branch", (True, 50): "sum"}.get((training, tokens), "plain" if start else "branch")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    slope = torch.randn(tokens, 16)
    for a, b in zip(*(torch.autograd.grad(y, inputs, slope) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_forward_pass_makes_few_python_calls() -> None:
    model, calls = layer(), []
    for tokens, most in ((3, 12), (50, 12)):  # by the branch, by the sum
        x = torch.randn(tokens, 16, requires_grad=True)
        forward = type(model).forward
        calls.clear()
        sys.setprofile(lambda frame, event, _: calls.append(frame.f_code) if event == "call" else None)
        forward(model, x)
        sys.setprofile(None)
        ours = [code.co_qualname for code in calls if "lorakit" in code.co_filename]
        assert len(ours) <= most, ours
