"""Several adapters on one model: what switching between them changes, and what it must not change."""

import copy
from pathlib import Path

import pytest
import torch

from lorakit.adapters.storage import save_adapter
from lorakit.lora import (
    adapter_names,
    apply_lora,
    count_parameters,
    disable_lora,
    lora_layers,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from tests.support.lora_models import QUERY_VALUE, logits, perturb, tiny_roberta, two_adapters

PAIRS = [
    ({}, {"seed": 1}),
    ({"bias": "all"}, {"r": 4, "target_modules": ["key", "output.dense"]}),
    ({"use_dora": True, "lora_dropout": 0.5}, {"bias": "lora_only", "modules_to_save": []}),
    ({"target_modules": ["word_embeddings"]}, {"init_lora_weights": "pissa", "modules_to_save": ["LayerNorm"]}),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_switching_gives_each_adapters_output_and_keeps_the_base(first: dict, second: dict) -> None:
    base = logits(tiny_roberta())
    model, one, two = two_adapters(first, second)
    assert adapter_names(model) == ("second", "default")
    for _ in range(2):
        for name, expected in (("default", one), ("second", two)):
            set_adapter(model, name)
            assert torch.equal(logits(model), expected)
            with disable_lora(model):
                assert torch.equal(logits(model), base)
    assert torch.equal(logits(remove_lora(model)), base)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_only_the_active_adapter_is_trained(first: dict, second: dict) -> None:
    model, _, _ = two_adapters(first, second)
    for name, options in (("default", first), ("second", second)):
        set_adapter(model, name)
        assert count_parameters(model) == count_parameters(apply_lora(tiny_roberta(), **QUERY_VALUE | options))


def test_a_second_adapter_starts_from_the_original_head() -> None:
    base = logits(tiny_roberta())
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    apply_lora(model, adapter_name="second")
    assert torch.equal(logits(model), base)


def test_adapters_of_equal_shape_share_their_parameters_so_an_optimizer_continues() -> None:
    model, _, two = two_adapters({}, {"seed": 1})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    set_adapter(model, "default")
    logits(model).square().sum().backward()
    before = logits(model)
    optimizer.step()
    assert not torch.equal(logits(model), before)
    set_adapter(model, "second")
    assert torch.equal(logits(model), two)


def test_a_merged_model_is_merged_with_the_next_adapter() -> None:
    model, one, two = two_adapters({"bias": "all"}, {"target_modules": ["key"]})
    merge_lora(model)
    set_adapter(model, "default")
    assert all(layer.merged for _, layer in lora_layers(model))
    torch.testing.assert_close(logits(model), one, rtol=1e-5, atol=1e-5)
    set_adapter(model, "second")
    assert torch.equal(logits(unmerge_lora(model)), two)


def test_copies_keep_all_adapters() -> None:
    model, one, _ = two_adapters({}, {"r": 2})
    twin = copy.deepcopy(model)
    assert torch.equal(logits(set_adapter(twin, "default")), one)
    assert adapter_names(model) == ("second", "default")


def test_adapters_cannot_be_changed_inside_disable_lora() -> None:
    model, _, two = two_adapters({}, {})
    with disable_lora(model):
        for act in (
            lambda: set_adapter(model, "default"),
            lambda: remove_lora(model),
            lambda: save_adapter(model, "x"),
        ):
            with pytest.raises(RuntimeError, match="leave .* first"):
                act()
    assert torch.equal(logits(model), two)
    assert not Path("x").exists()


def test_a_model_without_lora_ignores_the_keyword_again() -> None:
    model = apply_lora(tiny_roberta(), **QUERY_VALUE)
    remove_lora(model)
    assert model(input_ids=torch.arange(4, 12)[None], adapter_names=["x"]).logits.isfinite().all()
