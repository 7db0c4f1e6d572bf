"""A base in half precision, int8 or nf4 through the whole of a run: packed training, saving, reloading, merging."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import lorakit
from lorakit.adapters.quantization import shrink_base
from lorakit.nn.weights import dequantized
from lorakit.training.layout import layout_for
from tests.support.tiny import MINI, make_tiny_model
from tests.support.token_classifiers import build
from tests.support.toy import killed_after, quick, toy_data

DATA = toy_data(40, 6, 6)
IDS = torch.arange(40).view(2, 20) + 10


def wide_model() -> torch.nn.Module:
    return make_tiny_model(hidden_size=64, intermediate_size=128)


def with_the_same_values(model: torch.nn.Module) -> torch.nn.Module:
    """The same base and adapter in float32: it holds what the frozen weights of `model` stand for."""
    same = lorakit.apply_lora(wide_model(), r=4)
    for name, parameter in same.named_parameters():
        parameter.data.copy_(dequantized(model.get_parameter(name).detach()))
    return same


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.filterwarnings("ignore")  # torchao warns of itself
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("to", [torch.bfloat16, "int8", "nf4"])
def test_a_shrunk_base_trains_packed_saves_reloads_and_merges(
    to: torch.dtype | str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(to, str):
        pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    monkeypatch.setenv("LORAKIT_ONEDNN", "1")  # its kernels are built before the first step
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    model = shrink_base(lorakit.apply_lora(wide_model(), r=4), to)
    kept = {name: type(p.data) for name, p in model.named_parameters()}
    same = with_the_same_values(model)
    result = lorakit.train(model, tokenizer, DATA, quick(precision=precision))
    expected = lorakit.train(same, tokenizer, DATA, quick(precision=precision))
    assert result.computed_tokens < 1.3 * result.train_tokens  # packed rows
    first, last = (scores.loss for scores in result.history)
    assert last < first
    # in bf16 a quantized weight may be rounded once more or less, and ten steps carry that on
    close = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    assert (first, last) == pytest.approx([scores.loss for scores in expected.history], rel=close)
    assert {name: type(p.data) for name, p in model.named_parameters()} == kept
    tuned = logits(model)
    fresh = lorakit.load_adapter(wide_model(), lorakit.save_adapter(model, tmp_path / "adapter"))
    assert torch.equal(logits(shrink_base(fresh, to)), tuned)
    close = {"rtol": 2e-2, "atol": 2e-2} if to is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits(lorakit.merge_lora(model)), tuned, **close)
    assert torch.equal(logits(lorakit.unmerge_lora(model)), tuned)
    torch.testing.assert_close(logits(lorakit.remove_lora(model, merge=True)), tuned, **close)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["all-linear", ["value_proj"]])
@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_quantized_layer_has_autocasts_type_adapted_or_not(to: str, targets: str | list[str]) -> None:
    """DeBERTa masks its scores with the lowest value of its queries' type, which has to be that of the scores."""
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    model = shrink_base(lorakit.apply_lora(build("deberta-v2"), r=4, target_modules=targets), to)
    assert layout_for(model, precision="bf16").packing
    query = model.deberta.encoder.layer[0].attention.self.query_proj
    assert query(torch.ones(3, 32)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert query(torch.ones(3, 32)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_a_run_on_a_quantized_base_resumes(tmp_path: Path, to: str) -> None:
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    whole, part = (shrink_base(lorakit.apply_lora(wide_model(), r=4), to) for _ in range(2))
    expected = lorakit.train(whole, tokenizer, DATA, quick())
    with pytest.raises(KeyboardInterrupt), killed_after(7):
        lorakit.train(part, tokenizer, DATA, quick(output_dir=tmp_path))
    fresh = shrink_base(lorakit.apply_lora(wide_model(), r=4), to)
    result = lorakit.train(fresh, tokenizer, DATA, quick(output_dir=tmp_path, resume=True))
    assert (result.test, result.steps) == (expected.test, expected.steps)
    assert torch.equal(logits(fresh), logits(whole))
