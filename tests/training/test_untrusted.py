"""A stranger's model: its code is never run or asked for, and no pickle is opened. All inputs here are harmless."""

import json
import os
import shutil

import pytest

from lorakit.cli.__main__ import main
from lorakit.training.models import load_token_classifier
from lorakit.training.untrusted import check_index
from tests.support.tiny import LABELS

CODE = "raise SystemExit('the code that came with the model was run')\n"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree("examples/mini", tmp_path / "model")


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def never_asked(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_for(folder, never_asked, capsys):
    (folder / "theirs.py").write_text(CODE)
    change(folder, model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})
    with pytest.raises(ValueError, match="it needs code that comes with it .* lorakit never runs code of a model"):
        load_token_classifier(folder, LABELS)
    with pytest.raises(SystemExit) as caught:
        main(["params", str(folder)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "lorakit never runs code of a model" in said and said.count("\n") == 1


def test_code_of_a_tokenizer_is_neither_run_nor_asked_for(folder, never_asked):
    (folder / "theirs.py").write_text(CODE)
    path = folder / "tokenizer_config.json"
    more = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    try:
        load_token_classifier(folder, LABELS)
    except ValueError as error:
        assert "lorakit never runs code of a model" in str(error)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/etc/hostname", 3])
def test_an_index_that_names_other_files_than_safetensors_is_refused_before_any_is_opened(folder, name):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not opened")
    index = {"metadata": {}, "weight_map": {"roberta.embeddings.word_embeddings.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json names .* only safetensors files beside it are read"):
        load_token_classifier(folder, LABELS)


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"weight_map": 1}', "[" * 100_000])
def test_a_damaged_index_is_one_line(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        check_index(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["eager", "somebody/kernel"])
def test_a_configuration_cannot_choose_the_attention(folder, key, value):
    change(folder, **{key: value})
    model, _ = load_token_classifier(folder, LABELS)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_instead_of_a_file_is_refused_and_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="is not a regular file"):
        load_token_classifier(folder, LABELS)
