"""`lorakit predict` as a user calls it, in this process."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lorakit
from lorakit.cli import predict
from lorakit.cli.__main__ import main
from lorakit.data.tags import to_iob2
from lorakit.training import prediction
from lorakit.training.models import load_tagger
from lorakit.training.prediction import Entity
from tests.support.saved_run import saved
from tests.support.tiny import MINI

SENTENCES = [
    "IL-2 gene expression requires NF-kappaB.",
    "",
    "No <b>entity</b> & nothing \x1b[31mred 😀",
    "p50/p65 (GATA-1) binds the IL-2 gene.",
]


def predicted(run, mode, capsys, *arguments):
    assert main(["predict", *saved(run, mode), *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_predict_prints_what_the_library_finds(run, mode, capsys):
    folder = str(run / "lora" / "adapter") if mode == "lora" else None
    model, tokenizer = load_tagger(folder, None if folder else str(run / "full" / "model"))
    wanted = lorakit.predict(model, tokenizer, SENTENCES)
    assert sum(map(len, wanted)) >= 3
    lines = [json.loads(line) for line in predicted(run, mode, capsys, *SENTENCES, "--format", "jsonl").splitlines()]
    assert [line["text"] for line in lines] == SENTENCES
    assert [[Entity(**entity) for entity in line["entities"]] for line in lines] == wanted
    table = predicted(run, mode, capsys, *SENTENCES).splitlines()
    assert table[0].split() == ["text", "characters", "words", "type", "score", "entity"]
    rows = [(str(i), f"{e.start}-{e.end}", e.type) for i, row in enumerate(wanted, 1) for e in row]
    assert [(row.split()[0], row.split()[1], row.split()[3]) for row in table[1:]] == rows


def test_conll_output_can_be_read_with_the_same_tags(run, capsys, tmp_path):
    text = predicted(run, "lora", capsys, SENTENCES[0], SENTENCES[3], "--format", "conll")
    (tmp_path / "found.conll").write_text(text, encoding="utf-8")
    data = lorakit.read_ner(tmp_path / "found.conll", scheme="iob2")
    model, tokenizer = load_tagger(str(run / "lora" / "adapter"))
    own = lorakit.predict(model, tokenizer, [s.words for s in data.train])
    assert [list(s.tags) for s in data.train] == [list(to_iob2(tags, "iob2")) for tags in own]
    assert lorakit.read_ner(tmp_path / "found.conll").train == data.train  # without a scheme: nothing to repair


def test_a_file_standard_input_and_arguments_are_the_same_texts(run, capsys, tmp_path, monkeypatch):
    wanted = predicted(run, "lora", capsys, *SENTENCES, "--format", "jsonl")
    for end in ("\n", "\r\n"):
        data = b"\xef\xbb\xbf" + end.join([*SENTENCES, ""]).encode()
        (tmp_path / "texts.txt").write_bytes(data)
        found = predicted(run, "lora", capsys, "--file", tmp_path / "texts.txt", "--format", "jsonl")
        assert found == wanted
        stdin = io.TextIOWrapper(io.BytesIO(data.removesuffix(end.encode())))  # the last newline may be missing
        monkeypatch.setattr("sys.stdin", stdin)
        assert predicted(run, "lora", capsys, "--format", "jsonl") == wanted


def test_an_output_file_is_written_atomically_in_the_format_of_its_ending(run, capsys, tmp_path):
    wanted = predicted(run, "lora", capsys, *SENTENCES, "--format", "jsonl")
    assert predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "new" / "found.jsonl") == ""
    assert (tmp_path / "new" / "found.jsonl").read_text(encoding="utf-8") == wanted
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["found.jsonl"]
    found = [json.loads(line)["entities"] for line in wanted.splitlines()]
    predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "found.CSV")
    with open(tmp_path / "found.CSV", encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [e["text"] for text in found for e in text]
    predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "found.txt")
    assert (tmp_path / "found.txt").read_text(encoding="utf-8").startswith("text  characters")
    predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "found.xyz", "--format", "jsonl")
    assert (tmp_path / "found.xyz").read_text(encoding="utf-8") == wanted
    predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "found.html")
    assert str(run / "lora" / "adapter") in (tmp_path / "found.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", predict.STREAMED)
def test_a_file_is_read_only_as_far_as_it_is_needed_and_written_as_it_is_read(run, how, capsys, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 10))
    monkeypatch.setattr(prediction, "TEXTS", 5)
    whole = predicted(run, "lora", capsys, *SENTENCES * 10, "--format", how)
    held, lines, show = [], predict.decoded_lines, predict.show
    read = shown = 0

    def counted_lines(*source):
        nonlocal read
        for line in lines(*source):
            read += 1
            yield line

    def counted_show(found, *more):
        nonlocal shown
        held.append(read - len(SENTENCES) * 10 - shown)  # without those of the first look
        shown += len(found)
        return show(found, *more)

    monkeypatch.setattr(predict, "decoded_lines", counted_lines)
    monkeypatch.setattr(predict, "show", counted_show)
    assert predicted(run, "lora", capsys, "--file", tmp_path / "texts.txt", "--format", how) == whole
    assert len(held) == 8 and 5 <= max(held) <= 2 * 5 + 1
    assert predicted(run, "lora", capsys, "--file", tmp_path / "texts.txt", "--output", tmp_path / f"o.{how}") == ""
    assert (tmp_path / f"o.{how}").read_bytes().decode() == whole


def test_an_adapter_is_merged_once_for_many_texts_and_not_for_few_nor_where_adapters_share_a_base(
    run, capsys, tmp_path, monkeypatch
):
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES * 10))
    monkeypatch.setattr(prediction, "TEXTS", 4)
    merges, plain = [], prediction.merged_copies
    monkeypatch.setattr(
        prediction, "merged_copies", lambda model, merge: (merges.append(merge), plain(model, merge))[1]
    )
    more = ["--more-adapters", str(run / "lora" / "adapter"), "--file", tmp_path / "texts.txt"]
    predicted(run, "lora", capsys, "--file", tmp_path / "texts.txt")
    predicted(run, "lora", capsys, *SENTENCES[:3])
    predicted(run, "lora", capsys, *more)
    assert merges == [True, False, False, False]


def test_a_terminal_shows_colours_unless_they_are_turned_off(run, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in predicted(run, "lora", capsys, SENTENCES[0])
    assert "\x1b" in predicted(run, "lora", capsys, SENTENCES[0], "--format", "terminal")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b" in predicted(run, "lora", capsys, SENTENCES[0])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in predicted(run, "lora", capsys, SENTENCES[0])


def test_texts_without_entities_are_reported_and_no_error(run, capsys):
    assert main(["predict", *saved(run, "lora"), ""]) == 0
    assert "no entity in 1 text\n" in capsys.readouterr().err


def test_a_file_that_is_not_utf8_is_named_with_its_line(run, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"IL-2\nna\xefve\n")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *saved(run, "lora"), "--file", str(tmp_path / "latin.txt")])
    assert "latin.txt:2: not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--adapter", "./nowhere", "x"], "no adapter folder nowhere"),
        (["predict", "--adapter", "RUN", "x"], "did you mean RUN/lora/adapter?"),
        (["predict", "--adapter", "RUN/adapter", "x"], "did you mean RUN/lora/adapter?"),
        (["predict", "--model", "LORA", "x"], "is a LoRA adapter: give it as --adapter"),
        (["predict", "--model", MINI, "x"], "it is a base without a trained head (classifier.bias, classifier.weight"),
        (["predict", "--adapter", "LORA", "--model", "./nowhere", "x"], "there is no model folder './nowhere'"),
        (["predict", "--adapter", "LORA", "--file", "./nowhere"], "--file nowhere cannot be read: No such file"),
        (["predict", "--adapter", "LORA", "--file", "x.txt", "x"], "both texts and --file x.txt are given"),
        (["predict", "--adapter", "LORA", "IL-\udcff"], "half a surrogate pair"),
        (["predict", "--adapter", "LORA", "--output", "CORPUS", "x"], "is a folder; give a file"),
        (["predict", "--adapter", "LORA", "--output", "o.xyz", "x"], "o.xyz has ending '.xyz', from which no format"),
        (
            ["predict", "--adapter", "LORA", "--output", "found", "x"],
            "has no ending, from which no format follows; use",
        ),
        (
            ["predict", "--model", "RUN/full/model", "--more-adapters", "LORA", "--", "x"],
            "go with --adapter, whose base",
        ),
        (
            ["predict", "--adapter", "LORA", "--format", "conll", "--more-adapters", "LORA", "--", "x"],
            "give another --format than conll",
        ),
        (["predict", "--adapter", "LORA", "--format", "xml", "x"], "invalid choice: 'xml'"),
        (["predict", "--adapter", "LORA", "--output", "", "x"], "argument --output: the name is empty; give a file"),
        (["predict", "--adapter", "", "x"], "the name of the adapter is empty; give an adapter's folder"),
        (["predict", "--model", "", "x"], "the name of the model is empty"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)


def test_a_file_of_records_is_not_tagged_as_lines_and_what_the_message_says_works(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text(json.dumps({"text": SENTENCES[0]}) + "\n")
    Path("texts.csv").write_text(SENTENCES[0] + "\n")
    for name, said in (
        ("texts.jsonl", "is not one text per line, but JSON: give JSON lines with a text as --documents texts.jsonl"),
        ("texts.csv", "is likely to hold more than texts; "),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["predict", *saved(run, "lora"), "--file", name])
        error = capsys.readouterr().err
        assert f"{name} {said}" in error
    assert "--file - < texts.csv" in error and "--documents" not in error  # which is for JSON lines
    wanted = predicted(run, "lora", capsys, SENTENCES[0])
    Path("texts.csv").rename("texts.txt")
    assert predicted(run, "lora", capsys, "--file", "texts.txt") == wanted
    with open("texts.txt", "rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
        assert predicted(run, "lora", capsys, "--file", "-") == wanted
    predicted(run, "lora", capsys, "--documents", "texts.jsonl", "--output", "found.jsonl")
    assert len(json.loads(Path("found.jsonl").read_text())["entities"]) == len(wanted.splitlines()) - 1


@pytest.mark.parametrize(("line", "noted"), [('{"text": "IL-2"}', True), ("{IL-2}", False), ('{"a":' * 10**5, False)])
def test_json_from_standard_input_is_a_text_and_noted(run, monkeypatch, capsys, line, noted):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line.encode()), isatty=lambda: False))
    assert main(["predict", *saved(run, "lora"), "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["text"] == line
    assert ("line 1 of standard input is a JSON object, tagged as a text; --documents FILE.jsonl finds" in err) == noted


def test_a_text_that_is_the_name_of_a_file_is_noted(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text(SENTENCES[0])
    for text, noted in (("texts.txt", True), ("other.txt", False), ("x" * 5000, False)):
        assert main(["predict", *saved(run, "lora"), text]) == 0
        assert ("--file texts.txt tags the lines of that file" in capsys.readouterr().err) == noted


def test_another_base_is_refused_and_the_flag_of_the_message_takes_it(run, capsys, tmp_path):
    adapter = str(run / "lora" / "adapter")
    base, tokenizer = lorakit.training.models.load_token_classifier(MINI, lorakit.read_ner("examples/conll").labels)
    with torch.no_grad():
        base.base_model.embeddings.word_embeddings.weight[5] += 0.01
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    arguments = ["predict", "--adapter", adapter, "--model", str(tmp_path / "base"), SENTENCES[0]]
    with pytest.raises(SystemExit) as status:
        main(arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status.value.code == 2 and "trained on another base" in error and "--no-check-base" in error
    assert main([*arguments, "--no-check-base"]) == 0 and capsys.readouterr().out
    own = lorakit.save_adapter(lorakit.apply_lora(base, r=2), tmp_path / "own")  # on that base
    assert main(["predict", "--adapter", str(own), *arguments[3:], "--more-adapters", adapter, "--no-check-base"]) == 0
    (tmp_path / "a.txt").write_text(SENTENCES[0])
    documents = ["--documents", str(tmp_path / "a.txt"), "--output", str(tmp_path / "a.jsonl"), "--no-check-base"]
    assert main([*arguments[:-1], *documents]) == 0 and (tmp_path / "a.jsonl").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", "--model", str(run / "full" / "model"), "--no-check-base", SENTENCES[0]])
    assert "--no-check-base is for an adapter" in capsys.readouterr().err


def test_another_adapter_adds_entities_and_changes_none(run, tmp_path, capsys):
    """The other one has the same weights, but a bias with which it finds more, and other types."""
    model, tokenizer = load_tagger(str(run / "lora" / "adapter"))
    before = model.config.id2label
    model.config.id2label = {i: label.replace("DNA", "gene").replace("protein", "drug") for i, label in before.items()}
    with torch.no_grad():
        model.classifier.bias[0] -= 2  # finds more
    other = lorakit.save_adapter(model, tmp_path / "other")
    one, both = (
        [json.loads(line)["entities"] for line in predicted(run, "lora", capsys, *more, "--", *SENTENCES).splitlines()]
        for more in (["--format", "jsonl"], ["--format", "jsonl", "--more-adapters", other])
    )
    assert sum(map(len, both)) > sum(map(len, one)) > 0
    for old, new in zip(one, both, strict=True):
        assert [e for e in new if e in old] == old
        assert {e["type"] for e in new if e not in old} <= {"gene", "drug"}
        assert all(a["end"] <= b["start"] for a, b in zip(new, new[1:], strict=False))
