"""Modules trained in full: ties and quantized weights are refused alike by applying and loading; the advice works."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from lorakit.adapters.quantization import shrink_base
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    apply_lora,
    count_parameters,
    disable_lora,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import IDS, logits, perturb, tiny_roberta

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT calls it
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying.*"),
]


@pytest.fixture(autouse=True)
def no_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)


def tied() -> torch.nn.Module:
    return ARCHITECTURES["gpt2-lm"].build()


def masked_lm() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**sizes, vocab_size=40)).eval()


def test_both_halves_of_a_tie_are_one_parameter_and_both_in_the_file(tmp_path: Path) -> None:
    """The standard recipe for new tokens; PEFT raised KeyError: lm_head.weight."""
    model = apply_lora(tied(), r=2, modules_to_save=["wte", "lm_head"])
    perturb(model)
    tuned = output_of(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    save_adapter(model, tmp_path)
    assert torch.equal(output_of(load_adapter(tied(), tmp_path)), tuned)
    theirs = peft.PeftModel.from_pretrained(tied(), tmp_path).eval()
    torch.testing.assert_close(output_of(theirs), tuned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output_of(remove_lora(model, merge=True)), tuned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ensure", [False, True])
@pytest.mark.parametrize("names", [["wte"], ["lm_head"], ["wte", "lm_head"]])
def test_peft_files_of_tied_modules_give_its_outputs_or_say_how(names: list[str], ensure: bool, tmp_path: Path) -> None:
    """Without ensure_weight_tying PEFT trains a copy of each: another model, unless the tie is cut."""
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], modules_to_save=list(names), **({"ensure_weight_tying": True} if ensure else {})
    )
    theirs = peft.get_peft_model(tied(), config).eval()
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    model = tied()
    if not (ensure and "lm_head" in names):
        with pytest.raises(ValueError, match=r"untie (it|them) .*: model\.get_submodule") as refused:
            load_adapter(model, tmp_path)
        assert count_parameters(model).trainable == count_parameters(model).total  # unchanged
        exec(str(refused.value).rpartition(": ")[2], {"model": model, "torch": torch})
    torch.testing.assert_close(output_of(load_adapter(model, tmp_path)), output_of(theirs), rtol=1e-5, atol=1e-6)


def test_the_advice_for_half_a_tie_names_all_that_is_tied() -> None:
    """The decoder shares its weight with the embeddings and its bias with the module around it."""
    with pytest.raises(ValueError, match="'cls.predictions.decoder' shares a tied parameter") as refused:
        apply_lora(masked_lm(), modules_to_save=["decoder"])
    message = str(refused.value)
    assert "modules_to_save=['bert.embeddings.word_embeddings', 'cls.predictions']" in message
    model = apply_lora(masked_lm(), modules_to_save=["bert.embeddings.word_embeddings", "cls.predictions"])
    assert model.cls.predictions.decoder.weight.requires_grad
    model = masked_lm()
    for _ in range(2):  # the weight, then the bias
        with pytest.raises(ValueError, match="untie it first") as refused:
            apply_lora(model, modules_to_save=["decoder"])
        exec(str(refused.value).rpartition(": ")[2], {"model": model, "torch": torch})
    apply_lora(model, modules_to_save=["decoder"])
    assert model(IDS).logits.isfinite().all()
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
)
def test_an_adapted_model_may_change_its_type(before: torch.dtype, after: torch.dtype) -> None:
    """The untouched copies of what is trained go along; a head of the old type ended in "BFloat16 and Float"."""

    def cast() -> torch.nn.Module:
        model = apply_lora(tiny_roberta().to(before), r=2, bias="all")
        perturb(model)
        return model.to(after)

    model, base = cast(), tiny_roberta().to(before).to(after)
    tuned = logits(model)
    with disable_lora(model):
        assert torch.equal(logits(model), logits(base))
    apply_lora(model, r=2, bias="all", adapter_name="second")
    assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(set_adapter(model, "default")), tuned)
    close = {"rtol": 2e-2, "atol": 0.1} if after is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits(merge_lora(model)), tuned, **close)
    assert torch.equal(logits(unmerge_lora(model)), tuned)
    removed = remove_lora(cast(), merge=True)
    torch.testing.assert_close(logits(removed), tuned, **close)
    assert torch.equal(logits(remove_lora(model)), logits(base))
    for plain in (removed, model):
        assert {p.dtype for p in plain.parameters()} == {after}


def test_a_module_inside_another_one_is_trained_with_it(tmp_path: Path) -> None:
    model = apply_lora(tiny_roberta(), r=2, modules_to_save=["output", "output.LayerNorm", "attention"])
    perturb(model)
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(tiny_roberta(), tmp_path)), logits(model))
    theirs = peft.PeftModel.from_pretrained(tiny_roberta(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_module_cannot_be_trained_in_full(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="quantized bases need the optional torchao")
    folder = save_adapter(apply_lora(tiny_roberta(), r=2), tmp_path)
    model = shrink_base(apply_lora(tiny_roberta(), r=2, modules_to_save=[], adapter_name="other"), "int8")
    for act in (lambda: apply_lora(model, r=2), lambda: load_adapter(model, folder)):
        with pytest.raises(ValueError, match="'classifier' is to be trained in full, and classifier.weight is quant"):
            act()
    model = shrink_base(load_adapter(apply_lora(tiny_roberta(), r=2, adapter_name="other"), folder), "int8")
    assert logits(model).isfinite().all()
