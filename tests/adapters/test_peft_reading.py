"""Files that PEFT writes and reads are read as the adapters that they are: PEFT's own model is the oracle."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lorakit.adapters.counting import count_parameters
from lorakit.adapters.files import TENSORS
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import apply_lora, disable_lora, merge_lora, remove_lora
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import logits, perturb, tiny_roberta

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT calls it
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape.*"),  # PEFT takes B's bias for a shard
    pytest.mark.filterwarnings("ignore:.*did not match any targeted module.*"),  # PEFT's own
]


@pytest.fixture(autouse=True)
def no_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)


def trained_by_peft(base: torch.nn.Module, folder: Path, **options: object) -> torch.nn.Module:
    config = {"r": 4, "target_modules": ["query", "value"], "task_type": "TOKEN_CLS", **options}
    model = peft.get_peft_model(base, peft.LoraConfig(**config)).eval()
    perturb(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"lora_bias": True},
        {"lora_bias": True, "bias": "lora_only"},
        {"lora_bias": True, "bias": "all", "use_rslora": True},
        {"init_lora_weights": "OLoRA"},
        {"init_lora_weights": "Mica"},
        {"init_lora_weights": "Gaussian"},
        {"layers_to_transform": [0], "layers_pattern": ["layer", "blocks"]},
    ],
)
def test_a_valid_file_gives_pefts_outputs_and_goes_back(options: dict, tmp_path: Path) -> None:
    theirs = trained_by_peft(tiny_roberta(), tmp_path / "theirs", **options)
    ours = load_adapter(tiny_roberta(), tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
    back = peft.PeftModel.from_pretrained(tiny_roberta(), save_adapter(ours, tmp_path / "ours")).eval()
    torch.testing.assert_close(logits(back), logits(theirs), rtol=1e-5, atol=1e-6)


def test_a_pattern_that_matches_nothing_warns_as_in_peft(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"quary": 2}, "alpha_pattern": {"kye": 3, "query": 2}}
    theirs = trained_by_peft(tiny_roberta(), tmp_path, **patterns)
    with pytest.warns(UserWarning, match="_pattern '(quary|kye)' of the adapter matches none of its layers: ignored"):
        ours = load_adapter(tiny_roberta(), tmp_path)
    assert torch.equal(logits(ours), logits(theirs))


def test_a_bias_of_an_update_needs_a_layer_with_a_bias(tmp_path: Path) -> None:
    def base() -> torch.nn.Module:
        model = tiny_roberta()
        torch.manual_seed(0)
        model.roberta.encoder.layer[0].attention.self.query = torch.nn.Linear(32, 32, bias=False)
        return model

    with pytest.warns(match="merging LoRA weights won't be possible"):
        trained_by_peft(base(), tmp_path, lora_bias=True)
    with pytest.raises(ValueError, match="lora_bias: '.*0.attention.self.query' has no bias of its own"):
        load_adapter(base(), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("layer_first", [True, False])
def test_layers_compiled_one_by_one_leave_no_trace_in_the_file(layer_first: bool, tmp_path: Path) -> None:
    """PyTorch's regional compilation: `_orig_mod` was part of every key, which PEFT then did not find."""

    def compiled(model: torch.nn.Module) -> torch.nn.Module:
        layers = model.roberta.encoder.layer
        layers[0], model.classifier = (torch.compile(m, backend="eager") for m in (layers[0], model.classifier))
        return model

    model = compiled(tiny_roberta()) if layer_first else tiny_roberta()
    perturb(apply_lora(model, r=4, bias="all"))
    model = model if layer_first else compiled(model)
    plain = apply_lora(tiny_roberta(), r=4, bias="all")
    perturb(plain)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)
    a, b = save_adapter(model, tmp_path / "compiled"), save_adapter(plain, tmp_path / "plain")
    assert (a / TENSORS).read_bytes() == (b / TENSORS).read_bytes()
    loaded = load_adapter(compiled(tiny_roberta()), b)
    torch.testing.assert_close(logits(loaded), logits(plain), rtol=1e-5, atol=1e-6)
    with disable_lora(model):
        torch.testing.assert_close(logits(model), logits(tiny_roberta()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(merge_lora(model)), logits(plain), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(remove_lora(model)), logits(tiny_roberta()), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("targets", [["query", "value"], ".*(query|value)"])
def test_a_file_that_peft_saved_with_compiled_layers_loads(targets: list[str] | str, tmp_path: Path) -> None:
    base = tiny_roberta()
    base.roberta.encoder.layer[0] = torch.compile(base.roberta.encoder.layer[0], backend="eager")
    theirs = trained_by_peft(base, tmp_path, target_modules=targets)
    assert any("_orig_mod" in key for key in load_file(tmp_path / TENSORS))
    torch.testing.assert_close(logits(load_adapter(tiny_roberta(), tmp_path)), logits(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj"], r"language_model.*q_proj"])
def test_a_file_from_before_transformers_renamed_the_modules_loads(targets: list[str] | str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = LlamaConfig(**sizes, vocab_size=99), CLIPVisionConfig(**sizes, image_size=8, patch_size=4)

    def base() -> torch.nn.Module:
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
        ).eval()

    ids = torch.arange(9)[None]
    now = targets if isinstance(targets, list) else rf"model\.{targets}"
    theirs = trained_by_peft(base(), tmp_path, target_modules=now, task_type=None)
    tensors = load_file(tmp_path / TENSORS)
    old = {
        key.replace("model.model.language_model.", "model.language_model.model.").replace(
            "model.model.vision_tower.", "model.vision_tower."
        ): tensor
        for key, tensor in tensors.items()
    }
    assert not set(old) & set(tensors)
    save_file(old, tmp_path / TENSORS, metadata={"format": "pt"})
    if isinstance(targets, str):
        config = (tmp_path / "adapter_config.json").read_text()
        (tmp_path / "adapter_config.json").write_text(config.replace(r"model\\.language", "language"))
    ours = load_adapter(base(), tmp_path)
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
@pytest.mark.parametrize("asked", [[3, 99, 7], {"word_embeddings": [3, 99, 7]}])
def test_trained_rows_of_the_token_table_load(asked: list[int] | dict, tmp_path: Path) -> None:
    theirs = trained_by_peft(tiny_roberta(), tmp_path / "theirs", trainable_token_indices=asked)
    ours = load_adapter(tiny_roberta(), tmp_path / "theirs")
    assert count_parameters(ours).trainable == theirs.get_nb_trainable_parameters()[0]
    ids = torch.tensor([[3, 99, 7, 8, 3]])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-6)
    with disable_lora(ours):
        assert torch.equal(ours(ids).logits, tiny_roberta()(ids).logits)
    back = peft.PeftModel.from_pretrained(tiny_roberta(), save_adapter(ours, tmp_path / "ours")).eval()
    torch.testing.assert_close(back(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-6)


def test_rows_of_new_tokens_load_on_a_base_that_was_resized_again(tmp_path: Path) -> None:
    """Its own new rows are other random numbers; those of the adapter replace them."""

    def resized() -> torch.nn.Module:
        model = tiny_roberta()
        model.resize_token_embeddings(103, mean_resizing=False)
        return model

    theirs = trained_by_peft(resized(), tmp_path, trainable_token_indices=[100, 101, 102])
    with pytest.raises(ValueError, match=r"up to 102 with rows \(3, 32\) do not fit .* \(100, 32\); load the resized"):
        load_adapter(tiny_roberta(), tmp_path)
    ids = torch.tensor([[3, 100, 102, 8]])
    torch.testing.assert_close(load_adapter(resized(), tmp_path)(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
def test_trained_rows_of_a_tied_table_change_the_output_embeddings_too(tmp_path: Path) -> None:
    base = ARCHITECTURES["gpt2-lm"].build
    options = {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}
    theirs = trained_by_peft(base(), tmp_path, trainable_token_indices={"wte": [3, 5]}, **options)
    with pytest.warns(UserWarning, match="wte, lm_head: the adapter trains some rows; further training"):
        ours = load_adapter(base(), tmp_path)
    torch.testing.assert_close(output_of(ours), output_of(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "given", [5, ["x"], [1.5], [-1], [2, 2], {"word_embeddings": {"a": 1}}, {"word_embeddings": 3}]
)
def test_token_indices_of_another_type_are_refused(given: object, tmp_path: Path) -> None:
    trained_by_peft(tiny_roberta(), tmp_path, trainable_token_indices=[3, 4])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"trainable_token_indices": given}))
    with pytest.raises(
        ValueError, match="adapter_config.json: trainable_token_indices (must be numbers|has 2 more than)"
    ):
        load_adapter(tiny_roberta(), tmp_path)
