"""LoRA's settings: what is refused, and the rank and scale of each layer."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.adapters.config import LoRAConfig, pissa_steps
from lorakit.lora import apply_lora, lora_layers, lora_state
from tests.support.lora_models import logits, tiny_roberta


def test_rslora_scales_by_the_root_of_r() -> None:
    layer = next(iter(lora_layers(apply_lora(tiny_roberta(), r=4, lora_alpha=6, use_rslora=True))))[1]
    assert layer.scaling == 3.0


def test_ranks_and_alphas_by_pattern() -> None:
    model = apply_lora(
        tiny_roberta(),
        r=8,
        lora_alpha=16,
        target_modules=["query", "value"],
        rank_pattern={"1.attention.self.query": 2, "value": 3},
        alpha_pattern={r"0\..*": 4},
    )
    ranks = [layer.r for _, layer in lora_layers(model)]
    assert ranks == [8, 3, 2, 3]
    assert [layer.scaling for _, layer in lora_layers(model)] == [4 / 8, 4 / 3, 16 / 2, 16 / 3]


def test_the_callers_lists_and_dicts_are_copied_and_left_unchanged() -> None:
    targets, excluded, ranks = ["query", "value"], ["1.attention.self.query"], {"value": 2}
    model = apply_lora(tiny_roberta(), target_modules=targets, exclude_modules=excluded, rank_pattern=ranks)
    ranks["value"] = 5
    assert (targets, excluded) == (["query", "value"], ["1.attention.self.query"])
    assert lora_state(model).current.config.rank_pattern == {"value": 2}
    logits(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, "r must be an integer of at least 1, got -1"),
        ({"r": "8"}, "r must be an integer of at least 1, got '8'"),
        ({"lora_alpha": math.inf}, "lora_alpha must be a positive number, got inf"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a positive number, got nan"),
        ({"lora_alpha": True}, "lora_alpha must be a positive number, got True"),
        ({"lora_dropout": -0.1}, "lora_dropout must be a probability from 0 to below 1, got -0.1"),
        ({"lora_dropout": True}, "lora_dropout must be a probability from 0 to below 1, got True"),
        ({"bias": None}, "bias must be one of none, all, lora_only, got None"),
        ({"target_modules": ""}, "target_modules is empty; leave it out for 'all-linear', or pass None"),
        ({"layers_pattern": "layer"}, "give both"),
        (
            {"layers_to_transform": 1, "target_modules": ".*query"},
            "a list of target_modules, or 'all-linear'; a regex",
        ),
        ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\] must be an integer of at least 1, got 0"),
        ({"alpha_pattern": {"query": 0}}, r"alpha_pattern\['query'\] must be a positive number, got 0"),
        ({"init_lora_weights": "kaiming"}, "init_lora_weights must be True, False, gaussian, .* got 'kaiming'"),
        (
            {"init_lora_weights": "orthogonal", "rank_pattern": {"query": 3}},
            '"orthogonal" needs an even rank, got r=3',
        ),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**options)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(r=st.integers(1, 1024), alpha=st.floats(0.01, 1000), rslora=st.booleans())
def test_the_scale_is_alpha_over_r_or_over_its_root(r: int, alpha: float, rslora: bool) -> None:
    config = LoRAConfig(r=r, lora_alpha=alpha, use_rslora=rslora)
    assert config.scaling(r, alpha) * (r**0.5 if rslora else r) == pytest.approx(alpha)


def test_one_name_or_index_stands_for_a_list_of_one() -> None:
    config = LoRAConfig(target_modules=["query"], layers_to_transform=1, layers_pattern="layer")
    assert (config.target_modules, config.layers_to_transform, config.layers_pattern) == (("query",), (1,), ("layer",))


def test_the_first_pattern_that_matches_the_end_of_a_name_counts() -> None:
    config = LoRAConfig(r=8, lora_alpha=16, rank_pattern={r"1\.query": 2, "query": 3}, alpha_pattern={"value": 5})
    assert [config.rank_of(name) for name in ("layer.1.query", "layer.11.query", "xquery", "value")] == [2, 3, 8, 8]
    assert [config.alpha_of(name) for name in ("value", "layer.0.value", "value.0")] == [5, 5, 16]


@pytest.mark.parametrize(
    ("how", "steps"),
    [("pissa_niter_4", 4), ("pissa_niter_16", 16), ("pissa", None), ("pissa_niter_x", None), (True, None)],
)
def test_power_iterations_are_read_from_the_name(how: bool | str, steps: int | None) -> None:
    assert pissa_steps(how) == steps
