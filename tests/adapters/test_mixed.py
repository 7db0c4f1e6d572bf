"""One batch, one adapter per row: what each adapter computes alone, and what PEFT computes for `adapter_names`."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from lorakit.adapters.disabling import disable_lora
from lorakit.adapters.merging import merge_lora
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import apply_lora, set_adapter
from tests.support.lora_models import tiny_roberta
from tests.support.tiny import make_tiny_model

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT calls it
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
]
SETTINGS = {
    "one": {"r": 3, "target_modules": "all-linear"},
    "two": {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": None},
    "start": {"r": 2, "init_lora_weights": "pissa"},
    "biases": {"r": 1, "bias": "all", "target_modules": None},
}
ROWS = ["two", "one", "__base__", "start", "one", "biases"]
IDS = torch.randint(5, 90, (len(ROWS), 7), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def moved(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def adapted(base: nn.Module, names: list[str] | None = None) -> nn.Module:
    for seed, name in enumerate(names or SETTINGS):
        moved(apply_lora(base, **SETTINGS[name], adapter_name=name), seed)
    return base


def alone(model: nn.Module, ids: torch.Tensor, name: str) -> torch.Tensor:
    model = copy.deepcopy(model)
    if name == "__base__":
        with disable_lora(model):
            return model(ids).logits
    return set_adapter(model, name)(ids).logits


@pytest.mark.parametrize("kind", ["roberta", "bert", "distilbert", "modernbert"])
def test_each_row_is_what_its_adapter_computes_alone(kind: str) -> None:
    model = adapted(make_tiny_model(kind))
    mask = (torch.arange(7) < torch.tensor([7, 5, 7, 3, 6, 7])[:, None]).long()
    expected = torch.stack(
        [alone(model, IDS[i : i + 1, : int(mask[i].sum())], name)[0][0] for i, name in enumerate(ROWS)]
    )
    before = model(IDS).logits
    mixed = model(input_ids=IDS, attention_mask=mask, adapter_names=ROWS).logits[:, 0]
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(IDS).logits, before)  # nothing is left behind
    assert torch.equal(model(IDS, adapter_names=["biases"] * len(ROWS)).logits.argmax(-1), before.argmax(-1))


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_it_is_what_peft_computes(kind: str, tmp_path: Path) -> None:
    def base() -> nn.Module:
        return tiny_roberta() if kind == "roberta" else make_tiny_model("gpt2", n_embd=32, n_layer=2, n_head=2)

    model, names = base(), ["one", "two", "three"]
    more = {"target_modules": ["c_attn"]} if kind == "gpt2" else {}
    for seed, (name, r) in enumerate(zip(names, (3, 8, 1), strict=True)):
        moved(apply_lora(model, r=r, adapter_name=name, **more), seed)
        save_adapter(model, tmp_path / name)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "one", adapter_name="one")
    for name in names[1:]:
        theirs.load_adapter(tmp_path / name, adapter_name=name)
    rows = ["three", "one", "two", "__base__", "one", "three"]
    wanted = theirs.eval()(input_ids=IDS, adapter_names=rows).logits
    torch.testing.assert_close(model(input_ids=IDS, adapter_names=rows).logits, wanted, rtol=1e-5, atol=1e-5)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(input_ids=IDS, adapter_names=rows).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "one name for each row of the batch; got 1 name for 6 rows"),
        ("one", "got 'one' for 6 rows"),
        (["one"] * 5 + ["nobody"], "adapter 'nobody' matches nothing in this model"),
        (["one"] * 5 + ["dora"], "'dora' cannot share a batch with others, because it uses DoRA; call set_adapter"),
        (["one"] * 5 + ["table"], "it adapts roberta.embeddings.word_embeddings, a LoRAEmbedding"),
        (["one"] * 5 + ["rows"], "it trains rows of roberta.embeddings.word_embeddings"),
        (["one"] * 5 + ["in full"], "'in full' cannot .* it trains roberta.embeddings.word_embeddings.weight, of a"),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_the_next_batch_works(names: list[str] | str, message: str) -> None:
    model = adapted(tiny_roberta(), ["one", "two"])
    table = "roberta.embeddings.word_embeddings"
    for name, options in {
        "dora": {"use_dora": True},
        "rows": {"trainable_token_indices": [3]},
        "in full": {"modules_to_save": [table]},
        "table": {"target_modules": ["word_embeddings"]},
    }.items():
        apply_lora(model, r=2, adapter_name=name, **options)
    with pytest.raises(ValueError, match=message):
        model(IDS, adapter_names=names)
    assert model(IDS, adapter_names=["one", "two"] * 3).logits.isfinite().all()


def test_training_mode_a_merged_and_a_disabled_model_are_refused() -> None:
    model = adapted(tiny_roberta(), ["one", "two"])
    with pytest.raises(ValueError, match=r"for inference.* call model.eval\(\) first; train_many"):
        model.train()(IDS, adapter_names=["one"] * 6)
    model.eval()
    with disable_lora(model), pytest.raises(ValueError, match="leave disable_lora"):
        model(IDS, adapter_names=["one"] * 6)
    merge_lora(model)
    with pytest.raises(ValueError, match=r"the model is merged \(unmerge_lora"):
        model(IDS, adapter_names=["two"] * 6)


def test_a_layer_whose_input_has_no_rows_is_named() -> None:
    """DeBERTa's queries are also computed for relative positions, which all sentences share."""
    model = make_tiny_model(
        "deberta-v2", attention="eager", relative_attention=True, share_att_key=True, pos_att_type=["c2p"]
    )
    adapted(model, ["one", "one"][:1])
    with pytest.raises(ValueError, match=r"query_proj' gets an input of shape .* leave it out of target_modules"):
        model(IDS, adapter_names=["one"] * 6)
    assert model(IDS).logits.isfinite().all()


def test_a_loaded_adapter_mixes_too(tmp_path: Path) -> None:
    folder = save_adapter(adapted(tiny_roberta(), ["one"]), tmp_path)
    model = load_adapter(adapted(tiny_roberta(), ["one"]), folder, name="again")
    one, again = model(IDS[:2].repeat(2, 1), adapter_names=["one", "one", "again", "again"]).logits.chunk(2)
    assert torch.equal(one, again)
