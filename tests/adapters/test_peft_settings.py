"""A peft.LoraConfig given to apply_lora trains what PEFT trains with it; PEFT's models are refused, with advice."""

import re

import peft
import pytest
import torch

import lorakit
from tests.support.architectures import ARCHITECTURES
from tests.support.lora_models import tiny_roberta

# PEFT reads an attribute that transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CONFIGS = [
    {"task_type": "TOKEN_CLS"},
    {"r": 4, "lora_alpha": 3, "target_modules": ["query"], "task_type": "TOKEN_CLS"},
    {"target_modules": ["query", "value"]},  # without a task PEFT leaves the head frozen
    {"target_modules": "all-linear", "exclude_modules": ["classifier"], "task_type": "TOKEN_CLS", "use_rslora": True},
    {"use_dora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 5}},
    {"layers_to_transform": [1], "layers_pattern": "layer", "target_modules": ["query"]},
    {"modules_to_save": ["classifier"], "bias": "all"},
    {"target_modules": r".*\.1\..*dense", "bias": "lora_only"},
]


def trained(model):
    """Names of what is trained, as lorakit has them, and their sizes."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for part in ("base_model.model.", "base_layer.", "modules_to_save.default.", ".default", "_vector"):
                name = name.replace(part, "")
            found[re.sub(r"(lora_(A|B|magnitude))\.weight$", r"\1", name)] = parameter.numel()
    return found


@pytest.mark.parametrize("settings", CONFIGS)
@pytest.mark.filterwarnings("ignore:.*rank_pattern.*")
def test_it_trains_what_peft_trains(settings):
    config = peft.LoraConfig(**settings)
    ours = lorakit.apply_lora(tiny_roberta(), config)
    theirs = peft.get_peft_model(tiny_roberta(), config)
    assert trained(ours) == trained(theirs)


def test_an_adapter_of_such_a_model_is_read_by_peft_with_the_same_outputs(tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["query"], task_type="TOKEN_CLS", init_lora_weights=False
    )
    ours = lorakit.apply_lora(tiny_roberta(), config)
    lorakit.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_roberta(), tmp_path).eval()
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(ours.eval()(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            peft.LoraConfig(lora_bias=True),
            'lora_bias=True, which lorakit does not have: write bias="lora_only" instead',
        ),
        (peft.LoraConfig(target_parameters=["x"]), "name nn.Linear layers in target_modules instead"),
        (peft.LoraConfig(init_lora_weights="mica"), "init_lora_weights must be True, False"),
        (peft.LoraConfig(layer_replication=[(0, 2)]), "layer_replication=.*leave it out, or train with PEFT"),
        (peft.IA3Config(), "got a IA3Config, whose method is IA3; lorakit has LoRA only"),
    ],
)
def test_what_has_no_counterpart_is_refused_in_one_line(config, message):
    model = tiny_roberta()
    with pytest.raises(ValueError, match=message) as error:
        lorakit.apply_lora(model, config)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_messages_say_to_write_instead_works():
    assert lorakit.apply_lora(tiny_roberta(), peft.LoraConfig(bias="lora_only"))
    saved = lorakit.apply_lora(tiny_roberta(), peft.LoraConfig(modules_to_save=["word_embeddings"]))
    assert saved.roberta.embeddings.word_embeddings.weight.requires_grad


def test_settings_beside_a_config_are_refused():
    with pytest.raises(ValueError, match="got a LoraConfig and lora_alpha, bias; set lora_alpha in one of the two"):
        lorakit.apply_lora(tiny_roberta(), peft.LoraConfig(), lora_alpha=3, bias="all")


@pytest.mark.parametrize("plain", [lambda model: model.unload(), lambda model: model.merge_and_unload()])
def test_a_peft_model_is_refused_and_the_advice_works(plain, tmp_path):
    model = peft.get_peft_model(tiny_roberta(), peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    for call in (lorakit.apply_lora, lambda model: lorakit.load_adapter(model, tmp_path)):
        with pytest.raises(ValueError, match=r"got a PeftModel, which has PEFT's layers; .*model\.unload\(\)"):
            call(model)
    lorakit.apply_lora(plain(model))
    lorakit.load_adapter(tiny_roberta(), tmp_path)


def test_a_model_in_which_transformers_has_put_an_adapter_is_refused():
    model = tiny_roberta()
    model.add_adapter(peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(
        ValueError, match="with an adapter that transformers put in through PEFT; load the base without"
    ):
        lorakit.apply_lora(model)


# What docs/peft.md says of PEFT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [8, 4])
def test_a_rank_alone_moves_with_another_strength(rank):
    """PEFT's alpha is 8 and ours is 32, so that code that names the rank alone trains with another scale."""
    model, query = tiny_roberta(), "roberta.encoder.layer.0.attention.self.query"
    theirs = peft.get_peft_model(tiny_roberta(), peft.LoraConfig(r=rank, target_modules=["query"]))
    scale = theirs.base_model.model.get_submodule(query).scaling["default"]
    assert scale == 8 / rank
    assert lorakit.apply_lora(model, r=rank).get_submodule(query).scaling == 32 / rank
    assert lorakit.apply_lora(tiny_roberta(), peft.LoraConfig(r=rank)).get_submodule(query).scaling == scale


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gpt2", "llama"])
def test_peft_adapts_a_head_that_it_also_trains_in_full(name):
    """Its own error, and what helps; lorakit takes such a configuration."""
    architecture, head = ARCHITECTURES[name], ["score" if name == "llama" else "classifier"]
    settings = {"task_type": "TOKEN_CLS", "target_modules": "all-linear"}
    with pytest.raises(TypeError, match="modules_to_save cannot be applied to modules of type"):
        peft.get_peft_model(architecture.build(), peft.LoraConfig(**settings))
    peft.get_peft_model(architecture.build(), peft.LoraConfig(**settings, exclude_modules=head))
    lorakit.apply_lora(architecture.build(), peft.LoraConfig(**settings))


