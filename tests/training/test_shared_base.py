"""Several taggers on one base in memory: what each computes stays the same to the last bit."""

import copy

import pytest
import torch

import lorakit
from lorakit.training.prediction import merge_entities
from lorakit.training.shared_base import share_base

TEXTS = ["The IL-2 gene requires NF-kappa B.", "GATA-1 binds DNA in T cells.", "No effect on HL-60 cells was seen."]


def tagger(tiny_model, seed, **lora):
    """The base that every call gives, with an adapter and a head of its own."""
    model = lorakit.apply_lora(tiny_model(), r=4, **lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "classifier" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def storages(*models):
    """Bytes of the memory behind some models' tensors, each counted once."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    parts = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(parts.values())


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"bias": "all", "modules_to_save": ["word_embeddings"]}])
def test_a_second_tagger_costs_its_own_weights_and_neither_changes_a_bit(tiny_model, tokenizer, lora):
    one, other = tagger(tiny_model, 1), tagger(tiny_model, 2, **lora)
    before = [lorakit.predict(model, tokenizer, TEXTS, "fp32") for model in (one, other)]
    apart = storages(one, other)
    saved = share_base(one, other)
    assert storages(one, other) == apart - saved
    assert [lorakit.predict(model, tokenizer, TEXTS, "fp32") for model in (one, other)] == before  # scores too
    assert any(before[0]) and any(before[1])
    assert saved > 0 and share_base(one, other) == 0
    own = sum(parameter.nbytes for parameter in other.parameters() if parameter.requires_grad)
    if "modules_to_save" not in lora:
        frozen = sum(parameter.nbytes for parameter in other.parameters() if not parameter.requires_grad)
        assert saved >= frozen > own
    merged = [merge_entities(pair) for pair in zip(*before, strict=True)]
    for kept, old in zip(merged, before[0], strict=True):
        assert [entity for entity in kept if entity in old] == old


def test_weights_that_differ_in_one_bit_are_not_shared(tiny_model):
    one, other = tiny_model(), tiny_model()
    names = [name for name, parameter in one.named_parameters() if "weight" in name and parameter.dim() == 2][:2]
    with torch.no_grad():
        other.get_parameter(names[0]).view(-1)[0] += 1e-6
        one.get_parameter(names[1]).view(-1)[0] = 0.0
        other.get_parameter(names[1]).view(-1)[0] = -0.0
    mine = copy.deepcopy(other.state_dict())
    share_base(one, other)
    for name, parameter in one.named_parameters():
        assert (parameter.data_ptr() == other.get_parameter(name).data_ptr()) == (name not in names), name
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor.signbit(), mine[name].signbit()) and torch.equal(tensor, mine[name])
