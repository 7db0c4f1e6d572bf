"""Every sentence is in a step once, in an order that no number of ranks changes; batches have little padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.encoding import encode
from lorakit.data.packing import (
    MAX_PADDING,
    Batch,
    Layout,
    TokenTable,
    balance,
    epoch_order,
    epoch_steps,
    pack,
    plan_batch,
    sorted_batches,
    steps_per_epoch,
    with_few_shapes,
)
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.training.layout import COMPILED_UNIT, UNIT
from tests.integration.test_mini_corpus import mini
from tests.support.tiny import LABELS
from tests.support.toy import corpus_of, encoded_sentences

some_lengths = st.lists(st.integers(1, 340), min_size=1, max_size=48)


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return encoded_sentences(tokenizer)


@pytest.fixture(scope="module")
def tiny_layout():
    return Layout(first_position=2, pad_token_id=1)


def of_words(tokenizer, sentences):
    """The corpus of these sentences' words, all tagged O."""
    return encode(tokenizer, sentences, 512, [["O"] * len(words) for words in sentences], LABELS)


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
def test_rows_of_a_given_length_are_no_more_than_fit_and_padded_by_at_most_five_percent(lengths, row, unit):
    rows = pack(lengths, row, unit)
    assert sorted(item for items in rows for item in items) == list(range(len(lengths)))
    width = -(-max(sum(lengths[i] for i in items) for items in rows) // unit) * unit
    assert len(rows) == 1 or len(rows) * width <= (1 + MAX_PADDING) * sum(lengths)
    assert len(rows) <= max(1, round(sum(lengths) / row))


def test_the_real_corpus_is_padded_by_at_most_five_percent_in_every_batch(tokenizer, bionlp2004):
    sentences = [sentence.words for sentence in read_ner(bionlp2004).validation]
    corpus = encode(tokenizer, sentences, 512)
    steps = epoch_steps(corpus, Layout(2, 1, row_length=384, unit=UNIT), 32, 1, seed=0, epoch=1)
    factors = [batch.computed_tokens / batch.tokens for step in steps for batch in step.micros]
    assert len(factors) == 61
    assert max(factors) <= 1.05


def test_eight_ranks_carry_nearly_the_same_load_on_the_real_corpus(tokenizer, bionlp2004):
    """Slowest over mean rank, summed over the steps of an epoch; random batches of 32 per rank give about 1.47."""
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
    assert plan.tokens == ((expected.segments >= 0).sum() if counts else 0)
    assert plan.computed_tokens == expected.input_ids.numel()


@given(
    st.lists(st.integers(1, 340), min_size=1, max_size=48),
    st.integers(1, 9),
    st.sampled_from([1, 8, 32]),
    st.booleans(),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_batches_of_few_shapes_hold_every_token_once(lengths, rows, unit, counts):
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1])
    corpus = Encoded(tokens, np.where(tokens % 3, IGNORE, 1), np.where(tokens % 3, -1, tokens // 3), offsets, offsets)
    layout = Layout(2, 1, rows=rows, unit=unit)
    plan = plan_batch(corpus, range(len(lengths)), layout, counts)
    assert (len(plan.source), plan.source.shape[1] % unit) == (rows, 0)
    batch = TokenTable(corpus, layout).batch(plan)
    real = batch.segments >= 0
    assert sorted(batch.input_ids[real].tolist()) == tokens.tolist()
    assert (batch.input_ids[~real] == 1).all()
    for window, length in enumerate(lengths):  # each in one row, in its order
        assert batch.input_ids[batch.segments == window].tolist() == list(range(offsets[window], offsets[window + 1]))
        assert len((batch.segments == window).nonzero()[:, 0].unique()) == 1
        assert (batch.segments == window).sum() == length


@pytest.mark.parametrize("batch_size", [8, 16, 32, 64])
@pytest.mark.parametrize(("unit", "most_shapes", "most_padding"), [(UNIT, 20, 0.05), (COMPILED_UNIT, 12, 0.10)])
def test_the_embedded_corpus_has_little_padding_and_few_shapes(tokenizer, batch_size, unit, most_shapes, most_padding):
    encoded = of_words(tokenizer, [words for words, _ in mini.make_corpus(0, 2000, 10, 10).train])
    layout = with_few_shapes(Layout(2, 1), encoded, batch_size, unit)
    plans = [plan for step in epoch_steps(encoded, layout, batch_size, 1, 0, 1) for plan in step.micros]
    assert sum(plan.computed_tokens for plan in plans) <= (1 + most_padding) * sum(plan.tokens for plan in plans)
    assert len({plan.source.shape for plan in plans}) <= most_shapes


def test_the_real_corpus_has_the_shapes_and_the_padding_of_the_docstring(tokenizer, bionlp2004):
    encoded = of_words(tokenizer, [sentence.words for sentence in read_ner(bionlp2004).train])
    found = {}
    for unit, part in ((UNIT, None), (UNIT, 683), (COMPILED_UNIT, None)):
        for batch_size in (8, 16, 32, 64):
            layout = with_few_shapes(Layout(2, 1, part_length=part), encoded, batch_size, unit)
            plans = [plan for step in epoch_steps(encoded, layout, batch_size, 1, 0, 1) for plan in step.micros]
            padding = sum(plan.computed_tokens for plan in plans) / sum(plan.tokens for plan in plans) - 1
            found[unit, part, batch_size] = (len({plan.source.shape for plan in plans}), round(padding, 3))
    assert list(found.values()) == [
        (24, 0.026), (18, 0.033), (14, 0.032), (11, 0.034),
        (24, 0.026), (18, 0.033), (22, 0.012), (21, 0.010),
        (15, 0.053), (11, 0.061), (9, 0.052), (7, 0.055),
    ]  # fmt: skip


def test_long_windows_get_fewer_rows_rather_than_much_padding():
    """32 windows of about 300 tokens in 25 rows of 384 would be two windows in some rows and one in most."""
    lengths = np.random.default_rng(0).integers(250, 350, 640)
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1])
    corpus = Encoded(tokens, tokens, tokens, offsets, offsets)
    layout = with_few_shapes(Layout(2, 1), corpus, 32, UNIT)
    plans = [plan for step in epoch_steps(corpus, layout, 32, 1, 0, 1) for plan in step.micros]
    assert sum(plan.computed_tokens for plan in plans) <= 1.08 * sum(plan.tokens for plan in plans)


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
        assert {step.targets for step in ranks} == {len(words)}
        assert all(len(step.micros) == accumulate for step in ranks)


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
def test_any_corpus_is_seen_once_per_epoch_in_steps_that_no_number_of_ranks_changes(
    tiny_layout, lengths, world, accumulate, size, seed, share, parts
):
    """Also when a run resumes in the middle of an epoch; and an evaluation on these ranks sees it once."""
    corpus, layout = corpus_of(lengths), replace(tiny_layout, parts=parts)
    steps = windows_by_step(corpus, layout, size, accumulate, seed, world)
    assert sorted(window for step in steps for window in step) == list(range(len(lengths)))
    assert steps == windows_by_step(corpus, tiny_layout, size * accumulate * world, 1, seed, 1)
    first = int(share * len(steps))
    assert steps[first:] == windows_by_step(corpus, layout, size, accumulate, seed, world, first)
    plans = [plan for rank in range(world) for plan in sorted_batches(corpus, tiny_layout, 64, rank, world)]
    evaluated = [TokenTable(corpus, tiny_layout).batch(plan).words for plan in plans]
    assert sorted(n for words in evaluated for n in words[words >= 0].tolist()) == list(range(len(lengths)))


