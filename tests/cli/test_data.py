from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.data.conversion import writable_formats
from lorakit.data.corpus import read_ner
from tests.support.corpora import write_folder, write_text

CONLL = Path("examples/conll")
GERMEVAL = "# id\n1\tUlm\tB-LOC\tO\n2\tist\tO\tO\n\n1\tBayern\tB-ORG\tB-LOC\n2\tM\tI-ORG\tO\n"


def shown(capsys: pytest.CaptureFixture, *command: object) -> str:
    assert main(["data", *map(str, command)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *command: object) -> str:
    with pytest.raises(SystemExit) as end:
        main(["data", *map(str, command)])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_show_says_what_was_recognised_counted_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_text(tmp_path / "train.tsv", GERMEVAL)
    write_text(tmp_path / "test.tsv", "1\tUlm\tB-LOC\tO\n2\tist\tO\tO\n")
    write_text(tmp_path / "LICENSE", "text\n")
    text = shown(capsys, "show", tmp_path)
    assert f"train      {tmp_path}/train.tsv: conll, 4 columns; words in column 2, tags in column 3" in text
    assert "not used   LICENSE" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["sentences", "2", "1"] in lines and ["entities", "2", "1"] in lines and ["LOC", "1", "1"] in lines
    assert "annotations: 3 read, 3 kept" in text
    assert "duplicates: 1 sentence of test is in train too" in text
    assert "column 3 read as the outer layer; column 4, with 1 entity, is left out" in text
    assert "[Ulm LOC] ist" in text


def test_show_takes_the_same_flags_as_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_text(tmp_path / "a.tsv", GERMEVAL)
    assert "[Bayern LOC] M" in shown(capsys, "show", path, "--layer", "inner")
    assert "[Bayern LOC] M" in shown(capsys, "show", path, "--columns", "word=2,tag=4")
    assert "--layer inner has no effect: the only tags are in" in shown(capsys, "show", CONLL, "--layer", "inner")
    table = write_text(tmp_path / "types.tsv", "LOC\tplace\nORG\t\n")
    assert "[Ulm place] ist" in shown(capsys, "show", path, "--label-map", table)


def test_show_compares_lengths_with_a_models_window(capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, "show", CONLL, "--model", "examples/mini")
    assert "window of examples/mini: " in text and "every sentence fits" in text


@pytest.mark.parametrize("name", [n for n in writable_formats() if n not in ("spacy", "bioc-xml", "bioc-json")])
def test_a_converted_corpus_is_read_as_the_one_it_was(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, "convert", CONLL, tmp_path / "out", "--format", name)
    before, after = read_ner(CONLL), read_ner(tmp_path / "out")
    assert (after.train, after.validation, after.labels) == (before.train, before.validation, before.labels)
    assert "out/train" in text and "out/dev" in text
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "out").iterdir()) == ["dev", "train"]


def test_convert_keeps_the_order_of_the_ids(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    row = {"tokens": ["a", "b"], "tags": [0, 1]}
    write_folder(folder, {"B-x": 0, "I-x": 1, "O": 2}, train=[row])
    shown(capsys, "convert", folder, tmp_path / "out", "--format", "tokens-jsonl")
    assert read_ner(tmp_path / "out").labels == ("B-x", "I-x", "O")


def test_convert_writes_one_file_of_one_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, "convert", CONLL / "train.conll", tmp_path / "a.json", "--format", "gliner")
    assert f"{tmp_path}/a.json: 84 texts" in text
    assert read_ner(tmp_path / "a.json").train == read_ner(CONLL).train


def test_show_and_convert_divide_a_corpus_as_training_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = [f'{{"text": "EU ran. Nr {i} won. Ok.", "label": [[0, 2, "ORG"]]}}\n' for i in range(10)]
    source = write_text(tmp_path / "in.jsonl", "".join(texts))
    how = ["--split", "60/20/20", "--split-seed", "1"]
    note = (
        "divided 60/20/20 with seed 1: 18 train, 6 validation, 6 test sentences of 10 documents, none of them divided"
    )
    text = shown(capsys, "show", source, *how)
    assert note in text and ["sentences", "18", "6", "6"] in [line.split() for line in text.splitlines()]
    assert " is train: " not in text
    data = read_ner(source, shares="60/20/20", seed=1)
    for name in ("conll", "doccano", "spacy-json"):
        assert note in shown(capsys, "convert", source, tmp_path / name, "--format", name, *how)
        again = read_ner(tmp_path / name)
        assert (again.train, again.validation, again.test) == (data.train, data.validation, data.test)


