from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.packing import (
    MAX_PADDING,
    PART,
    ROW_LENGTH,
    UNIT,
    Batch,
    Layout,
    TokenTable,
    balance,
    collate,
    epoch_order,
    epoch_steps,
    first_position,
    in_long_rows,
    layout_for,
    pack,
    plan_batch,
    sorted_batches,
    steps_per_epoch,
    training_layout,
)
from lorakit.data.tokenization import IGNORE, Encoded, encode
from lorakit.nn.attention import faster_attention

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
some_lengths = st.lists(st.integers(1, 340), min_size=1, max_size=48)


@pytest.fixture(scope="module")
def encoded(tokenizer):
    generator = np.random.default_rng(0)
    words = ["IL-2", "gene", "expression", "NF-kappaB", "activates", "of", "T", "cells", "."]
    sentences = [[words[i] for i in generator.integers(0, 9, generator.integers(1, 30))] for _ in range(37)]
    tags = [["O"] * len(sentence) for sentence in sentences]
    return encode(tokenizer, sentences, 512, tags, ["O"])


@given(some_lengths, st.integers(1, 12))
@settings(deadline=None, derandomize=True)
def test_balance_deals_every_item_once_and_evenly(lengths, bins):
    dealt = balance(lengths, bins)
    assert sorted(item for items in dealt for item in items) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in items) for items in dealt]
    assert max(loads) - min(loads) <= max(lengths)


@given(some_lengths)
@settings(deadline=None, derandomize=True)
def test_packing_pads_at_most_five_percent(lengths):
    rows = pack(lengths)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    width = max(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) * width <= (1 + MAX_PADDING) * sum(lengths)


