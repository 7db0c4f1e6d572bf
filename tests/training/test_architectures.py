"""60 architectures: each sentence of a batch gets the output that it gets alone, packed where that is possible."""

import json

import pytest
import torch

from lorakit.data.packing import TokenTable, sorted_batches
from lorakit.lora import apply_lora, lora_layers
from lorakit.training.architectures import block_masks
from lorakit.training.layout import layout_for
from tests.support.tiny import ROOT
from tests.support.token_classifiers import OPTIONS, build
from tests.support.toy import encoded_sentences

OF_EQUAL_LENGTH = {"canine", "convbert", "fnet", "funnel", "mobilebert", "yoso"}
PLAIN = OF_EQUAL_LENGTH | {"longformer", "mra"}


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return encoded_sentences(tokenizer, shortest=2)  # CANINE fails on three tokens alone


def largest_difference(model, layout, encoded):
    """Between a sentence in a batch and alone, relative to the output; plain transformers computes the latter."""
    worst = 0.0
    batches = list(map(TokenTable(encoded, layout).batch, sorted_batches(encoded, layout, 150)))
    with torch.no_grad(), block_masks(model):
        together = [model(**layout.inputs(batch))[0] for batch in batches]
    with torch.no_grad():
        for batch, output in zip(batches, together, strict=True):
            for window in batch.segments[batch.segments >= 0].unique().tolist():
                ids = torch.from_numpy(encoded.ids[encoded.offsets[window] : encoded.offsets[window + 1]])
                alone = model(ids[None])[0][0]
                difference = (output[batch.segments == window] - alone).abs().max() / alone.abs().max()
                worst = max(worst, float(difference))
    return worst


@pytest.fixture(scope="module")
def published():
    """The rows behind the table in docs/architectures.md, by architecture."""
    return json.loads((ROOT / "benchmarks" / "results" / "architectures.json").read_text())["architectures"]


@pytest.fixture(scope="module", params=OPTIONS)
def examined(request):
    """Each architecture's name, model and layout."""
    model = build(request.param)
    return request.param, model, layout_for(model)


def test_a_sentence_in_a_batch_equals_the_sentence_alone(encoded, examined):
    architecture, model, layout = examined
    assert layout.packing == (architecture not in PLAIN)
    assert layout.by_length == (architecture in OF_EQUAL_LENGTH)
    assert largest_difference(model, layout, encoded) < 1e-5
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:r=16 is more than")  # LiLT's tiny layers
def test_the_published_row_is_what_the_model_does(published, examined):
    architecture, model, layout = examined
    row = published[architecture]
    assert row["attention"] == model.config._attn_implementation
    assert row["rows"] == ("packed" if layout.packing else "plain, of equal length" if layout.by_length else "plain")
    if layout.reason:  # in plain words
        assert row["why"].startswith(layout.reason)
        assert row["why"].endswith("padding changes its output") is layout.by_length
    try:
        apply_lora(model)
    except ValueError:  # it asks for layers
        assert row["targets"] == 0
        assert "no linear layer outside its head" in row["why"]
    else:
        assert row["targets"] == len(list(lora_layers(model)))
