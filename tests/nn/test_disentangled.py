"""DeBERTa's attention in blocks equals transformers' own, outputs and gradients."""

import pytest
import torch

from lorakit.data.masks import BLOCK_MASK, Masks
from lorakit.nn.disentangled import faster_disentangled
from lorakit.training.architectures import block_masks
from tests.support.token_classifiers import build

SEGMENTS = torch.tensor([[0] * 3 + [1] * 20 + [2] * 7, [3] * 15 + [4] * 14 + [-1]])  # blocks of 1 to 20 tokens


def outputs_and_gradients(model):
    ids = torch.randint(10, 8000, SEGMENTS.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    output = model(input_ids=ids, **Masks(argument=BLOCK_MASK).inputs(SEGMENTS))[0][SEGMENTS >= 0]
    output.square().sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [{}, {"share_att_key": False}, {"pos_att_type": ["c2p"]}, {"pos_att_type": ["p2c"]}, {"position_buckets": -1}],
    ids=["v3", "v2", "c2p", "p2c", "no buckets"],
)
def test_outputs_and_gradients_equal_transformers(options):
    model = build("deberta-v2", **options)
    with block_masks(model):
        expected, gradients = outputs_and_gradients(model)
        with faster_disentangled(model) as use:
            found, mine = outputs_and_gradients(model)
    assert use.used
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-3)
    assert not any("forward" in vars(module) for module in model.modules())


def test_dropout_drops_probabilities_and_scales_the_rest():
    """With dropout the mean of many draws is the output without."""
    model = build("deberta-v2", attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0)
    attention = model.deberta.encoder.layer[0].attention.self
    hidden, mask = torch.randn(1, 12, 32), torch.ones(1, 1, 12, 12, dtype=torch.bool)
    positions = model.deberta.encoder.get_rel_pos(hidden)
    given = {"relative_pos": positions, "rel_embeddings": model.deberta.encoder.get_rel_embedding()}
    with torch.no_grad(), faster_disentangled(model):
        expected = attention(hidden, mask, **given)[0]
        attention.train()
        draws = torch.stack([attention(hidden, mask, **given)[0] for _ in range(2000)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("why", ["bf16", "autocast", "plain rows", "attentions", "window"])
def test_what_it_does_not_handle_is_left_to_transformers(why):
    model = build("deberta-v2")
    inputs = {"input_ids": torch.arange(20, 50)[None], **Masks(argument=BLOCK_MASK).inputs(SEGMENTS[:1])}
    if why == "plain rows":
        inputs = {"input_ids": inputs["input_ids"]}
    if why == "attentions":
        inputs["output_attentions"] = True
    if why == "window":  # a token sees itself only, and one that does not
        inputs[BLOCK_MASK] = inputs[BLOCK_MASK] & (torch.arange(30) % 2 == 0)
    if why == "bf16":
        model.bfloat16()
    with torch.no_grad(), block_masks(model), torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        expected = model(**inputs)[0]
        with faster_disentangled(model) as use:
            assert torch.equal(model(**inputs)[0], expected)
    assert not use.used
