import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from lorakit.data.tags import (
    Span,
    check_labels,
    from_spans,
    in_labels_of,
    irregular,
    scheme_of_labels,
    scheme_of_sentences,
    spans,
    split_tag,
    to_iob2,
    types_of_labels,
    well_formed_spans,
    with_prefixes,
)


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[Span], int]:
    """Entities that do not overlap, and the number of words."""
    entities, at = [], 0
    kinds = st.sampled_from(["DNA", "protein", "a-b"])
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), kinds), max_size=8)):
        entities.append(Span(kind, at + gap, at + gap + length))
        at += gap + length
    return entities, at + draw(st.integers(0, 3))


def write_scheme(entities: list[Span], length: int, scheme: str) -> list[str]:
    """The tags of these entities by the scheme's definition."""
    tags = ["O"] * length
    for i, (kind, start, end) in enumerate(entities):
        touches = i > 0 and entities[i - 1].end == start and entities[i - 1].type == kind
        letters = {
            "iob2": "B" + "I" * (end - start - 1),
            "iob1": ("B" if touches else "I") + "I" * (end - start - 1),
            "bioes": "S" if end - start == 1 else "B" + "I" * (end - start - 2) + "E",
            "bmes": "S" if end - start == 1 else "B" + "M" * (end - start - 2) + "E",
            "bmewo": "W" if end - start == 1 else "B" + "M" * (end - start - 2) + "E",
            "bilou": "U" if end - start == 1 else "B" + "I" * (end - start - 2) + "L",
        }[scheme]
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


@pytest.mark.parametrize("written", ["iob2", "iob1", "bioes", "bilou", "bmes", "bmewo"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sentence=sentences())
def test_every_scheme_gives_back_its_entities(written: str, sentence: tuple[list[Span], int]) -> None:
    entities, length = sentence
    scheme = written if written in ("iob2", "iob1") else "bioes"
    tags = write_scheme(entities, length, written)
    assert spans(tags, scheme) == entities
    assert irregular(tags, scheme) == []
    assert list(to_iob2(tags, scheme)) == write_scheme(entities, length, "iob2")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["O", "B-DNA", "I-DNA", "E-DNA", "S-DNA", "B-a-b", "I-a-b", "E-a-b"]), max_size=12))
def test_broken_tags_are_read_as_seqeval_reads_them(tags: list[str]) -> None:
    assert [(kind, start, end - 1) for kind, start, end in spans(tags, "bioes")] == get_entities(tags)
    repaired = to_iob2(tags, "bioes")
    assert irregular(repaired, "iob2") == []
    assert spans(repaired) == spans(tags, "bioes")


@pytest.mark.parametrize(("scheme", "oracle"), [("iob2", IOB2), ("bioes", IOBES)])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_tags_are_regular_where_strict_seqeval_finds_all_their_entities(
    scheme: str, oracle: type, data: st.DataObject
) -> None:
    letters = "BI" if scheme == "iob2" else "BIES"
    choices = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("DNA", "RNA"))]
    tags = data.draw(st.lists(st.sampled_from(choices), max_size=8))
    strict = [(entity.tag, entity.start, entity.end) for entity in Entities([tags], oracle).entities[0]]
    covered = sum(end - start for _, start, end in strict)
    assert (not irregular(tags, scheme)) == (covered == sum(tag != "O" for tag in tags))


def test_irregular_names_each_place() -> None:
    assert irregular(["I-DNA", "I-DNA", "O", "B-DNA", "I-RNA"], "iob2") == [0, 4]
    assert irregular(["B-DNA", "I-DNA", "B-DNA", "O", "B-DNA"], "iob1") == [0, 4]
    assert irregular(["B-DNA", "O", "I-DNA", "S-DNA", "E-DNA", "B-DNA", "E-DNA"], "bioes") == [0, 2, 4]


def test_a_letter_of_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="tag 'E-DNA' does not exist in scheme 'iob2'"):
        spans(["B-DNA", "E-DNA"])


def test_from_spans_is_the_inverse_of_spans() -> None:
    assert from_spans([Span("DNA", 1, 3), Span("DNA", 3, 4)], 5) == ("O", "B-DNA", "I-DNA", "B-DNA", "O")


