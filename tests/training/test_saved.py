"""Fine-tuned models saved and loaded again."""

import json
import shutil

import pytest

import lorakit
from lorakit.training.models import load_token_classifier
from lorakit.training.saved import load_tagger, save_model
from tests.support.tiny import LABELS, MINI, make_tiny_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    model, _ = load_token_classifier(MINI, LABELS)
    return lorakit.save_adapter(lorakit.apply_lora(model, r=4), tmp_path_factory.mktemp("saved") / "adapter")


def test_an_adapter_says_what_it_lacks(adapter, tmp_path):
    own = (adapter / "lorakit.json").read_bytes()
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    (adapter / "lorakit.json").unlink()
    with pytest.raises(ValueError, match="does not say which labels its head has: lorakit.json is missing"):
        load_tagger(str(adapter))
    (adapter / "lorakit.json").write_bytes(own)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
        load_tagger(str(adapter))


def test_a_base_that_is_elsewhere_is_given_by_hand(adapter, monkeypatch):
    monkeypatch.setattr("lorakit.training.saved.base_and_labels", lambda folder: ("/nowhere/base", list(LABELS)))
    adapter = str(adapter)
    with pytest.raises(ValueError, match="'/nowhere/base'.*adapter_config.json names this base: give it with --model"):
        load_tagger(adapter)
    model, _ = load_tagger(adapter, str(MINI))
    assert model.config.id2label == dict(enumerate(LABELS))
    monkeypatch.setattr("lorakit.training.saved.base_and_labels", lambda folder: (None, list(LABELS)))
    with pytest.raises(ValueError, match=r"does not name the base \(base_model_name_or_path\); give it with --model"):
        load_tagger(adapter)


def test_a_saved_model_replaces_an_earlier_one_atomically(tokenizer, tmp_path, monkeypatch):
    first, second = make_tiny_model(seed=1), make_tiny_model(seed=2)
    folder = tmp_path / "deep" / "model"
    save_model(first, tokenizer, folder)
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(second, tokenizer, folder)
    monkeypatch.undo()
    texts = ["IL-2 gene expression"] * 2
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(first, tokenizer, texts)
    save_model(second, tokenizer, folder)
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(second, tokenizer, texts)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
