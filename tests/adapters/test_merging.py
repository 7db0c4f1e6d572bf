"""Merging keeps the output; unmerging restores the weights bit for bit."""

import copy
import pickle

import pytest
import torch

from lorakit.adapters.merging import merged_copies
from lorakit.lora import (
    apply_lora,
    disable_lora,
    lora_layers,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from tests.support.architectures import ARCHITECTURES
from tests.support.lora_models import logits, perturb, tiny_roberta, trained_roberta


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
def test_train_and_eval_keep_the_model_merged_and_merging_rounds_once(dtype: torch.dtype) -> None:
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


def test_state_dict_of_a_merged_model_does_not_apply_the_update_twice() -> None:
    model = apply_lora(tiny_roberta())
    perturb(model)
    tuned = logits(model)
    fresh = apply_lora(tiny_roberta())
    fresh.load_state_dict(merge_lora(model).state_dict())
    assert torch.equal(logits(fresh), tuned)
    with pytest.raises(RuntimeError, match="call unmerge_lora first"):
        model.load_state_dict(fresh.state_dict())


def test_merging_into_a_tied_weight_is_refused() -> None:
    model = ARCHITECTURES["gpt2-lm"].build()
    table = model.transformer.wte.weight
    apply_lora(model, target_modules=["lm_head"], init_lora_weights=False)
    assert model.lm_head.weight is table  # adapted without changing the table
    with pytest.raises(
        ValueError, match=r"lm_head.weight is tied to transformer.wte.weight: merging would change both"
    ):
        merge_lora(model)


@pytest.mark.parametrize("act", [merge_lora, unmerge_lora])
def test_a_model_without_lora_cannot_be_merged(act) -> None:
    with pytest.raises(ValueError, match="has no LoRA; call apply_lora"):
        act(tiny_roberta())


def test_a_merge_that_fails_half_way_is_undone() -> None:
    model = apply_lora(tiny_roberta().half())
    layers = [layer for _, layer in lora_layers(model)]
    with torch.no_grad():
        for layer in layers:
            layer.lora_B.fill_(1e30 if layer is layers[-1] else 0.1)
    before = [layer.weight.detach().clone() for layer in layers]
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        merge_lora(model)
    assert not any(layer.merged for layer in layers)
    assert all(torch.equal(layer.weight, value) for layer, value in zip(layers, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_pretrained_of_a_merged_model_writes_what_it_computes(dtype: torch.dtype, tmp_path) -> None:
    """It reloaded as the base, with only a report of unexpected keys."""
    model = apply_lora(tiny_roberta().to(dtype), r=4, bias="all")
    perturb(model)
    merged = logits(merge_lora(model))
    for number, saved in enumerate((model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        saved.save_pretrained(tmp_path / str(number))
        again = type(model).from_pretrained(tmp_path / str(number)).eval()
        assert torch.equal(logits(again), merged)
        assert {p.dtype for p in again.parameters()} == {dtype}
    unmerge_lora(model).save_pretrained(tmp_path / "unmerged")  # which holds the adapter
    assert (tmp_path / "unmerged" / "adapter_config.json").exists()
    assert not (tmp_path / "0" / "adapter_config.json").exists()
    assert "save_pretrained" not in vars(remove_lora(model, merge=True))


OPTIONS = [
    {},
    {"use_dora": True, "target_modules": "all-linear"},
    {"init_lora_weights": "pissa", "bias": "lora_only"},
    {"target_modules": ["word_embeddings", "query"]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_merged_copies_keep_the_output_and_give_the_same_memory_back(options: dict) -> None:
    model = trained_roberta(**options)
    weights = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    before, keys = logits(model), model.state_dict().keys()
    with merged_copies(model) as merged:
        assert merged and all(layer.merged for _, layer in lora_layers(model))
        copied = logits(model)
        assert model.state_dict().keys() == keys
        assert all(
            torch.equal(value, weights[name][2]) for name, value in model.state_dict().items() if name in weights
        )
    assert not torch.equal(copied, before)  # it was another computation
    torch.testing.assert_close(copied, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), before)
    for name, parameter in model.named_parameters():
        same, place, value = weights[name]
        assert parameter is same and parameter.data_ptr() == place and torch.equal(parameter, value), name


def test_an_error_inside_gives_the_weights_back() -> None:
    model = trained_roberta()
    before = logits(model)
    with pytest.raises(KeyboardInterrupt), merged_copies(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), before)


def test_what_cannot_have_a_merged_copy_computes_as_before() -> None:
    tied = ARCHITECTURES["gpt2-lm"].build()
    apply_lora(tied, target_modules=["lm_head"], init_lora_weights=False)
    switched_off, half, whole = trained_roberta(), trained_roberta().to(torch.bfloat16), trained_roberta()
    merge_lora(whole)
    for model in (tied, half, whole, tiny_roberta()):
        with merged_copies(model) as merged:
            assert not merged
    with disable_lora(switched_off), merged_copies(switched_off) as merged:
        assert not merged
    assert all(layer.merged for _, layer in lora_layers(whole))  # the user's own merge stays


def test_a_second_user_joins_and_the_last_one_to_leave_unmerges() -> None:
    model = trained_roberta()
    layers = [layer for _, layer in lora_layers(model)]
    first, second, third = (merged_copies(model, merge) for merge in (True, False, True))
    assert first.__enter__() and second.__enter__()
    first.__exit__(None, None, None)
    assert all(layer.merged for layer in layers)
    second.__exit__(None, None, None)
    assert not any(layer.merged for layer in layers)
    with merged_copies(model, merge=False) as merged:  # whoever computes unmerged must not be merged under its feet
        assert not merged and not third.__enter__()
        assert not any(layer.merged for layer in layers)
        third.__exit__(None, None, None)
