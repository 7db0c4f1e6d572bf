"""Compiled training: the curve of plain training, one graph a shape, few shapes, and its time apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.registry import lookup_backend

import lorakit
from lorakit.data.corpus import NerData, Sentence, read_ner
from lorakit.data.packing import (
    COMPILED_UNIT,
    UNIT,
    Layout,
    TokenTable,
    collate,
    epoch_steps,
    layout_for,
    plan_batch,
    with_few_shapes,
)
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.training.evaluation import encode_tagged, precision_of
from lorakit.training.loss import LossSum, Rehearsals
from tests.integration.test_mini_corpus import mini
from tests.support.tiny import LABELS
from tests.training.test_loop import data as data
from tests.training.test_loop import killed_after, quick, read_log, step_lines, toy_sentences, weights


@pytest.fixture
def graphs(monkeypatch):
    """What is handed to a backend, one entry a graph; it traces forward and backward and runs torch's own kernels."""
    seen, inner = [], lookup_backend("aot_eager")

    def backend(graph, inputs, mode=None):  # on a GPU a mode is asked for
        seen.append(graph)
        return inner(graph, inputs)

    monkeypatch.setattr("lorakit.training.loss.BACKEND", backend)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_curve_is_that_of_plain_training_with_one_graph_a_shape(
    tiny_model, tokenizer, data, tmp_path, graphs, mode
):
    curves, results = [], []
    for compiled in (False, True):
        model = tiny_model()
        if mode == "lora":
            lorakit.apply_lora(model, r=4, target_modules="all-linear", bias="all")
        folder = tmp_path / str(compiled)
        config = quick(learning_rate=3e-3, log_every=1, precision="fp32", output_dir=folder, compile=compiled)
        results.append(lorakit.train(model, tokenizer, data, config))
        curves.append([line["loss"] for line in step_lines(folder)])
    assert len(curves[0]) == 24
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    compilations = [line for line in read_log(folder) if line["event"] == "compile"]
    assert len(graphs) == len({(line["rows"], line["width"]) for line in compilations}) == len(compilations) <= 4
    plain, compiled = results
    assert compiled.compile_seconds == pytest.approx(sum(line["seconds"] for line in compilations))
    assert compiled.compile_seconds + compiled.train_seconds < compiled.duration_s
    assert plain.compile_seconds == 0
    assert compiled.train_tokens == plain.train_tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rehearsal_leaves_gradients_and_random_numbers_alone(tiny_model, tokenizer, data, graphs, precision):
    model = lorakit.apply_lora(tiny_model(dropout=0.3), r=4, lora_dropout=0.3).train()
    encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = LossSum(model, layout)
    rehearsals = Rehearsals(loss, precision_of(precision, torch.device("cpu"))[0])
    batch = collate(encoded, range(8), layout)
    trained[0].grad = kept = torch.ones_like(trained[0])
    before = torch.get_rng_state()
    assert rehearsals.rehearse(batch, trained) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert trained[0].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained[1:])
    assert rehearsals.rehearse(batch, trained) is None
    with rehearsals.autocast():
        first, second = loss(batch), loss(batch)
    assert first != second  # dropout draws anew
    assert len(graphs) == 1


def test_killed_and_resumed_equals_never_stopped(tiny_model, tokenizer, data, tmp_path, graphs):
    def run(model, folder, stop_after=None, **changes):
        with killed_after(stop_after):
            config = quick(batch_size=16, save_every=2, output_dir=folder, compile=True, **changes)
            return lorakit.train(model, tokenizer, data, config)

    def make():
        return lorakit.apply_lora(tiny_model(dropout=0.1, num_hidden_layers=1), r=4, lora_dropout=0.1)

    whole, part, resumed = make(), make(), make()
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(part, tmp_path / "parts", stop_after=4)
    torch.manual_seed(999)  # a new process would not have these random numbers
    result = run(resumed, tmp_path / "parts", resume=True)
    assert (result.test, result.history, result.steps) == (expected.test, expected.history, expected.steps)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    with pytest.raises(ValueError, match="compile = True, now it is False"):
        lorakit.train(make(), tokenizer, data, quick(batch_size=16, output_dir=tmp_path / "parts", resume=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's of itself
def test_torchs_own_compiler_gives_the_same_curve(tiny_model, tokenizer, tmp_path):
    """One shape of one layer: the compiler takes its time."""
    sentences = toy_sentences(1, 0) * 16
    corpus, curves = NerData(sentences, (), (), LABELS, "one sentence"), []
    for compiled in (False, True):
        model = lorakit.apply_lora(tiny_model(num_hidden_layers=1), r=4)
        config = quick(learning_rate=3e-3, log_every=1, output_dir=tmp_path / str(compiled), compile=compiled)
        lorakit.train(model, tokenizer, corpus, replace(config, epochs=10))
        curves.append([line["loss"] for line in step_lines(tmp_path / str(compiled))])
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


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
def test_the_embedded_corpus_has_little_padding_and_few_shapes(
    tokenizer, tiny_model, batch_size, unit, most_shapes, most_padding
):
    sentences = [Sentence(tuple(words), ("O",) * len(words)) for words, _ in mini.make_corpus(0, 2000, 10, 10).train]
    encoded = encode_tagged(tiny_model(), tokenizer, sentences)
    layout = with_few_shapes(Layout(2, 1), encoded, batch_size, unit)
    plans = [plan for step in epoch_steps(encoded, layout, batch_size, 1, 0, 1) for plan in step.micros]
    assert sum(plan.computed_tokens for plan in plans) <= (1 + most_padding) * sum(plan.tokens for plan in plans)
    assert len({plan.source.shape for plan in plans}) <= most_shapes


def test_the_real_corpus_has_the_shapes_and_the_padding_that_are_told(tokenizer, tiny_model, bionlp2004):
    encoded = encode_tagged(
        tiny_model(), tokenizer, [(s.words, ("O",) * len(s.words)) for s in read_ner(bionlp2004).train]
    )
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


@pytest.mark.parametrize("changes", [{"strategy": "fsdp"}, {"cache_prefix": True}, {"packing": False}])
def test_what_cannot_be_compiled_is_refused(changes):
    with pytest.raises(ValueError, match="compile does not go with strategy 'fsdp', cache_prefix or packing=False"):
        quick(compile=True, **changes)


def test_a_model_that_is_no_single_graph_is_refused(tiny_model, tokenizer, data, graphs):
    model = tiny_model()
    model.classifier.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(ValueError, match=r"RobertaFor.* does not compile into one graph \(.*; train it without"):
        lorakit.train(model, tokenizer, data, quick(compile=True))


def test_a_missing_compiler_is_named_before_training(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on the CPU, and there is none; install g\+\+"):
        lorakit.train(tiny_model(), tokenizer, data, quick(compile=True, output_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
