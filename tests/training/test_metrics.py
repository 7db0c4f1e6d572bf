import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score
from seqeval.metrics import sequence_labeling as default_mode
from seqeval.metrics import v1 as strict_mode
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES

from lorakit.data.corpus import read_ner
from lorakit.training.metrics import (
    EntityScores,
    count_by_sentence,
    count_entities,
    entity_scores,
    score,
    score_classes,
)

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]
# names with hyphens, no name, only an end of one; the two modes read some of these differently
ODD = ["O", "B", "I", "B-", "I-", "B--a", "I--a", "B-a", "I-a", "B-a-", "I-a-", "B-_", "I-x-y", "B-x-y", "B-cell_type"]


def sentences(tags):
    pair = st.tuples(st.sampled_from(tags), st.sampled_from(tags))
    return st.lists(st.lists(pair, max_size=8), min_size=1, max_size=6).filter(any)


def oracle(gold, guess):
    """(micro, by type) in seqeval's two modes, from its own functions."""
    answers = []
    for module, scheme in ((default_mode, {}), (strict_mode, {"scheme": IOB2})):
        count = module.precision_recall_fscore_support
        rows = zip(*(column.tolist() for column in count(gold, guess, zero_division=0, **scheme)), strict=True)
        if scheme:
            names = strict_mode.unique_labels(gold, guess, IOB2)
        else:
            names = sorted({entity[0] for side in (gold, guess) for entity in default_mode.get_entities(side)})
        overall = count(gold, guess, average="micro", zero_division=0, **scheme)
        by_type = {name: EntityScores(*row) for name, row in zip(names, rows, strict=True)}
        answers.append((EntityScores(*(float(x) for x in overall[:3]), int(overall[3])), by_type))
    return answers


def assert_equals_seqeval(gold, guess):
    (overall, by_type), (strict, strict_by_type) = oracle(gold, guess)
    ours = score(gold, guess)
    assert EntityScores(ours.precision, ours.recall, ours.f1, overall.support) == overall
    assert sum(row.support for row in ours.by_type.values()) == overall.support
    assert (ours.strict, ours.by_type, ours.strict_by_type) == (strict, by_type, strict_by_type)
    assert ours.accuracy == accuracy_score(gold, guess)
    assert list(ours.by_type) == list(by_type)
    for row in (ours, ours.strict, *ours.by_type.values()):
        assert {type(getattr(row, name)) for name in ("precision", "recall", "f1")} == {float}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from((TAGS, ODD)).flatmap(sentences))
def test_equals_seqeval_to_the_last_bit_in_both_modes(pairs):
    gold = [[a for a, _ in sentence] for sentence in pairs]
    guess = [[b for _, b in sentence] for sentence in pairs]
    assert_equals_seqeval(gold, guess)


def as_classes(gold, guess, labels):
    flat = [np.array([labels.index(tag) for tags in side for tag in tags], int) for side in (gold, guess)]
    return *flat, np.array([len(tags) for tags in gold]), labels


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from((TAGS, ODD)).flatmap(sentences))
def test_counts_by_sentence_sum_to_seqevals_scores_and_are_those_of_each_sentence_alone(pairs):
    gold = [[a for a, _ in sentence] for sentence in pairs]
    guess = [[b for _, b in sentence] for sentence in pairs]
    counts = count_by_sentence(*as_classes(gold, guess, TAGS + ODD))
    (default, _), (strict, _) = oracle(gold, guess)
    assert (counts.total("default"), counts.total("strict")) == (default, strict)
    for number, (tags, guesses) in enumerate(zip(gold, guess, strict=True)):
        alone = count_by_sentence(*as_classes([tags], [guesses], TAGS + ODD))
        assert counts.default[number].tolist() == alone.default[0].tolist()
        assert counts.strict[number].tolist() == alone.strict[0].tolist()


