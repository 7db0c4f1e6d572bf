"""A corpus without splits is divided document by document."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.data.formats.record import Document
from lorakit.data.partition import partition


def sentences(names: list[str]) -> list[Document]:
    return [Document((f"w{i}",), ("O",), "", id=name) for i, name in enumerate(names)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=40), st.integers(0, 9))
def test_every_sentence_is_in_one_part_and_documents_are_whole(names: list[str], seed: int) -> None:
    there = sentences(names)
    if 1 < len(set(names)) < 3:
        with pytest.raises(ValueError, match="x: 2 documents cannot be divided into 3 splits; set a share to 0"):
            partition({"train": there}, (80, 10, 10), seed, "x")
        assert set(partition({"train": there}, (80, 20, 0), seed, "x")[0]) == {"train", "validation"}  # the advice
        return
    parts, _ = partition({"train": there}, (80, 10, 10), seed, "x")
    assert all(parts.values())
    assert sorted(d.words for part in parts.values() for d in part) == sorted(d.words for d in there)
    if len(set(names)) > 1:
        ids = [{d.id for d in part} for part in parts.values()]
        assert sum(map(len, ids)) == len(set.union(*ids))


def test_one_document_is_divided_and_said() -> None:
    """Label Studio writes one -DOCSTART- for a whole export."""
    parts, note = partition({"train": sentences(["a"] * 10)}, (80, 10, 10), 0, "x")
    assert [len(part) for part in parts.values()] == [8, 1, 1]
    assert note.endswith("8 train, 1 validation, 1 test sentences of one document, which was divided")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=20), st.integers(0, 9))
def test_documents_of_several_sentences_stay_whole_and_count_as_many(sizes: list[int], seed: int) -> None:
    there = [Document((), None, str(i), "x" * size) for i, size in enumerate(sizes)]

    def in_sentences(document: Document) -> list[Document]:
        return [Document((letter,), ("O",), document.place) for letter in document.text or ""]

    full = [size for size in sizes if size]
    if len(full) < 3:
        return
    parts, note = partition({"train": there}, (60, 20, 20), seed, "x", in_sentences)
    assert sorted(d.place for part in parts.values() for d in part) == sorted(d.place for d in there)
    counts = {name: sum(len(d.text or "") for d in part) for name, part in parts.items()}
    assert f"{counts['train']} train, {counts['validation']} validation, {counts['test']} test sentence" in note
    for name, share in (("validation", 0.2), ("test", 0.2)):
        assert 0 < counts[name] <= share * sum(sizes) + max(sizes)
