"""A tagger splits raw texts as its training corpus is split, also after it was saved and loaded."""

import json
from pathlib import Path

import lorakit
from lorakit.data.ner_data import NerData, Sentence
from lorakit.training.models import load_tagger, load_token_classifier
from lorakit.training.prediction import find_entities
from tests.support.tiny import MINI

ROW = Sentence(("à", "l'", "hôpital", "d'", "Aix"), ("O", "O", "O", "O", "B-LOC"))
LABELS = ("O", "B-LOC", "I-LOC")
TEXT = "à l'hôpital d’Aix"
WORDS = ["à", "l'", "hôpital", "d’", "Aix"]


def words(model: object, tokenizer: object) -> list[str]:
    [(found, _, _)] = find_entities(model, tokenizer, [TEXT])
    assert all(TEXT[word.start : word.end] == word.text for word in found)
    return [word.text for word in found]


def test_elisions_of_the_corpus_are_those_of_predict(tmp_path: Path) -> None:
    model, tokenizer = load_token_classifier(MINI, LABELS)
    assert words(model, tokenizer) == ["à", "l'hôpital", "d’Aix"]
    lorakit.apply_lora(model, r=2)
    data = NerData((ROW,) * 12, (), (), LABELS, "here")
    lorakit.train(model, tokenizer, data, lorakit.TrainConfig(epochs=1, batch_size=12, progress=False))
    assert words(model, tokenizer) == WORDS
    folder = lorakit.save_adapter(model, tmp_path / "adapter")
    assert json.loads((folder / "lorakit.json").read_text())["words"] == {"elisions": True}
    assert words(*load_tagger(str(folder), MINI)) == WORDS
    lorakit.remove_lora(model, merge=True)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert words(*load_tagger(model=str(tmp_path / "model"))) == WORDS


def test_an_adapter_of_the_usual_habit_is_written_as_before(tmp_path: Path) -> None:
    model, _ = load_token_classifier(MINI, LABELS)
    folder = lorakit.save_adapter(lorakit.apply_lora(model, r=2), tmp_path / "adapter")
    assert set(json.loads((folder / "lorakit.json").read_text())) == {"schema", "labels", "base", "files", "digest"}