def test_counts_by_sentence_of_the_real_test_set_sum_to_its_scores(bionlp2004):
    data = read_ner(bionlp2004)
    draw = np.random.default_rng(0)
    gold = [list(sentence.tags) for sentence in data.test]
    guess = [[str(draw.choice(data.labels)) if draw.random() < 0.05 else tag for tag in tags] for tags in gold]
    counts = count_by_sentence(*as_classes(gold, guess, list(data.labels)))
    (default, _), (strict, _) = oracle(gold, guess)
    assert counts.default.shape == counts.strict.shape == (3_856, 3)
    assert (counts.total("default"), counts.total("strict")) == (default, strict)


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
def test_counts_by_sentence_of_other_schemes_are_seqevals():
    gold, guess = [["Bx", "O"], ["B-a", "I-a"], []], [["Bx", "B-a"], ["B-a", "O"], []]
    counts = count_by_sentence(*as_classes(gold, guess, ["O", "Bx", "B-a", "I-a"]))
    assert counts.default.tolist() == [[1, 2, 1], [0, 1, 1], [0, 0, 0]]
    assert counts.total("default").f1 == score(gold[:2], guess[:2]).f1
    assert counts.total("strict") == score(gold[:2], guess[:2]).strict


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sentences(ODD))
def test_seqevals_own_report_by_type_is_the_same_in_strict_mode_too(pairs):
    """`by_type` is of the default mode; strict has rows of its own, which `count_entities` gives as well."""
    gold = [[a for a, _ in sentence] for sentence in pairs]
    guess = [[b for _, b in sentence] for sentence in pairs]
    lengths = np.array([len(sentence) for sentence in pairs])
    first = np.zeros(lengths.sum(), bool)
    first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    flat = (np.array([ODD.index(tag) for tags in side for tag in tags]) for side in (gold, guess))
    types = [tag[1:].strip("-") or "_" for tag in ODD]
    counts = count_entities(*flat, first, ODD, types, strict=True)
    expected = oracle(gold, guess)[1][1]
    assert {name: entity_scores(*row) for name, row in counts.items()} == expected


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_equals_seqeval_on_the_real_test_set(bionlp2004, noise):
    data = read_ner(bionlp2004)
    draw = np.random.default_rng(0)
    gold = [list(sentence.tags) for sentence in data.test]
    guess = [[str(draw.choice(data.labels)) if draw.random() < noise else tag for tag in tags] for tags in gold]
    assert_equals_seqeval(gold, guess)
    assert sum(row.support for row in score(gold, guess).by_type.values()) == 8_662


def test_tags_of_no_scheme_are_left_to_seqeval_with_its_warnings():
    with pytest.warns(UserWarning, match="Bx seems not to be NE tag"):
        scores = score([["Bx", "O"]], [["Bx", "B-a"]])
    assert (scores.precision, scores.recall, list(scores.by_type)) == (0.5, 1.0, ["a", "x"])
    labels = ["O", "B-a", "Bx"]  # a class that is not used does no harm
    assert score_classes(np.array([0, 1]), np.array([1, 1]), np.array([2]), labels).f1 == pytest.approx(2 / 3)


def test_classes_of_one_name_are_one_tag():
    scores = score_classes(np.array([0, 1, 2]), np.array([0, 2, 1]), np.array([1, 2]), ["O", "B-a", "B-a"])
    assert (scores.f1, scores.accuracy) == (1.0, 1.0)


def test_classes_may_be_integers_of_any_type():
    gold, guess, lengths = np.array([0, 1, 2, 1]), np.array([0, 1, 2, 0]), np.array([3, 0, 1])
    wide = score_classes(gold, guess, lengths, TAGS)
    assert score_classes(gold.astype(np.uint8), guess.astype(np.int32), lengths, TAGS) == wide
    assert wide.by_type["a"] == EntityScores(1.0, 0.5, 2 / 3, 2)


def test_classes_that_do_not_fill_the_sentences_are_refused():
    for gold, guess, lengths in (([0], [0, 0], [1]), ([0], [0], [2]), ([], [], [0])):
        sides = [np.array(side, int) for side in (gold, guess, lengths)]
        with pytest.raises(ValueError, match=rf"cannot score {len(guess)} predicted against {len(gold)} gold words?"):
            score_classes(*sides, TAGS)


def test_text_without_any_entity_scores_zero_with_full_accuracy():
    scores = score([["O", "O"]], [["O", "O"]])
    assert (scores.f1, scores.strict.f1, scores.accuracy, scores.by_type) == (0.0, 0.0, 1.0, {})


