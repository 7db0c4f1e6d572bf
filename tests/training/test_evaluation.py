"""Evaluation gives what a plain loop gives, prepares a split once, and waits for the device only at its end."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import lorakit
from lorakit.data.corpus import Sentence
from lorakit.data.packing import TokenTable, sorted_batches
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import faster_products
from lorakit.training import evaluation as tagging
from lorakit.training.layout import layout_for
from lorakit.training.metrics import score
from tests.support.tiny import LABELS
from tests.support.waits import Waits

WORDS = ["the", "IL-2", "gene", "activates", "", "NF-kappaB", "in", "T", "cells"]


@pytest.fixture(scope="module")
def sentences():
    draw = np.random.default_rng(0)
    lengths = [*draw.integers(1, 40, size=60), 700]  # the last is longer than a window
    return tuple(
        Sentence(tuple(draw.choice(WORDS, size=n).tolist()), tuple(draw.choice(LABELS, size=n).tolist()))
        for n in lengths
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tagging, "EVALUATION_TOKENS", 300)


@pytest.mark.parametrize("packing", [True, False])
def test_equals_a_plain_loop_to_the_last_bit(tiny_model, tokenizer, sentences, packing):
    model = tiny_model()
    layout = layout_for(model, packing)
    encoded = tagging.encode_tagged(model, tokenizer, sentences)
    classes, loss = torch.zeros(int(encoded.sentence_lengths.sum()), dtype=torch.long), 0.0
    with torch.no_grad(), faster_products(model), faster_attention(model):
        for batch in map(TokenTable(encoded, layout).batch, sorted_batches(encoded, layout, 300)):
            logits = model(**layout.inputs(batch))[0]
            starts = batch.words >= 0
            classes[batch.words[starts]] = logits[starts].argmax(-1)
            loss += float(F.cross_entropy(logits[starts], batch.labels[starts], reduction="sum"))
    names, ends = [LABELS[number] for number in classes.tolist()], np.cumsum(encoded.sentence_lengths)
    tags = [names[end - n : end] for end, n in zip(ends, encoded.sentence_lengths, strict=True)]
    expected = score([s.tags for s in sentences], tags, loss / len(names))
    assert lorakit.evaluate(model, tokenizer, sentences, packing=packing) == expected
    assert lorakit.predict(model, tokenizer, [s.words for s in sentences], packing=packing) == tags


def test_a_split_is_prepared_once_and_scored_again_and_again(tiny_model, tokenizer, sentences):
    model = tiny_model()
    split = tagging.encode_split(model, tokenizer, sentences, layout_for(model))
    first = tagging.evaluate_split(model, split)
    assert first == lorakit.evaluate(model, tokenizer, sentences)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    assert tagging.evaluate_split(model, split) == first
    assert len(forwards) == len(split.batches)  # none to prove the packing again
    with torch.no_grad():
        model.classifier.bias[1] += 1.0
    assert tagging.evaluate_split(model, split) != first


def test_an_empty_split_and_an_unknown_tag_are_refused(tiny_model, tokenizer):
    model = tiny_model()
    with pytest.raises(ValueError, match="no sentence to evaluate"):
        tagging.encode_split(model, tokenizer, (), layout_for(model))
    with pytest.raises(ValueError, match="sentence 0 has the tag 'B-x'"):
        tagging.encode_split(model, tokenizer, [(["a"], ["B-x"])], layout_for(model))


def test_sentences_without_words_cannot_be_scored(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="cannot score 0 predicted against 0 gold words"):
        lorakit.evaluate(tiny_model(), tokenizer, [((), ())])
    assert lorakit.predict(tiny_model(), tokenizer, []) == []
    assert lorakit.predict(tiny_model(), tokenizer, [[], []]) == [[], []]


def test_the_host_waits_for_the_device_once_a_split(tiny_model, tokenizer, sentences, monkeypatch):
    monkeypatch.setattr(tagging, "faster_attention", nullcontext)  # it runs on CPUs only, where nothing waits
    model = tiny_model()
    split = tagging.encode_split(model, tokenizer, sentences, layout_for(model))
    assert len(split.batches) > 5
    with Waits() as waits:
        tagging.tag_split(model, split, "fp32")
    assert waits.seen == ["_local_scalar_dense"]  # the loss, at the end


def test_the_watch_of_that_test_sees_a_mask_a_number_and_a_list():
    with Waits() as waits:
        x = torch.arange(4)
        x[x > 1].sum().item()
        torch.tensor([1, 2])
    assert waits.seen == ["index", "_local_scalar_dense", "lift_fresh"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for_between_batches(tiny_model, tokenizer, sentences):
    model = tiny_model().cuda()
    split = tagging.encode_split(model, tokenizer, sentences, layout_for(model))
    tagging.evaluate_split(model, split)  # first calls may allocate and wait
    modes = iter([*["error"] * (len(split.batches) - 1), "default"])
    try:
        tagging.tag_split(model, split, "bf16", between=lambda *_: torch.cuda.set_sync_debug_mode(next(modes)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_classes_take_one_byte_each(tiny_model, tokenizer, sentences):
    model = tiny_model()
    split = tagging.encode_split(model, tokenizer, sentences, layout_for(model))
    classes, _, _ = tagging.tag_split(model, split, "fp32")
    assert classes.dtype == np.uint8


def test_evaluation_does_not_depend_on_how_sentences_are_batched(tiny_model, tokenizer, data, monkeypatch):
    model = tiny_model()
    together = lorakit.evaluate(model, tokenizer, data.test)
    monkeypatch.setattr("lorakit.training.evaluation.EVALUATION_TOKENS", 1)
    alone = lorakit.evaluate(model, tokenizer, data.test, packing=False)
    assert alone.loss == pytest.approx(together.loss, abs=1e-6)
    assert replace(alone, loss=None) == replace(together, loss=None)


def test_evaluation_keeps_modes_as_they_were(tiny_model, tokenizer, data):
    model = tiny_model(dropout=0.5).train()
    model.classifier.eval()
    modes = [m.training for m in model.modules()]
    assert lorakit.evaluate(model, tokenizer, data.test) == lorakit.evaluate(model, tokenizer, data.test)
    assert [m.training for m in model.modules()] == modes
