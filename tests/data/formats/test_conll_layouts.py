"""Every layout of column files, in every scheme, is read as its own rules say and written again without a loss."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.formats.conll import write_conll
from lorakit.data.formats.record import Document
from lorakit.data.tags import spans
from tests.support import columns
from tests.support.columns import COMBINATIONS, LAYOUTS, LISTS, Tagged, as_io, column_file, sentences

randoms = st.integers(0, 2**32).map(Random)


def check_equal(path: Path, made: Sequence[Tagged], **how: str) -> None:
    """The file holds these sentences, and so does what we write of it."""
    data = read_ner(path, **how)
    assert [sentence.words for sentence in data.train] == [sentence.words for sentence in made]
    found = [[(s.type, s.start, s.end) for s in spans(sentence.tags)] for sentence in data.train]
    assert found == [list(sentence.entities) for sentence in made]
    again = path.with_name("again.tsv")
    assert write_conll([Document(sentence.words, sentence.tags, "") for sentence in data.train], again) == []
    assert read_ner(again).train == data.train


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_in_every_scheme(name: str, tmp_path: Path) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(random=randoms, written=st.sampled_from(COMBINATIONS), end=st.sampled_from(["\n", "\r\n", "\r"]))
    def check(random: Random, written: tuple[str, str], end: str) -> None:
        scheme, spelling = written
        if (
            name in columns.TAG_FIRST and scheme == "io"
        ):  # types before the words are refused where few words are outside
            scheme, spelling = "iob1", "B-PER"
        made = sentences(random, random.randint(2, 6), ("ENTITY",) if spelling == "B" else columns.TYPES)
        (tmp_path / "train.tsv").write_bytes(column_file(made, LAYOUTS[name], scheme, spelling, end))
        made = [s._replace(entities=tuple(as_io(s.entities))) for s in made] if scheme == "io" else made
        check_equal(tmp_path / "train.tsv", made)

    check()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random=randoms)
def test_both_layers_of_germeval(random: Random, tmp_path: Path) -> None:
    outer = sentences(random, 4)
    inner = [Tagged(s.words, tuple((f"{kind}part", a, a + 1) for kind, a, _ in s.entities)) for s in outer]
    path = tmp_path / "train.tsv"
    path.write_bytes(columns.germeval(outer, inner))
    check_equal(path, outer)
    check_equal(path, inner, layer="inner")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random=randoms)
def test_brackets_of_ontonotes(random: Random, tmp_path: Path) -> None:
    made = sentences(random, 5, ("PERSON", "GPE"))
    path = tmp_path / "x.v4_gold_conll"
    path.write_bytes(columns.conll2012(made))
    check_equal(path, made)


WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r\t"), max_size=6).map(
    lambda word: word.strip(" ") or "x"
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(words=st.lists(st.lists(WORD | st.sampled_from(["1", "2", "3", "-DOCSTART-", "###MEDLINE:", "#begin document"]))
    .filter(bool), min_size=1, max_size=4))  # fmt: skip
def test_words_of_any_kind_are_written_so_that_they_are_read_again(words: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    documents = [Document(tuple(row), ("B-x", *("O" for _ in row[1:])), "") for row in words]
    assert write_conll(documents, path) == []
    assert [sentence.words for sentence in read_ner(path).train] == [document.words for document in documents]


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_words_in_every_scheme(name: str, tmp_path: Path) -> None:
    file, write = LISTS[name]

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(random=randoms, written=st.sampled_from(COMBINATIONS))
    def check(random: Random, written: tuple[str, str]) -> None:
        scheme, spelling = written
        made = sentences(random, random.randint(2, 6), ("ENTITY",) if spelling == "B" else columns.TYPES)
        write(tmp_path / file, made, scheme, spelling)
        if scheme == "io" and name != "gliner":
            made = [s._replace(entities=tuple(as_io(s.entities))) for s in made]
        data = read_ner(tmp_path / file)
        assert [s.words for s in data.train] == [s.words for s in made]
        found = [[(s.type, s.start, s.end) for s in spans(sentence.tags)] for sentence in data.train]
        assert found == [list(sentence.entities) for sentence in made]

    check()