def test_default_mode_forgives_an_orphan_i_tag_and_strict_does_not():
    scores = score([["B-a", "I-a"]], [["I-a", "I-a"]])
    assert (scores.f1, scores.strict.f1) == (1.0, 0.0)


def test_types_are_scored_separately_with_their_support():
    scores = score([["B-a", "O", "B-b", "B-b"]], [["B-a", "O", "B-b", "O"]])
    assert {name: (row.f1, row.support) for name, row in scores.by_type.items()} == {
        "a": (1.0, 1),
        "b": (pytest.approx(2 / 3), 2),
    }


def test_scores_become_json_with_the_fixed_keys():
    record = json.loads(json.dumps(score([["B-a"]], [["B-a"]], loss=0.5).to_json()))
    assert list(record) == ["loss", "precision", "recall", "f1", "accuracy", "strict", "by_type", "strict_by_type"]
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


SCHEMES = {"iob1": ("BI", IOB1), "bioes": ("BIES", IOBES), "bilou": ("BILU", BILOU)}


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_other_schemes_equal_seqeval_with_the_schemes_own_class(name, data):
    letters, scheme = SCHEMES[name]
    labels = ["O", *(f"{letter}-{kind}" for letter in letters for kind in "ab")]
    pairs = data.draw(sentences(labels))
    gold = [[a for a, _ in sentence] for sentence in pairs]
    guess = [[b for _, b in sentence] for sentence in pairs]
    read = "iob1" if name == "iob1" else "bioes"
    ours = score(gold, guess, scheme=read)
    # seqeval's default mode reads L and U as other letters than E and S
    usual = [[[tag.replace("L-", "E-").replace("U-", "S-") for tag in tags] for tags in side] for side in (gold, guess)]
    count = default_mode.precision_recall_fscore_support
    overall = count(*usual, average="micro", zero_division=0)
    overall = EntityScores(*(float(x) for x in overall[:3]), int(overall[3]))
    names = sorted({entity[0] for side in usual for entity in default_mode.get_entities(side)})
    rows = zip(*(column.tolist() for column in count(*usual, zero_division=0)), strict=True)
    by_type = {name: EntityScores(*row) for name, row in zip(names, rows, strict=True)}
    strict = strict_mode.precision_recall_fscore_support(gold, guess, average="micro", zero_division=0, scheme=scheme)
    assert (ours.precision, ours.recall, ours.f1, ours.by_type) == (
        overall.precision,
        overall.recall,
        overall.f1,
        by_type,
    )
    assert ours.strict == EntityScores(*(float(x) for x in strict[:3]), int(strict[3]))
    assert ours.accuracy == accuracy_score(gold, guess)
    counts = count_by_sentence(*as_classes(gold, guess, labels), read)
    assert (counts.total("default"), counts.total("strict")) == (overall, ours.strict)


def test_tags_of_another_scheme_are_known_by_their_letters():
    perfect = [["B-NAME", "M-NAME", "E-NAME", "O", "S-LOC"], ["O", "W-LOC"]]
    scores = score(perfect, perfect)
    assert (scores.f1, scores.strict.f1, scores.strict.support) == (1.0, 1.0, 3)
    broken = score(perfect, [["B-NAME", "M-NAME", "O", "O", "S-LOC"], ["O", "W-LOC"]])
    assert broken.strict.f1 == pytest.approx(2 * 2 / (2 + 3))  # the unclosed NAME is dropped
    assert broken.f1 == pytest.approx(2 / 3)  # and in the default mode found wrong


def test_types_without_prefixes_are_entities():
    gold = [["PER", "PER", "O", "LOC"]]
    scores = score(gold, gold)
    assert (scores.f1, scores.strict.f1, scores.accuracy) == (1.0, 1.0, 1.0)
    assert scores.by_type == {name: EntityScores(1.0, 1.0, 1.0, 1) for name in ("LOC", "PER")}
    prefixed = [["I-PER", "I-PER", "O", "I-LOC"]], [["I-PER", "O", "O", "I-LOC"]]
    expected = oracle(*prefixed)[0][0]
    half = score(gold, [["PER", "O", "O", "LOC"]])
    assert (half.precision, half.recall, half.f1) == (expected.precision, expected.recall, expected.f1)
