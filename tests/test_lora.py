"""apply_lora and its inverse, and switching, deleting and combining adapters, on tiny transformers."""

import copy
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForTokenClassification

from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    adapter_names,
    apply_lora,
    combine_adapters,
    delete_adapter,
    lora_layers,
    merge_lora,
    remove_lora,
    set_adapter,
)
from lorakit.nn.layers import LoRALinear
from tests.support.architectures import ARCHITECTURES
from tests.support.lora_models import logits, perturb, tiny_roberta, two_adapters


def test_model_stays_the_same_object_with_the_same_parameters() -> None:
    model = tiny_roberta()
    kind, before = type(model), {name: id(p) for name, p in model.named_parameters()}
    assert apply_lora(model, bias="all") is model
    after = {name: id(p) for name, p in model.named_parameters()}
    assert type(model) is kind
    assert {name: after[name] for name in before} == before
    assert {name.rpartition(".")[2] for name in after.keys() - before.keys()} == {"lora_A", "lora_B"}


def test_first_output_is_bit_equal_to_the_base() -> None:
    model = tiny_roberta()
    base = logits(model)
    assert torch.equal(logits(apply_lora(model, r=4, lora_alpha=32, bias="all")), base)


def test_every_adapted_layer_changes_the_output() -> None:
    model = apply_lora(tiny_roberta(), target_modules="all-linear")
    base = logits(model)
    for name, layer in lora_layers(model):
        with torch.no_grad():
            layer.lora_B.normal_(std=10.0, generator=torch.Generator().manual_seed(0))
            moved = (logits(model) - base).abs().max()
            layer.lora_B.zero_()
        assert moved > 1e-3, name


def test_only_updates_and_head_are_trained() -> None:
    model = apply_lora(tiny_roberta(), target_modules=["query", "value"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [f"roberta.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")]
    updates = {f"{layer}.{which}" for layer in layers for which in ("lora_A", "lora_B")}
    assert trained == updates | {"classifier.weight", "classifier.bias"}


def test_empty_modules_to_save_trains_no_head() -> None:
    model = apply_lora(tiny_roberta(), modules_to_save=[])
    assert not any(p.requires_grad for p in model.classifier.parameters())
    assert not isinstance(model.classifier, LoRALinear)


def test_modules_to_save_adds_to_the_head_and_leaves_the_list_unchanged() -> None:
    wanted = ["embeddings.LayerNorm"]
    model = apply_lora(tiny_roberta(), modules_to_save=wanted)
    assert model.classifier.weight.requires_grad
    assert model.roberta.embeddings.LayerNorm.weight.requires_grad
    assert wanted == ["embeddings.LayerNorm"]


def test_a_module_to_save_that_shares_a_parameter_must_be_named_with_its_twin() -> None:
    with pytest.raises(ValueError, match="'lm_head' shares a tied parameter with 'transformer.wte.weight'"):
        apply_lora(ARCHITECTURES["gpt2-lm"].build(), modules_to_save=["lm_head"])
    both = apply_lora(ARCHITECTURES["gpt2-lm"].build(), modules_to_save=["lm_head", "wte"])
    assert both.lm_head.weight.requires_grad


def test_an_optimizer_made_before_apply_lora_still_trains_the_head() -> None:
    model = tiny_roberta()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    apply_lora(model)
    before = model.classifier.weight.detach().clone()
    logits(model).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.classifier.weight, before)


