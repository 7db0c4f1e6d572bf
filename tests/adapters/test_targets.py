"""Which layers are adapted: defaults, suffixes, regexes, layer indices, the head; and what is refused, and why."""

import ast
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import FalconConfig, FalconForTokenClassification

from lorakit.adapters.targets import DEFAULT_TARGETS, find_head, find_targets, keep_layers
from lorakit.lora import apply_lora, lora_layers, lora_state
from lorakit.nn.layers import LoRALayer
from lorakit.nn.weights import is_adaptable
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import tiny_roberta

pytestmark = pytest.mark.filterwarnings("ignore:r=.* is more than .* can use")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_default_targets_and_head_of_each_architecture(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build().requires_grad_(False)
    expected = output_of(model)
    assert find_head(model) == architecture.head
    apply_lora(model, r=8, target_modules=None)
    assert {n.rpartition(".")[2] for n, _ in lora_layers(model)} == set(architecture.targets)
    assert torch.equal(output_of(model), expected)
    for head in architecture.head:
        assert all(p.requires_grad for p in model.get_submodule(head).parameters())


def test_defaults_cover_at_least_25_architectures() -> None:
    assert len(DEFAULT_TARGETS) >= 60
    asked = "distilbert albert camembert modernbert deberta-v2 electra xlm-roberta mpnet gpt2 llama qwen2 qwen3 mistral"
    assert set(f"{asked} gemma t5 whisper vit".split()) <= DEFAULT_TARGETS.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_that_can_be_adapted_changes_the_output(name: str) -> None:
    """Code that reads a layer's weight directly would bypass the update: such layers are refused instead."""
    model = ARCHITECTURES[name].build()
    head = ARCHITECTURES[name].head
    dead = {"layoutlm": {"layoutlm.pooler.dense"}, "deberta": {"deberta.encoder.rel_embeddings"}, "t5": {"shared"}}
    names = [
        n
        for n, module in model.named_modules()
        if is_adaptable(module) and not any(n.startswith(h) for h in head) and n not in dead.get(name, ())
    ]
    if name == "t5":
        names = [n for n in names if not n.endswith("embed_tokens")]
    apply_lora(model, r=4, target_modules="|".join(map(re.escape, names)))
    assert [n for n, _ in lora_layers(model)] == names
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_A, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(layer.lora_B)
    before = output_of(model)
    for layer_name, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=5, generator=torch.Generator().manual_seed(1))
        moved = output_of(model) - before
        assert moved.abs().max() > 1e-4, layer_name
        nn.init.zeros_(layer.lora_B)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
    expected = output_of(model)
    with torch.no_grad():  # training and no_grad compute the same
        torch.testing.assert_close(output_of(model), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output_of(model.train()), expected, rtol=1e-4, atol=1e-4)


LAYERS = [name for name, m in tiny_roberta().named_modules() if isinstance(m, nn.Linear | nn.Embedding)]


PARTS = [".".join(name.split(".")[-n:]) for name in LAYERS for n in (1, 2, 3)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    wanted=st.lists(st.sampled_from(PARTS), min_size=1, max_size=3),
    excluded=st.lists(st.sampled_from(PARTS), max_size=2),
    regex=st.booleans(),
)
def test_targets_equal_those_of_a_simple_matcher(wanted: list[str], excluded: list[str], regex: bool) -> None:
    def means(names: list[str], layer: str) -> bool:
        return any(layer.split(".")[-len(n.split(".")) :] == n.split(".") for n in names)

    inside = [n for n in LAYERS if not n.startswith("classifier")]
    matched = [n for n in inside if means(wanted, n)]
    expected = tuple(n for n in matched if not means(excluded, n))
    pattern = rf"(?:.*\.)?({'|'.join(map(re.escape, wanted))})"
    arguments = (tiny_roberta(), pattern if regex else wanted, excluded, ["classifier"])
    each = all(any(means([w], n) for n in inside) for w in wanted) if not regex else bool(matched)
    if each and expected and all(any(means([e], n) for n in matched) for e in excluded):
        assert find_targets(*arguments) == expected
    else:
        with pytest.raises(ValueError, match="."):
            find_targets(*arguments)


