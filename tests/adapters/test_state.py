"""Several adapters on one model: switch, combine, delete, add, exchange; and the parameter groups of LoRA+."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    adapter_names,
    apply_lora,
    combine_adapters,
    count_parameters,
    delete_adapter,
    disable_lora,
    lora_layers,
    lora_plus_groups,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from tests.test_lora import logits, perturb, tiny_roberta


def two_adapters(first: dict, second: dict) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model with trained adapters "default" and "second" (active), and the output of each."""
    model = apply_lora(tiny_roberta(), **first)
    perturb(model)
    one = logits(model)
    apply_lora(model, **second, adapter_name="second")
    perturb(model)
    return model, one, logits(model)


PAIRS = [
    ({}, {"seed": 1}),
    ({"bias": "all"}, {"r": 4, "target_modules": ["key", "output.dense"]}),
    ({"use_dora": True, "lora_dropout": 0.5}, {"bias": "lora_only", "modules_to_save": []}),
    ({"target_modules": ["word_embeddings"]}, {"init_lora_weights": "pissa", "modules_to_save": ["LayerNorm"]}),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_switching_gives_each_adapters_output_and_the_base_stays(first: dict, second: dict) -> None:
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
def test_what_is_trained_is_what_the_active_adapter_trains(first: dict, second: dict) -> None:
    model, _, _ = two_adapters(first, second)
    for name, options in (("default", first), ("second", second)):
        set_adapter(model, name)
        assert count_parameters(model) == count_parameters(apply_lora(tiny_roberta(), **options))


def test_a_second_adapter_starts_from_the_untouched_head() -> None:
    base = logits(tiny_roberta())
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    apply_lora(model, adapter_name="second")
    assert torch.equal(logits(model), base)


def test_adapters_of_one_shape_share_their_parameters_so_an_optimizer_goes_on() -> None:
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


def test_linear_adds_the_factors_of_one_rank() -> None:
    model, _, _ = two_adapters({}, {"seed": 1})
    combine_adapters(model, {"default": 1.0}, "same", "linear")
    one = changes(set_adapter(model, "default"))
    for name, change in changes(set_adapter(model, "same")).items():
        torch.testing.assert_close(change, one[name], rtol=1e-5, atol=1e-6)
    apply_lora(model, r=2, adapter_name="other")
    with pytest.raises(ValueError, match='how="linear" needs adapters of equal rank, got 8, 2'):
        combine_adapters(model, {"default": 1.0, "other": 1.0}, "both", "linear")


def test_a_combination_saves_and_loads(tmp_path: Path) -> None:
    model, _, _ = two_adapters({}, {"r": 3, "target_modules": ["key"]})
    combine_adapters(model, {"default": 1.0, "second": 0.25}, "both")
    set_adapter(model, "both")
    loaded = load_adapter(tiny_roberta(), save_adapter(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))


def test_deleting_forgets_an_adapter_that_is_not_active() -> None:
    model, _, _ = two_adapters({}, {})
    with pytest.raises(ValueError, match="'second' is active; set_adapter another one first"):
        delete_adapter(model, "second")
    delete_adapter(model, "default")
    assert adapter_names(model) == ("second",)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: set_adapter(m, "secnd"), "adapter 'secnd' matches nothing .* did you mean 'second'"),
        (lambda m: delete_adapter(m, "third"), "adapter 'third' matches nothing"),
        (lambda m: apply_lora(m), "has LoRA already"),
        (lambda m: combine_adapters(m, {"default": 1}, "second"), "'second' is there already"),
        (lambda m: combine_adapters(m, {"default": 1}, "x", "ties"), "how must be one of cat, svd, linear, got 'ties'"),
        (lambda m: combine_adapters(m, {}, "x"), "weights is empty"),
        (lambda m: combine_adapters(m, {"defalt": 1}, "x"), "adapter 'defalt' matches nothing"),
        (lambda m: combine_adapters(m, {"second": 1}, "x"), "'second' uses DoRA, whose changes cannot be added"),
        (lambda m: set_adapter(tiny_roberta(), "second"), "has no LoRA; call apply_lora"),
    ],
)
def test_wrong_names_and_rules_are_refused(act, message: str) -> None:
    model, _, two = two_adapters({}, {"use_dora": True})
    with pytest.raises(ValueError, match=message):
        act(model)
    assert torch.equal(logits(model), two)


def test_no_switching_while_switched_off() -> None:
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


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
def test_lora_plus_groups_are_pefts() -> None:
    peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
    from peft.optimizers import create_loraplus_optimizer

    ours = apply_lora(tiny_roberta(), r=4, bias="all")
    found = torch.optim.AdamW(lora_plus_groups(ours, 1e-3, ratio=8, weight_decay=0.1))
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], bias="all", modules_to_save=["classifier"])
    theirs = peft.get_peft_model(tiny_roberta(), config)
    expected = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )

    def table(optimizer: torch.optim.Optimizer) -> list[tuple[float, float, int]]:
        return sorted(
            (group["lr"], group["weight_decay"], sum(p.numel() for p in group["params"]))
            for group in optimizer.param_groups
            if group["params"]
        )

    assert table(found) == table(expected)


def test_every_trainable_is_in_one_group_of_lora_plus() -> None:
    model = apply_lora(tiny_roberta(), target_modules=["word_embeddings", "query"], bias="all")
    groups = lora_plus_groups(model, 1e-3, ratio=4)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert sorted({group["lr"] for group in groups}) == [1e-6, 1e-3, 4e-3]
    with pytest.raises(ValueError, match="ratio must be at least 1, got 0.5"):
        lora_plus_groups(model, 1e-3, ratio=0.5)
