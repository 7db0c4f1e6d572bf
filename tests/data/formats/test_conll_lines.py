"""Files with a sentence in each line are read word by word, and files of columns are not taken for them."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.tags import spans
from tests.support import columns
from tests.support.corpora import write_text


def read(path: Path, text: str) -> list[list[str]]:
    return [[f"{w} {t}" for w, t in zip(s.words, s.tags, strict=True)] for s in read_ner(write_text(path, text)).train]


EXPECTED = [["EU B-ORG", "rejects O", "calls O"], ["Peter B-PER", "Blackburn I-PER"]]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.txt", "EU/B-ORG rejects/O calls/O\nPeter/B-PER Blackburn/I-PER\n"),
        ("a.txt", "EU/B-ORG rejects/O calls/O\n\n\nPeter/B-PER Blackburn/I-PER\n"),
        ("a.txt", "EU|B-ORG rejects|O calls|O\nPeter|B-PER Blackburn|I-PER\n"),
        ("a.txt", "EU_B-ORG rejects_O calls_O\nPeter_B-PER Blackburn_I-PER\n"),
        ("a.txt", "EU B-ORG rejects O calls O\nPeter B-PER Blackburn I-PER\n"),
        ("a.txt", "B-ORG EU O rejects O calls\nB-PER Peter I-PER Blackburn\n"),
        ("a.tsv", "EU\tB-ORG\trejects\tO\tcalls\tO\nPeter\tB-PER\tBlackburn\tI-PER\n"),
        ("a.tsv", "EU rejects calls\tB-ORG O O\nPeter Blackburn\tB-PER I-PER\n"),
        ("a.tsv", "B-ORG O O\tEU rejects calls\nB-PER I-PER\tPeter Blackburn\n"),
        ("a.csv", "text,labels\nEU rejects calls,B-ORG O O\nPeter Blackburn,B-PER I-PER\n"),
        ("a.csv", "1,EU rejects calls,B-ORG O O\n2,Peter Blackburn,B-PER I-PER\n"),
    ],
)
def test_a_sentence_per_line_is_read_word_by_word(tmp_path: Path, file: str, text: str) -> None:
    assert read(tmp_path / file, text) == EXPECTED
    assert any(note.startswith("each line is a sentence") for note in read_ner(tmp_path / file).notes)


@pytest.mark.parametrize("joint", ["/", "|", "_"])
def test_parts_of_speech_between_word_and_tag_are_not_of_the_word(tmp_path: Path, joint: str) -> None:
    file = tmp_path / "aij-wikiner-en.txt"
    text = "EU|NNP|I-ORG rejects|VBZ|O ||SYM|O\n\nPeter|NNP|I-PER Blackburn|NNP|I-PER\n".replace("|", joint)
    assert read(file, text) == [["EU B-ORG", "rejects O", f"{joint} O"], ["Peter B-PER", "Blackburn I-PER"]]
    about = f"each line is a sentence of words and their tags, without what is between them, such as 'NNP' ({file})"
    assert about in read_ner(file).notes
    one = text.replace(f"{joint}NNP", "", 1)  # one word without: nothing is taken off
    assert read(file, one)[0][1] == f"rejects{joint}VBZ O"


@pytest.mark.parametrize("joint", ["/", " "])
def test_a_sentence_that_begins_with_a_hash_is_read(tmp_path: Path, joint: str) -> None:
    text = "EU/B-ORG rejects/O it/O\n# sent_id = 2\n#Bonn/B-LOC says/O\n# text\nall/O that/O\n".replace("/", joint)
    expected = [["EU B-ORG", "rejects O", "it O"], ["#Bonn B-LOC", "says O"], ["all O", "that O"]]
    assert read(tmp_path / "a.txt", text) == expected
    with pytest.raises(ValueError, match="a.txt:6: broken line '#x y': each line before is a sentence"):
        read(tmp_path / "a.txt", text + "#x y\n")


@pytest.mark.parametrize(
    "text",
    [
        "Uni B-ORG uni B-LOC\nBonn I-ORG bonn O\n",  # two layers
        "EU B-ORG NNP B-NP\nsays O VBZ B-VP\n",
        "a/O B-X\nb/O O\n",  # words with a slash
        "EU B-ORG B-X O\nsays O O O\n",
    ],
)
def test_columns_are_no_sentences(tmp_path: Path, text: str) -> None:
    path = write_text(tmp_path / "a.txt", text)
    words = [word for s in read_ner(path, columns={"word": "1", "tag": "2"}).train for word in s.words]
    assert words == [line.split()[0] for line in text.splitlines()]


def test_a_column_of_nothing_but_o_beside_other_tags_is_said(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "EU B-ORG rejects O\nPeter B-PER says O\n")
    assert any(note.startswith("column 4 is O in every line: not read") for note in read_ner(path).notes)


@pytest.mark.parametrize("text", ["IL-2 B-DNA\n\na O b O\n\nc O\n", "a B-X\nb O c O\n"])
def test_a_line_that_lacks_its_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="broken line .* 4 columns, the lines before have 2; write as many"):
        read(tmp_path / "a.txt", text)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    random=st.integers(0, 2**32).map(Random),
    joint=st.sampled_from(["/", "|", " ", "\t"]),
    scheme=st.sampled_from(columns.SCHEMES),
)
def test_any_sentences_in_any_scheme(random: Random, joint: str, scheme: str, tmp_path: Path) -> None:
    words = ("the", "EU", "1/2", "km/h", "B-cell", "10:30", "#tag", "I", "A|B", "@x")
    made = columns.sentences(random, random.randint(3, 6), words=words)
    made = [sentence._replace(words=(*sentence.words, *"xy"[: 1 + i % 2])) for i, sentence in enumerate(made)]
    lines = []
    for sentence in made:
        pairs = zip(sentence.words, columns.tags(sentence, scheme), strict=True)
        between = "\t" if joint == "\t" else " "
        lines.append(between.join(f"{word}{joint}{tag}" for word, tag in pairs))
    data = read_ner(write_text(tmp_path / "a.txt", "\n".join(lines)))
    assert [sentence.words for sentence in data.train] == [sentence.words for sentence in made]
    found = [[(s.type, s.start, s.end) for s in spans(sentence.tags)] for sentence in data.train]
    assert found == [list(sentence.entities) for sentence in made]