def test_list_regex_all_linear_and_exclusion() -> None:
    model = tiny_roberta()
    layers = "roberta.encoder.layer"
    assert find_targets(model, ["output.dense"]) == tuple(
        f"{layers}.{i}.{part}output.dense" for i in (0, 1) for part in ("attention.", "")
    )
    assert find_targets(model, rf"{layers}\.1\..*\.key") == (f"{layers}.1.attention.self.key",)
    every = find_targets(model, "all-linear", trained_in_full=["classifier"])
    assert len(every) == 12
    assert not any("classifier" in name for name in every)
    assert len(find_targets(model, "all-linear", ["dense", "1.attention.self.key"], ["classifier"])) == 5
    assert len(find_targets(model, "all-linear", r".*\.dense", ["classifier"])) == 6


def test_all_linear_leaves_out_head_and_output_embeddings() -> None:
    for name in ("roberta-classifier", "llama-lm", "qwen2", "gpt2"):
        model = apply_lora(ARCHITECTURES[name].build(), target_modules="all-linear")
        outside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, LoRALayer)]
        assert outside == [
            n for n in outside if n == "lm_head" or any(n.startswith(h) for h in ARCHITECTURES[name].head)
        ]
        assert outside


def test_all_linear_leaves_out_a_pooler_that_the_head_does_not_use() -> None:
    """Where the head reads the pooled output, or may, it is adapted; by name it always can be."""
    model = ARCHITECTURES["layoutlm"].build()
    model.main_input_name = "pixel_values"  # so it cannot be found out by running it
    pooler = "layoutlm.pooler.dense"
    assert pooler not in find_targets(model, "all-linear", trained_in_full=["classifier"])
    assert find_targets(model, ["pooler.dense"]) == (pooler,)
    type_of = type(model)
    for name, used in (("LayoutLMForSequenceClassification", True), ("LayoutLMForQuestionAnswering", True)):
        model.__class__ = type(name, (type_of,), {})  # as ViLT and LXMERT, which answer without qa_outputs
        assert (pooler in find_targets(model, "all-linear", trained_in_full=["classifier"])) is used
    model.qa_outputs = nn.Linear(32, 2)
    assert pooler not in find_targets(model, "all-linear", trained_in_full=["classifier", "qa_outputs"])


def test_all_linear_never_adapts_the_head_though_its_name_can() -> None:
    model = tiny_roberta()
    assert "classifier" not in find_targets(model, "all-linear")
    assert find_targets(model, ["classifier"]) == ("classifier",)


def test_all_linear_by_layer() -> None:
    model = apply_lora(tiny_roberta(), layers_to_transform=[1])
    assert {name.split(".")[3] for name, _ in lora_layers(model)} == {"1"}
    assert len(list(lora_layers(model))) == 6


def test_layers_by_index_and_list_name() -> None:
    model = apply_lora(tiny_roberta(), target_modules=["query", "dense"], layers_to_transform=1, layers_pattern="layer")
    assert {name.split(".")[3] for name, _ in lora_layers(model)} == {"1"}
    experts = ("model.layers.1.experts.0.up", "model.layers.0.experts.1.up")
    assert keep_layers(experts, [1]) == experts[:1]  # the first number counts
    assert keep_layers(experts, [1], ["experts"]) == experts[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query", "valeu"]}, "target_modules 'valeu' .* did you mean 'value'"),
        ({"target_modules": "query,value"}, r"one string is a regular expression .* pass \['query', 'value'\]"),
        ({"target_modules": "query"}, r"for a list of names pass \['query'\]"),
        ({"target_modules": "(query"}, "is not a regular expression"),
        ({"target_modules": ["classifier"]}, r"is inside the head, which is trained in full; .* modules_to_save=\[\]"),
        ({"target_modules": ["LayerNorm"]}, "is a LayerNorm, which cannot be adapted; these can: word_embeddings"),
        (
            {"target_modules": None, "exclude_modules": ["kery"]},
            "exclude_modules 'kery' matches nothing .* did you mean 'query'. It has: query, value",
        ),
        ({"exclude_modules": r".*\.nothing"}, "exclude_modules .* matches no target"),
        ({"target_modules": None, "exclude_modules": ["query", "value"]}, "exclude_modules leaves no target"),
        ({"layers_to_transform": [0, 77]}, r"layers_to_transform 77 matches no layer; the targets are in \[0, 1\]"),
        ({"layers_to_transform": [0], "layers_pattern": "layr"}, "layers_pattern 'layr' .* did you mean 'layer'"),
    ],
)
def test_a_name_that_matches_nothing_raises_with_the_closest_names(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_lora(tiny_roberta(), **options)


def test_an_unknown_architecture_lists_its_layers() -> None:
    model = nn.Sequential()
    model.add_module("up", nn.Linear(2, 3))
    model.add_module("down", nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match="no default target_modules for Sequential; name some: up, down; or pass 'all-l"
    ):
        apply_lora(model, target_modules=None)
    model = tiny_roberta()
    model.config.model_type = "novel"
    with pytest.raises(ValueError, match="no default target_modules for model type 'novel'; name some: .*query, key"):
        apply_lora(model, target_modules=None)


def test_layers_whose_parent_reads_their_weight_are_refused_with_the_reason() -> None:
    attention = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "up": nn.Linear(4, 4)})
    for targets in (["out_proj"], "all-linear", r".*out_proj"):
        with pytest.raises(ValueError, match="'attn.out_proj' is inside an nn.MultiheadAttention, which reads"):
            apply_lora(attention, target_modules=targets)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
    with pytest.raises(ValueError, match=r"'layers.0.linear1' is inside an nn.TransformerEncoderLayer.* in eval mode"):
        apply_lora(encoder, target_modules=["linear1"])
    with pytest.raises(ValueError, match="'deberta.encoder.rel_embeddings' is in a DebertaEncoder"):
        apply_lora(ARCHITECTURES["deberta"].build(), target_modules=["rel_embeddings"])
    apply_lora(attention, target_modules="all-linear", exclude_modules=["out_proj"])


