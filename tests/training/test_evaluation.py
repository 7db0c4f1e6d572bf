"""Evaluation gives what a plain loop gives, prepares a split once, and waits for the device only at its end."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from seqeval.metrics import sequence_labeling as default_mode
from seqeval.metrics import v1 as strict_mode
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOBES
from torch.nn import functional as F
from transformers import AutoTokenizer

import lorakit
from lorakit.data.corpus import NerData, Sentence
from lorakit.data.packing import TokenTable, sorted_batches
from lorakit.data.tags import Span, from_spans, in_labels_of
from lorakit.nn.attention import faster_attention
from lorakit.nn.kernels import faster_products
from lorakit.training import evaluation as tagging
from lorakit.training.layout import layout_for
from lorakit.training.metrics import score
from tests.support.tiny import LABELS, MINI
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
    monkeypatch.setattr(tagging, "packed_attention", nullcontext)  # it runs on CPUs only, where nothing waits
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


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_table_that_was_not_resized_is_named_before_the_first_step(tiny_model, split):
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    tokenizer.add_tokens(["metoprolol"])
    plain, odd = (Sentence((word, "gene"), ("O", "O")) for word in ("IL-2", "metoprolol"))
    splits = {name: (odd if name == split else plain,) * 2 for name in ("train", "validation", "test")}
    data = NerData(**splits, labels=tuple(LABELS), source="own")
    model, config = tiny_model(), lorakit.TrainConfig(epochs=1, batch_size=2, progress=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = (
        "8193 tokens but the model's embedding table 8192 rows: there is none for 'metoprolol' .number 8192.; call"
    )
    with pytest.raises(ValueError, match=message):
        lorakit.train(model, tokenizer, data, config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=message):
        lorakit.predict(model, tokenizer, ["gene metoprolol"])
    assert lorakit.predict(model, tokenizer, [["gene"]])  # a text without the token needs no row
    model.resize_token_embeddings(8193)  # as the message says
    lorakit.train(model, tokenizer, data, config)


TAGGERS = {  # a tagger's labels, and how seqeval reads them: letters that it has for ours, its class
    "bioes": (["O", "B-a", "I-a", "E-a", "S-a"], {}, IOBES),
    "bmes": (["O", "B-a", "M-a", "E-a", "S-a"], {"M": "I"}, IOBES),
    "bilou": (["O", "B-a", "I-a", "L-a", "U-a"], {"L": "E", "U": "S"}, IOBES),
    "iob1": (["O", "I-a", "I-b", "B-b", "I-c"], {}, IOB1),
    "bare": (["O", "a", "b", "c", "d"], {kind: f"I-{kind}" for kind in "abcd"}, IOB1),
}


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
@pytest.mark.parametrize("name", TAGGERS)
def test_a_tagger_of_another_scheme_is_scored_in_it_on_a_corpus_of_iob2(tiny_model, tokenizer, name):
    labels, letters, scheme = TAGGERS[name]
    model = tiny_model()
    model.config.id2label = dict(enumerate(labels))
    draw = np.random.default_rng(0)
    rows = [["gene", "IL-2", "binds", "of", "the", "cells"][: draw.integers(1, 7)] for _ in range(30)]
    found = lorakit.predict(model, tokenizer, rows)

    def read(tags):
        return [letters.get(tag) or letters.get(tag[0], tag[0]) + tag[1:] for tag in tags]

    guess = [read(tags) for tags in found]
    # half of the entities that seqeval finds are gold, written as IOB2
    gold = []
    for tags in guess:
        kept = [Span(kind, start, end + 1) for kind, start, end in get_entities(tags) if draw.random() < 0.5]
        gold.append(list(from_spans(kept, len(tags))))
    assert 0 < sum(len(get_entities(tags)) for tags in gold) < sum(len(get_entities(tags)) for tags in guess)
    scores = lorakit.evaluate(model, tokenizer, list(zip(rows, gold, strict=True)))
    written = [read(in_labels_of(tags, labels)) for tags in gold]
    expected = default_mode.precision_recall_fscore_support(gold, guess, average="micro", zero_division=0)
    assert [scores.precision, scores.recall, scores.f1] == pytest.approx([float(x) for x in expected[:3]])
    strict = strict_mode.precision_recall_fscore_support(
        written, guess, average="micro", zero_division=0, scheme=scheme
    )
    assert [scores.strict.precision, scores.strict.recall, scores.strict.f1] == [float(x) for x in strict[:3]]


def test_gold_of_iob2_is_brought_to_bioes_although_all_of_its_tags_are_labels(tiny_model, tokenizer):
    model = tiny_model()
    model.config.id2label = dict(enumerate(["O", "B-a", "I-a", "E-a", "S-a"]))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))  # S-a everywhere
    for gold in ([["B-a"], ["B-a", "B-a"]], [["S-a"], ["S-a", "S-a"]]):
        scores = lorakit.evaluate(model, tokenizer, list(zip([["gene"], ["IL-2", "gene"]], gold, strict=True)))
        assert (scores.f1, scores.strict.f1, scores.accuracy) == (1.0, 1.0, 1.0)


def test_a_tagger_of_iob1_is_scored_as_such_by_its_sentences_or_on_demand(tiny_model, tokenizer):
    """Its labels are those of IOB2, of which its tags would be no entity."""
    model, rows = tiny_model(), [["gene", "IL-2"], ["binds"]]
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))  # I-DNA everywhere
    iob1, iob2 = (["I-DNA", "I-DNA"], ["I-DNA"]), (["B-DNA", "I-DNA"], ["B-DNA"])
    by_sentences = lorakit.evaluate(model, tokenizer, list(zip(rows, iob1, strict=True)))
    on_demand = lorakit.evaluate(model, tokenizer, list(zip(rows, iob2, strict=True)), scheme="iob1")
    usual = lorakit.evaluate(model, tokenizer, list(zip(rows, iob2, strict=True)))
    assert (by_sentences.f1, by_sentences.strict.f1, by_sentences.accuracy) == (1.0, 1.0, 1.0)
    assert (usual.f1, usual.strict.f1) == (1.0, 0.0)  # as seqeval in IOB2
    assert (on_demand.f1, on_demand.strict.f1, on_demand.accuracy) == (1.0, 1.0, 1.0)


def test_labels_without_prefixes_are_entities_in_raw_text_too(tiny_model, tokenizer):
    model = tiny_model()
    model.config.id2label = dict(enumerate(["O", "PER", "LOC", "ORG", "MISC"]))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]))
    ((entity,),) = lorakit.predict(model, tokenizer, ["Ada Lovelace"])
    assert (entity.type, entity.text) == ("PER", "Ada Lovelace")
    scores = lorakit.evaluate(model, tokenizer, [(["Ada", "Lovelace"], ["PER", "PER"])])
    assert (scores.f1, scores.strict.f1, scores.accuracy) == (1.0, 1.0, 1.0)


def test_gold_tags_of_another_type_are_still_refused(tiny_model, tokenizer):
    model = tiny_model()
    with pytest.raises(ValueError, match="'S-RNA'"):
        lorakit.evaluate(model, tokenizer, [(["gene"], ["S-RNA"])])