def test_dropout_follows_the_mode_of_the_model() -> None:
    model = apply_lora(tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), lora_dropout=0.5)
    perturb(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_a_second_apply_under_the_same_name_raises() -> None:
    model = apply_lora(tiny_roberta())
    with pytest.raises(ValueError, match="has LoRA already; call remove_lora"):
        apply_lora(model)


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(ValueError, match="in a OptimizedModule, which would keep .* apply_lora first, then wrap"):
        apply_lora(torch.compile(tiny_roberta(), backend="eager"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be an integer of at least 1, got 0"),
        ({"r": True}, "got True"),
        ({"r": 8.0}, "got 8.0"),
        ({"lora_alpha": 0}, "lora_alpha must be a positive number, got 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a probability"),
        ({"bias": "some"}, "bias must be one of none, all, lora_only, got 'some'"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list"),
        ({"modules_to_save": ["clasifier"]}, "modules_to_save 'clasifier' .* did you mean 'classifier'"),
        ({"target_modules": []}, "target_modules is empty"),
    ],
)
def test_bad_arguments_raise_and_leave_the_model_unchanged(options: dict, message: str) -> None:
    model = tiny_roberta()
    with pytest.raises(ValueError, match=message):
        apply_lora(model, **options)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, LoRALinear) for m in model.modules())


def test_a_rank_above_that_of_the_weight_warns() -> None:
    with pytest.warns(UserWarning, match="r=400 is more than .*query' can use: its weight has rank 32 at most"):
        apply_lora(tiny_roberta(), r=400)


@pytest.mark.parametrize(
    ("targets", "warns"), [(["gate_proj", "up_proj", "down_proj"], True), ("all-linear", True), (["q_proj"], False)]
)
def test_experts_that_lora_does_not_reach_are_named(targets: str | list[str], warns: bool) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
             "num_key_value_heads": 4, "intermediate_size": 48, "moe_intermediate_size": 16}  # fmt: skip
    config = Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0])
    model = Qwen3MoeForTokenClassification(config)
    message = r"'model.layers.1.mlp.experts' .* one tensor each \(gate_up_proj, down_proj\), .* stay frozen"
    with pytest.warns(UserWarning, match=message) if warns else nullcontext():
        apply_lora(model, r=2, target_modules=targets)
    assert not any("experts" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("merged", [False, True])
def test_remove_without_merge_restores_the_original_model(merged: bool) -> None:
    model = tiny_roberta()
    model.classifier.bias.requires_grad_(False)
    base, flags = logits(model), {name: p.requires_grad for name, p in model.named_parameters()}
    apply_lora(model, bias="all", lora_dropout=0.1)
    perturb(model)
    if merged:
        merge_lora(model)
    remove_lora(model)
    assert torch.equal(logits(model), base)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [type(m) for m in model.modules()] == [type(m) for m in tiny_roberta().modules()]
    assert model.state_dict().keys() == tiny_roberta().state_dict().keys()


def test_remove_with_merge_keeps_what_was_learned() -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    tuned = logits(model)
    torch.testing.assert_close(logits(remove_lora(model, merge=True)), tuned, rtol=1e-5, atol=1e-5)
    apply_lora(model)  # and LoRA can be applied again


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_complete_and_independent(duplicate) -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    tuned = logits(model)
    twin = duplicate(model)
    assert torch.equal(logits(twin), tuned)
    remove_lora(twin)
    assert torch.equal(logits(model), tuned)
    assert not torch.equal(logits(twin), tuned)


def test_an_adapter_that_is_not_active_can_be_deleted() -> None:
    model, _, _ = two_adapters({}, {})
    with pytest.raises(ValueError, match="'second' is active; set_adapter another one first"):
        delete_adapter(model, "second")
    delete_adapter(model, "default")
    assert adapter_names(model) == ("second",)


def test_a_combination_saves_and_loads(tmp_path: Path) -> None:
    model, _, _ = two_adapters({}, {"r": 3, "target_modules": ["key"]})
    combine_adapters(model, {"default": 1.0, "second": 0.25}, "both")
    set_adapter(model, "both")
    loaded = load_adapter(tiny_roberta(), save_adapter(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))


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
def test_unknown_names_and_methods_are_refused(act, message: str) -> None:
    model, _, two = two_adapters({}, {"use_dora": True})
    with pytest.raises(ValueError, match=message):
        act(model)
    assert torch.equal(logits(model), two)
