"""Tables of texts and spans are read as JSON lines of the same records are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorakit.data.corpus import NerData, read_ner
from tests.support.corpora import write_text

datasets = pytest.importorskip("datasets")
TEXT = "IL-2 acts. No NF-kappa B 😀 in T cells"
OTHER = "EU rejects German call"
LABEL = {"start": 0, "end": 2, "label": "ORG"}
MISC = {"start": 11, "end": 17, "label": "MISC"}
SPANS = [{"start": 0, "end": 4, "label": "DNA"}, {"start": 14, "end": 24, "label": "protein"}]
SPANS += [{"start": 30, "end": 37, "label": "cell"}, {"start": 30, "end": 31, "label": "letter"}]
TOKENS = [
    {"text": "EU", "start": 0, "end": 2, "id": 0},
    {"text": "rejects German call", "start": 3, "end": 22, "id": 1},
]


def places(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"label": s["label"], "start_offset": s["start"], "end_offset": s["end"]} for s in spans]


RECORDS: dict[str, list[dict[str, Any]]] = {
    "spans": [{"id": "a", "text": TEXT, "spans": SPANS}, {"id": "b", "text": OTHER, "spans": [LABEL, MISC]}],
    "entities, none in the first": [{"text": "No", "entities": []}, {"text": OTHER, "entities": [LABEL, MISC]}],
    "with their texts": [{"text": OTHER, "entities": [LABEL | {"text": "EU"}, MISC | {"text": "German"}]}],
    "ids of some": [{"text": OTHER, "spans": [LABEL | {"id": "T1"}, MISC]}],
    "scores": [{"text": OTHER, "ents": [LABEL | {"score": 0.5}, MISC | {"score": 1.0}]}],
    "doccano": [{"id": 1, "text": OTHER, "entities": places([LABEL, MISC]), "Comments": []}],
    "prodigy": [
        {"text": OTHER, "tokens": TOKENS, "spans": [LABEL], "answer": "accept", "_input_hash": 1},
        {"text": TEXT, "tokens": [], "spans": SPANS, "answer": "reject", "_input_hash": 2},
    ],
    "another name": [{"text": OTHER, "mentions": [LABEL, MISC], "url": "x"}],
    "two that are the same": [{"text": OTHER, "spans": [LABEL, MISC], "entities": [LABEL, MISC]}],
    "words without places": [{"text": OTHER, "words": OTHER.split(), "spans": [LABEL, MISC]}],
}


def as_parquet(folder: Path, records: list[dict[str, Any]], features: Any = None) -> Path:
    path = folder / "table.parquet"
    datasets.Dataset.from_list(records, features=features).to_parquet(str(path))
    return path


def as_dataset(folder: Path, records: list[dict[str, Any]], features: Any = None) -> Path:
    datasets.Dataset.from_list(records, features=features).save_to_disk(str(folder / "table"))
    return folder / "table"


TABLES: dict[str, Callable[..., Path]] = {"parquet": as_parquet, "dataset": as_dataset}
pytestmark = pytest.mark.parametrize("table", TABLES)


def contents(data: NerData) -> tuple[Any, ...]:
    return data.train, data.labels, [note.replace(data.source, "FILE") for note in data.notes[1:]]


@pytest.mark.parametrize("name", RECORDS)
def test_a_table_is_read_as_json_lines_are(tmp_path: Path, table: str, name: str):
    lines = write_text(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS[name]))
    read, expected = (read_ner(path) for path in (TABLES[table](tmp_path, RECORDS[name]), lines))
    assert any(tag != "O" for sentence in expected.train for tag in sentence.tags)
    assert contents(read) == contents(expected)


@pytest.mark.parametrize("layer", ["outer", "inner"])
def test_layers_are_those_of_the_spans(tmp_path: Path, table: str, layer: str):
    data = read_ner(TABLES[table](tmp_path, RECORDS["spans"]), layer=layer)
    types = {tag[2:] for sentence in data.train for tag in sentence.tags if tag != "O"}
    assert types == {"DNA", "protein", "ORG", "MISC", "cell" if layer == "outer" else "letter"}


def test_numbers_of_types_are_named_by_the_table(tmp_path: Path, table: str):
    kinds = datasets.ClassLabel(names=["ORG", "MISC"])
    parts = {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "label": kinds}
    lists = {"start": [0, 11], "end": [2, 17], "label": [0, 1]}  # an object of lists, as older tables have
    objects = [LABEL | {"label": 0}, MISC | {"label": 1}]
    for spans, kind, folder in ((objects, [parts], "objects"), (lists, datasets.Sequence(parts), "lists")):
        features = datasets.Features({"text": datasets.Value("string"), "spans": kind})
        (tmp_path / folder).mkdir()
        path = TABLES[table](tmp_path / folder, [{"text": OTHER, "spans": spans}], features)
        assert read_ner(path).train[0].tags == ("B-ORG", "O", "B-MISC", "O")


def test_the_field_and_the_offsets_are_chosen_as_for_json(tmp_path: Path, table: str):
    other = [{"start": 3, "end": 10, "label": "VERB"}]
    path = TABLES[table](tmp_path, [{"text": OTHER, "spans": [LABEL], "mentions": other}])
    with pytest.raises(ValueError, match="'spans' and 'mentions' both hold annotations, and they differ; choose one"):
        read_ner(path)
    assert read_ner(path, columns={"tag": "mentions"}).train[0].tags == ("O", "B-VERB", "O", "O")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": OTHER, "spans": [LABEL | {"end": 99}]}, ":1, ORG: offsets 0-99 are outside of the text of 22"),
        ({"text": OTHER, "spans": [LABEL | {"start": None}]}, ":1, span 1: 'start' must be an integer of at least 0"),
        ({"text": OTHER, "spans": [LABEL | {"label": 7}]}, ":1, span 1: the label must be a name, got 7"),
        ({"text": OTHER, "spans": [{"start": 1, "end": 3, "label": "X"}, {"start": 12, "end": 18, "label": "X"}]},
         "the 2 annotations begin one character after their words do"),
        ({"text": OTHER, "kind": "news"}, "no column of annotations; the columns are text, kind: a text has them in a"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(tmp_path: Path, table: str, record: dict[str, Any], message: str):
    path = TABLES[table](tmp_path, [record])
    with pytest.raises(ValueError, match=message) as refusal:
        read_ner(path)
    assert str(refusal.value).startswith(str(path))
