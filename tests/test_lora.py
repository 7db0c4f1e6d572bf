"""apply_lora and what undoes it, on tiny transformers and plain torch models."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForTokenClassification

from lorakit.lora import (
    apply_lora,
    count_parameters,
    disable_lora,
    lora_layers,
    merge_lora,
    peft_total,
    remove_lora,
    unmerge_lora,
)
from lorakit.nn.layers import LoRALinear


def tiny_roberta(**changes: object) -> RobertaForTokenClassification:
    """Two layers of width 32, 11 labels, in eval mode; the same weights every time."""
    torch.manual_seed(0)
    options = {
        "vocab_size": 100,
        "max_position_embeddings": 40,
        "type_vocab_size": 1,
        "num_labels": 11,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    return RobertaForTokenClassification(RobertaConfig(**options | changes)).eval()


IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Stand-in for training: move every trainable parameter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def roberta_base_on_meta() -> RobertaForTokenClassification:
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=11)
    with torch.device("meta"):
        return RobertaForTokenClassification(config)


def test_the_study_trains_700427_of_124653323() -> None:
    model = apply_lora(roberta_base_on_meta(), r=16, target_modules=["query", "value"], bias="all")
    count = count_parameters(model)
    assert (count.trainable, count.total) == (700_427, 124_653_323)
    assert peft_total(model) == 124_661_782  # PEFT keeps a second head of 8,459
    assert str(count) == "trainable params: 700,427 || all params: 124,653,323 || trainable%: 0.5619"


@pytest.mark.parametrize(
    ("options", "trainable"),
    [({"bias": "none"}, 598_283), ({"bias": "lora_only"}, 616_715), ({"r": 8}, 303_371)],
)
def test_trainable_counts_are_pefts(options: dict, trainable: int) -> None:
    model = apply_lora(roberta_base_on_meta(), **{"r": 16, **options})
    assert count_parameters(model).trainable == trainable


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


def test_every_adapted_layer_moves_the_output() -> None:
    model = apply_lora(tiny_roberta(), target_modules="all-linear")
    base = logits(model)
    for name, layer in lora_layers(model):
        with torch.no_grad():
            layer.lora_B.normal_(std=10.0, generator=torch.Generator().manual_seed(0))
            moved = (logits(model) - base).abs().max()
            layer.lora_B.zero_()
        assert moved > 1e-3, name


def test_only_updates_and_head_are_trained() -> None:
    model = apply_lora(tiny_roberta())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [f"roberta.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")]
    updates = {f"{layer}.{which}" for layer in layers for which in ("lora_A", "lora_B")}
    assert trained == updates | {"classifier.weight", "classifier.bias"}


def test_empty_modules_to_save_trains_no_head() -> None:
    model = apply_lora(tiny_roberta(), modules_to_save=[])
    assert not any(p.requires_grad for p in model.classifier.parameters())


def test_modules_to_save_adds_to_the_head_and_leaves_the_list_alone() -> None:
    wanted = ["embeddings.LayerNorm"]
    model = apply_lora(tiny_roberta(), modules_to_save=wanted)
    assert model.classifier.weight.requires_grad
    assert model.roberta.embeddings.LayerNorm.weight.requires_grad
    assert wanted == ["embeddings.LayerNorm"]


def test_optimizer_made_before_still_trains_the_head() -> None:
    model = tiny_roberta()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    apply_lora(model)
    before = model.classifier.weight.detach().clone()
    logits(model).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.classifier.weight, before)


def test_initial_updates_depend_on_seed_and_name_only_and_leave_the_generator_alone() -> None:
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


def test_dropout_follows_the_mode_of_the_model() -> None:
    model = apply_lora(tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), lora_dropout=0.5)
    perturb(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_rslora_scales_by_the_root_of_r() -> None:
    layer = next(iter(lora_layers(apply_lora(tiny_roberta(), r=4, lora_alpha=6, use_rslora=True))))[1]
    assert layer.scaling == 3.0


def test_second_apply_raises() -> None:
    model = apply_lora(tiny_roberta())
    with pytest.raises(ValueError, match="has LoRA already; call remove_lora"):
        apply_lora(model)


def test_a_model_that_is_wrapped_already_is_refused() -> None:
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


def test_disable_gives_the_untouched_output_bit_for_bit() -> None:
    model = tiny_roberta()
    base = logits(model)
    apply_lora(model, bias="all")
    perturb(model)
    tuned = logits(model)
    with pytest.raises(KeyError), disable_lora(model):
        assert torch.equal(logits(model), base)
        with disable_lora(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
        raise KeyError
    assert torch.equal(logits(model), tuned)
    merge_lora(model)
    merged = logits(model)
    with disable_lora(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), merged)


def test_disable_inside_a_training_step_leaves_its_gradients_alone() -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    logits(model).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    loss = logits(model).square().sum()
    with disable_lora(model):
        logits(model)
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, expected[name]), name


def test_merge_keeps_the_output_and_unmerge_is_bit_exact_after_100_rounds() -> None:
    model = apply_lora(tiny_roberta(), target_modules="all-linear")
    perturb(model)
    before, tuned = copy.deepcopy(model.state_dict()), logits(model)
    for _ in range(100):
        merge_lora(model)
        unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits(merge_lora(model)), tuned, rtol=1e-5, atol=1e-5)


def test_backward_while_merged_raises() -> None:
    model = merge_lora(apply_lora(tiny_roberta()))
    with pytest.raises(RuntimeError, match="call unmerge_lora"):
        logits(model).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_train_and_eval_leave_merging_alone_and_merging_rounds_once(dtype: torch.dtype) -> None:
    model = apply_lora(tiny_roberta().to(dtype))
    perturb(model)
    layer = model.roberta.encoder.layer[0].attention.self.query
    exact = layer.weight.double() + layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    merge_lora(model.train()).eval()
    assert layer.merged
    merged = layer.weight.detach().clone()
    model.train()
    assert torch.equal(layer.weight, merged)
    unit = torch.finfo(dtype).eps / 2
    allowed = exact.abs() * unit + 8 * 2**-24 * exact.abs().max()  # the sum itself is taken in float32
    assert ((merged.double() - exact).abs() <= allowed).all()


def test_the_biases_of_keys_change_nothing() -> None:
    """bias="all" trains them because PEFT does and counts them; softmax does not see them."""
    model = apply_lora(tiny_roberta(), bias="all")
    model(IDS, labels=torch.ones_like(IDS)).loss.backward()
    attention = model.roberta.encoder.layer[0].attention.self
    assert attention.key.bias.grad.abs().max() < 1e-6 * attention.value.bias.grad.abs().max()


def test_state_dict_of_a_merged_model_does_not_apply_the_update_twice() -> None:
    model = apply_lora(tiny_roberta())
    perturb(model)
    tuned = logits(model)
    fresh = apply_lora(tiny_roberta())
    fresh.load_state_dict(merge_lora(model).state_dict())
    assert torch.equal(logits(fresh), tuned)
    with pytest.raises(RuntimeError, match="call unmerge_lora first"):
        model.load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("merged", [False, True])
def test_remove_without_merge_restores_the_untouched_model(merged: bool) -> None:
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
    apply_lora(model)  # and LoRA can start anew


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_independent(duplicate) -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    perturb(model)
    tuned = logits(model)
    twin = duplicate(model)
    assert torch.equal(logits(twin), tuned)
    remove_lora(twin)
    assert torch.equal(logits(model), tuned)
    assert not torch.equal(logits(twin), tuned)
