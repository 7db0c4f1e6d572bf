"""Float32 master weights in a half-precision base: trained in float32, computed in the base's type, and undone."""

import copy

import pytest
import torch
from torch import nn

from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    apply_lora,
    disable_lora,
    remove_lora,
    set_adapter,
)
from lorakit.nn.layers import LoRALayer
from lorakit.nn.master_weights import demote, promote
from tests.support.lora_models import IDS, LABELS, logits, perturb, tiny_roberta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["LayerNorm"]}])
def test_trained_parameters_of_a_half_model_have_float32_master_weights(
    options: dict, dtype: torch.dtype, tmp_path
) -> None:
    """Without autocast a half-precision model computes the same as before, and trained parameters are float32."""
    model = tiny_roberta().to(dtype)
    base = logits(model)
    apply_lora(model, **options)
    assert torch.equal(logits(model), base)
    logits(model).float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == parameter.grad.dtype == torch.float32, name
    perturb(model)
    tuned = logits(model)
    assert tuned.dtype == dtype
    with disable_lora(model):
        assert torch.equal(logits(model), base)
    loaded = load_adapter(tiny_roberta().to(dtype), save_adapter(model, tmp_path))
    assert torch.equal(logits(loaded), tuned)
    assert torch.equal(logits(copy.deepcopy(model)), tuned)
    remove_lora(model)
    assert torch.equal(logits(model), base)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("options", [{}, {"bias": "all", "use_dora": True}, {"modules_to_save": ["LayerNorm"]}])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_an_adapted_model_can_be_cast(base: torch.dtype, to: torch.dtype, options: dict) -> None:
    """For deployment or to merge in float32; what was trained in full is cast with everything else."""
    model = apply_lora(tiny_roberta().to(base), r=2, **options)
    perturb(model)
    apply_lora(model, r=3, **options, adapter_name="second")
    perturb(model)
    tolerance = {"rtol": 0.05, "atol": 0.05}
    tuned, plain = logits(model).float(), logits(tiny_roberta().to(base).to(to))
    model.to(to)
    torch.testing.assert_close(logits(model), tuned.to(to), **tolerance)
    with disable_lora(model):
        assert torch.equal(logits(model), plain)
    for name in ("default", "second"):
        assert logits(set_adapter(model, name)).dtype == to
    torch.testing.assert_close(logits(model), tuned.to(to), **tolerance)
    merged = remove_lora(copy.deepcopy(model), merge=True)
    torch.testing.assert_close(logits(merged), tuned.to(to), **tolerance)
    assert torch.equal(logits(remove_lora(model)), plain)
    assert {p.dtype for m in (merged, model) for p in m.parameters()} == {to}


def test_a_float16_base_trains_under_a_gradient_scaler() -> None:
    """With float16 gradients it would raise "Attempting to unscale FP16 gradients"."""
    model = apply_lora(tiny_roberta().half(), bias="all").train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    scaler.scale(model(IDS, labels=LABELS).loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    changed = [name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])]
    assert [name for name in before if not name.endswith("lora_A")] == [n for n in changed if not n.endswith("lora_A")]


def test_a_small_step_of_a_half_head_is_not_rounded_away() -> None:
    model = apply_lora(tiny_roberta().to(torch.bfloat16))
    before = model.classifier.weight.detach().clone()
    with torch.no_grad():
        model.classifier.weight += 1e-6
    assert not torch.equal(model.classifier.weight, before)


def test_an_exception_in_forward_leaves_no_casts_behind() -> None:
    model = apply_lora(tiny_roberta().to(torch.bfloat16))
    with pytest.raises(RuntimeError, match="dtype"):
        model.classifier(torch.ones(2, 3))
    assert model.classifier.weight is model.classifier._parameters["weight"]


def test_float32_and_float64_parameters_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    promote(model, list(model.parameters()), casts_itself=LoRALayer)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [torch.float64] * 2


def test_a_parameter_shared_by_two_modules_computes_in_the_base_type_in_both() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}).bfloat16()
    model["b"].weight = shared = model["a"].weight
    original, x = shared.detach().clone(), torch.ones(1, 3, dtype=torch.bfloat16)
    expected = [model[name](x) for name in "ab"]
    promote(model, [shared], casts_itself=LoRALayer)
    assert shared.dtype == torch.float32 and model["a"].bias.dtype == torch.bfloat16
    assert all(torch.equal(model[name](x), y) for name, y in zip("ab", expected, strict=True))
    demote(model, shared, original)
    assert shared.dtype == torch.bfloat16 and torch.equal(shared, original)
    assert all(torch.equal(model[name](x), y) for name, y in zip("ab", expected, strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.values())
