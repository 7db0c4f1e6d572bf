"""oneDNN's matmuls and byte-mask dropout against torch's own: values, gradients, when they apply, and restoring."""

import copy
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lorakit.lora import (
    apply_lora,
)
from lorakit.nn import kernels
from lorakit.nn.kernels import (
    SWITCH,
    FasterDropout,
    FasterLinear,
    add_matmul,
    faster_dropout,
    faster_products,
    keep_mask,
    linear,
    matmul,
    mkl_falls_short,
    pays,
    transposed_matmul,
    uses_onednn,
)

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


def model(inputs: int = 48, hidden: int = 64, outputs: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs, bias=False))


@contextmanager
def every_matmul():
    """oneDNN for every matmul of this process, however small."""
    with pytest.MonkeyPatch.context() as patch, faster_products(nn.Linear(1, 1)):
        patch.setattr(kernels, "LEAST_WORK", 1)
        yield


def calls(run) -> dict[str, int]:
    """How many matmuls oneDNN and torch ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    counts = {event.key: event.count for event in profile.key_averages()}
    torchs = sum(counts.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm"))
    return {"onednn": counts.get("mkldnn::_linear_pointwise", 0), "torch": torchs}


def step(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    loss = net(x).square().sum()
    wanted = [p for p in net.parameters() if p.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, wanted))


@needs_onednn
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    transposed=st.booleans(),
    wants=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
)
def test_values_and_gradients_equal_torchs(shape, inputs, outputs, bias, transposed, wants) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [(*shape, inputs), (inputs, outputs) if transposed else (outputs, inputs), (outputs,)]
    x, weight, b = (torch.randn(size, generator=generator).requires_grad_(wants[i]) for i, size in enumerate(sizes))
    seen = [t for t, want in zip((x, weight, b), wants, strict=True) if want and (bias or t is not b)]
    if not seen:
        return

    def run(product) -> list[Tensor]:
        y = product(x, weight.T if transposed else weight, b if bias else None)
        return [y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), seen)]

    with every_matmul():
        found = run(linear)
    for value, expected in zip(found, run(F.linear), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max() + 1))


@needs_onednn
def test_a_result_may_be_changed_in_place_as_deberta_and_longformer_do() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(2, 3, 5)

    def gradients(product) -> tuple[Tensor, ...]:
        query = product(x, layer.weight, layer.bias)
        query /= 3
        return torch.autograd.grad(query.square().sum(), tuple(layer.parameters()))

    with every_matmul():
        found = gradients(linear)
    torch.testing.assert_close(found, gradients(F.linear))


@needs_onednn
@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), inner=st.integers(1, 20), columns=st.integers(1, 70), factor=st.floats(-3, 3))
def test_a_matmul_is_added_in_one_call_and_zero_adds_nothing(rows, inner, columns, factor) -> None:
    generator = torch.Generator().manual_seed(1)
    c, a, b = (torch.randn(size, generator=generator) for size in ((rows, columns), (rows, inner), (inner, columns)))
    given_c, expected = c.clone(), torch.addmm(c, a, b, alpha=factor)
    with every_matmul():
        assert calls(lambda: add_matmul(c, a, b, factor)) == {"onednn": 1, "torch": 0}
        found, same = add_matmul(c, a, b, factor), add_matmul(c, a, torch.zeros_like(b), factor)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(same, c) and torch.equal(c, given_c)


@needs_onednn
@pytest.mark.parametrize("lora", [False, True])
def test_every_matmul_of_a_step_is_onednns(lora: bool) -> None:
    net, x = model(), torch.randn(50, 48)
    if lora:
        apply_lora(net, r=4, target_modules=["0", "2"])
        nn.init.normal_(net[0].lora_B)
    loss, gradients = step(net, x)
    with faster_products(net):
        faster_loss, faster_gradients = step(net, x)
        count = calls(lambda: step(net, x))
    torch.testing.assert_close(faster_loss, loss, rtol=1e-5, atol=0)
    for found, expected in zip(faster_gradients, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    # two layers forward, one input gradient (the first layer's input needs none), and two weight gradients when trained
    # in full; matmuls of rank 4 are too small for oneDNN
    assert count["onednn"] == (3 if lora else 5) and (lora or count["torch"] == 0), count


@needs_onednn
def test_model_and_process_are_restored_after_an_error() -> None:
    net = model()
    classes, before = [type(m) for m in net.modules()], copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), faster_products(net), faster_products(net):
        assert [type(m) for m in net] == [FasterLinear, nn.Tanh, FasterLinear]
        raise KeyError
    assert [type(m) for m in net.modules()] == classes and not any(uses_onednn(m) for m in net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert calls(lambda: step(net, torch.randn(50, 48)))["onednn"] == 0


@needs_onednn
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's forward AD uses it
@pytest.mark.parametrize("how", ["bf16", "float64", "autocast", "compile", "vmap", "forward AD", "small"])
def test_anything_but_plain_float32_uses_torch(how: str) -> None:
    x, weight = torch.randn(50, 48), torch.randn(64, 48)
    if how in ("bf16", "float64"):
        x, weight = (t.to(torch.bfloat16 if how == "bf16" else torch.float64) for t in (x, weight))
    if how == "small":
        x = x[:2]

    def run() -> Tensor:
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return linear(x, weight)
        if how == "compile":
            return torch.compile(lambda a: linear(a, weight), backend="eager", fullgraph=True)(x)
        if how == "vmap":
            return torch.func.vmap(lambda a: linear(a[None], weight)[0])(x)
        if how == "forward AD":
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                return torch.autograd.forward_ad.unpack_dual(linear(dual, weight)).tangent
        return linear(x, weight)

    expected = run()
    with faster_products(model()):
        found = run()
        assert calls(run)["onednn"] == 0
    assert torch.equal(found, expected)


@needs_onednn
def test_a_gradient_can_be_differentiated_again() -> None:
    net, x = model(), torch.randn(50, 48, requires_grad=True)

    def penalty() -> list[Tensor]:
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), list(net.parameters())))

    expected = penalty()
    with faster_products(net):
        found = penalty()
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@needs_onednn
def test_gradient_checkpointing_runs_the_same_matmuls_again() -> None:
    net, x = model(), torch.randn(50, 48, requires_grad=True)
    with faster_products(net):
        expected = step(net, x)[1]
        loss = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().sum()
        found = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(value, truth) for value, truth in zip(found, expected, strict=True))


@needs_onednn
def test_matmul_takes_transposed_views() -> None:
    a, b = torch.randn(64, 50), torch.randn(64, 48)
    with faster_products(model()):
        torch.testing.assert_close(matmul(a.T, b), a.T @ b)
        assert calls(lambda: matmul(a.T, b)) == {"onednn": 1, "torch": 0}
        narrow = torch.randn(64, 16)
        torch.testing.assert_close(transposed_matmul(a, narrow), a.T @ narrow)
        assert transposed_matmul(a, narrow).is_contiguous()  # what optimisers and DDP expect of a gradient


@needs_onednn
@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_pays_where_mkl_does_not_use_avx512(
    maker: str, capability: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("this build of torch has no MKL")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert mkl_falls_short.__wrapped__(str(cpuinfo)) is expected


@needs_onednn
def test_the_switch_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not pays()
    with faster_products(net := model()):
        assert type(net[0]) is nn.Linear
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ValueError, match="LORAKIT_ONEDNN is 'yes'; it must be 1"):
        pays()
    monkeypatch.setenv(SWITCH, "1")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no oneDNN"):
        pays()


# Dropout -----------------------------------------------------------------------------------------------------------


def dropping(p: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(p))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 7), max_size=3),
    p=st.floats(0.001, 0.999),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_dropout_multiplies_output_and_gradient_by_the_mask(shape, p, dtype) -> None:
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
def test_the_share_dropped_is_p_and_the_mean_is_kept(p: float) -> None:
    layer, x = dropping(p), torch.ones(400_000)
    with faster_dropout(layer):
        y = layer[1](x)
    dropped = float((y == 0).double().mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / len(x)) ** 0.5  # five standard deviations of a share
    assert abs(float(y.double().mean()) - 1) < 5 * (p / (1 - p) / len(x)) ** 0.5


def test_a_quarter_of_torchs_bytes_is_kept_for_backward() -> None:
    layer, x, kept = dropping(), torch.randn(50, 8, requires_grad=True), []
    with faster_dropout(layer), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, id):
        layer[1](x)
    assert kept == [x.numel()]


def test_the_model_is_restored_and_eval_mode_drops_nothing() -> None:
    model, x = dropping(), torch.randn(50, 8)
    with pytest.raises(KeyError), faster_dropout(model), faster_dropout(model):
        assert type(model[1]) is FasterDropout
        model.eval()
        state = torch.get_rng_state()
        assert model[1](x) is x and torch.equal(torch.get_rng_state(), state)  # nothing is drawn
        raise KeyError
    assert type(model[1]) is nn.Dropout


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probabilities_0_and_1_behave_like_torchs(p: float) -> None:
    model, x = dropping(p), torch.randn(50, 8)
    with faster_dropout(model):
        assert torch.equal(model[1](x), x * (1 - p))


def test_checkpointing_draws_the_same_mask_again_and_double_backward_is_right() -> None:
    model, x = dropping(), torch.randn(50, 8, requires_grad=True)
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


def test_torch_compile_gets_torchs_dropout() -> None:
    model = dropping()
    with faster_dropout(model):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(50, 8))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(p=st.floats(0, 1, exclude_max=True), size=st.integers(0, 50))
def test_masks_have_any_size_and_a_matching_factor(p: float, size: int) -> None:
    torch.manual_seed(0)
    mask, factor = keep_mask(torch.zeros(size), p)
    assert mask.shape == (size,) and mask.element_size() == 1 and set(mask.tolist()) <= {0, 1}
    assert 1 / factor == pytest.approx(1 - p, abs=2**-16)
    assert math.isfinite(factor)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_masks_drop_with_probability_p_in_each_quarter_of_a_draw(p: float) -> None:
    torch.manual_seed(0)
    mask, factor = keep_mask(torch.zeros(400_000), p)
    for quarter in range(4):  # the highest bit of a signed draw must be random too
        part = mask[quarter::4].double()
        assert part.mean().item() == pytest.approx(1 - p, abs=4 * math.sqrt(p * (1 - p) / 100_000))
    assert (mask.double() * factor).mean().item() == pytest.approx(1.0, abs=0.02)
    neighbours = torch.corrcoef(torch.stack([mask[:-1].double(), mask[1:].double()]))[0, 1].item()
    assert abs(neighbours) < 0.01


def test_masks_come_from_torchs_default_generator() -> None:
    torch.manual_seed(7)
    first, _ = keep_mask(torch.zeros(999), 0.3)
    second, _ = keep_mask(torch.zeros(999), 0.3)
    torch.manual_seed(7)
    assert torch.equal(keep_mask(torch.zeros(999), 0.3)[0], first)
    assert not torch.equal(first, second)
