"""Errors counted by hand."""

import json

import pytest

from lorakit.data.tags import Span
from lorakit.report.errors import OUTCOMES, Tagged, Tenth, find_errors, find_leaks, mean_distance, tenths_of
from lorakit.report.errors_page import errors_page, errors_text

WORDS = "IL-2 gene binds NF-kappa B in T cells <b>".split()
ROWS = [
    Tagged(
        WORDS,
        [Span("DNA", 0, 2), Span("protein", 3, 5), Span("cell", 6, 8)],
        [Span("DNA", 0, 1), Span("DNA", 3, 5), Span("cell", 8, 9)],
        [0.95, 0.5, 1, 0.99, 0.97, 1, 0.99, 0.97, 0.6],
    ),
    Tagged(["IL-2", "gene"], [Span("DNA", 0, 2)], [Span("DNA", 0, 2)], [1, 1]),
    Tagged(["a", "T", "cell"], [Span("cell", 1, 3)], [Span("DNA", 0, 2), Span("cell", 2, 3)], [0.2, 0.2, 0.2]),
]
TRAIN = [(["IL-2", "gene"], [Span("DNA", 0, 2)]), (["T", "cells"], [Span("protein", 0, 2)])]


@pytest.fixture
def errors():
    return find_errors(ROWS, TRAIN)


def test_every_gold_entity_has_one_outcome(errors):
    def row(**counts):
        return {**dict.fromkeys(OUTCOMES, 0), **counts}

    assert errors.outcomes == {
        "DNA": row(right=1, border=1),
        "cell": row(missed=1, border=1),  # of two that overlap, the one of the same type
        "protein": row(type=1),
    }
    assert errors.confusion == {("protein", "DNA"): 1}
    assert errors.spurious == {"cell": 1}


def test_forms_are_seen_only_as_the_same_type(errors):
    assert errors.seen == {"DNA": (1, 2)}
    assert errors.unseen == {"cell": (0, 2), "protein": (0, 1)}
    assert find_errors(ROWS).seen == find_errors(ROWS).unseen == {}
    assert dict(errors.missed_forms)["DNA", "IL-2 gene"] == 1 and dict(errors.spurious_forms)["DNA", "a T"] == 1


def test_only_confident_disagreements_are_suspected(errors):
    assert errors.suspected == [
        (1, 3, 5, "protein", "DNA", pytest.approx(0.98)),
        (1, 6, 8, "cell", "O", pytest.approx(0.98)),
        (1, 0, 1, "DNA", "DNA", 0.95),
    ]


def test_the_worst_sentence_is_first_and_right_ones_are_left_out(errors):
    assert errors.worst == [(1, 6), (3, 3)]


def test_reliability_compares_scores_with_what_is_right_by_tenths(errors):
    assert [count for count, _, _ in errors.reliability] == [0, 0, 2, 0, 0, 0, 1, 0, 0, 3]
    assert errors.reliability[9] == (3, pytest.approx((0.95 + 0.98 + 1) / 3), pytest.approx(1 / 3))


def test_the_mean_distance_is_weighed_by_entities():
    tenths = tenths_of([(0.95, True), (0.97, True), (0.5, False), (1.0, False), (0.55, True)])
    assert tenths[5] == Tenth(2, pytest.approx(0.525), 0.5)
    assert tenths[9] == Tenth(3, pytest.approx((0.95 + 0.97 + 1) / 3), pytest.approx(2 / 3))
    assert [tenth.count for tenth in tenths] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert mean_distance(tenths) == pytest.approx((abs(1.05 - 1) + abs(2.92 - 2)) / 5)


def test_leaks_are_distinct_sentences_of_two_words_or_more():
    splits = {"train": [["a", "b"], ["a", "b"], ["x"]], "validation": [["a", "b"]], "test": [["x"], ["c", "d"]]}
    assert find_leaks(splits) == {("train", "validation"): 1}


def test_the_page_shows_all_of_it_escaped_and_the_text_the_sums(errors):
    page = errors_page(errors, ROWS, "<model>")
    assert "&lt;b&gt;" in page and "<b>" not in page.replace("<b>sentence", "") and "&lt;model&gt;" in page
    for title in (
        "by outcome",
        "as another type",
        "Missed most",
        "Wrongly found",
        "Suspected label",
        "most errors",
        "Reliability",
    ):
        assert title in page
    assert 'class="same">IL-2 gene' not in page and 'class="odd">NF-kappa B<small>protein' in page
    assert "prefers-color-scheme: dark" in page and "<script" not in page
    assert errors_text(errors).splitlines()[:2] == [
        "gold entities: 1 right, 2 border, 1 type, 0 type and border, 1 missed; spurious: 1",
        "recall of forms seen in training: 0.5000 (1 of 2)",
    ]
    assert json.loads(json.dumps(errors.to_json()))["confusion"] == {"protein/DNA": 1}
