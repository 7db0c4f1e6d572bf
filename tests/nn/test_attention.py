"""Attention inside blocks: against torch's, what is computed and kept, and when torch's own is used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lorakit.nn.attention
from lorakit.nn.attention import attention, faster_attention
from lorakit.nn.blocks import LONGEST, blocks_of
from lorakit.nn.kernels import keep_mask
from tests.support.tiny import make_tiny_model

ROWS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4)


def segments_of(rows: list[list[int]]) -> Tensor:
    """(rows, width): the block number of each token, for blocks of these lengths; the rest of a row is a block too."""
    width = max(map(sum, rows))
    filled = [[*lengths, width - sum(lengths)] for lengths in rows]
    numbers = [torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)) for lengths in filled]
    return torch.stack(numbers)


def mask_of(rows: list[list[int]]) -> Tensor:
    segments = segments_of(rows)
    return (segments[:, :, None] == segments[:, None, :]).unsqueeze(1)


def random_heads(mask: Tensor, heads: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value as models make them, (rows, heads, width, dim) views of (rows, width, heads · dim), and a
    gradient."""
    generator = torch.Generator().manual_seed(1)
    shape = (mask.shape[0], mask.shape[-1], heads, dim)
    *inputs, grad = (torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for _ in range(4))
    return [x.requires_grad_() for x in inputs] + [grad]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS, heads=st.integers(1, 3), dim=st.integers(1, 5), scale=st.floats(0.01, 2))
def test_output_and_gradients_equal_torchs(rows, heads, dim, scale) -> None:
    mask = mask_of(rows)
    *inputs, grad = random_heads(mask, heads, dim)
    blocks = blocks_of(mask, mask.shape[0], heads, mask.shape[-1])
    expected = F.scaled_dot_product_attention(*inputs, mask, scale=scale)
    found = attention(*inputs, blocks, 0.0, scale)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found.transpose(1, 2).is_contiguous()
    slopes = torch.autograd.grad(found, inputs, grad)
    for mine, torchs in zip(slopes, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-8, atol=1e-11)
    for i, x in enumerate(inputs):  # each alone: only what is needed is computed
        plain = [x if n == i else y.detach() for n, y in enumerate(inputs)]
        (alone,) = torch.autograd.grad(attention(*plain, blocks, 0.0, scale), x, grad)
        assert torch.equal(alone, slopes[i])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS, heads=st.integers(1, 3))
def test_every_token_has_its_own_slot_and_little_padding_is_computed(rows, heads) -> None:
    mask = mask_of(rows)
    blocks = blocks_of(mask, mask.shape[0], heads, mask.shape[-1])
    assert torch.equal(blocks.take[blocks.back], torch.arange(mask.shape[0] * mask.shape[-1] * heads))
    assert sorted(blocks.back.tolist() + blocks.padding.tolist()) == list(range(len(blocks.take)))
    lengths = [
        n for row in segments_of(rows).tolist() for n in torch.tensor(row).unique(return_counts=True)[1].tolist()
    ]
    assert blocks.longest == max(lengths)
    most = [(n * 1.5) ** 2 if n > 16 / 1.5 else 16**2 for n in lengths]
    assert heads * sum(n * n for n in lengths) <= blocks.scores <= heads * sum(most)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=ROWS, data=st.data())
def test_a_mask_that_is_not_block_diagonal_is_left_to_torch(rows, data) -> None:
    mask = mask_of(rows)
    shape = (mask.shape[0], 1, mask.shape[-1])
    assert blocks_of(mask, *shape) is not None
    query, key = (data.draw(st.integers(0, mask.shape[-1] - 1)) for _ in range(2))
    mask[-1, 0, query, key] ^= True
    blocks = blocks_of(mask, *shape)
    if blocks is not None:  # two tokens that see each other in one direction only: a causal mask
        assert_as_torch(mask, blocks)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS, causal=st.booleans(), reach=st.integers(1, 40))
