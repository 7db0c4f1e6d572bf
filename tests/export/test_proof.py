"""What a proof refuses, and what it counts."""

import re
from dataclasses import replace

import pytest

import lorakit
from lorakit.data.decoding import remember_decoder
from lorakit.data.tags import Span
from lorakit.export.proof import NotProven, Reference, compare, find_reference

WORDS = [["IL-2", "gene"], ["no", "NF-kappa", "B"]]
REFERENCE = Reference(WORDS, {"greedy": [[Span("DNA", 0, 2)], []]}, [[], []], "greedy")


def test_equal_entities_are_proven():
    compare(REFERENCE, [[Span("DNA", 0, 2)], []], "a runtime")
    assert REFERENCE.proven("a runtime", "greedy") == (
        "Equal to lorakit.predict in every entity: 1 entity (greedy, fp32) of 2 sentences through a runtime."
    )
    named = replace(REFERENCE, split="training").proven("a runtime", "greedy")
    assert "of 2 sentences of the training set through a runtime." in named
    assert REFERENCE.price_of_greedy("its tags") == []  # it was trained like that


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[], []], "in sentence 1 of 2 lorakit finds DNA 'IL-2 gene' (words 0-2) and spaCy nothing there (IL-2 gene)"),
        ([[Span("RNA", 0, 2)], []], "lorakit finds DNA 'IL-2 gene' (words 0-2) and spaCy RNA 'IL-2 gene' (words 0-2)"),
        ([[Span("DNA", 0, 2)], [Span("DNA", 1, -1)]], "finds nothing there and spaCy DNA that begins or ends inside"),
    ],
)
def test_the_first_difference_is_named(found, message):
    with pytest.raises(NotProven, match=re.escape(message)):
        compare(REFERENCE, found, "spaCy")


def test_sentences_of_several_windows_are_counted_and_left_out(tiny_model, tokenizer):
    sentences = [(["IL-2", "gene"] * 400, ["O"] * 800), (["IL-2", "gene", "GATA-1", "cells"], ["O"] * 4)]
    found = find_reference(tiny_model(), tokenizer, sentences)
    assert (len(found.sentences), found.longer) == (1, 1)
    assert found.proven("x", "greedy").endswith("; 1 longer than the model's window was left out.")


@pytest.mark.parametrize("gold", [("B-DNA", "I-DNA", "O", "B-protein"), ("S-DNA", "O", "B-protein", "E-protein")])
def test_greedy_tags_of_a_model_of_viterbi_have_the_price_that_evaluate_finds(gold, tiny_model, tokenizer):
    model = tiny_model()
    words = "The IL-2 gene requires NF-kappa B ( p50/p65 ) and GATA-1 binds 5'-flanking DNA".split()
    remember_decoder(model, "viterbi")
    sentences = [(words[start : start + 8], 2 * list(gold)) for start in range(7)]
    found = find_reference(model, tokenizer, sentences)
    before, after = (lorakit.evaluate(model, tokenizer, sentences, decode=name).f1 for name in ("greedy", "viterbi"))
    tags = [
        lorakit.predict(model, tokenizer, [row for row, _ in sentences], decode=name) for name in ("greedy", "viterbi")
    ]
    changed = sum(one != other for one, other in zip(*tags, strict=True))
    assert changed and before != after
    (told,) = found.price_of_greedy("its tags")
    assert told.startswith("Note that its tags are greedy, and lorakit.predict decodes this model with viterbi, as it")
    assert (
        f"of {changed} of 7 sentences differ; over all of them F1 is {before:.4f} greedy and {after:.4f} with" in told
    )
    unknown = replace(found, gold=[[]] * 7).price_of_greedy("its tags")[0]
    assert unknown.endswith(
        "what that costs in F1 is unknown, because the corpus marks no entity, or other types than the model's."
    )


def test_f1_on_a_corpus_of_other_types_is_unknown_and_not_0(tiny_model, tokenizer):
    model, words = tiny_model(), "The IL-2 gene requires NF-kappa B ( p50/p65 )".split()
    for gold, known in ((["B-drug", "O"], False), (["B-DNA", "B-drug"], False), (["B-DNA", "O"], True)):
        found = find_reference(model, tokenizer, [(words, [*gold, *["O"] * (len(words) - 2)])])
        assert (found.f1_of(found.entities["greedy"]) is not None) is known


def test_raw_text_is_decoded_as_the_model_was_trained(tiny_model, tokenizer):
    model, words = tiny_model(), ["IL-2", "gene", "GATA-1", "cells"]
    assert set(find_reference(model, tokenizer, [(words, ["O"] * 4)], raw=True).entities) == {"greedy"}
    remember_decoder(model, "viterbi")
    assert set(find_reference(model, tokenizer, [(words, ["O"] * 4)], raw=True).entities) == {"viterbi"}


def test_sentences_without_an_entity_prove_nothing(tiny_model, tokenizer):
    model = tiny_model()
    model.classifier.bias.data[0] += 1e4
    with pytest.raises(ValueError, match="the model finds no entity in 1 sentence, which proves nothing"):
        find_reference(model, tokenizer, [(["IL-2", "gene"], ["O", "O"])])
