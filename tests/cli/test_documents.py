"""`lorakit predict --documents`: positions in the whole text, and the same lines after an interruption."""

import json
import os
import signal

import pytest

import lorakit
from lorakit.cli import documents
from lorakit.cli.__main__ import main
from lorakit.training.models import load_tagger
from tests.support.saved_run import saved

TEXTS = ["IL-2 gene in T cells.\n\nNF-kappaB binds the GATA-1 gene.  The IL-2 gene does not.\n", "", "GATA-1 gene ."]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    return tmp_path / "texts"


def predicted(run, folder, output, *more):
    assert main(["predict", *saved(run, "lora"), "--documents", str(folder), "--output", str(output), *more]) == 0
    return output.read_text().splitlines()


def test_entities_are_those_of_the_sentences_with_positions_in_the_document(run, folder, tmp_path):
    lines = [json.loads(line) for line in predicted(run, folder, tmp_path / "new" / "out.jsonl")]
    assert [line["document"] for line in lines] == [str(folder / f"{number}.txt") for number in range(3)]
    parts = ["IL-2 gene in T cells.", "NF-kappaB binds the GATA-1 gene.", "The IL-2 gene does not.", TEXTS[2]]
    wanted = lorakit.predict(*load_tagger(str(run / "lora" / "adapter")), parts)
    assert [e["text"] for line in lines for e in line["entities"]] == [e.text for row in wanted for e in row]
    assert sum(len(line["entities"]) for line in lines) > 3
    for line, text in zip(lines, TEXTS, strict=True):
        assert all(text[e["start"] : e["end"]] == e["text"] for e in line["entities"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]


def test_an_interrupted_command_continues_where_it_was(run, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(documents, "AT_ONCE", 2)
    whole = predicted(run, folder, tmp_path / "whole.jsonl")
    out = tmp_path / "out.jsonl"
    part = documents.part_of(out)
    part.write_text(f"{whole[0]}\n{whole[1]}\n{whole[2][:9]}")  # as a killed process leaves it
    with pytest.raises(SystemExit, match="2"):
        predicted(run, folder, out)
    assert "continue it with --resume-output, or delete it" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(documents, "read_documents", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        for output, advice in (
            (out, f"what was found is in {part}: run the same again with --resume-output to continue"),
            (tmp_path / "new.jsonl", "nothing was written: run the same again"),
        ):
            command = ["predict", *saved(run, "lora"), "--documents", str(folder), "--output", str(output)]
            assert main([*command, "--resume-output"]) == 130
            assert capsys.readouterr().err.endswith(f"{advice}\n")
    assert predicted(run, folder, out, "--resume-output") == whole
    assert not part.exists()
    part.write_text(f"{whole[1]}\n{whole[0]}\n")
    with pytest.raises(SystemExit, match="2"):
        predicted(run, folder, out, "--resume-output")
    assert "give the same documents as before, or delete the file" in capsys.readouterr().err
    assert part.read_text() == f"{whole[1]}\n{whole[0]}\n"


def test_what_another_command_wrote_is_not_continued(run, folder, tmp_path, monkeypatch, capsys):
    """Lines of another model, other flags or other texts would stay in the file beside this command's."""
    monkeypatch.setattr(documents, "AT_ONCE", 2)
    whole, out = predicted(run, folder, tmp_path / "whole.jsonl"), tmp_path / "out.jsonl"
    part = documents.part_of(out)
    part.write_text(written := f"{whole[0]}\n{whole[1]}\n")

    def refused(*more):
        with pytest.raises(SystemExit, match="2"):
            predicted(run, folder, out, "--resume-output", *more)
        assert part.read_text() == written
        return capsys.readouterr().err

    assert f"{part}:1 is not what this command finds in {folder}/0.txt" in refused("--min-score", "1")
    changed = json.loads(whole[0])
    changed["entities"][0]["score"] /= 2
    part.write_text(written := f"{json.dumps(changed)}\n{whole[1]}\n")  # another calibration
    assert "continue with the same ones, or delete the file" in refused()
    part.write_text(written := f"{whole[0]}\n{whole[1]}\n")
    (folder / "0.txt").write_text(TEXTS[0].replace("IL-2", "IL-4"))
    assert f"{part}:1 is for another text of {folder}/0.txt than there is now" in refused()
    (folder / "0.txt").write_text(TEXTS[0])
    assert predicted(run, folder, out, "--resume-output") == whole
    part.write_text(f"{whole[0]}\n{whole[1]}\n")
    part.unlink()  # the other advice
    assert len(predicted(run, folder, out, "--resume-output", "--min-score", "1")) == 3


def test_all_but_the_last_batch_of_an_interrupted_command_is_not_tagged_again(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "AT_ONCE", 1)
    whole, out, tagged = predicted(run, folder, tmp_path / "whole.jsonl"), tmp_path / "out.jsonl", []
    documents.part_of(out).write_text("".join(f"{line}\n" for line in whole[:2]))
    cut = documents.sentences
    monkeypatch.setattr(documents, "sentences", lambda text: tagged.append(text) or cut(text))
    assert predicted(run, folder, out, "--resume-output") == whole
    assert tagged == TEXTS[1:]
    documents.part_of(out).write_text("".join(f"{line}\n" for line in whole))  # only its name was left to change
    assert predicted(run, folder, out, "--resume-output") == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--documents", "CORPUS", "--output", "o.jsonl"], "leave out TEXT, --file and --format"),
        (["--documents", "CORPUS"], "--documents needs a file to write: --output FILE.jsonl"),
        (["--documents", "CORPUS", "--output", "o.csv"], "writes JSON lines, not o.csv; give --output o.jsonl"),
        (["--documents", "CORPUS", "--output", "o"], "writes JSON lines, not o; give --output o.jsonl"),
        (["--documents", "./nowhere", "--output", "o.jsonl"], "--documents nowhere does not exist"),
        (["--text-field", "body", "x"], "--text-field is only for --documents; leave it out"),
        (["--documents", "CORPUS", "--output", "o.jsonl"], "holds no file that ends in .txt or .jsonl"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(["predict", "--adapter", "LORA", *arguments], message)