def test_a_file_of_one_document_is_divided_when_it_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = "".join(f"Nr {i} ran. " for i in range(10))
    source = write_text(
        tmp_path / "in.jsonl", f'{{"id": "d", "text": "{text}", "label": [[0, 2, "X"], [0, 2, "Y"]]}}\n'
    )
    said = shown(capsys, "convert", source, tmp_path / "out", "--format", "brat", "--split", "80/10/10")
    assert "8 train, 1 validation, 1 test sentences of one document, which was divided" in said
    assert "at the same place as another annotation, left out" in said
    data, again = read_ner(source, shares="80/10/10"), read_ner(tmp_path / "out")
    assert (again.train, again.validation, again.test) == (data.train, data.validation, data.test)


def test_convert_says_what_the_format_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_text(
        tmp_path / "in.jsonl",
        '{"text": "Bank of  Rome", "label": [[0, 13, "ORG"], [9, 13, "LOC"]]}\n{"text": "a", "label": []}\n',
    )
    text = shown(capsys, "convert", source, tmp_path / "a.tsv", "--format", "conll")
    assert "train: inside another annotation, left out" in text
    assert "texts written without the white space between their words: 2" in text


def test_convert_writes_no_text_for_one_that_nobody_annotated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    write_text(tmp_path / "in" / "a.txt", "EU ran")
    write_text(tmp_path / "in" / "a.ann", "T1\tORG 0 2\tEU\n")
    write_text(tmp_path / "in" / "new.txt", "Nobody")
    text = shown(capsys, "convert", tmp_path / "in", tmp_path / "a.jsonl", "--format", "doccano")
    assert "train: text without an .ann file, left out" in text and f"{tmp_path}/a.jsonl: 1 text" in text
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["convert", "{}", "/proc/none", "--format", "csv"], "OUT /proc cannot be written"),
        (["convert", "{}", "", "--format", "csv"], "argument OUT: the name is empty; give a file or folder"),
        (["show", "{}/nothing"], "nothing: no such file or folder"),
        (["show", "examples/conll", "--columns", "3"], "--columns 3: give a number or a name for each role"),
        (["show", "examples/conll", "--columns", "word=1,tag=7"], "--columns tag=7: .* has columns 1 to 2"),
        (["show", "examples/conll", "--columns", "tag=1"], "unknown tag '.*; tags are in column 2: --columns tag=2"),
        (["show", "examples/conll", "--columns", "word=2"], "unknown tag '.*; tags are in column 2: --columns tag=2"),
        (["show", "examples/conll", "--columns", "word=1,word=2"], "word=2: a role is named twice"),
        (
            ["show", "examples/conll", "--columns", "words=1"],
            "unknown role 'words'; it is word or tag, as in --columns word=1",
        ),
        (["show", "examples/conll", "--layer", "middle"], "invalid choice: 'middle'"),
        (["show", "examples/conll", "--offsets", "utf16"], "invalid choice: 'utf16'"),
        (["show", "examples/conll", "--label-map", "{}/nothing"], "nothing: cannot be read"),
        (["show", "examples/conll", "--split", "80/10"], "'80/10', which divides no corpus; give three percentages"),
        (
            ["convert", "examples/conll", "{}/x", "--format", "csv", "--split", "80/10/10"],
            "has a validation split already",
        ),
        (["convert", "examples/conll", "{}", "--format", "conll"], "exists already; give a new file or folder"),
        (["convert", "examples/conll", "{}/x", "--format", "word"], "invalid choice: 'word'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import re

    assert re.search(message, refused(capsys, *(word.format(tmp_path) for word in command)))
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_text(tmp_path / "in.jsonl", '{"text": "Rome", "label": [[0, 4, "big city"]]}\n')
    message = refused(capsys, "convert", source, tmp_path / "out", "--format", "brat")
    assert "big city" in message and "big_city" in message
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_formats_are_listed_with_their_specification(capsys: pytest.CaptureFixture) -> None:
    text = shown(capsys, "formats")
    assert "conll         read, written  a word and its tag per line" in text
    assert "https://brat.nlplab.org/standoff.html" in text
    assert shown(capsys, "formats", "brat").count("\n") == 2
    assert "unknown format 'word'; it is one of " in refused(capsys, "formats", "word")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "there is no model folder './nowhere'"),
        ("nobody/none", "--model nobody/none cannot be loaded: there is no folder of that name here"),
        ("examples", "the folder 'examples' has no config.json, so it is no model"),
    ],
)
def test_show_says_which_model_it_cannot_load(
    model: str, message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match="2"):
        main(["data", "show", str(CONLL), "--model", model])
    assert message in capsys.readouterr().err
