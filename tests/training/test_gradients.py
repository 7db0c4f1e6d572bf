"""A parameter that is counted as trained and gets no gradient is named, with advice that works."""

import ast
import re

import pytest
import torch
from torch import nn

import lorakit
from lorakit.training import loop
from lorakit.training.gradients import check_gradients
from tests.support.tiny import make_tiny_model
from tests.support.toy import quick, toy_data, weights

DATA = toy_data(8, 0, 0)
CONTACT = "esm.contact_head.regression"


def esm(**options):
    return make_tiny_model("esm", mask_token_id=4, **options)


def with_lora(exclude=()):
    wanted = ["query", "regression"]
    return lorakit.apply_lora(esm(), r=1, target_modules=wanted, exclude_modules=exclude)


def test_a_layer_that_never_runs_is_named_and_left_out_as_advised(tokenizer):
    model = with_lora()
    before = weights(model)
    with pytest.raises(ValueError, match=f"^2 of 8 trained parameters got no gradient.*: {CONTACT}") as told:
        lorakit.train(model, tokenizer, DATA, quick(packing=False))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # no step was taken
    advised = ast.literal_eval(re.search(r"exclude_modules=(\[.*\])", str(told.value))[1])
    assert advised == [CONTACT]
    assert lorakit.train(with_lora(advised), tokenizer, DATA, quick(packing=False, epochs=1)).steps == 1


def test_all_linear_needs_no_advice(tokenizer):
    """Every adapted layer moves (the case of ESM under peft, whose contact head never did)."""
    model = lorakit.apply_lora(esm(), r=2, target_modules="all-linear")
    before = weights(model)
    lorakit.train(model, tokenizer, DATA, quick(packing=False, epochs=1))
    assert [n for n, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[n])] == []


def test_full_fine_tuning_trains_once_what_is_unused_is_frozen_as_advised(tokenizer):
    model = esm()
    with pytest.raises(ValueError, match="freeze them: model.get_parameter") as told:
        lorakit.train(model, tokenizer, DATA, quick(packing=False))
    assert "exclude_modules" not in str(told.value)
    for name in lorakit.without_gradient(_after_backward(model)):
        assert name in str(told.value)
        model.get_parameter(name).requires_grad = False
    assert lorakit.train(model, tokenizer, DATA, quick(packing=False, epochs=1)).steps == 1


def _after_backward(model):
    ids = torch.arange(12)[None] + 5
    model(input_ids=ids, labels=torch.zeros_like(ids)).loss.backward()
    return model


def test_the_check_looks_once_and_at_no_value(tiny_model, tokenizer, monkeypatch):
    looked = []

    def look(trained):
        looked.append([p.grad is not None for p in trained.values()])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "item", None)  # reading would make the host wait
            patch.setattr(torch.Tensor, "__bool__", None)
            check_gradients(trained)

    monkeypatch.setattr(loop, "check_gradients", look)
    model = lorakit.apply_lora(tiny_model(num_hidden_layers=1), r=2)
    assert lorakit.train(model, tokenizer, DATA, quick(epochs=2)).steps == 2
    assert len(looked) == 1 and all(looked[0])


def test_a_parameter_whose_gradient_is_zero_has_one():
    layer = nn.Linear(2, 2)
    (layer(torch.ones(1, 2)) * 0).sum().backward()
    check_gradients(dict(layer.named_parameters()))
