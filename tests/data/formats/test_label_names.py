"""Integer tags get their names from the files that datasets of the hub have."""

import json
from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.formats.label_names import FILES
from tests.support.corpora import write_lines, write_text

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CARD = """---
license: mit
dataset_info:
  features:
  - name: id
    dtype: string
  - name: tokens
    sequence: string
  - name: pos_tags
    sequence:
      class_label:
        names:
          '0': NN
  - name: ner_tags
    sequence:
      class_label:
        names:
          '0': O
          '1': B-PER
          '2': I-PER
          '3': B-LOC
          '4': I-LOC
---
# A corpus
"""


def feature(names: list[str]) -> dict:
    return {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}


FEATURES = {"tokens": {"feature": {"dtype": "string"}}, "pos_tags": feature(["NN"]), "ner_tags": feature(NAMES)}
WAYS = {
    "dataset_info.json": json.dumps({"features": FEATURES}),
    "dataset_infos.json": json.dumps({"default": {"features": FEATURES}}),
    "README.md": CARD,
    "config.json": json.dumps({"id2label": {str(i): name for i, name in enumerate(NAMES)}}),
    "labels.txt": "\n".join(NAMES) + "\n",
}


def corpus(folder: Path) -> Path:
    return write_lines(folder / "train.json", {"tokens": ["Ann", "in", "New", "York"], "ner_tags": [1, 0, 3, 4]})


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_names_tags_is_read(tmp_path: Path, name: str) -> None:
    corpus(tmp_path)
    write_text(tmp_path / name, WAYS[name])
    data = read_ner(tmp_path)
    assert data.train[0].tags == ("B-PER", "O", "B-LOC", "I-LOC")
    assert data.labels == tuple(NAMES)
    assert any(f"numbers of tags are named by {name}" in note for note in data.notes)


def test_the_library_datasets_writes_such_a_file(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")), ner_tags=datasets.List(datasets.ClassLabel(names=NAMES))
    )
    rows = datasets.Dataset.from_dict({"tokens": [["Ann"]], "ner_tags": [[1]]}, features=features)
    rows.to_json(tmp_path / "train.json")
    rows.info.write_to_directory(str(tmp_path))
    assert read_ner(tmp_path).train[0].tags == ("B-PER",)


def test_label_json_comes_first_and_strings_need_no_names(tmp_path: Path) -> None:
    corpus(tmp_path)
    write_text(tmp_path / "README.md", CARD)
    write_text(tmp_path / "label.json", json.dumps({"O": 0, "B-A": 1, "I-A": 2, "B-B": 3, "I-B": 4}))
    assert read_ner(tmp_path).train[0].tags == ("B-A", "O", "B-B", "I-B")
    (tmp_path / "label.json").unlink()
    write_lines(tmp_path / "train.json", {"tokens": ["a"], "ner_tags": ["B-OTHER"]})
    assert read_ner(tmp_path).labels == ("O", "B-OTHER", "I-OTHER")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "README.md",
            "# No YAML\n",
            "tag 1 is a number; put label.json, {label: id}, beside the file, or the",
        ),
        ("README.md", "---\na: [\n---\n", "README.md: the names of the tags cannot be read from it: while parsing"),
        ("config.json", '{"id2label": {"1": "O"}}', "config.json: the ids of the tags are 1; they must be 0, 1, 2"),
        ("config.json", "{", "config.json: the names of the tags cannot be read from it"),
        ("labels.txt", "PER\nLOC\n", "labels.txt: no label 'O'; the labels are PER, LOC"),
    ],
)
def test_names_that_cannot_be_read_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    corpus(tmp_path)
    write_text(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        read_ner(tmp_path)


def test_configurations_that_name_the_numbers_differently_are_refused_and_label_json_is_the_fix(tmp_path: Path) -> None:
    corpus(tmp_path)
    one = CARD.replace("dataset_info:\n  features:", "dataset_info:\n- config_name: a\n  features:")
    start, end = one.index("- config_name"), one.rindex("---")
    write_text(tmp_path / "README.md", one[:end] + one[start:end].replace("PER", "ORG") + one[end:])
    with pytest.raises(
        ValueError, match="README.md: its configurations name the numbers of ner_tags differently: O, B-P"
    ):
        read_ner(tmp_path)
    write_text(tmp_path / "label.json", json.dumps({name: i for i, name in enumerate(NAMES)}))
    assert read_ner(tmp_path).train[0].tags == ("B-PER", "O", "B-LOC", "I-LOC")


def test_configurations_that_name_the_numbers_alike_are_no_question(tmp_path: Path) -> None:
    corpus(tmp_path)
    infos = {name: {"features": FEATURES} for name in ("a", "b")}
    write_text(tmp_path / "dataset_infos.json", json.dumps(infos))
    assert read_ner(tmp_path).labels == tuple(NAMES)
