"""`lorakit export` as a user calls it: what it takes, and what it refuses. tests/export/ holds what it writes."""

import importlib.util
import json
import shutil

import pytest

from lorakit.cli.__main__ import build_parser, main
from lorakit.cli.export import proof_sentences, read_record
from lorakit.data.corpus import read_ner
from lorakit.training.models import load_token_classifier
from tests.support.tiny import LABELS, MINI


def test_a_runs_folder_gives_the_model_the_corpus_and_the_card(run, tmp_path, capsys):
    assert main(["export", str(run / "lora"), str(tmp_path / "out"), "--to", "hf"]) == 0
    record = json.loads((run / "comparison.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert record["command"] in card and record["dataset"] in card
    assert f"| validation | {record['modes']['lora']['validation']['precision']:.4f} |" in card
    assert "| CPU | " in card
    assert "base_model:" not in card  # the base is a folder here, which no hub accepts
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: Equal to lorakit.predict")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "out", "--to", "hf"], "RUN holds RUN/lora/adapter and RUN/full/model; give one of them"),
        (["LORA", "out", "--to", "hf", "--int8"], "--int8 is only for --to onnx; leave it out"),
        (["LORA", "out", "--to", "peft", "--through", "words"], "--through is only for --to hf; leave it out"),
        (["LORA", "CORPUS", "--to", "hf"], "OUT CORPUS exists and is not empty; give a new folder"),
        (["CORPUS", "out", "--to", "hf"], "CORPUS holds no trained model (adapter, model, lora/adapter, full/model)"),
        (["LORA", "out", "--to", "hf", "--sentences", "0"], "--sentences is 0; it must be at least 1"),
        (["LORA", "out", "--to", "hf", "--dataset", "./nowhere"], "nowhere"),
        (["LORA", "out", "--to", "hf", "--labels", "O", "B-x"], "--labels differs from the adapter's own"),
        (["./nowhere", "out", "--to", "hf", "--dataset", "CORPUS"], "no adapter folder nowhere"),
        (["./nowhere", "out", "--to", "hf"], "no adapter folder nowhere"),
        (["LORA", "out", "--to", "hf", "--model", "OTHER"], "the adapter was trained on another base"),
        (["LORA", "out", "--to", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses, other_base):
    refuses(["export", *(str(other_base) if word == "OTHER" else word for word in arguments)], message)


def test_the_flag_of_the_message_takes_another_base(run, other_base, tmp_path, capsys):
    command = ["export", str(run / "lora" / "adapter"), str(tmp_path / "out"), "--to", "hf", "--model", str(other_base)]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "--no-check-base" in capsys.readouterr().err
    assert main([*command, "--no-check-base"]) == 0 and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def other_base(tmp_path_factory, tokenizer):
    """The embedded base with one weight changed."""
    folder = tmp_path_factory.mktemp("other")
    model, _ = load_token_classifier(MINI, LABELS)
    model.roberta.encoder.layer[0].output.dense.weight.data += 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_missing_package_is_named_with_the_command_that_installs_it(refuses, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("lorakit.export.packages.find_spec", lambda name: None if name == "spacy" else found(name))
    refuses(
        ["export", "LORA", "out", "--to", "spacy"], "needs spacy, which is not installed: pip install 'lorakit[spacy]'"
    )


def test_an_adapter_without_a_run_needs_a_corpus(run, tmp_path, capsys):
    shutil.copytree(run / "lora" / "adapter", tmp_path / "adapter")
    command = ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "hf"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "give a corpus with --dataset" in capsys.readouterr().err
    dataset = json.loads((run / "comparison.json").read_text())["dataset"]
    assert main([*command, "--dataset", dataset]) == 0


def test_a_copy_of_an_adapter_without_lorakit_json_asks_for_it_and_that_works(run, tmp_path, capsys):
    adapter, record = tmp_path / "adapter", json.loads((run / "comparison.json").read_text())
    shutil.copytree(run / "lora" / "adapter", adapter, ignore=shutil.ignore_patterns("lorakit.json"))
    command = ["export", str(adapter), str(tmp_path / "out"), "--to", "hf", "--dataset", record["dataset"]]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    told = capsys.readouterr().err
    assert f"{adapter / 'lorakit.json'} is missing" in told and "copy it too" in told and len(told.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    shutil.copy(run / "lora" / "adapter" / "lorakit.json", adapter)
    assert main(command) == 0


def test_a_file_is_no_split_that_the_proof_could_name(run, corpus, tmp_path, capsys):
    valid = next(path for path in corpus.iterdir() if path.name.startswith("valid"))
    command = ["export", str(run / "lora" / "adapter"), str(tmp_path / "out"), "--to", "hf", "--dataset", str(valid)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert " sentences through transformers" in told and "training set" not in told


def test_the_corpora_of_a_run_on_several_are_found(run, tmp_path, capsys):
    shutil.copytree(run / "lora" / "adapter", tmp_path / "run" / "adapter")
    record = json.loads((run / "comparison.json").read_text())
    one = record["dataset"]
    record["dataset"] = f"{one} + {one}"  # as training names them
    (tmp_path / "run" / "comparison.json").write_text(json.dumps(record))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert "of the validation set" in capsys.readouterr().out


def train_on_a_file(folder, *more):
    """A run of one epoch on a file without splits and with types to rename."""
    rows = ("IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\n\n", "GATA-1\tB-protein\nin\tO\nT\tB-cell\n\n")
    (folder / "all.tsv").write_text("".join(rows[i % 2].replace("IL-2", f"IL-{i}") for i in range(40)))
    (folder / "types.tsv").write_text("protein\tgene\ncell\t\n")
    flags = ["--epochs", "1", "--r", "2", "--split", "60/20/20", "--split-seed", "3", *more]
    paths = ["--dataset", folder / "all.tsv", "--label-map", folder / "types.tsv", "--output-dir", folder / "run"]
    assert main(["train", "--model", str(MINI), *flags, *map(str, paths)]) == 0
    return folder / "run"


def sentences_of_the_proof(run, *more):
    arguments = build_parser().parse_args(["export", str(run), "out", "--to", "hf", *more])
    return proof_sentences(arguments, read_record(str(run / "adapter"), is_adapter=True))


def test_the_proof_reads_the_runs_corpus_as_training_did(tmp_path):
    run = train_on_a_file(tmp_path, "--sentences", "20")
    table = {"protein": "gene", "cell": None}
    assert json.loads((run / "comparison.json").read_text())["reading"] == {
        "label_map": table, "shares": "60/20/20", "seed": 3, "sentences": 20
    }  # fmt: skip
    whole = read_ner(tmp_path / "all.tsv", label_map=table, shares="60/20/20", seed=3)
    (tmp_path / "types.tsv").unlink()  # the record holds the table itself
    assert sentences_of_the_proof(run) == ("validation", whole.validation)
    assert sentences_of_the_proof(run, "--sentences", "2") == ("validation", whole.validation[:2])
    (tmp_path / "other.tsv").write_text("protein\tX\n")
    _, found = sentences_of_the_proof(run, "--label-map", str(tmp_path / "other.tsv"))
    assert {tag for sentence in found for tag in sentence.tags} > {"B-X", "B-cell"}


@pytest.mark.parametrize("reading", [{"colums": 1}, {"columns": 3}, {"label_map": 3}])
def test_a_damaged_record_of_the_reading_is_one_line(reading, tmp_path, capsys):
    run = train_on_a_file(tmp_path)
    record = json.loads((run / "comparison.json").read_text())
    (run / "comparison.json").write_text(json.dumps(record | {"reading": reading}))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(run), str(tmp_path / "out"), "--to", "hf"])
    told = capsys.readouterr().err
    assert "the run's own corpus cannot be read (the run's record of how it read" in told
    assert len(told.splitlines()) == 1 and not (tmp_path / "out").exists()
