"""What a model holds and does not use is found by running it, and running it leaves no trace."""

import pytest
import torch
import transformers
from torch import nn

from lorakit.adapters.targets import find_targets
from lorakit.adapters.unused import unused_layers, unused_parameters
from lorakit.lora import apply_lora, lora_layers
from tests.support.architectures import BERT_LIKE, TEXT
from tests.support.tiny import make_tiny_model

KINDS = {  # architecture -> options, and the linear layers whose output its token classifier ignores
    "roberta": ({}, set()),
    "squeezebert": ({"embedding_size": 32}, {"transformer.pooler.dense"}),
    "esm": ({"mask_token_id": 4}, {"esm.contact_head.regression"}),
    "fnet": ({}, {"fnet.pooler.dense"}),
    "canine": ({}, {"canine.pooler.dense"}),
    "markuplm": ({}, {"markuplm.embeddings.xpath_embeddings.xpath_unitseq2_embeddings"}),
    "longformer": (
        {"attention_window": 8},
        {
            f"longformer.encoder.layer.{i}.attention.self.{x}_global"
            for i in range(2)
            for x in ("query", "key", "value")
        },
    ),
    "luke": (
        {"entity_vocab_size": 20, "entity_emb_size": 24},
        {f"luke.encoder.layer.{i}.attention.self.{x}_query" for i in (0, 1) for x in ("w2e", "e2w", "e2e")}
        | {"luke.entity_embeddings.entity_embedding_dense"},
    ),
    "lilt": (
        {"hidden_size": 48},
        {
            f"lilt.encoder.layer.1.{name}"  # the last: no later layer reads its layout
            for name in (
                "attention.self.layout_value",
                "attention.layout_output.dense",
                "layout_intermediate.dense",
                "layout_output.dense",
            )
        },
    ),
}


def linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def without_gradient_after_training(model: nn.Module) -> set[str]:
    """The oracle: a plain backward of the loss that transformers computes, over all parameters."""
    ids = torch.arange(12)[None] + 7
    model(input_ids=ids, labels=torch.zeros_like(ids)).loss.backward()
    dead = {name for name, p in model.named_parameters() if p.grad is None}
    model.zero_grad()
    return dead


@pytest.mark.parametrize("kind", KINDS)
def test_unused_layers_and_parameters_are_those_that_a_backward_gives_no_gradient(kind: str) -> None:
    options, expected = KINDS[kind]
    model = make_tiny_model(kind, attention="eager", **options)
    dead = without_gradient_after_training(model)
    assert unused_parameters(model) == dead
    assert unused_layers(model, linear(model)) == {n for n in linear(model) if f"{n}.weight" in dead} == expected
    if kind in ("roberta", "esm", "fnet"):  # the others read values, which tensors without data do not have
        shape = type(model)(model.config).to("meta")
        assert unused_layers(shape, linear(shape)) == expected


@pytest.mark.parametrize("kind", ["esm", "fnet", "canine", "markuplm", "longformer", "luke", "lilt"])
def test_everything_that_all_linear_adapts_gets_a_gradient(kind: str) -> None:
    model = apply_lora(make_tiny_model(kind, attention="eager", **KINDS[kind][0]), r=2, target_modules="all-linear")
    assert not {n for n, _ in lora_layers(model)} & KINDS[kind][1]
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)
    assert without_gradient_after_training(model) == {n for n, p in model.named_parameters() if not p.requires_grad}


def test_where_all_linear_leaves_nothing_it_names_layers_that_work() -> None:
    model = make_tiny_model("squeezebert", attention="eager", embedding_size=32)
    with pytest.raises(
        ValueError, match="its head .12 Conv1d instead, .* or name other layers: word_embeddings, "
    ) as told:
        apply_lora(model, target_modules="all-linear")
    named = str(told.value).rpartition(": ")[2].split(", ")
    assert named == ["word_embeddings", "position_embeddings", "token_type_embeddings"]
    assert len(list(lora_layers(apply_lora(model, r=1, target_modules=named)))) == 3


def test_a_pooler_that_the_head_reads_stays() -> None:
    config = transformers.LayoutLMConfig(**TEXT, **BERT_LIKE)
    pooler = "layoutlm.pooler.dense"
    for kind, used in (("SequenceClassification", True), ("TokenClassification", False), ("QuestionAnswering", False)):
        model = getattr(transformers, f"LayoutLMFor{kind}")(config)
        assert (pooler in find_targets(model, "all-linear")) is used
    body = transformers.LayoutLMModel(config)  # without a head: whoever takes it may read the pooled output
    assert "pooler.dense" in find_targets(body, "all-linear")


def test_looking_leaves_weights_modes_flags_gradients_and_random_numbers_as_they_were() -> None:
    model = make_tiny_model(
        "big_bird", attention="eager", dropout=0.1
    ).train()  # on a short row it changes to another attention for good
    model.bert.encoder.set_attention_type("block_sparse")
    flags = [vars(module).get("attention_type") for module in model.modules()]
    state, drawn = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    assert unused_layers(model, linear(model)) == {"bert.pooler"}
    assert unused_parameters(model) == {"bert.pooler.weight", "bert.pooler.bias"}
    assert [vars(module).get("attention_type") for module in model.modules()] == flags
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_nothing_is_known_of_a_model_that_does_not_run_on_token_ids() -> None:
    class Strange(nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, input_ids: torch.Tensor) -> None:
            raise KeyError("other input")

    for model in (Strange(), nn.Sequential(nn.Linear(2, 2))):
        assert unused_layers(model, linear(model)) == unused_parameters(model) == frozenset()


def test_an_expert_that_one_sentence_does_not_reach_is_not_called_unused() -> None:
    model = make_tiny_model("roberta")
    model.roberta.encoder.layer[1].forward = lambda hidden, *args, **kwargs: hidden  # never reached
    assert unused_layers(model, linear(model)) == unused_parameters(model) == frozenset()
