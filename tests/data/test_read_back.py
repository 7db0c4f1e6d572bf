"""What a converted corpus does not hold is counted by reading it again."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.conversion import convert
from lorakit.data.corpus import read_ner
from lorakit.data.formats.record import Document
from lorakit.data.read_back import differences
from lorakit.data.tags import spans
from lorakit.data.written import DEFAULTS
from tests.support.corpora import write_text

COLUMNS = "He\tO\nleft\tO\nthe\tO\nU.S.A.\tB-LOC\n.\tO\nShe\tO\ncame\tO\n(U.K.)\tB-LOC\n\ndon't\tO\n,Inc\tB-ORG\n\n"
SEVERAL = [
    {"id": "d1", "text": "EU ran. It won.", "label": [[0, 2, "ORG"]]},
    {"id": "d2", "text": "UK ran. Bye now!", "label": [[0, 2, "ORG"]]},
]


def converted(source: Path, out: Path, name: str) -> list[str]:
    """The lines on what reading it again gives."""
    return [line for line in convert(str(source), out, name, DEFAULTS) if "read back" in line or "be written" in line]


@pytest.mark.parametrize("name", ["brat", "label-studio", "doccano", "spans-jsonl", "pubtator"])
def test_formats_without_words_say_how_many_are_split_otherwise(tmp_path: Path, name: str) -> None:
    source, out = write_text(tmp_path / "a.tsv", COLUMNS), tmp_path / "out.x"
    lines = converted(source, out, name)
    assert len(lines) == 2
    assert lines[0].startswith("train: 2 of 10 words are split differently when read back, the first '(U.K.)' (")
    assert lines[1].startswith("train: 1 of 2 sentences is split differently when read back, the first at ")
    before, after = read_ner(source).train, read_ner(out).train
    kept = {word for sentence in after for word in sentence.words}
    assert sum(word not in kept for sentence in before for word in sentence.words) == 2


def test_prodigy_and_spacys_json_keep_the_words(tmp_path: Path) -> None:
    source = write_text(tmp_path / "a.tsv", COLUMNS)
    assert converted(source, tmp_path / "a.json", "spacy-json") == []
    assert read_ner(tmp_path / "a.json").train == read_ner(source).train
    [line] = converted(source, tmp_path / "a.jsonl", "prodigy")  # a full stop inside the first sentence
    assert line.startswith("train: 1 of 2 sentences is split differently")
    one, other = ([word for s in read_ner(path).train for word in s.words] for path in (source, tmp_path / "a.jsonl"))
    assert one == other


def test_what_gliner_and_train_data_cannot_hold_is_counted(tmp_path: Path) -> None:
    source = write_text(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in SEVERAL))
    [line] = converted(source, tmp_path / "g.json", "gliner")
    assert line.startswith("train: 4 of 4 sentences are split differently when read back, the first at ")
    assert len(read_ner(tmp_path / "g.json").train) == 2
    [line] = converted(source, tmp_path / "s.json", "spacy-json")
    assert line == "train: 2 ids of documents, such as 'd1', cannot be written"
    assert converted(source, tmp_path / "d.jsonl", "doccano") == []


def test_entities_and_texts_that_change_are_counted() -> None:
    one = Document(("EU", "ran"), ("B-ORG", "O"), "a:1")
    assert differences([[one]], [[one]]) == []
    assert differences([[one, one]], [[one], [one._replace(tags=("O", "B-X"))]]) == [
        "1 of 2 entities is not read back, and 1 other is"
    ]
    assert differences([[one]], [[one._replace(words=("EU", "run"))]]) == [
        "the text differs when read back, from 'an' on"
    ]
    assert differences([[one]], []) == ["the text differs when read back, from 'EUran' on"]
    empty = Document(("", "a", ""), ("O",) * 3, "a:1")
    [line] = differences([[empty]], [[Document(("a",), ("O",), "")]])
    assert line == "2 of 3 words are split differently when read back, the first '' (a:1)"


WORDS = st.sampled_from(
    ["EU", "IL-2", ".", "a.b", "don't", "(x)", "...", "5'", "你好", "？", "naïve", "😀", "-", "U.S."]
)
TAGS = st.sampled_from(["O", "O", "B-X", "B-Y"])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.tuples(WORDS, TAGS), min_size=1, max_size=6), min_size=1, max_size=3))
def test_words_and_entities_are_kept_or_counted(tmp_path_factory: pytest.TempPathFactory, made: list) -> None:
    made[0][0] = ("EU", "B-X")
    folder = tmp_path_factory.mktemp("any")
    rows = [{"tokens": [w for w, _ in sentence], "tags": [t for _, t in sentence]} for sentence in made]
    source = write_text(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    before = read_ner(source)
    for name, file in (("spacy-json", "s.json"), ("prodigy", "p.jsonl"), ("brat", "b"), ("doccano", "d.jsonl")):
        lines = converted(source, folder / file, name)
        after = read_ner(folder / file)
        assert [w for s in before.train for w in s.words] == [w for s in after.train for w in s.words] or lines
        assert [s.words for s in before.train] == [s.words for s in after.train] or lines
        if name == "spacy-json":
            assert lines == [] and after.train == before.train
        if name == "prodigy":
            assert not any("words" in line for line in lines)
        kinds = ([[e.type for e in spans(s.tags)] for s in data.train] for data in (before, after))
        one, other = (sum(found, []) for found in kinds)
        assert one == other  # of whatever words they are


def test_documents_may_be_read_in_another_order() -> None:
    one, other = (Document((word,), ("B-X",), "a", id=word) for word in ("d2", "d10"))
    assert differences([[one], [other]], [[other], [one]]) == []