def test_following_the_message_about_refused_layers_once_is_enough() -> None:
    def build() -> nn.Module:
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        return nn.ModuleDict({"encoder": encoder, "up": nn.Linear(4, 4), "linear": nn.Linear(4, 4)})

    with pytest.raises(
        ValueError, match="leave it out of target_modules, or in Python name it: exclude_modules="
    ) as error:
        apply_lora(build(), r=2)
    fix = ast.literal_eval(str(error.value).rpartition("exclude_modules=")[2])
    assert fix == ["out_proj", "linear1", "linear2"]
    assert [n for n, _ in lora_layers(apply_lora(build(), r=2, exclude_modules=fix))] == ["up", "linear"]
    same_name = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2), "out_proj": nn.Linear(4, 4), "up": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match=r"exclude_modules=\['up', 'attn.out_proj'\]"):
        apply_lora(same_name, r=2, exclude_modules=["up"])
    apply_lora(same_name, r=2, exclude_modules=["up", "attn.out_proj"])
    assert [n for n, _ in lora_layers(same_name)] == ["out_proj"]


def test_where_every_target_is_refused_the_message_does_not_say_to_leave_all_of_them_out() -> None:
    """Falcon's linear layers are all of a class of its own, so without them there would be no target."""
    config = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    falcon = FalconForTokenClassification(config)
    for targets in ("all-linear", ["dense"]):
        with pytest.raises(
            ValueError,
            match=r"a FalconLinear, .* like every layer that .*; train the model in full \(lorakit train --m",
        ):
            apply_lora(falcon, target_modules=targets)
    apply_lora(falcon, target_modules=["word_embeddings"])  # other layers, as it says


def test_a_subclass_that_may_compute_something_else_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.ModuleDict({"a": Scaled(2, 2), "b": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="target 'a' is a Scaled, which computes something else"):
        apply_lora(model, target_modules="all-linear")


def test_a_module_under_two_names_is_adapted_under_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model = apply_lora(Twice(), target_modules=["a"])
    assert model.a is model.b
    assert isinstance(model.b, LoRALayer)
    assert len(list(lora_layers(model))) == 1
    twin = Twice()
    apply_lora(twin, target_modules=["b"])  # either name works
    assert isinstance(twin.a, LoRALayer)


def test_embeddings_that_share_a_table_are_adapted_together_or_not_at_all() -> None:
    with pytest.raises(
        ValueError, match="'shared' shares its table with 'encoder.embed_tokens', 'decoder.embed_tokens'"
    ):
        apply_lora(ARCHITECTURES["t5"].build(), target_modules=["shared"])
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
    model = apply_lora(ARCHITECTURES["t5"].build(), target_modules=names)
    assert [name for name, _ in lora_layers(model)] == names


def test_the_head_of_a_custom_module_is_what_surrounds_the_pretrained_model() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = tiny_roberta().roberta
            self.config = self.encoder.config
            self.crf = nn.Linear(32, 11)
            self.dropout = nn.Dropout(0.1)

    assert find_head(Tagger()) == ("crf",)
    assert find_head(nn.Sequential(nn.Linear(2, 2))) == ()
    model = apply_lora(Tagger())
    assert lora_state(model).current.saved == ("crf",)
    assert model.crf.weight.requires_grad
