"""The temperature against torch's own optimizer, and the entities that are right."""

import pytest
import torch

import lorakit
from lorakit.data.tags import in_labels_of, to_iob2
from lorakit.training import calibration, evaluation
from lorakit.training.calibration import calibrate, fit_temperature
from tests.support.tiny import LABELS
from tests.support.toy import toy_sentences


def test_the_temperature_is_the_one_that_lbfgs_finds():
    torch.manual_seed(0)
    logits = torch.randn(500, 5, dtype=torch.float64) * 4
    wanted = torch.distributions.Categorical(logits=logits / 2.5).sample()
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log.exp(), wanted)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits, wanted) == pytest.approx(log.exp().item(), rel=1e-4)
    assert 2 < log.exp().item() < 3


def test_calibrated_scores_are_softmax_over_the_temperature_and_tags_stay(tiny_model, tokenizer):
    model = tiny_model()
    words = ["IL-2", "gene", "binds", "NF-kappa", "B", "in", "T", "cells"]
    pairs = [(words[: 3 + i % 6], lorakit.predict(model, tokenizer, [words[: 3 + i % 6]])[0]) for i in range(12)]
    pairs = [(row, ["O", *tags[1:]]) for row, tags in pairs]
    found = calibrate(model, tokenizer, pairs, "fp32")
    with torch.no_grad():
        batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        chances = (model(**batch).logits[0] / found.temperature).softmax(-1)
    ids = batch.word_ids(0)
    (entities,), (plain,) = (
        lorakit.predict(model, tokenizer, [" ".join(words)], "fp32", temperature=t) for t in (found.temperature, 1.0)
    )
    assert entities and [e[:5] for e in map(_key, entities)] == [e[:5] for e in map(_key, plain)]
    for entity in entities:
        places = [ids.index(i) for i in range(entity.first_word, entity.end_word)]
        assert entity.score == pytest.approx(chances[places].max(-1).values.mean().item(), abs=1e-5)
    assert sum(map(len, found.outcomes.values())) > 12 and set(found.outcomes) <= {"DNA", "protein"}
    assert len(LABELS) == 5


def _key(entity):
    return (entity.type, entity.start, entity.end, entity.first_word, entity.end_word)


def test_two_processes_fit_the_temperature_that_one_fits(tiny_model, tokenizer, monkeypatch):
    """One process plays both: the second process's words first, to which the first then adds its own."""
    model, pairs, parts = tiny_model(), [(s.words, s.tags) for s in toy_sentences(20, 1)], []
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", 32)  # several batches
    alone = calibrate(model, tokenizer, pairs, "fp32").temperature

    def add(logits):
        parts.append(logits.clone())
        return logits.copy_(sum(parts))

    monkeypatch.setattr(calibration, "all_sum", add)
    monkeypatch.setattr(evaluation, "world_size", lambda: 2)
    for number in (1, 0):
        monkeypatch.setattr(evaluation, "rank", lambda number=number: number)
        found = calibrate(model, tokenizer, pairs, "fp32").temperature
    assert found == pytest.approx(alone, rel=1e-4)
    assert all(part.any() for part in parts)


def test_the_decoder_is_noted_and_changes_entities_but_not_the_temperature(tiny_model, tokenizer):
    model, pairs = tiny_model(), [(s.words, s.tags) for s in toy_sentences(20, 1)]
    greedy, viterbi = (calibrate(model, tokenizer, pairs, "fp32", decode) for decode in ("greedy", "viterbi"))
    assert (greedy.decode, viterbi.decode) == ("greedy", "viterbi")
    assert greedy.temperature == viterbi.temperature and greedy.outcomes != viterbi.outcomes


@pytest.mark.parametrize("learned", ["iob1", "iob2"])
def test_a_corpus_of_the_other_scheme_with_the_same_labels_gives_the_same_calibration(tiny_model, tokenizer, learned):
    """Gold tags are what the tagger finds, so it is right everywhere; the other scheme must not make it look wrong."""
    model = tiny_model()
    rows = [s.words for s in toy_sentences(30, 1)]
    with torch.no_grad():  # the tagger of iob1 begins entities with I-, which the tagger of iob2 never predicts
        model.classifier.bias[[1, 3] if learned == "iob1" else [2, 4]] -= 100
    found = lorakit.predict(model, tokenizer, rows, "fp32", decode="greedy")
    iob2 = [to_iob2(tags, "iob2") for tags in found]
    iob1 = [in_labels_of(tags, LABELS, "iob1", "iob2") for tags in iob2]
    assert iob1 != iob2
    one, two = (
        calibrate(model, tokenizer, list(zip(rows, tags, strict=True)), "fp32", "greedy") for tags in (iob1, iob2)
    )
    assert one == two and all(right for pairs in one.outcomes.values() for _, right in pairs)