@given(some_lengths, st.integers(1, 400), st.sampled_from([1, 8, 16]))
@example([10] * 20, 50, 1)
@settings(deadline=None, derandomize=True)
def test_rows_of_about_a_wished_length_are_no_more_than_fit_and_padded_by_at_most_five_percent(lengths, row, unit):
    rows = pack(lengths, row, unit)
    assert sorted(item for items in rows for item in items) == list(range(len(lengths)))
    width = -(-max(sum(lengths[i] for i in items) for items in rows) // unit) * unit
    assert len(rows) == 1 or len(rows) * width <= (1 + MAX_PADDING) * sum(lengths)
    assert len(rows) <= max(1, round(sum(lengths) / row))


def test_rows_are_long_and_batches_in_parts_only_where_attention_is_lorakits_own(tiny_model):
    part = PART * torch.get_num_threads() // 32
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


def test_a_model_tried_while_another_trains_is_judged_by_itself(tiny_model):
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
    in_parts = training_layout(layout, corpus, size, compiled=False, whole=False)
    assert in_parts.parts == max(1, round(length * size / part_length))
    *steps, last = epoch_steps(corpus, in_parts, size, 1, seed=0, epoch=1)
    for step in steps:  # parts are even, as far as sentences allow
        loads = [plan.tokens for plan in step.micros]
        assert len(loads) == min(in_parts.parts, size)
        assert max(loads) - min(loads) <= length
    assert len(last.micros) == 1  # of one sentence
    for compiled, whole in ((True, False), (False, True)):
        assert training_layout(layout, corpus, size, compiled=compiled, whole=whole).parts == 1


def test_the_real_corpus_is_padded_by_at_most_five_percent_in_every_batch(tokenizer, bionlp2004, tiny_model):
    sentences = [sentence.words for sentence in read_ner(bionlp2004).validation]
    corpus = encode(tokenizer, sentences, 512)
    steps = epoch_steps(corpus, layout_for(tiny_model()), 32, 1, seed=0, epoch=1)
    factors = [batch.computed_tokens / batch.tokens for step in steps for batch in step.micros]
    assert len(factors) == 61
    assert max(factors) <= 1.05


def test_eight_ranks_carry_nearly_the_same_load_on_the_real_corpus(tokenizer, bionlp2004):
    """Slowest over mean rank, summed over the steps of an epoch; random batches of 32 a rank give about 1.47."""
    lengths = encode(tokenizer, [sentence.words for sentence in read_ner(bionlp2004).train], 512).lengths
    order = epoch_order(len(lengths), seed=0, epoch=1)
    slowest = mean = 0.0
    for start in range(0, len(order), 8 * 32):
        step = lengths[order[start : start + 8 * 32]].tolist()
        loads = [sum(step[i] for i in share) for share in balance(step, 8)]
        slowest, mean = slowest + max(loads), mean + sum(loads) / 8
    assert slowest / mean <= 1.05


def filled_in(encoded, windows, layout, counts):
    """The batch as a loop over windows fills it in, place by place."""
    lengths = [int(encoded.offsets[w + 1] - encoded.offsets[w]) for w in windows]
    rows = pack(lengths) if layout.packing else [[i] for i in range(len(windows))]
    width = max(sum(lengths[i] for i in row) for row in rows)
    paddings = (layout.pad_token_id, max(layout.first_position - 1, 0), -1, IGNORE, -1, -1)
    ids, positions, segments, labels, words, source = (np.full((len(rows), width), p, np.int64) for p in paddings)
    for row, items in enumerate(rows):
        column = 0
        for i in items:
            for place in range(encoded.offsets[windows[i]], encoded.offsets[windows[i] + 1]):
                ids[row, column], segments[row, column] = encoded.ids[place], windows[i]
                positions[row, column] = layout.first_position + place - encoded.offsets[windows[i]]
                source[row, column] = place
                if counts:
                    labels[row, column], words[row, column] = encoded.labels[place], encoded.words[place]
                column += 1
    return ids, positions, segments, labels, words, source


@given(some_lengths, st.booleans(), st.booleans(), st.integers(0, 2), st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_a_batch_looked_up_in_the_table_is_the_one_that_a_loop_fills_in(lengths, packing, counts, first, data):
    offsets = np.cumsum([0, *lengths])
    draw = np.random.default_rng(0)
    labels = np.where(draw.random(offsets[-1]) < 0.5, IGNORE, draw.integers(0, 9, offsets[-1]))
    words = np.where(labels == IGNORE, -1, np.arange(offsets[-1]))
    corpus = Encoded(draw.integers(0, 50_000, offsets[-1]), labels, words, offsets, np.array(lengths))
    windows = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    layout = Layout(first, 1, packing)
    plan = plan_batch(corpus, windows, layout, counts)
    found = TokenTable(corpus, layout).batch(plan)
    expected = Batch(*map(torch.from_numpy, filled_in(corpus, windows, layout, counts)))
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name
        assert getattr(found, name).dtype == value.dtype
    assert plan.targets == (expected.labels != IGNORE).sum()
    assert plan.tokens == ((expected.segments >= 0).sum() if counts else 0)
    assert plan.computed_tokens == expected.input_ids.numel()


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


def test_a_model_that_would_mix_packed_sentences_is_refused_with_the_way_out(tiny_model):
    with pytest.raises(ValueError, match=r"DebertaV2.* does not take a packed batch .*TrainConfig\(packing=False\)"):
        layout_for(tiny_model("deberta-v2", attention="eager"))
    deaf = tiny_model()
    deaf.roberta._create_attention_masks = lambda **_: (None, None)
    with pytest.raises(ValueError, match=r"'sdpa' attention mixes packed sentences .*TrainConfig\(packing=False\)"):
        layout_for(deaf)


def test_an_attention_that_cannot_be_packed_is_refused_by_name(tiny_model):
    model = tiny_model()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attention 'flex_attention' cannot be packed; it can with sdpa and eager"):
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


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 3))
def test_all_ranks_together_see_every_window_once_in_the_same_steps(
    encoded, tiny_layout, world, accumulate, size, seed
):
    per_rank = [
        list(epoch_steps(encoded, tiny_layout, size, accumulate, seed, 1, rank, world)) for rank in range(world)
    ]
    assert {len(steps) for steps in per_rank} == {steps_per_epoch(len(encoded), size, accumulate, world)}
    order, global_size = epoch_order(len(encoded), seed, 1), size * accumulate * world
    table = TokenTable(encoded, tiny_layout)
    for number, ranks in enumerate(zip(*per_rank, strict=True)):
        plans = [plan for step in ranks for plan in step.micros]
        batches = [table.batch(plan) for plan in plans]
        words = sorted(w for batch in batches for w in batch.words[batch.words >= 0].tolist())
        chosen = order[number * global_size : (number + 1) * global_size]
        wanted = [encoded.words[encoded.offsets[w] : encoded.offsets[w + 1]] for w in chosen]
        assert words == sorted(n for window in wanted for n in window[window >= 0].tolist())
        assert {step.targets for step in ranks} == {sum(plan.targets for plan in plans)} == {len(words)}
        assert all(len(step.micros) == accumulate for step in ranks)


