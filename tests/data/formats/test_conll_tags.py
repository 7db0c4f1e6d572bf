"""Tags that are a letter in one column and a type in another are read as one."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.tags import spans
from tests.support import columns
from tests.support.corpora import write_text


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    random=st.integers(0, 2**32).map(Random),
    scheme=st.sampled_from(columns.SCHEMES),
    none=st.sampled_from(["O", "_", "-", "NONE", ""]),
    order=st.permutations(["word", "letter", "type"]),
)
def test_letters_and_types_are_joined(random: Random, scheme: str, none: str, order: list[str], tmp_path: Path) -> None:
    made = columns.sentences(random, random.randint(2, 5), words=("the", "EU", "rejects", "10:30", "a-b"))
    made[-1] = made[-1]._replace(words=(*made[-1].words, "in"))  # so that a word is outside
    text = ""
    for sentence in made:
        for word, tag in zip(sentence.words, columns.tags(sentence, scheme), strict=True):
            cells = {"word": word, "letter": tag[0], "type": tag[2:] or none}
            text += "\t".join(cells[name] for name in order) + "\n"
        text += "\n"
    data = read_ner(write_text(tmp_path / "a.tsv", text))
    assert [sentence.words for sentence in data.train] == [sentence.words for sentence in made]
    found = [[(s.type, s.start, s.end) for s in spans(sentence.tags)] for sentence in data.train]
    assert found == [list(sentence.entities) for sentence in made]
    assert any(note.startswith("tags are the letters of column") for note in data.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EU B B-ORG\nsays O O\n", ["EU B-ORG", "says O"]),  # the letters once more
        ("EU NNP B\nsays VBZ O\nin IN O\n", ["EU B-ENTITY", "says O", "in O"]),  # parts of speech are no types
        ("EU B x\nsays O x\n", ["EU B-ENTITY", "says O"]),
    ],
)
def test_other_columns_beside_letters_are_no_types(tmp_path: Path, text: str, expected: list[str]) -> None:
    [sentence] = read_ner(write_text(tmp_path / "a.txt", text)).train
    assert [f"{word} {tag}" for word, tag in zip(sentence.words, sentence.tags, strict=True)] == expected
