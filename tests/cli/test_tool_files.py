"""`lorakit predict` reads and writes the files of annotation tools, for which its output is made."""

import json
from pathlib import Path

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.data.formats.record import Reading
from lorakit.data.formats.registry import format_named
from lorakit.training.models import load_tagger
from tests.support.corpora import write_text
from tests.support.saved_run import saved

TEXTS = ["IL-2 gene expression requires NF-kappaB.", "Nothing 😀 here", "GATA-1 (p50/p65) binds the IL-2 gene."]
WHOLE = f"{TEXTS[0]} {TEXTS[2]}\r\n\r\n😀 {TEXTS[2]}\n"


def predicted(run, capsys, *arguments: object) -> tuple[str, str]:
    assert main(["predict", *saved(run, "lora"), *map(str, arguments)]) == 0
    return capsys.readouterr()


def refused(run, capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *saved(run, "lora"), *map(str, arguments)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def wanted(run) -> list[list[tuple[str, int, int]]]:
    model, tokenizer = load_tagger(str(run / "lora" / "adapter"))
    return [[(e.type, e.start, e.end) for e in found] for found in lorakit.predict(model, tokenizer, TEXTS)]


def content(how: str, path: Path) -> list[tuple[str, list[tuple[str, int, int]]]]:
    return [(d.text, [item[:3] for item in d.spans]) for d in format_named(how).read(path, Reading())]


@pytest.mark.parametrize(
    ("how", "name"), [("doccano", "a.jsonl"), ("pubtator", "a.txt"), ("brat", "a"), ("spacy", "a.spacy")]
)
def test_what_a_tool_reads_is_what_predict_found(how: str, name: str, run, capsys, tmp_path: Path, wanted) -> None:
    if how == "spacy":
        pytest.importorskip("spacy", reason="a .spacy file needs spaCy")
    assert sum(map(len, wanted)) >= 3
    assert predicted(run, capsys, *TEXTS, "--format", how, "--output", tmp_path / name) == ("", "")
    assert content(how, tmp_path / name) == list(zip(TEXTS, wanted, strict=True))
    if how in ("doccano", "pubtator"):
        assert predicted(run, capsys, *TEXTS, "--format", how).out == (tmp_path / name).read_text(encoding="utf-8")


def test_label_studio_gets_pre_annotations_with_scores(run, capsys, wanted) -> None:
    tasks = json.loads(predicted(run, capsys, *TEXTS, "--format", "label-studio").out)
    assert [task["data"]["text"] for task in tasks] == TEXTS
    for task, found in zip(tasks, wanted, strict=True):
        [prediction] = task["predictions"]
        values = [region["value"] for region in prediction["result"]]
        assert [(v["labels"][0], v["start"], v["end"]) for v in values] == found
        assert all(0 <= value["score"] <= 1 for value in values)
        assert prediction.get("score") == min((value["score"] for value in values), default=None)


def test_documents_of_a_tool_are_tagged_sentence_by_sentence(run, capsys, tmp_path: Path, wanted) -> None:
    """Their offsets are those of the whole text."""
    folder = tmp_path / "brat"
    folder.mkdir()
    write_text(folder / "one.txt", WHOLE)
    write_text(folder / "two.txt", "Old.")
    write_text(folder / "two.ann", "T1\tX 0 3\tOld\n")
    predicted(run, capsys, "--file", folder, "--format", "brat", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.ann", "one.txt", "two.ann", "two.txt"]
    (text, found), (_, old) = content("brat", tmp_path / "out")
    starts = [0, len(TEXTS[0]) + 1, len(f"{TEXTS[0]} {TEXTS[2]}\r\n\r\n😀 ")]
    first, second = wanted[0], wanted[2]
    expected = [(k, a + starts[0], b + starts[0]) for k, a, b in first]
    expected += [(k, a + starts[1], b + starts[1]) for k, a, b in second]
    assert text == WHOLE and found[: len(expected)] == expected and ("X", 0, 3) not in old
    assert all(text[start:end] for _, start, end in found)


def test_tasks_that_nobody_annotated_are_tagged(run, capsys, tmp_path: Path, wanted) -> None:
    tasks = [{"id": i, "data": {"text": text}, "annotations": []} for i, text in enumerate(TEXTS, start=1)]
    path = write_text(tmp_path / "tasks.json", json.dumps(tasks))
    found = json.loads(predicted(run, capsys, "--file", path, "--format", "label-studio").out)
    assert [[r["value"]["start"] for r in task["predictions"][0]["result"]] for task in found] == [
        [start for _, start, _ in row] for row in wanted
    ]


@pytest.mark.parametrize("how", ["label-studio", "doccano"])
def test_texts_as_they_are_imported_are_tagged(how: str, run, capsys, tmp_path: Path, wanted) -> None:
    """They have no field of annotations yet, and their JSON is no text."""
    tasks = [{"id": i, "text": text} for i, text in enumerate(TEXTS, start=1)]
    tasks = [{"data": {**task, "page": 1}} for task in tasks] if how == "label-studio" else tasks
    path = write_text(tmp_path / "tasks.json", json.dumps(tasks))
    printed = write_text(tmp_path / "found.jsonl", predicted(run, capsys, "--file", path, "--format", how).out)
    if how == "doccano":
        assert content(how, printed) == list(zip(TEXTS, wanted, strict=True))
    else:
        assert [task["data"]["text"] for task in json.loads(printed.read_text(encoding="utf-8"))] == TEXTS


def test_a_file_of_no_lines_of_text_is_refused_and_read_as_the_message_says(run, capsys, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.tsv", "IL-2\tB-DNA\ngene\tO\n")
    for how in ((), ("--format", "doccano")):
        error = refused(run, capsys, "--file", path, *how)
        assert (
            "a.tsv is not one text per line, but conll (2 columns; words in column 1, tags in column 2): write" in error
        )
    new = tmp_path / "NEW.jsonl"
    assert (
        f"lorakit data convert {path} NEW.jsonl --format doccano, and give --file NEW.jsonl --format doccano" in error
    )
    assert main(["data", "convert", str(path), str(new), "--format", "doccano"]) == 0
    capsys.readouterr()
    assert json.loads(predicted(run, capsys, "--file", new, "--format", "doccano").out)["text"] == "IL-2 gene"
    assert (
        "NEW.jsonl is not one text per line, but doccano (each object has a text, and label of [start, end, label]): "
        "say --format doccano" in refused(run, capsys, "--file", new)
    )
    path = write_text(tmp_path / "b.jsonl", '{"body": "IL-2 gene"}\n')
    for how in ((), ("--format", "doccano")):
        error = refused(run, capsys, "--file", path, *how)
        assert f"b.jsonl is not one text per line, but JSON: give JSON lines with a text as --documents {path}" in error
    out = tmp_path / "out.jsonl"
    predicted(run, capsys, "--documents", path, "--text-field", "body", "--output", out)
    assert len(out.read_text().splitlines()) == 1


def test_a_plain_file_is_still_one_text_per_line(run, capsys, tmp_path: Path) -> None:
    path = write_text(tmp_path / "texts.txt", "\n".join(TEXTS))
    lines = predicted(run, capsys, "--file", path, "--format", "doccano").out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == TEXTS


def test_an_output_that_cannot_be_written_is_refused(run, capsys, tmp_path: Path) -> None:
    assert "--format brat cannot be printed; give --output, a new folder" in refused(
        run, capsys, "a", "--format", "brat"
    )
    assert "--format spacy cannot be printed; give --output, a file" in refused(run, capsys, "a", "--format", "spacy")
    there = ("a", "--format", "brat", "--output", tmp_path)
    assert "exists already; --format brat writes a new folder: give another name" in refused(run, capsys, *there)


def test_a_bad_file_of_a_tool_is_named(run, capsys, tmp_path: Path) -> None:
    write_text(tmp_path / "one.ann", "T1\tX 0 3\tOld\n")
    write_text(tmp_path / "two.txt", "New.")
    error = refused(run, capsys, "--file", tmp_path, "--format", "brat", "--output", tmp_path / "out")
    assert "one.ann: no one.txt beside it; brat keeps the text of one.ann there: copy it too" in error
    assert not (tmp_path / "out").exists()


def test_what_the_format_cannot_hold_is_said(run, capsys, tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.pubtator", "1|t|A title\n1|a|IL-2 gene works.\n")
    assert predicted(run, capsys, "--file", path, "--format", "pubtator").err == ""
    printed = predicted(run, capsys, f"{TEXTS[0]}\nand\nmore", "--format", "pubtator")
    assert "1 texts with several line ends: all but the first are written as spaces" in printed.err
