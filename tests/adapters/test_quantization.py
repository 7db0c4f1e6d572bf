"""A base in half precision or quantized: the same bits under autocast, merging and switching off.

The quantized ones are skipped without torchao, which the extra `dev` installs.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lorakit.adapters.quantization import shrink_base
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    apply_lora,
    count_parameters,
    disable_lora,
    lora_layers,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from lorakit.nn.weights import dequantized
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import IDS, LABELS, logits, perturb, tiny_roberta


def step(model: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a training step under autocast."""
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        out = model(IDS, labels=LABELS)
    out.loss.backward()
    return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"bias": "all", "lora_dropout": 0.1}, {"use_dora": True, "r": 3}])
def test_a_half_base_under_autocast_gives_the_same_bits(options: dict, dtype: torch.dtype) -> None:
    model = apply_lora(tiny_roberta(), **options, target_modules="all-linear").train()
    perturb(model)
    small = shrink_base(copy.deepcopy(model), dtype)
    expected, gradients = step(model, dtype)
    found, other = step(small, dtype)
    assert torch.equal(found, expected)
    assert gradients.keys() == other.keys()
    for name, gradient in gradients.items():
        assert torch.equal(other[name], gradient), name
        assert gradient.dtype == torch.float32
    assert sum(p.dtype == dtype for p in small.parameters()) > 0 or "use_dora" in options


def test_a_half_base_takes_half_the_memory_of_its_matrices_and_leaves_the_rest() -> None:
    model = apply_lora(tiny_roberta(), bias="all")
    count = count_parameters(model)
    shrink_base(model)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert types["roberta.encoder.layer.0.output.dense.weight"] == torch.bfloat16
    assert types["roberta.encoder.layer.0.attention.self.query.weight"] == torch.bfloat16
    for name in ("query.lora_A", "query.bias"):
        assert types[f"roberta.encoder.layer.0.attention.self.{name}"] == torch.float32
    assert types["classifier.weight"] == types["roberta.embeddings.word_embeddings.weight"] == torch.float32
    assert count_parameters(model) == count


def test_a_weight_tied_to_an_embedding_stays_in_float32() -> None:
    model = shrink_base(apply_lora(ARCHITECTURES["gpt2-lm"].build(), target_modules="all-linear"))
    assert model.lm_head.weight.dtype == torch.float32
    assert model.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16  # Conv1D too
    with torch.autocast("cpu", torch.bfloat16):
        assert output_of(model).isfinite().all()


@pytest.mark.filterwarnings("ignore")  # torchao warns of itself
@pytest.mark.parametrize("to", ["int8", "nf4"])
def test_a_quantized_base_trains_saves_merges_and_unmerges(to: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    model = apply_lora(tiny_roberta(hidden_size=64, intermediate_size=128), target_modules="all-linear")
    perturb(model)
    full = logits(model)
    shrink_base(model, to)
    coarse = logits(model)
    with disable_lora(model):
        assert not torch.equal(logits(model), coarse)
    assert not torch.equal(coarse, full)
    torch.testing.assert_close(coarse, full, rtol=0.1, atol=0.1)
    coarse.square().sum().backward()
    for _, layer in lora_layers(model):
        assert layer.lora_A.grad.isfinite().all() and layer.lora_B.grad.abs().max() > 0
    other = apply_lora(tiny_roberta(hidden_size=64, intermediate_size=128), target_modules="all-linear")
    shrink_base(other, to)
    load_adapter(other, save_adapter(model, tmp_path))
    assert torch.equal(logits(other), coarse)
    torch.testing.assert_close(logits(merge_lora(model)), coarse, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(unmerge_lora(model)), coarse)
    merged = remove_lora(model, merge=True)
    torch.testing.assert_close(logits(merged), coarse, rtol=1e-4, atol=1e-5)
    assert type(merged.roberta.encoder.layer[0].output.dense.weight.data) is torch.Tensor


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["int8", "nf4"])
def test_merging_an_adapter_of_zero_moves_no_weight(to: str) -> None:
    """PEFT quantizes again after adding nothing, which moves weights; here merged ones stay in float."""
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    model = shrink_base(apply_lora(tiny_roberta(hidden_size=64, intermediate_size=128)), to)  # B is zero
    before = {name: dequantized(layer.weight).clone() for name, layer in lora_layers(model)}
    packed = {name: type(layer.weight.data) for name, layer in lora_layers(model)}
    for name, layer in lora_layers(merge_lora(model)):
        assert type(layer.weight.data) is torch.Tensor
        assert torch.equal(layer.weight, before[name]), name
    for name, layer in lora_layers(unmerge_lora(model)):
        assert type(layer.weight.data) is packed[name]
        assert torch.equal(dequantized(layer.weight), before[name]), name


