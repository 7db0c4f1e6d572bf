"""Packed output equals the one-by-one output, or packing is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.data.packing import ROW_LENGTH, Layout, TokenTable, collate, epoch_steps
from lorakit.nn.attention import faster_attention
from lorakit.training.layout import PART_ELEMENTS, UNIT, first_position, in_long_rows, layout_for, training_layout
from tests.support.token_classifiers import build
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


def test_a_model_that_would_mix_packed_sentences_is_refused_with_the_fix_which_works(tiny_model):
    deaf = tiny_model()
    deaf.roberta._create_attention_masks = lambda **_: (None, None)
    for model, reason in (
        (build("convbert"), "ConvBert.* cannot be packed, because its convolutions mix neighbouring tokens"),
        (build("deberta-v2", conv_kernel_size=3, conv_act="gelu"), "because its convolution mixes neighbouring tokens"),
        (deaf, r"because 'sdpa' attention mixes packed sentences \(outputs differ by"),
    ):
        with pytest.raises(ValueError, match=rf"{reason}.*: train in plain rows with packing='off'"):
            layout_for(model, "on")
        if model is not deaf:
            assert not layout_for(model, "off").packing


def test_the_fallback_to_plain_rows_is_told_once_for_each_model(caplog):
    for model in (build("convbert"), build("mra")):
        for _ in range(2):
            layout = layout_for(model)
        assert not layout.packing
        assert layout.reason in caplog.text
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "ConvBertForTokenClassification is used with plain rows of equal length, not packed, because its convolutions"
        " mix neighbouring tokens",
        "MraForTokenClassification is used with plain rows, not packed, because its attention works on blocks of a row",
    ]
    layout_for(build("convbert"), "off")
    assert len(caplog.records) == 2


def test_an_attention_that_takes_no_mask_is_named(tiny_model):
    model = tiny_model()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attention 'flex_attention' takes no mask of blocks; load it with attn_imp"):
        layout_for(model, "on")


def test_a_model_whose_output_depends_on_the_other_rows_is_refused(tiny_model, monkeypatch):
    model = tiny_model()
    model.roberta._create_attention_masks = lambda **_: (None, None)
    monkeypatch.setattr(model.classifier, "forward", lambda x: x[..., :5] - x[..., :5].mean((0, 1)))
    with pytest.raises(ValueError, match="beside other sentences of the same length .*: use another model"):
        layout_for(model)


def test_a_packed_row_that_depends_on_the_batch_s_other_rows_is_found_out(tiny_model, monkeypatch):
    """A proof in a single row would not see it: there the mean over rows is the row itself."""
    model = tiny_model()
    head = model.classifier.forward
    monkeypatch.setattr(model.classifier, "forward", lambda x: 2 * head(x) - head(x).mean(0))
    with pytest.raises(ValueError, match="'sdpa' attention mixes packed sentences"):
        layout_for(model, "on")


def test_a_model_that_needs_more_than_tokens_is_refused_in_one_line(tiny_model, monkeypatch):
    model = tiny_model()

    def needs_boxes(*_, **__):
        raise ValueError("You have to specify bbox")  # as BROS does

    monkeypatch.setattr(model.roberta, "forward", needs_boxes)
    message = r"fails on a batch of 4 sentences, given as token ids and their mask \(You have to specify bbox\): use an"
    with pytest.raises(ValueError, match=message):
        layout_for(model)


@pytest.mark.parametrize("name", ["deberta", "xmod"])
def test_a_model_that_only_runs_in_float32_says_so(name):
    """In transformers 5.23 they write values of autocast's type among float32 ones, or the reverse."""
    with pytest.raises(ValueError, match=r"fails on .*: compute in float32 with precision='fp32'$"):
        layout_for(build(name), precision="bf16")
    assert layout_for(build(name), precision="fp32").packing


def test_a_window_wider_than_the_proof_is_proven_only_for_known_architectures(tiny_model):
    """A sentence longer than the window is part of the proof, so a mask without the window is found out."""
    model = build("mistral")
    assert layout_for(model).masks.reach == ((None, 15),)
    model.config.sliding_window = 9  # the model computes its masks of single sentences from the same field
    assert layout_for(model).masks.reach == ((None, 8),)


def test_engines_and_fsdp_refuse_the_rows_they_cannot_use(encoded):
    plain = layout_for(build("fnet"))
    for engine in ("compile", "cuda_graphs"):
        with pytest.raises(ValueError, match=f"'{engine}' needs packed rows, and .* Fourier.*: use engine 'eager'"):
            training_layout(plain, encoded, 4, engine)
    with pytest.raises(ValueError, match="strategy 'fsdp' needs as many batches .*: use strategy 'ddp'"):
        training_layout(plain, encoded, 4, whole=True)
    assert training_layout(plain, encoded, 4) == plain


def test_a_sentence_that_is_too_short_for_the_model_is_refused_by_its_length(encoded, tokenizer):
    """CANINE pools four characters, and transformers fails on three."""
    layout = layout_for(build("canine"))
    assert layout.shortest == 4
    assert layout_for(build("fnet")).shortest == 1
    with pytest.raises(ValueError, match="a sentence has 3 tokens, special .*, and this model takes at least 4: leave"):
        TokenTable(encoded, layout)
    TokenTable(encoded_sentences(tokenizer, shortest=2), layout)


def test_the_proof_leaves_flags_and_buffers_that_a_forward_changes(tiny_model):
    """BigBird chooses its attention by the length of a row, and keeps the choice for good."""
    model = build("big_bird", attention_type="block_sparse")
    before = {name: type(module) for name, module in model.named_modules()}
    assert layout_for(model).packing
    assert model.bert.attention_type == "block_sparse"
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_proof_runs_under_the_precision_of_the_run(tiny_model, dtype):
    """A base in bf16 takes fp32 inputs only under autocast."""
    model = tiny_model().to(dtype)
    model.classifier.float()
    if dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="cannot be packed"):
            layout_for(model, "on", "fp32")
    assert layout_for(model, "on", "bf16").packing


def test_an_error_between_the_old_limit_and_the_new_is_refused(tiny_model):
    """1e-3 of the output's size is 10 times the limit, and was a tenth of the former one."""
    model = tiny_model()
    model.classifier.register_forward_hook(lambda module, args, y: y + 1e-3 * y.abs().max() * (y.shape[1] > 12))
    with pytest.raises(ValueError, match="outputs differ by 0.001"):
        layout_for(model, "on")


def test_the_proof_of_packing_leaves_modes_and_random_numbers_alone(tiny_model):
    model = tiny_model(dropout=0.5).train()
    model.classifier.eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    layout_for(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_are_long_and_batches_in_parts_only_where_attention_is_lorakits_own(tiny_model):
    part = PART_ELEMENTS * torch.get_num_threads() // 32
    for layout in (
        layout_for(tiny_model()),
        layout_for(tiny_model(), precision="fp32"),
        layout_for(tiny_model(), precision="bf16"),
        layout_for(tiny_model().bfloat16()),
    ):
        assert (layout.row_length, layout.unit, layout.part_length) == (ROW_LENGTH, UNIT, part)
    for layout in (
        layout_for(tiny_model().double()),
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