def test_a_tag_is_split_into_prefix_and_type_and_bilou_becomes_bioes() -> None:
    assert [split_tag(tag) for tag in ("O", "B-DNA", "U-a-b", "L-DNA")] == [
        ("O", ""), ("B", "DNA"), ("S", "a-b"), ("E", "DNA"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown tag 'DNA'; a tag is O or one of B I E S L U M W, a hyphen and"):
        split_tag("DNA")


def test_labels_need_an_o() -> None:
    with pytest.raises(ValueError, match="label.json: no label 'O'; the labels are B-DNA"):
        check_labels(["B-DNA"], "label.json")


LETTERS = {"iob2": "BI", "iob1": "BI", "bioes": "BIES", "bilou": "BILU", "bmes": "BMES", "bmewo": "BMEW"}


@pytest.mark.parametrize(("scheme", "oracle"), [("iob2", IOB2), ("iob1", IOB1), ("bioes", IOBES)])
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_well_formed_entities_are_those_of_seqevals_scheme(scheme: str, oracle: type, data: st.DataObject) -> None:
    choices = ["O", *(f"{letter}-{kind}" for letter in LETTERS[scheme] for kind in ("DNA", "RNA"))]
    tags = data.draw(st.lists(st.sampled_from(choices), max_size=8))
    expected = [(entity.tag, entity.start, entity.end) for entity in Entities([tags], oracle).entities[0]]
    assert well_formed_spans(tags, scheme) == expected


@pytest.mark.parametrize("mine", LETTERS)
@pytest.mark.parametrize("theirs", LETTERS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(sentence=sentences())
def test_tags_are_written_with_the_labels_of_a_tagger(mine: str, theirs: str, sentence: tuple[list[Span], int]) -> None:
    entities, length = sentence
    labels = ["O", *(f"{letter}-{kind}" for kind in ("DNA", "protein", "a-b") for letter in LETTERS[mine])]
    if {mine, theirs} <= {"iob1", "iob2"}:
        return  # their labels are the same, so the tags stay
    expected = write_scheme(entities, length, "iob2" if mine == "iob1" else mine)
    tags = write_scheme(entities, length, theirs)
    assert list(in_labels_of(tags, labels)) == expected


def test_the_scheme_of_a_tagger_is_that_of_its_labels_or_else_of_its_sentences() -> None:
    assert scheme_of_labels(["O", "B-a", "I-a", "B-b"]) == "iob2"
    assert scheme_of_labels(["O", "I-a", "I-b", "B-b"]) == "iob1"  # nothing else can begin an a
    assert scheme_of_labels(["O", "a", "b"]) == "iob1"
    assert scheme_of_labels(["O", "B-a", "M-a", "E-a", "S-a"]) == scheme_of_labels(["O", "B-a", "U-a"]) == "bioes"
    assert scheme_of_labels(["O", "B-a", "other"]) is None
    both = ["O", "B-a", "I-a"]
    assert scheme_of_sentences(both, [["B-a", "I-a"], ["O"]]) == "iob2"
    assert scheme_of_sentences(both, [["I-a", "I-a"], ["I-a", "B-a"]]) == "iob1"
    assert scheme_of_sentences(both, [["I-a"], ["O", "B-a"]]) == "iob2"  # it breaks both


@pytest.mark.parametrize(
    ("labels", "types"),
    [
        (["O", "B-protein", "I-protein", "B-DNA"], ["DNA", "protein"]),
        (["O", "B-cell-line", "I-cell-line"], ["cell-line"]),
        (["O", "cell-line", "PER"], ["PER", "cell-line"]),
    ],
)
def test_types_of_labels_may_hold_hyphens_with_and_without_prefixes(labels: list[str], types: list[str]) -> None:
    assert types_of_labels(labels) == types


def test_a_corpus_of_bioes_keeps_a_sentence_without_an_end() -> None:
    labels = ["O", "B-a", "I-a", "E-a", "S-a"]
    assert in_labels_of(["B-a", "I-a"], labels) == ("B-a", "E-a")
    assert in_labels_of(["B-a", "I-a"], labels, own="bioes") == ("B-a", "I-a")


def test_types_without_prefixes_are_one_entity_as_long_as_they_repeat() -> None:
    assert with_prefixes(["O", "PER", "LOC"]) == {"O": "O", "PER": "I-PER", "LOC": "I-LOC"}
    assert with_prefixes(["O", "PER", "B-LOC"]) == {"O": "O", "PER": "PER", "B-LOC": "B-LOC"}
    assert in_labels_of(["B-PER", "I-PER", "O", "B-LOC"], ["O", "LOC", "PER"]) == ("PER", "PER", "O", "LOC")
    assert in_labels_of(["B-DNA"], ["O", "LOC", "PER"]) == ("B-DNA",)  # refused as unknown where it is encoded
    assert in_labels_of(["U-a", "B-a", "L-a"], ["O", "I-a", "B-a", "I-b"]) == ("I-a", "B-a", "I-a")
