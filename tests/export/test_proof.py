"""What a proof refuses, and what it counts."""

import re

import pytest

from lorakit.data.tags import Span
from lorakit.export.proof import NotProven, Reference, compare, find_reference

WORDS = [["IL-2", "gene"], ["no", "NF-kappa", "B"]]
REFERENCE = Reference(WORDS, [[Span("DNA", 0, 2)], []], [["O", "O"], ["O"] * 3])


def test_equal_entities_are_proven():
    compare(REFERENCE, [[Span("DNA", 0, 2)], []], "a runtime")
    assert REFERENCE.proven("a runtime") == (
        "Equal to lorakit.predict (greedy, fp32) in all 1 entities of 2 sentences through a runtime."
    )


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
    assert found.proven("x").endswith("; 1 longer than the model's window were left out.")


def test_sentences_without_an_entity_prove_nothing(tiny_model, tokenizer):
    model = tiny_model()
    model.classifier.bias.data[0] += 1e4
    with pytest.raises(ValueError, match="the model finds no entity in the 1 sentences, so they prove nothing"):
        find_reference(model, tokenizer, [(["IL-2", "gene"], ["O", "O"])])
