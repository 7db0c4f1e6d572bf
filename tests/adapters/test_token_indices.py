"""Only the rows of chosen tokens are trained, saved and loaded; PEFT's `trainable_token_indices` is the oracle."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import (
    adapter_names,
    apply_lora,
    combine_adapters,
    count_parameters,
    disable_lora,
    lora_plus_groups,
    merge_lora,
    peft_total,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from tests.support.architectures import ARCHITECTURES
from tests.support.lora_models import QUERY_VALUE, perturb, tiny_roberta
from tests.support.tiny import make_tiny_model
from tests.support.toy import quick, step_lines, toy_data

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
TABLE = "roberta.embeddings.word_embeddings"
IDS = torch.tensor([[3, 99, 7, 8, 3], [99, 5, 6, 7, 1]])
TOKENS = [3, 99, 7]
ROWS = f"{TABLE}.lora_rows"


def resized() -> nn.Module:
    model = tiny_roberta()
    model.resize_token_embeddings(103, mean_resizing=False)
    return model


def with_rows(base: nn.Module | None = None, tokens: object = TOKENS, **options: object) -> nn.Module:
    model = apply_lora(base or tiny_roberta(), **QUERY_VALUE, trainable_token_indices=tokens, **options)
    perturb(model)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("tokens", [TOKENS, {"word_embeddings": TOKENS}, range(3, 6), {TABLE: (0, 1)}])
def test_it_trains_what_peft_trains(tokens: object, tmp_path: Path) -> None:
    """Ten AdamW steps give the same rows; file and counts are PEFT's."""
    ours = apply_lora(tiny_roberta(), **QUERY_VALUE, trainable_token_indices=tokens)
    base = tiny_roberta()
    theirs = peft.PeftModel.from_pretrained(base, save_adapter(ours, tmp_path / "start"), is_trainable=True)
    assert count_parameters(ours).trainable == theirs.get_nb_trainable_parameters()[0]
    assert peft_total(ours) == theirs.get_nb_trainable_parameters()[1]
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(10):
            model(IDS, labels=IDS % 11).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    delta = next(p for name, p in theirs.named_parameters() if "trainable_tokens_delta" in name)
    torch.testing.assert_close(ours.get_parameter(ROWS), delta, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.get_parameter(f"{TABLE}.weight"), tiny_roberta().get_parameter(f"{TABLE}.weight"))
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "theirs", save_adapter(ours, tmp_path / "ours")):
        loaded = peft.PeftModel.from_pretrained(tiny_roberta(), folder).eval()
        again = load_adapter(tiny_roberta(), folder)
        torch.testing.assert_close(logits(again), logits(loaded), rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(again), logits(ours))


def test_merging_removing_disabling_and_switching_keep_the_rows_apart(tmp_path: Path) -> None:
    model, plain = with_rows(), tiny_roberta()
    before = logits(model)
    loaded = peft.PeftModel.from_pretrained(tiny_roberta(), save_adapter(model, tmp_path / "adapter")).eval()
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merge_lora(model)), logits(merged), rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path / "merged")
    again = type(plain).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(again), logits(merged), rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(unmerge_lora(model)), before)
    with disable_lora(model):
        assert torch.equal(logits(model), logits(plain))
    apply_lora(model, **QUERY_VALUE, adapter_name="none")
    assert torch.equal(logits(model), logits(plain))  # a new adapter without rows
    apply_lora(model, **QUERY_VALUE, adapter_name="others", trainable_token_indices=[4])
    assert model.get_parameter(ROWS).shape == (1, 32)
    assert torch.equal(logits(set_adapter(model, "default")), before)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(logits(remove_lora(copied, merge=True)), logits(merged), rtol=1e-5, atol=1e-6)
    for tensors in (remove_lora(model).state_dict(), copied.state_dict()):
        assert tensors.keys() == plain.state_dict().keys()
    assert torch.equal(logits(model), logits(plain))


def test_adapters_with_the_same_rows_add_up_and_others_are_refused() -> None:
    model, plain = with_rows(), tiny_roberta().get_parameter(f"{TABLE}.weight")[TOKENS]
    one = model.get_parameter(ROWS).detach().clone()
    with_rows(model, adapter_name="second")
    two = model.get_parameter(ROWS).detach().clone()
    combine_adapters(model, {"default": 0.5, "second": 2.0}, "both")
    set_adapter(model, "both")
    torch.testing.assert_close(model.get_parameter(ROWS), plain + 0.5 * (one - plain) + 2.0 * (two - plain))
    apply_lora(model, **QUERY_VALUE, adapter_name="third", trainable_token_indices=[1, 2, 4])
    with pytest.raises(ValueError, match="rows of other tokens in 'roberta.embeddings.word_embeddings'"):
        combine_adapters(model, {"default": 1.0, "third": 1.0}, "no")
    assert adapter_names(model)[0] == "third"


