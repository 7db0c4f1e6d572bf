"""Initial updates: their statistics, what they depend on, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.initialization import new_adapter
from lorakit.lora import apply_lora, disable_lora, merge_lora, remove_lora, unmerge_lora
from tests.support.layers import make_layer
from tests.support.lora_models import tiny_roberta


def test_initial_updates_depend_only_on_seed_and_name_and_leave_the_global_generator_unchanged() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = apply_lora(tiny_roberta(), target_modules=["query", "value"])
    torch.manual_seed(3)
    two = tiny_roberta()
    torch.manual_seed(3)
    apply_lora(two, target_modules=["value"])
    assert torch.equal(torch.get_rng_state(), state)
    name = "roberta.encoder.layer.1.attention.self.value"
    assert torch.equal(one.get_submodule(name).lora_A, two.get_submodule(name).lora_A)
    assert not torch.equal(one.get_submodule(name).lora_A, one.get_submodule(name.replace("1", "0")).lora_A)
    other = apply_lora(tiny_roberta(), seed=1)
    assert not torch.equal(one.get_submodule(name).lora_A, other.get_submodule(name).lora_A)


@pytest.mark.parametrize("how", [True, False, "gaussian", "orthogonal", "pissa"])
def test_initial_values_have_the_documented_statistics(how: bool | str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(400, 300)})
    apply_lora(model, r=8, lora_alpha=8, target_modules=["layer"], init_lora_weights=how)
    A, B = model["layer"].lora_A.detach(), model["layer"].lora_B.detach()
    if how is True or how is False:
        assert A.abs().max() <= 1 / math.sqrt(400)
        assert A.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.05)
    if how == "gaussian":
        assert A.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert (B == 0).all().item() is (how is True or how == "gaussian")
    if how == "orthogonal":
        torch.testing.assert_close(B @ A, torch.zeros(300, 400), rtol=0, atol=1e-6)
    if how == "pissa":
        error = torch.linalg.svdvals(model["layer"].weight.detach())[8].item()  # what rank 8 cannot hold
        assert torch.linalg.matrix_norm(model["layer"].weight.detach() - B @ A, 2).item() == pytest.approx(error, 1e-4)


def test_pissa_removes_the_largest_directions_whatever_the_scale() -> None:
    model = nn.ModuleDict({"layer": make_layer("linear")[0]})
    apply_lora(model, r=2, lora_alpha=7, target_modules=["layer"], init_lora_weights="pissa")
    layer = model["layer"]
    rest = layer.weight - layer.scaling * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(torch.linalg.svdvals(rest)[:3], torch.linalg.svdvals(layer.weight)[2:])


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_4", "olora"])
def test_pissa_and_olora_leave_weight_output_and_generator_unchanged(how: str) -> None:
    layer, x = make_layer("linear")
    model = nn.ModuleDict({"layer": layer})
    weight, expected, state = layer.weight.detach().clone(), layer(x), torch.get_rng_state()
    apply_lora(model, r=2, target_modules=["layer"], init_lora_weights=how)
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.lora_B.abs().min() > 0
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.weight, weight)
    with torch.no_grad():
        layer.lora_A += 1
    tuned = layer(x)
    torch.testing.assert_close(merge_lora(model)["layer"](x), tuned, rtol=1e-5, atol=1e-5)
    unmerge_lora(model)
    with disable_lora(model):
        assert torch.equal(layer(x), expected)
    assert torch.equal(remove_lora(model)["layer"](x), expected)


@pytest.mark.parametrize(
    ("how", "r", "message"),
    [
        ("kaiming", 2, "init_lora_weights must be True, False, gaussian, .* got 'kaiming'"),
        ("pissa_niter_x", 2, "init_lora_weights must be"),
        ("orthogonal", 3, "needs an even rank, got r=3"),
        ("pissa", 6, "needs r <= 5 in 'layer', got 6"),
    ],
)
def test_impossible_initializations_are_refused(how: str, r: int, message: str) -> None:
    model = nn.ModuleDict({"layer": make_layer("linear")[0]})
    with pytest.raises(ValueError, match=message):
        apply_lora(model, r=r, target_modules=["layer"], init_lora_weights=how)


def test_pissa_is_for_linear_layers() -> None:
    model = nn.ModuleDict({"table": make_layer("embedding")[0]})
    with pytest.raises(ValueError, match="'pissa' is for linear layers; 'table' is a Embedding"):
        apply_lora(model, r=2, target_modules=["table"], init_lora_weights="pissa")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"quary": 4}}, "rank_pattern 'quary' matches nothing .* did you mean 'query'"),
        (
            {"target_modules": ["query", "value"], "alpha_pattern": {"dense": 4}},
            "alpha_pattern 'dense' matches nothing",
        ),
    ],
)
def test_a_pattern_that_matches_no_target_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_lora(tiny_roberta(), **options)


@pytest.mark.parametrize("how", [True, "pissa"])
def test_on_the_meta_device_updates_have_shapes_and_no_values(how: bool | str) -> None:
    model = nn.ModuleDict({"layer": nn.Linear(6, 5, device="meta")})
    adapter = new_adapter(model, LoRAConfig(r=2, target_modules=["layer"], init_lora_weights=how), saved=())
    update = adapter.updates["layer"]
    assert update.A.is_meta and update.B.is_meta
    assert (tuple(update.A.shape), tuple(update.B.shape)) == ((2, 6), (5, 2))
    assert (update.start is not None) is (how == "pissa")


def test_a_new_adapter_does_not_change_the_model() -> None:
    model = tiny_roberta()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    adapter = new_adapter(model, LoRAConfig(target_modules=["query"]), saved=("classifier",))
    assert list(adapter.updates) == list(adapter.targets) and len(adapter.targets) == 2
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
