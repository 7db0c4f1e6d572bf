"""Weighted sums of updates: exact, of lower rank, and PEFT's rough rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit.adapters.combination import combine_updates, without_start
from lorakit.lora import apply_lora, combine_adapters, lora_layers, set_adapter
from lorakit.nn.weights import Update
from tests.support.lora_models import tiny_roberta, two_adapters


def changes(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the active adapter adds to each weight."""
    return {name: layer.delta_weight().detach() for name, layer in lora_layers(model)}


@pytest.mark.parametrize("how", ["cat", "svd"])
@pytest.mark.parametrize(
    "second", [{"r": 4, "use_rslora": True}, {"init_lora_weights": "pissa"}, {"r": 1, "bias": "all"}]
)
def test_a_combination_changes_the_base_by_the_weighted_sum(how: str, second: dict) -> None:
    model, _, _ = two_adapters({"lora_alpha": 5}, {**second, "target_modules": ["value", "key"]})
    two, head_two = changes(model), model.classifier.weight.detach().clone()
    set_adapter(model, "default")
    one, head_one = changes(model), model.classifier.weight.detach().clone()
    combine_adapters(model, {"default": 0.5, "second": -2.0}, "both", how, r=32 if how == "svd" else None)
    set_adapter(model, "both")
    found = changes(model)
    assert found.keys() == one.keys() | two.keys()
    for name, change in found.items():
        zero = torch.zeros_like(change)
        torch.testing.assert_close(change, 0.5 * one.get(name, zero) - 2.0 * two.get(name, zero), rtol=1e-4, atol=1e-4)
    origin = tiny_roberta().classifier.weight
    expected = origin + 0.5 * (head_one - origin) - 2.0 * (head_two - origin)
    torch.testing.assert_close(model.classifier.weight, expected)


def test_svd_is_the_best_approximation_of_its_rank() -> None:
    model, _, _ = two_adapters({}, {"seed": 1})
    combine_adapters(model, {"default": 1, "second": 1}, "exact")
    combine_adapters(model, {"default": 1, "second": 1}, "short", "svd", r=3)
    exact = changes(set_adapter(model, "exact"))
    for name, change in changes(set_adapter(model, "short")).items():
        assert torch.linalg.matrix_rank(change) == 3
        error = torch.linalg.matrix_norm(exact[name] - change, 2).item()
        assert error == pytest.approx(torch.linalg.svdvals(exact[name])[3].item(), rel=1e-3)


def test_linear_adds_the_factors_of_equal_rank() -> None:
    model, _, _ = two_adapters({}, {"seed": 1})
    combine_adapters(model, {"default": 1.0}, "same", "linear")
    one = changes(set_adapter(model, "default"))
    for name, change in changes(set_adapter(model, "same")).items():
        torch.testing.assert_close(change, one[name], rtol=1e-5, atol=1e-6)
    apply_lora(model, r=2, target_modules=["query", "value"], adapter_name="other")
    with pytest.raises(ValueError, match='how="linear" needs adapters of equal rank, got 8, 2'):
        combine_adapters(model, {"default": 1.0, "other": 1.0}, "both", "linear")


def random_update(r: int, scaling: float, seed: int, start: bool = False) -> Update:
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((r, 6), (5, r)) * 2]
    return Update(factors[0], factors[1], scaling * r, scaling, start=tuple(factors[2:]) if start else None)


def effect(update: Update) -> torch.Tensor:
    """scaling·(BA - B₀A₀)."""
    change = update.B @ update.A
    if update.start is not None:
        change = change - update.start[1] @ update.start[0]
    return update.scaling * change


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.tuples(st.integers(1, 4), st.floats(0.1, 4), st.floats(-2, 2), st.booleans()), min_size=1, max_size=4
    ),
    how=st.sampled_from(["cat", "svd"]),
)
def test_cat_and_full_rank_svd_are_the_exact_sum_with_scale_one(parts: list[tuple], how: str) -> None:
    updates = [(random_update(r, scaling, i, start), w) for i, (r, scaling, w, start) in enumerate(parts)]
    found = combine_updates(updates, how, r=5)
    expected = sum(weight * effect(update) for update, weight in updates)
    torch.testing.assert_close(effect(found), expected, rtol=1e-9, atol=1e-9)
    assert found.scaling == 1.0 and found.start is None
    ranks = [2 * r if start else r for r, _, _, start in parts]
    assert len(found.A) == found.lora_alpha == (5 if how == "svd" else sum(ranks))


@pytest.mark.parametrize("rslora", [False, True])
def test_an_update_without_its_start_has_twice_the_rank_and_the_same_scale_and_effect(rslora: bool) -> None:
    update = random_update(3, 0.7, 0, start=True)
    found = without_start(update, rslora)
    torch.testing.assert_close(effect(found), effect(update), rtol=1e-12, atol=1e-12)
    assert len(found.A) == 6 and found.scaling == update.scaling and found.start is None
    assert found.lora_alpha / update.lora_alpha == pytest.approx(2**0.5 if rslora else 2)
    plain = random_update(3, 0.7, 0)
    assert without_start(plain, rslora) is plain


def test_svd_takes_the_largest_rank_unless_told_otherwise() -> None:
    updates = [(random_update(r, 1.0, r), 1.0) for r in (2, 4)]
    assert len(combine_updates(updates, "svd", None).A) == 4
    assert len(combine_updates(updates, "svd", 3).A) == 3