def test_rows_of_new_tokens_replace_those_of_a_base_that_was_resized_anew(tmp_path: Path) -> None:
    """The base's fingerprint leaves them out, but no other row."""
    model, ids = with_rows(resized(), range(100, 103)), torch.tensor([[3, 100, 102, 8]])
    folder = save_adapter(model, tmp_path / "adapter")
    for base in (resized(), load_adapter(resized(), folder)):
        assert torch.equal(load_adapter(base, folder, name="again")(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match=r"\(100, 32\); .* model.resize_token_embeddings\(103\) first"):
        load_adapter(tiny_roberta(), folder)
    folder = save_adapter(with_rows(resized(), [100, 101]), tmp_path / "two")
    with pytest.raises(ValueError, match="trained on another base"):
        load_adapter(resized(), folder)


def test_packed_rows_train_as_plain_ones_and_no_other_row_moves(tmp_path: Path, tokenizer) -> None:
    data, curves = toy_data(24, 8, 0), []
    tokens = sorted(set(tokenizer(["IL-2 gene cells GATA-1"])["input_ids"][0][1:-1]))
    for packing in ("on", "off"):
        model = apply_lora(make_tiny_model(), r=2, trainable_token_indices=tokens)
        start = model.get_parameter(ROWS).detach().clone()
        config = quick(packing=packing, log_every=1, output_dir=tmp_path / packing, resume=False)
        lorakit.train(model, tokenizer, data, config)
        curves.append([line["loss"] for line in step_lines(tmp_path / packing)])
        assert ((model.get_parameter(ROWS) - start).abs().amax(1) > 1e-3).all()
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    plain = make_tiny_model().get_parameter(f"{TABLE}.weight")
    assert torch.equal(model.get_parameter(f"{TABLE}.weight"), plain)


def test_a_config_of_peft_asks_for_rows_and_lora_plus_has_a_rate_for_them(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="TOKEN_CLS", target_modules=["query"], trainable_token_indices=TOKENS)
    model = apply_lora(tiny_roberta(), config)
    group = next(g for g in lora_plus_groups(model, 1e-3) if g["lr"] == 1e-6)
    assert [p.shape for p in group["params"]] == [(3, 32)]
    assert "3 rows of" in (save_adapter(model, tmp_path) / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_token_indices": [100]}, r"has 100, and .* has 100 rows, .*resize_token_embeddings\(101\) first"),
        ({"trainable_token_indices": [1, 1]}, "has 1 more than once; name each token once"),
        ({"trainable_token_indices": [-1]}, r"must be numbers of tokens.*convert_tokens_to_ids gives the numbers"),
        ({"trainable_token_indices": "<URL>"}, "must be numbers of tokens"),
        ({"trainable_token_indices": {"words": [1]}}, "'words' matches nothing in this model.*word_embeddings"),
        ({"trainable_token_indices": [1], "target_modules": ["word_embeddings"]}, "adapted or trained in full already"),
        ({"trainable_token_indices": [1], "modules_to_save": [TABLE]}, "leave it out of target_modules and modules_to"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_the_model_stays(options: dict, message: str) -> None:
    model = tiny_roberta()
    with pytest.raises(ValueError, match=message):
        apply_lora(model, r=2, **options)
    assert model.state_dict().keys() == tiny_roberta().state_dict().keys()
    model.resize_token_embeddings(101, mean_resizing=False)  # as the first message says
    assert apply_lora(model, r=2, trainable_token_indices=[100]).get_parameter(ROWS).shape == (1, 32)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_a_table_that_others_share_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    model = ARCHITECTURES["gpt2-lm"].build()
    with pytest.raises(ValueError, match=r"shares its table with 'lm_head'.* modules_to_save=\['transformer.wte', 'lm"):
        apply_lora(model, r=2, trainable_token_indices=[3])
    apply_lora(model, r=2, modules_to_save=["transformer.wte", "lm_head"])


def test_a_table_may_be_resized_after_apply_lora() -> None:
    model = with_rows()
    before = logits(model)
    model.resize_token_embeddings(103, mean_resizing=False)
    assert torch.equal(logits(model), before)
    assert model(torch.tensor([[3, 102]])).logits.isfinite().all()