def test_causal_and_sliding_attention_inside_blocks_equals_torchs(rows, causal, reach) -> None:
    mask = mask_of(rows)
    back = torch.arange(mask.shape[-1])[:, None] - torch.arange(mask.shape[-1])
    mask = mask & (back.abs() <= reach) & (back >= 0 if causal else True)
    assert_as_torch(mask, blocks_of(mask, mask.shape[0], 2, mask.shape[-1]))


def assert_as_torch(mask: Tensor, blocks) -> None:
    *inputs, grad = random_heads(mask, 2, 3)
    if blocks.back.numel() != mask.shape[0] * mask.shape[-1] * 2:
        blocks = blocks_of(mask, mask.shape[0], 2, mask.shape[-1])
    expected = F.scaled_dot_product_attention(*inputs, mask)
    found = attention(*inputs, blocks, 0.0, 3**-0.5)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    slopes, torchs = (torch.autograd.grad(y, inputs, grad) for y in (found, expected))
    torch.testing.assert_close(slopes, torchs, rtol=1e-8, atol=1e-11)


def test_other_kinds_of_masks_are_left_to_torch() -> None:
    mask = mask_of([[3, 2], [5]])
    for other in (
        torch.zeros(mask.shape).masked_fill(~mask, float("-inf")),  # additive
        mask.expand(2, 3, 5, 5),  # one for each head
        mask[:, :, :1],  # the same for every query
        torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5) & (torch.arange(5) != 1),  # one key unseen
        torch.tensor([1, 0, 1, 0, 1]).eq(torch.tensor([1, 0, 1, 0, 1])[:, None]).expand(2, 1, 5, 5),  # not consecutive
        torch.zeros(2, 1, 5, 5, dtype=torch.bool),
    ):
        assert blocks_of(other, 2, 3, 5) is None


def test_without_a_mask_rows_are_blocks() -> None:
    *inputs, _ = random_heads(mask_of([[7], [7]]), 2, 4)
    found = attention(*inputs, blocks_of(None, 2, 2, 7), 0.0, 0.5)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*inputs, scale=0.5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_dropout_zeroes_attention_probabilities(p: float) -> None:
    """The output and its gradients equal those of plain operations with the same mask."""
    rows = [[20, 20], [20, 20]]  # of one length, so that the scores are stored as (blocks, heads, query, key)
    mask, heads = mask_of(rows), 3
    *inputs, grad = random_heads(mask, heads, 20)
    blocks = blocks_of(mask, 2, heads, 40)
    torch.manual_seed(5)
    found = attention(*inputs, blocks, p, 0.3)
    torch.manual_seed(5)
    keep, factor = keep_mask(torch.empty(4, heads, 20, 20), p)
    split = [x.unflatten(2, (2, 20)).transpose(1, 2).flatten(0, 1) for x in inputs]  # (blocks, heads, 20, 20)
    probabilities = (split[0] @ split[1].mT * 0.3).softmax(-1) * keep * factor
    expected = (probabilities @ split[2]).unflatten(0, (2, 2)).transpose(1, 2).flatten(2, 3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for mine, plain in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-11)


def test_each_probability_is_kept_once_and_its_mask_takes_one_byte() -> None:
    mask = mask_of([[30, 30], [60]])
    *inputs, _ = random_heads(mask, 2, 8, torch.float32)
    blocks, kept = blocks_of(mask, 2, 2, 60), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, id):
        attention(*inputs, blocks, 0.1, 0.3)
    scores = 2 * (2 * 30**2 + 60**2)
    assert blocks.scores == scores
    assert sum(kept.values()) == 3 * 120 * 2 * 8 * 4 + scores * (4 + 1)


