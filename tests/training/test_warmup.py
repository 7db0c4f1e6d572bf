"""What is run before training, and that it leaves no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lorakit import apply_lora
from lorakit.nn.kernels import SWITCH, faster_products
from lorakit.training.warmup import make_kernels

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")


def model(inputs: int = 48, hidden: int = 64, outputs: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs, bias=False))


def made(run, capfd) -> int:
    """How many kernels of products oneDNN makes in a run, by its own log."""
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON_CREATION):
        run()
    lines = [line for line in capfd.readouterr().out.splitlines() if ",inner_product," in line]
    return sum("create:cache_miss" in line or "create:persistent_cache_miss" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "width"),  # widths that oneDNN has not met
    [({}, 41), ({"lora_dropout": 0.5}, 43), ({"init_lora_weights": "pissa"}, 47), (None, 53)],
)
def test_kernels_of_a_shape_are_made_beforehand_and_nothing_else_is_left(capfd, options, width) -> None:
    net = model(80, 96, 72)
    if options is not None:
        apply_lora(net, r=16, target_modules="all-linear", **options)
    net.register_forward_hook(lambda *_: pytest.fail("hooks are for training"))
    net[0].register_forward_hook(lambda *_: pytest.fail("hooks are for training"))
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with faster_products(net):
        assert made(lambda: make_kernels(net, [(3, width)]), capfd) > 0
        assert torch.equal(torch.get_rng_state(), random)
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        for module in (net, net[0]):
            module._forward_hooks.clear()
        assert made(lambda: net(torch.ones(3, width, 80)).square().sum().backward(), capfd) == 0
        assert made(lambda: net(torch.ones(3, width + 1, 80)).square().sum().backward(), capfd) > 0


def test_other_peoples_linear_layers_are_left_alone() -> None:
    class Gated(nn.Linear):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return super().forward(x) * gate

    net = nn.ModuleList([nn.Linear(64, 64), Gated(64, 64), nn.Linear(64, 64, dtype=torch.bfloat16)])
    net[0].forward = lambda x: pytest.fail("a forward put onto the module is for training")
    with faster_products(net):
        make_kernels(net, [(2, 32)])


def test_outside_the_context_nothing_is_run() -> None:
    net, shapes = apply_lora(model(), r=4, target_modules="all-linear"), iter([(3, 101)])
    make_kernels(net, shapes)
    assert next(shapes) == (3, 101)  # not even looked at
