"""Packed output equals the one-by-one output, or packing is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.data.packing import ROW_LENGTH, Layout, collate, epoch_steps
from lorakit.nn.attention import faster_attention
from lorakit.training.layout import PART_ELEMENTS, UNIT, first_position, in_long_rows, layout_for, training_layout
from tests.support.toy import corpus_of, encoded_sentences

PACKED = [
    ("roberta", "sdpa"),
    ("roberta", "eager"),
    ("bert", "sdpa"),
    ("bert", "eager"),
    ("electra", "sdpa"),
    ("xlm-roberta", "sdpa"),
    ("camembert", "eager"),
    ("mpnet", "eager"),
    ("distilbert", "sdpa"),
]


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return encoded_sentences(tokenizer)


@pytest.mark.parametrize(("architecture", "attention"), PACKED)
def test_packed_output_equals_each_sentence_alone(encoded, tiny_model, architecture, attention):
    model = tiny_model(architecture, attention=attention)
    layout = layout_for(model)
    batch = collate(encoded, range(12), layout)
    assert len(batch.input_ids) < 12
    with torch.no_grad():
        together = model(**layout.inputs(batch)).logits
        for window in range(12):
            ids = torch.from_numpy(encoded.ids[encoded.offsets[window] : encoded.offsets[window + 1]])
            torch.testing.assert_close(
                together[batch.segments == window], model(ids[None]).logits[0], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_changing_one_sentence_leaves_its_neighbours_in_the_row_bit_for_bit(encoded, tiny_model, attention):
    model = tiny_model(attention=attention)
    layout = layout_for(model)
    batch = collate(encoded, range(12), layout)
    ids = batch.input_ids.clone()
    ids[batch.segments == 5] = 77
    with torch.no_grad():
        before, after = (model(**layout.inputs(b)).logits for b in (batch, replace(batch, input_ids=ids)))
    assert torch.equal(before[batch.segments != 5], after[batch.segments != 5])
    assert not torch.equal(before[batch.segments == 5], after[batch.segments == 5])


def test_positions_start_at_two_for_roberta_and_at_zero_for_bert(encoded, tiny_model):
    for architecture, start in (("roberta", 2), ("bert", 0)):
        model = tiny_model(architecture)
        assert first_position(model) == start
        batch = collate(encoded, range(3), layout_for(model))
        for window in range(3):
            positions = batch.position_ids[batch.segments == window]
            assert positions.tolist() == list(range(start, start + len(positions)))


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "mpnet"])
def test_without_packing_every_model_gets_plain_rows(encoded, tiny_model, architecture):
    model = tiny_model(architecture, **({"attention": "eager"} if architecture == "mpnet" else {}))
    layout = layout_for(model, packing=False)
    batch = collate(encoded, range(4), layout)
    assert len(batch.input_ids) == 4
    with torch.no_grad():
        together = model(**layout.inputs(batch)).logits
        for window in range(4):
            ids = torch.from_numpy(encoded.ids[encoded.offsets[window] : encoded.offsets[window + 1]])
            torch.testing.assert_close(
                together[batch.segments == window], model(ids[None]).logits[0], rtol=0, atol=1e-5
            )


def test_a_model_that_would_mix_packed_sentences_is_refused_with_the_fix(tiny_model):
    with pytest.raises(ValueError, match=r"DebertaV2.* does not take a packed batch .*TrainConfig\(packing=False\)"):
        layout_for(tiny_model("deberta-v2", attention="eager"))
    deaf = tiny_model()
    deaf.roberta._create_attention_masks = lambda **_: (None, None)
    with pytest.raises(ValueError, match=r"'sdpa' attention mixes packed sentences .*TrainConfig\(packing=False\)"):
        layout_for(deaf)


def test_an_attention_that_cannot_be_packed_is_refused_by_name(tiny_model):
    model = tiny_model()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attention 'flex_attention' cannot be packed; sdpa and eager can"):
        layout_for(model)


def test_a_sliding_window_is_refused(tiny_model):
    model = tiny_model()
    model.config.sliding_window = 128
    with pytest.raises(ValueError, match="roberta attends in a sliding window"):
        layout_for(model)


def test_the_proof_of_packing_leaves_modes_and_random_numbers_alone(tiny_model):
    model = tiny_model(dropout=0.5).train()
    model.classifier.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    layout_for(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_are_long_and_batches_in_parts_only_where_attention_is_lorakits_own(tiny_model):
    part = PART_ELEMENTS * torch.get_num_threads() // 32
    for layout in (layout_for(tiny_model()), layout_for(tiny_model(), precision="fp32")):
        assert (layout.row_length, layout.unit, layout.part_length) == (ROW_LENGTH, UNIT, part)
    for layout in (
        layout_for(tiny_model(), precision="bf16"),
        layout_for(tiny_model().bfloat16()),
        layout_for(tiny_model(attention="eager")),
        layout_for(tiny_model("t5")),  # asks for sdpa, but adds a bias that only torch's own takes
        layout_for(tiny_model(), packing=False),
    ):
        assert (layout.row_length, layout.unit, layout.part_length) == (None, 1, None)


def test_a_model_probed_while_another_trains_is_judged_by_itself(tiny_model):
    model = tiny_model()
    with faster_attention(model):
        assert layout_for(model).row_length == ROW_LENGTH
        assert layout_for(tiny_model("t5")).row_length is None
        assert layout_for(model).row_length == ROW_LENGTH


def test_a_part_keeps_all_threads_busy(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    small, large = in_long_rows(Layout(2, 1), 256), in_long_rows(Layout(2, 1), 1024)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert (small.part_length, large.part_length) == (1024, 256)
    assert in_long_rows(Layout(2, 1), 256).part_length == 4096
    assert in_long_rows(Layout(2, 1), None).part_length is None


@given(st.integers(2, 60), st.integers(1, 40), st.integers(20, 400))
@example(30, 40, 400)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_batch_has_as_many_parts_as_its_tokens_ask_for(length, size, part_length):
    corpus = corpus_of([length] * (3 * size + 1))
    layout = Layout(2, 1, row_length=ROW_LENGTH, unit=UNIT, part_length=part_length)
    in_parts = training_layout(layout, corpus, size)
    assert in_parts.parts == max(1, round(length * size / part_length))
    *steps, last = epoch_steps(corpus, in_parts, size, 1, seed=0, epoch=1)
    for step in steps:  # parts are even, as far as sentences allow
        loads = [plan.tokens for plan in step.micros]
        assert len(loads) == min(in_parts.parts, size)
        assert max(loads) - min(loads) <= length
    assert len(last.micros) == 1  # of one sentence
    for engine, whole in (("compile", False), ("cuda_graphs", False), ("eager", True)):
        assert training_layout(layout, corpus, size, engine, whole).parts == 1
