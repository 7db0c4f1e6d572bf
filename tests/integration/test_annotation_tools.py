"""What users of annotation tools have: their files train, and a bad one is one line with status 2."""

import json
import re
from pathlib import Path

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.data.corpus import Sentence
from tests.support.corpora import write_lines, write_text

EU = "EU rejects German call"
TAGS = ("B-ORG", "O", "B-MISC", "O")
FULL = {"value": {"start": 0, "end": 2, "text": "EU", "labels": ["ORG"]}, "id": "a", "type": "labels"}
SECOND = {"value": {"start": 11, "end": 17, "text": "German", "labels": ["MISC"]}, "id": "b", "type": "labels"}
PRODIGY = {"start": 0, "end": 2, "label": "ORG"}, {"start": 11, "end": 17, "label": "MISC"}
PUBTATOR = f"1|t|{EU}\n1|a|\n1\t0\t2\tEU\tORG\tx\n1\t11\t17\tGerman\tMISC\tx\n\n"


def folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        write_text(path / name.replace("_", "."), text)
    return path


SOURCES = {  # corpora.md's cases of tools' files, all refused before
    "doccano": lambda path: write_lines(path / "a.jsonl", {"text": EU, "labels": [[0, 2, "ORG"], [11, 17, "MISC"]]}),
    "prodigy": lambda path: write_lines(path / "a.jsonl", {"text": EU, "spans": PRODIGY, "answer": "accept"}),
    "label-studio": lambda path: write_text(
        path / "a.json",
        json.dumps([{"id": 1, "data": {"text": EU}, "annotations": [{"result": [FULL, SECOND]}]}], indent=2),
    ),
    "spacy-json": lambda path: write_lines(path / "a.json", [EU, {"entities": [[0, 2, "ORG"], [11, 17, "MISC"]]}]),
    "pubtator": lambda path: write_text(path / "a.txt", PUBTATOR),
    "brat": lambda path: folder(
        path / "brat", doc_txt=EU, doc_ann="T1\tORG 0 2\tEU\nT2\tMISC 11 17\tGerman\nR1\tX Arg1:T1 Arg2:T2\n"
    ),
    "gliner": lambda path: write_text(
        path / "a.json", json.dumps([{"tokenized_text": EU.split(), "ner": [[0, 0, "ORG"], [2, 2, "MISC"]]}])
    ),
    "spans-jsonl": lambda path: write_lines(path / "a.jsonl", {"text": EU, "entities": list(PRODIGY)}),
}


@pytest.mark.parametrize("tool", SOURCES)
def test_a_tools_file_is_a_corpus(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = SOURCES[tool](tmp_path)
    data = lorakit.read_ner(source)
    assert data.train == (Sentence(tuple(EU.split()), TAGS),)
    assert main(["data", "show", str(source)]) == 0
    shown = capsys.readouterr().out
    assert f": {tool}, " in shown and "annotations: 2 read, 2 kept" in shown
    assert ("relation, not used" in shown) == (tool == "brat")


def test_splits_of_a_tool_are_folders_or_files(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        folder(tmp_path / split, doc_txt=EU, doc_ann="T1\tORG 0 2\tEU\n")
    data = lorakit.read_ner(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1, 1, 1]


def test_every_tool_converts_to_every_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wanted = lorakit.read_ner(SOURCES["brat"](tmp_path)).train
    for name in (
        "brat",
        "doccano",
        "prodigy",
        "label-studio",
        "spacy-json",
        "pubtator",
        "gliner",
        "spans-jsonl",
        "conll",
    ):
        out = tmp_path / (name if name == "brat" else f"{name}.{'txt' if name in ('pubtator', 'conll') else 'json'}")
        out = tmp_path / "again" if name == "brat" else out
        assert main(["data", "convert", str(tmp_path / "brat"), str(out), "--format", name]) == 0
        assert lorakit.read_ner(out).train == wanted, name
    capsys.readouterr()


def test_offsets_of_a_tool_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "😀 EU wins", "label": [[3, 5, "ORG"]]})
    assert lorakit.read_ner(path, offsets="utf-16").train[0].tags == ("O", "B-ORG", "O")
    assert main(["data", "show", str(path), "--offsets", "utf-16"]) == 0
    assert "EU" in capsys.readouterr().out


BAD = {
    "truncated JSON": (
        lambda path: write_text(
            path / "a.json", json.dumps([{"data": {"text": EU}, "annotations": []}] * 2, indent=1)[:-9]
        ),
        r"a.json:8: invalid JSON: the file ends inside this value; it may be truncated: export it again",
    ),
    "offsets out of the text": (
        lambda path: write_lines(path / "a.jsonl", {"text": EU, "label": []}, {"text": EU, "label": [[9, 99, "ORG"]]}),
        "a.jsonl:2, ORG: offsets 9-99 are outside of the text of 22 characters",
    ),
    "a label with a space in brat": (
        lambda path: folder(path / "brat", doc_txt=EU, doc_ann="T1\tMy Org 0 2\tEU\n"),
        "doc.ann:1, T1: the label 'My Org' holds a space, which brat does not allow; write 'My_Org'",
    ),
    "a label with a space": (
        lambda path: write_lines(path / "a.jsonl", {"text": EU, "label": [[0, 2, "My Org"]]}),
        "a.jsonl:1: the type 'My Org' has a space in its name; rename it with a label map",
    ),
    "an .ann without its .txt": (
        lambda path: folder(path / "brat", doc_ann="T1\tORG 0 2\tEU\n"),
        "doc.ann: no doc.txt beside it; brat keeps the text of doc.ann there: copy it too",
    ),
    "tasks that nobody annotated": (
        lambda path: write_text(path / "a.json", json.dumps([{"id": 1, "data": {"text": EU}, "predictions": []}])),
        r"a.json: empty: it holds no sentence: task without annotation, left out .*a.json:1, task 1",
    ),
    "brat and another format in one folder": (
        lambda path: folder(path / "brat", doc_txt=EU, doc_ann="T1\tORG 0 2\tEU\n", dev_tsv="EU\tB-ORG\n"),
        "brat: holds two formats, brat's standoff files.*, and dev.tsv: .*; move one of them to a folder of its own",
    ),
    "two formats in one folder": (
        lambda path: folder(
            path / "both", train_tsv="EU\tB-ORG\n\n", dev_json=json.dumps({"text": EU, "label": []}) + "\n"
        ),
        "dev.json: is doccano's JSON lines, but .*train.tsv is .*; a corpus has one format: write one of them",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_and_status_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make, message = BAD[case]
    source = make(tmp_path)
    for command in (["data", "show"], ["evaluate", "--model", "examples/mini", "--dataset"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, str(source)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert re.search(message, error), error


def test_overlapping_spans_are_read_and_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": EU, "label": [[0, 10, "A"], [3, 17, "B"], [3, 10, "C"]]})
    assert main(["data", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "annotations: 3 read, 1 kept, 2 left out" in shown
    assert "overlaps another annotation, left out" in shown and "inside another annotation, left out" in shown
