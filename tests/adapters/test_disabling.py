"""disable_lora: the base's output bit for bit, and everything restored afterwards."""

import pytest
import torch

from lorakit.lora import (
    apply_lora,
    count_parameters,
    disable_lora,
    merge_lora,
)
from tests.support.lora_models import logits, perturb, tiny_roberta


def test_disabling_gives_the_base_output_bit_for_bit() -> None:
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


def test_disabling_inside_a_training_step_does_not_change_its_gradients() -> None:
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


def test_a_model_without_lora_cannot_be_disabled() -> None:
    with pytest.raises(ValueError, match="has no LoRA; call apply_lora"), disable_lora(tiny_roberta()):
        pass


def test_disabling_yields_the_model_and_keeps_its_parameters() -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    before = {name: id(p) for name, p in model.named_parameters()}
    with disable_lora(model) as inner:
        assert inner is model
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_nothing_is_trained_while_switched_off_and_an_earlier_graph_stays_valid() -> None:
    model = apply_lora(tiny_roberta(), bias="all", use_dora=True)
    perturb(model)
    before = count_parameters(model)
    loss = logits(model).square().sum()
    with disable_lora(model):
        assert count_parameters(model).trainable == 0
        loss.backward()
    assert count_parameters(model) == before
    assert all(p.grad is not None for n, p in model.named_parameters() if "query.lora" in n)