def corpus_of(lengths):
    """Sentences of one word, which is named by the sentence's number."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels, words = np.full(offsets[-1], IGNORE), np.full(offsets[-1], -1)
    labels[offsets[:-1]], words[offsets[:-1]] = 0, np.arange(len(lengths))
    return Encoded(np.full(offsets[-1], 7), labels, words, offsets, np.ones(len(lengths), int))


def windows_by_step(corpus, layout, size, accumulate, seed, world, first_step=0):
    """Numbers of the windows that every step of an epoch counts, on all ranks together."""
    per_rank = [
        list(epoch_steps(corpus, layout, size, accumulate, seed, 1, rank, world, first_step)) for rank in range(world)
    ]
    found, table = [], TokenTable(corpus, layout)
    for ranks in zip(*per_rank, strict=True):
        words = torch.cat([table.batch(plan).words.flatten() for step in ranks for plan in step.micros])
        found.append(sorted(words[words >= 0].tolist()))  # a window has one word here, of the same number
    return found


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=70),
    world=st.integers(1, 8),
    accumulate=st.integers(1, 4),
    size=st.integers(1, 8),
    seed=st.integers(0, 5),
    share=st.floats(0, 1),
    parts=st.integers(1, 5),
)
def test_any_corpus_is_seen_once_an_epoch_in_steps_that_no_number_of_ranks_changes(
    tiny_layout, lengths, world, accumulate, size, seed, share, parts
):
    """Also when a run goes on in the middle of an epoch; and an evaluation on these ranks sees it once."""
    corpus, layout = corpus_of(lengths), replace(tiny_layout, parts=parts)
    steps = windows_by_step(corpus, layout, size, accumulate, seed, world)
    assert sorted(window for step in steps for window in step) == list(range(len(lengths)))
    assert steps == windows_by_step(corpus, tiny_layout, size * accumulate * world, 1, seed, 1)
    first = int(share * len(steps))
    assert steps[first:] == windows_by_step(corpus, layout, size, accumulate, seed, world, first)
    plans = [plan for rank in range(world) for plan in sorted_batches(corpus, tiny_layout, 64, rank, world)]
    evaluated = [TokenTable(corpus, tiny_layout).batch(plan).words for plan in plans]
    assert sorted(n for words in evaluated for n in words[words >= 0].tolist()) == list(range(len(lengths)))


@pytest.fixture(scope="module")
def tiny_layout():
    return Layout(first_position=2, pad_token_id=1)


def test_the_order_is_new_each_epoch_and_the_same_for_the_same_seed():
    assert (epoch_order(50, 0, 1) == epoch_order(50, 0, 1)).all()
    assert (epoch_order(50, 0, 1) != epoch_order(50, 0, 2)).any()
    assert (epoch_order(50, 0, 1) != epoch_order(50, 1, 1)).any()


def test_the_order_does_not_follow_length(encoded, tiny_layout):
    order = epoch_order(2000, 0, 1)
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1


def test_a_rank_with_nothing_to_do_gets_a_batch_of_weight_zero(encoded, tiny_layout):
    steps = [next(epoch_steps(encoded, tiny_layout, 10, 1, 0, 1, rank, 50)) for rank in range(50)]
    idle = [step for step in steps if step.micros[0].targets == 0]
    assert len(idle) == 50 - len(encoded)
    assert idle[0].micros[0].tokens == 0
    batch = TokenTable(encoded, tiny_layout).batch(idle[0].micros[0])
    assert (batch.words == -1).all()
    assert (batch.labels == IGNORE).all()
    assert (batch.input_ids != tiny_layout.pad_token_id).all()  # a real sentence: the model has to have something


def test_evaluation_batches_hold_every_window_once_within_the_budget(encoded, tiny_layout):
    batches = [b for rank in range(3) for b in sorted_batches(encoded, tiny_layout, 120, rank, 3)]
    table = TokenTable(encoded, tiny_layout)
    words = sorted(w for b in map(table.batch, batches) for w in b.words[b.words >= 0].tolist())
    assert words == list(range(encoded.sentence_lengths.sum()))
    assert max(batch.tokens for batch in batches) <= max(120, encoded.lengths.max())