def test_the_order_is_new_each_epoch_and_the_same_for_the_same_seed():
    assert (epoch_order(50, 0, 1) == epoch_order(50, 0, 1)).all()
    assert (epoch_order(50, 0, 1) != epoch_order(50, 0, 2)).any()
    assert (epoch_order(50, 0, 1) != epoch_order(50, 1, 1)).any()


def test_the_order_does_not_follow_length(encoded, tiny_layout):
    order = epoch_order(2000, 0, 1)
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.1


def test_a_rank_with_nothing_to_do_gets_a_batch_of_weight_zero(encoded, tiny_layout):
    steps = [next(epoch_steps(encoded, tiny_layout, 10, 1, 0, 1, rank, 50)) for rank in range(50)]
    idle = [step for step in steps if not step.micros[0].counts]
    assert len(idle) == 50 - len(encoded)
    assert idle[0].micros[0].tokens == 0
    batch = TokenTable(encoded, tiny_layout).batch(idle[0].micros[0])
    assert (batch.words == -1).all()
    assert (batch.labels == IGNORE).all()
    assert (batch.input_ids != tiny_layout.pad_token_id).all()  # a real sentence, because the model needs one


def test_evaluation_batches_hold_every_window_once_within_the_budget(encoded, tiny_layout):
    batches = [b for rank in range(3) for b in sorted_batches(encoded, tiny_layout, 120, rank, 3)]
    table = TokenTable(encoded, tiny_layout)
    words = sorted(w for b in map(table.batch, batches) for w in b.words[b.words >= 0].tolist())
    assert words == list(range(encoded.sentence_lengths.sum()))
    assert max(batch.tokens for batch in batches) <= max(120, encoded.lengths.max())
