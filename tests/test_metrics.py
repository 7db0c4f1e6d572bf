import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from lorakit.metrics import score

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]
sentences = st.lists(st.lists(st.tuples(*[st.sampled_from(TAGS)] * 2), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sentences)
def test_equals_seqeval_in_both_modes(pairs):
    gold = [[a for a, _ in sentence] for sentence in pairs]
    guess = [[b for _, b in sentence] for sentence in pairs]
    prefixes = {tag[0] for tags in (*gold, *guess) for tag in tags}
    ours = score(gold, guess)
    for scores, mode, opens in ((ours, {}, {"B", "I"}), (ours.strict, {"mode": "strict", "scheme": IOB2}, {"B"})):
        if not prefixes & opens:  # seqeval cannot score this
            assert (scores.precision, scores.recall, scores.f1) == (0.0, 0.0, 0.0)
            continue
        assert scores.precision == pytest.approx(precision_score(gold, guess, zero_division=0, **mode), abs=1e-12)
        assert scores.recall == pytest.approx(recall_score(gold, guess, zero_division=0, **mode), abs=1e-12)
        assert scores.f1 == pytest.approx(f1_score(gold, guess, zero_division=0, **mode), abs=1e-12)
    assert ours.accuracy == accuracy_score(gold, guess)


def test_text_without_any_entity_scores_zero_with_full_accuracy():
    scores = score([["O", "O"]], [["O", "O"]])
    assert (scores.f1, scores.strict.f1, scores.accuracy, scores.by_type) == (0.0, 0.0, 1.0, {})


def test_default_mode_forgives_an_orphan_i_tag_and_strict_does_not():
    scores = score([["B-a", "I-a"]], [["I-a", "I-a"]])
    assert (scores.f1, scores.strict.f1) == (1.0, 0.0)


def test_types_are_scored_apart_with_their_support():
    scores = score([["B-a", "O", "B-b", "B-b"]], [["B-a", "O", "B-b", "O"]])
    assert {name: (row.f1, row.support) for name, row in scores.by_type.items()} == {
        "a": (1.0, 1),
        "b": (pytest.approx(2 / 3), 2),
    }


def test_scores_become_json_with_the_fixed_keys():
    record = json.loads(json.dumps(score([["B-a"]], [["B-a"]], loss=0.5).to_json()))
    assert list(record) == ["loss", "precision", "recall", "f1", "accuracy", "strict", "by_type"]
    assert record["strict"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}
    assert record["by_type"]["a"]["f1"] == 1.0


def test_unequal_input_is_refused():
    with pytest.raises(ValueError, match="sentence 1 has 2 gold tags and 1 predicted"):
        score([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="cannot score 1 predicted against 2 gold sentences"):
        score([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="at least one word"):
        score([[]], [[]])


def test_sentences_do_not_run_into_each_other():
    scores = score([["B-a"], ["I-a"]], [["B-a"], ["I-a"]])
    assert (scores.by_type["a"].support, scores.strict.support) == (2, 1)
