"""The best sequence of tags that a scheme allows, against every sequence there is."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from lorakit.data.decoding import check_decode, decoder_for, decoder_of, remember_decoder, transitions, viterbi
from lorakit.data.tags import irregular

LABELS = {
    "iob2": ["O", "B-x", "I-x", "B-y", "I-y"],
    "iob1": ["O", "I-x", "B-x", "I-y"],
    "bioes": ["O", "B-x", "I-x", "E-x", "S-x", "S-y"],
}


@pytest.mark.parametrize("scheme", LABELS)
def test_it_is_the_best_of_all_sequences_that_keep_to_the_scheme(scheme):
    labels, random = LABELS[scheme], np.random.default_rng(0)
    lengths = np.array([1, 4, 0, 3, 4, 2, 4])
    scores = np.log(random.dirichlet(np.full(len(labels), 0.4), lengths.sum()))
    found = viterbi(scores, lengths, transitions(labels, scheme))
    start, greedy_broke = 0, 0
    for length in lengths.tolist():
        part = scores[start : start + length]
        allowed = [
            path
            for path in product(range(len(labels)), repeat=length)
            if not irregular([labels[i] for i in path], scheme)
        ]
        wanted = max(allowed, key=lambda path: sum(part[i, c] for i, c in enumerate(path)))
        assert tuple(found[start : start + length]) == wanted
        greedy_broke += bool(irregular([labels[i] for i in part.argmax(1)], scheme))
        start += length
    assert greedy_broke >= 2  # otherwise nothing was shown


def test_types_without_prefixes_may_follow_in_any_order():
    allowed = transitions(["O", "PER", "LOC"])
    assert allowed.start.all() and allowed.follow.all() and allowed.end.all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["NN", "B-"], "needs entity tags"), (["B-x", "E-x"], "no label may stand alone in bioes")],
)
def test_labels_that_have_no_valid_sequence_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        transitions(labels)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="decode is 'beam'; it must be one of auto, viterbi, greedy"):
        check_decode("beam")


@pytest.mark.parametrize(
    ("decode", "labels", "used"),
    [
        ("auto", ["O", "B-x", "I-x"], "viterbi"),
        ("auto", ["O", "x"], "viterbi"),
        ("auto", ["NN", "B-"], "greedy"),
        ("auto", ["B-x", "E-x"], "greedy"),
        ("greedy", ["O", "B-x", "I-x"], "greedy"),
        ("viterbi", ["O", "B-x", "I-x"], "viterbi"),
    ],
)
def test_training_takes_viterbi_where_the_labels_allow_it(decode, labels, used):
    assert decoder_for(decode, labels) == used


def test_viterbi_for_labels_that_do_not_allow_it_is_refused():
    with pytest.raises(ValueError, match="needs entity tags"):
        decoder_for("viterbi", ["NN", "B-"])


def test_a_model_decodes_as_it_was_trained_unless_told_otherwise():
    model = SimpleNamespace(config=SimpleNamespace())
    assert decoder_of(model) == "greedy"
    remember_decoder(model, "viterbi")
    assert decoder_of(model) == "viterbi"
    assert decoder_of(model, "greedy") == "greedy"
    remember_decoder(model, "greedy")
    assert decoder_of(model) == "greedy" and not vars(model.config)