def test_peft_warns_of_a_rank_for_nothing():
    config = peft.LoraConfig(target_modules=["query"], rank_pattern={"quary": 2})
    with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match any targeted module"):
        peft.get_peft_model(tiny_roberta(), config)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*", "ignore:.*tie_word_embeddings.*", "ignore:.*weight_tying.*")
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_peft_cuts_the_tie_of_a_decoder_whose_output_was_trained(saved):
    config = peft.LoraConfig(target_modules=["c_attn"], modules_to_save=saved, task_type="CAUSAL_LM")
    model = peft.get_peft_model(ARCHITECTURES["gpt2-lm"].build(), config).merge_and_unload()
    assert model.config.tie_word_embeddings is (saved is None)


def test_peft_on_an_adapted_model_is_named_and_both_fixes_work(tmp_path):
    """PEFT takes our layers for plain ones; unload() gives them back, and after a merge it has a plain base."""
    ids = torch.arange(4, 12)[None]
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    model = lorakit.apply_lora(tiny_roberta(), r=2, target_modules=["query"], init_lora_weights=False).eval()
    before = model(ids).logits
    wrapped = peft.get_peft_model(model, config)
    for act in (lorakit.merge_lora, lorakit.remove_lora, lambda model: lorakit.save_adapter(model, tmp_path / "a")):
        with pytest.raises(ValueError, match="query is a layer of PEFT around lorakit's, because get_peft_model was"):
            act(model)
    wrapped.unload()
    torch.testing.assert_close(model(ids).logits, before)
    lorakit.save_adapter(model, tmp_path / "a")
    plain = lorakit.remove_lora(model, merge=True).eval()
    theirs = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["query"])).eval()
    torch.testing.assert_close(theirs(ids).logits, before)