def test_without_dropout_no_mask_is_drawn_or_kept() -> None:
    mask, kept = mask_of([[30, 30], [60]]), {}
    *inputs, _ = random_heads(mask, 2, 8, torch.float32)
    blocks, state = blocks_of(mask, 2, 2, 60), torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, id):
        attention(*inputs, blocks, 0.0, 0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(kept.values()) == 3 * 120 * 2 * 8 * 4 + blocks.scores * 4


def test_checkpointing_draws_the_same_mask_again() -> None:
    mask = mask_of([[9, 5], [14]])
    *inputs, grad = random_heads(mask, 2, 4)
    blocks = blocks_of(mask, 2, 2, 14)

    def dropped(*tensors: Tensor) -> Tensor:
        return attention(*tensors, blocks, 0.4, 0.5)

    torch.manual_seed(1)
    plain = torch.autograd.grad(dropped(*inputs), inputs, grad)
    torch.manual_seed(1)
    again = torch.autograd.grad(torch.utils.checkpoint.checkpoint(dropped, *inputs, use_reentrant=False), inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_double_backward_is_refused() -> None:
    *inputs, _ = random_heads(mask_of([[4]]), 1, 2)
    with pytest.raises(RuntimeError, match="double backward .* through lorakit's attention"):
        torch.autograd.grad(attention(*inputs, blocks_of(None, 1, 1, 4), 0.0, 1.0).sum(), inputs, create_graph=True)


# In a model ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """One entry for each call of lorakit's attention."""
    seen = []
    plain = lorakit.nn.attention.attention
    monkeypatch.setattr(lorakit.nn.attention, "attention", lambda *given: seen.append(1) or plain(*given))
    return seen


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    mask = mask_of(rows)
    ids = torch.randint(5, 8000, (mask.shape[0], mask.shape[-1]), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ["roberta", "bert", "electra"])
def test_a_model_computes_the_same_with_lorakits_attention(tiny_model, calls, architecture) -> None:
    model, inputs = tiny_model(architecture).train(), batch([[7, 12], [15], [3, 4, 5]])
    found = []
    for context in (faster_attention(model), torch.enable_grad()):
        model.zero_grad()
        with context:
            logits = model(**inputs)[0]
            logits.square().sum().backward()
        found.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(calls) == model.config.num_hidden_layers
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


def test_blocks_are_found_once_for_all_layers(monkeypatch) -> None:
    model, seen = make_tiny_model(), []
    plain = lorakit.nn.attention.blocks_of
    monkeypatch.setattr(lorakit.nn.attention, "blocks_of", lambda *given: seen.append(given[0]) or plain(*given))
    given = [batch([[7, 12]]), batch([[12, 7]])]
    given.append(given[0])
    expected = [model(**inputs)[0] for inputs in given]
    with faster_attention(model):
        found = [model(**inputs)[0] for inputs in given]
    torch.testing.assert_close(found, expected)  # no batch is computed with the blocks of another
    assert [list(mask.shape) for mask in seen] == [[1, 1, 19, 19]] * 2  # the third is the first again


@pytest.mark.parametrize("why", ["padding", "type", "functional", "compile", "long", "eager", "outside"])
def test_models_it_does_not_handle_use_torchs_attention(calls, why: str) -> None:
    model = make_tiny_model(attn_implementation="eager" if why == "eager" else "sdpa").eval()
    inputs = batch([[7, 12], [LONGEST + 1] if why == "long" else [15]])
    if why == "padding":
        inputs["attention_mask"] = torch.tensor([[1] * 19, [1] * 15 + [0] * 4])
    if why == "type":
        model.double()
    if why == "eager":
        inputs["attention_mask"] = torch.zeros(inputs["attention_mask"].shape)
    expected = model(**inputs)[0]
    with faster_attention(model):
        if why == "functional":
            parameters = dict(model.named_parameters())
            found = torch.func.grad_and_value(
                lambda p: torch.func.functional_call(model, p, kwargs=inputs)[0].square().sum()
            )(parameters)[1]
            expected = expected.square().sum()
        elif why == "compile":
            found = torch.compile(model, backend="eager", fullgraph=True)(**inputs)[0]
        elif why != "outside":
            found = model(**inputs)[0]
    if why == "outside":
        found = model(**inputs)[0]
    assert not calls
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["autocast", "autocast of float32", "type"])
def test_in_bfloat16_it_computes_in_float32_and_rounds_once(calls, how: str) -> None:
    """Output and gradients are those of float32, each rounded: torch's own bfloat16 attention errs by more."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    mask, module, options = mask_of([[9, 4], [6, 7]]), torch.nn.Module(), {"dropout": 0.0, "scaling": 0.5}
    wide = [x.detach().bfloat16().float() for x in random_heads(mask, 2, 4, torch.float32)]
    *inputs, grad = (x if how == "autocast of float32" else x.bfloat16() for x in wide)
    for x in inputs:
        x.requires_grad_()
    *exact_inputs, exact_grad = (x.clone().requires_grad_() for x in wide)
    exact = F.scaled_dot_product_attention(*exact_inputs, mask, scale=0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=how != "type"), faster_attention(torch.nn.Linear(1, 1)):
        found = functions["sdpa"](module, *inputs, mask, **options)[0].transpose(1, 2)
    assert len(calls) == 1 and found.dtype == torch.bfloat16
    half = {"rtol": 2**-8, "atol": 1e-6}
    torch.testing.assert_close(found.float(), exact, **half)
    slopes = torch.autograd.grad(found, inputs, grad.bfloat16())
    for mine, right in zip(slopes, torch.autograd.grad(exact, exact_inputs, exact_grad), strict=True):
        torch.testing.assert_close(mine.float(), right, **half)


@pytest.mark.parametrize(
    "why", ["fp16 autocast", "mixed types", "other keys", "bias of positions", "all dropped", "causal"]
)
def test_calls_it_does_not_handle_use_torchs_attention(calls, why: str) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    module, more = torch.nn.Module(), {"dropout": 0.0, "scaling": 0.5, "is_causal": why == "causal"}
    query, key, value, _ = (x.detach() for x in random_heads(mask_of([[6]]), 2, 4, torch.float32))
    if why == "other keys":
        key, value = key[:, :, :4], value[:, :, :4]
    if why == "bias of positions":
        more["position_bias"] = torch.randn(1, 2, 6, 6)
    if why == "all dropped":
        more["dropout"] = 1.0
    if why == "mixed types":
        value = value.bfloat16()
    with torch.autocast("cpu", torch.float16, enabled=why == "fp16 autocast"):
        if why == "mixed types":
            with faster_attention(torch.nn.Linear(1, 1)), pytest.raises(RuntimeError, match="dtype"):
                functions["sdpa"](module, query, key, value, None, **more)
            return
        expected = functions["sdpa"](module, query, key, value, None, **more)[0]
        with faster_attention(torch.nn.Linear(1, 1)):
            found = functions["sdpa"](module, query, key, value, None, **more)[0]
    assert not calls and found.dtype == expected.dtype and torch.equal(found, expected)


def test_rows_of_another_length_get_their_own_blocks(calls) -> None:
    model = make_tiny_model().eval()
    texts = [torch.arange(5, 5 + width)[None] for width in (9, 5)]
    expected = [model(ids)[0] for ids in texts]
    with faster_attention(model):
        found = [model(ids)[0] for ids in texts]
    torch.testing.assert_close(found, expected)
    assert len(calls) == 2 * model.config.num_hidden_layers


def test_a_causal_model_without_a_mask_stays_causal(calls) -> None:
    from transformers import LlamaConfig, LlamaModel

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaModel(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    ids = torch.arange(6)[None]
    expected = model(ids)[0]
    with faster_attention(model):
        assert torch.equal(model(ids)[0], expected)
    assert not calls


def test_a_nested_context_uses_the_outer_one() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    model = make_tiny_model()
    with faster_attention(model):
        outer = functions["sdpa"]
        with faster_attention(model) as inner:
            assert inner is functions["sdpa"] is outer
        assert functions["sdpa"] is outer


def test_the_earlier_attention_is_restored_even_after_an_error() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    model, plain = make_tiny_model(), functions["sdpa"]
    with pytest.raises(KeyError), faster_attention(model), faster_attention(model):
        assert functions["sdpa"] is not plain
        raise KeyError
    assert functions["sdpa"] is plain
    functions["sdpa"] = somebodys = lambda *given, **more: plain(*given, **more)
    try:
        with faster_attention(model):
            assert functions["sdpa"] is not somebodys
        assert functions["sdpa"] is somebodys
    finally:
        del functions["sdpa"]
    assert functions["sdpa"] is plain
