"""Raw texts and pre-split words take one path; entities are where they say."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

import lorakit
from lorakit.data.pretokenizer import split_words
from lorakit.training.prediction import Entity, find_entities
from tests.data.test_pretokenizer import texts
from tests.support.tiny import LABELS, make_tiny_model


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


lists = st.lists(texts, max_size=4)
LONG = "the IL-2 gene, (IL2) of NF-kappaB. " * 120  # about 1,300 words, three windows
ODD = ["", " \n", "...", "😀", "IL-2\r\ngene\r\n", "\u200b", "<pad></s>", LONG]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lists)
@example(ODD)
def test_a_raw_text_gives_exactly_the_tags_of_its_words(model, tokenizer, texts):
    words = [[word.text for word in split_words(text)] for text in texts]
    tags = lorakit.predict(model, tokenizer, words)
    found = find_entities(model, tokenizer, texts)
    assert [row for _, row, _ in found] == tags
    assert lorakit.predict(model, tokenizer, texts) == [entities for _, _, entities in found]
    for entities, row in zip((entities for _, _, entities in found), tags, strict=True):
        assert [(e.type, e.first_word, e.end_word - 1) for e in entities] == get_entities(row)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lists)
@example(ODD)
def test_entities_are_slices_of_their_text_between_words(model, tokenizer, texts):
    for text, entities in zip(texts, lorakit.predict(model, tokenizer, texts), strict=True):
        words = split_words(text)
        for entity in entities:
            assert 0 <= entity.start < entity.end <= len(text)
            assert text[entity.start : entity.end] == entity.text
            assert (entity.start, entity.end) == (words[entity.first_word].start, words[entity.end_word - 1].end)
            assert 1 / len(LABELS) <= entity.score <= 1  # the tag chosen has at least an even share


def test_the_score_is_the_mean_softmax_of_the_entitys_tags(model, tokenizer):
    text = "In T cells the IL-2 gene binds NF-kappaB (p50/p65), and GATA-1 activates transcription of c-fos mRNA." * 3
    words = [word.text for word in split_words(text)]
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**encoding).logits[0].softmax(-1)
    firsts = [encoding.word_ids().index(number) for number in range(len(words))]
    best = probabilities[firsts].max(-1).values
    entities = lorakit.predict(model, tokenizer, [text])[0]
    assert any(entity.end_word - entity.first_word > 1 for entity in entities)
    for entity in entities:
        assert entity.score == pytest.approx(float(best[entity.first_word : entity.end_word].mean()), abs=1e-5)


def test_packed_batches_of_texts_equal_each_text_alone(model, tokenizer, monkeypatch):
    texts = [LONG[: 30 * n] for n in range(20)]
    together = lorakit.predict(model, tokenizer, texts)
    alone = [lorakit.predict(model, tokenizer, [text], packing=False)[0] for text in texts]
    for a, b in zip(together, alone, strict=True):
        assert [(e.type, e.start, e.end) for e in a] == [(e.type, e.start, e.end) for e in b]
        assert [e.score for e in a] == pytest.approx([e.score for e in b], abs=1e-5)


def test_a_label_scheme_with_ends_and_singles_is_read_as_such(tokenizer):
    model = make_tiny_model()
    model.config.id2label = dict(enumerate(("O", "B-X", "E-X", "S-X", "I-X")))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0, 0, 9, 0]))
    entities = lorakit.predict(model, tokenizer, ["IL-2 gene"])[0]
    assert [(e.type, e.text) for e in entities] == [("X", "IL-2"), ("X", "gene")]


def test_no_text_gives_nothing(model, tokenizer):
    assert lorakit.predict(model, tokenizer, []) == []
    assert lorakit.predict(model, tokenizer, ["", "\n"]) == [[], []]
    assert lorakit.predict(model, tokenizer, [[], []]) == [[], []]


def test_an_entity_says_what_it_is():
    entity = Entity("DNA", 4, 13, "IL-2 gene", 0.9, 1, 3)
    assert lorakit.Entity is Entity
    with pytest.raises(AttributeError):
        entity.start = 0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("IL-2 gene", r"predict takes a list of texts; this is one string: write \['IL-2 gene'\]"),
        (["IL-2", ["IL-2"]], "these texts are both: number 1 is of another kind than number 0"),
        ([["IL-2"], ["x"], "IL-2"], "these texts are both: number 2 is of another kind than number 0"),
        (["IL-\ud83d"], "half a surrogate pair"),
    ],
)
def test_anything_but_a_list_of_texts_is_refused(model, tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        lorakit.predict(model, tokenizer, texts)


def test_a_head_for_another_task_is_refused(tokenizer):
    model = make_tiny_model()
    model.config.id2label = {i: f"LABEL_{i}" for i in range(5)}
    with pytest.raises(ValueError, match=r"classes are not entity tags \(unknown tag 'LABEL_0'.*LABEL_0, LABEL_1"):
        lorakit.predict(model, tokenizer, ["IL-2"])


def test_predict_gives_a_tag_for_every_word_even_odd_and_beyond_the_window(tiny_model, tokenizer):
    sentences = [["IL-2", "", "gene"], [], ["\u200b"], ["interleukin"] * 700]
    tags = lorakit.predict(tiny_model(), tokenizer, sentences)
    assert [len(row) for row in tags] == [3, 0, 1, 700]
    assert {tag for row in tags for tag in row} <= set(LABELS)