WIDE = {"hidden_size": 64, "intermediate_size": 128}
KINDS = [torch.bfloat16, torch.float16, "int8", "nf4"]


def shrunk(model: nn.Module, to: torch.dtype | str) -> nn.Module:
    if isinstance(to, str):
        pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    return shrink_base(model, to)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", KINDS)
def test_an_adapter_of_a_shrunk_base_fits_the_base_it_came_from(to: torch.dtype | str, tmp_path: Path) -> None:
    """On the original base, on the base shrunk afterwards, on one that was shrunk before; never on another base."""
    model = apply_lora(tiny_roberta(**WIDE))
    perturb(model)
    want = logits(shrunk(model, to))
    save_adapter(model, tmp_path)
    after = shrink_base(load_adapter(tiny_roberta(**WIDE), tmp_path), to)
    before = load_adapter(shrink_base(apply_lora(tiny_roberta(**WIDE), adapter_name="other"), to), tmp_path)
    again = load_adapter(remove_lora(before), tmp_path)
    for found in (after, before, again):
        assert torch.equal(logits(found), want)
    other = tiny_roberta(**WIDE)
    with torch.no_grad():
        other.roberta.encoder.layer[0].output.dense.weight[0, 0] += 1
    for base in (other, shrink_base(apply_lora(other, adapter_name="other"), to)):
        with pytest.raises(ValueError, match="another base"):
            load_adapter(base, tmp_path)
    changed = shrink_base(apply_lora(tiny_roberta(**WIDE), adapter_name="other"), to)
    with torch.no_grad():
        changed.roberta.embeddings.LayerNorm.weight += 1
    with pytest.raises(ValueError, match="another base"):
        load_adapter(changed, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_base_shrunk_beside_another_head_says_what_to_do_and_that_works(tmp_path: Path) -> None:
    model = shrunk(apply_lora(tiny_roberta(**WIDE)), "int8")
    perturb(model)
    want, folder = logits(model), save_adapter(model, tmp_path)
    other = apply_lora(tiny_roberta(**WIDE), modules_to_save=["LayerNorm"], adapter_name="other")
    shrink_base(other, "int8")
    with pytest.raises(ValueError, match=r"other modules .* than the adapter's \(classifier\).* first, then shrink"):
        load_adapter(other, folder)
    assert torch.equal(logits(load_adapter(other, folder, check_base=False)), want)
    assert torch.equal(logits(shrink_base(load_adapter(tiny_roberta(**WIDE), folder), "int8")), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
@pytest.mark.parametrize("options", [{"target_modules": "all-linear"}, {"target_modules": None, "bias": "all"}])
def test_a_half_base_in_float32_computes_with_its_rounded_weights(kind: str, options: dict, dtype: torch.dtype) -> None:
    """The oracle is the float32 base whose matrices and their biases were rounded once."""
    build = ARCHITECTURES[kind].build
    model = apply_lora(build(), **options).train()
    perturb(model)
    rounded = copy.deepcopy(model)
    small = shrink_base(model, dtype)
    for (name, parameter), other in zip(rounded.named_parameters(), small.parameters(), strict=True):
        if other.dtype == dtype:
            parameter.data = parameter.data.to(dtype).float()
        assert parameter.dtype == torch.float32, name
    expected, found = output_of(rounded), output_of(small)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, parameter), other in zip(rounded.named_parameters(), small.named_parameters(), strict=True):
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(other[1].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(output_of(remove_lora(small).eval()), output_of(remove_lora(rounded).eval()))


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_nf4_cannot_pack_is_named_before_any_is_packed() -> None:
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    model = apply_lora(tiny_roberta(hidden_size=20, num_attention_heads=2))
    with pytest.raises(ValueError, match="nf4 packs blocks of 64 weights, this layer has .* left over; use 'int8'"):
        shrink_base(model, "nf4")
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert logits(shrink_base(model, "int8")).isfinite().all()


@pytest.mark.parametrize(
    ("to", "message"),
    [("int4", "to must be torch.bfloat16, torch.float16, 'int8' or 'nf4'; got 'int4'"), (torch.float32, "to must be")],
)
def test_other_types_are_refused(to, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shrink_base(apply_lora(tiny_roberta()), to)


def test_a_plain_or_merged_model_is_refused() -> None:
    with pytest.raises(ValueError, match="has no LoRA"):
        shrink_base(tiny_roberta())
    with pytest.raises(ValueError, match="call unmerge_lora first"):
        shrink_base(merge_lora(apply_lora(tiny_roberta())))


def test_without_torchao_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="a base in int8 needs torchao: pip install torchao"):
        shrink_base(apply_lora(tiny_roberta()), "int8")
