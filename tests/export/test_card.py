"""The README of an export, as the hub's own client reads it."""

from huggingface_hub import ModelCard

from lorakit.export.card import Origin, export_card
from tests.support.tiny import LABELS

SCORES = {"precision": 0.71234, "recall": 0.8, "f1": 0.75, "strict": {"f1": 0.74}}
ENERGY = {"cpu": {"kwh": 0.00012, "method": "estimated"}, "gpu": {"kwh": None, "method": "unavailable"}}


def card_of(target="hf", **facts):
    return ModelCard(export_card(target, LABELS, Origin("runs/mine", **facts), "print(1)", ["Equal in all."]))


def test_the_hubs_client_reads_what_it_is_and_what_it_was_made_of():
    card = card_of(
        base="FacebookAI/roberta-base",
        dataset="corpus",
        command="lorakit train --model FacebookAI/roberta-base",
        scores={"validation": SCORES, "test": {}},
        energy=ENERGY,
    )
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "token-classification"
    assert data["base_model"] == "FacebookAI/roberta-base" and "named-entity-recognition" in data["tags"]
    for line in ("# Named entities: DNA, protein", "Equal in all.", "| CPU | 0.12 Wh | estimated |"):
        assert line in card.text.splitlines(), line
    assert "| validation | 0.7123 | 0.8000 | 0.7500 | 0.7400 |" in card.text
    assert "| test |" not in card.text and "| GPU |" not in card.text  # neither is known
    assert "0 O, 1 B-DNA" in card.text and "```python\nprint(1)\n```" in card.text


def test_each_target_names_the_library_that_loads_it():
    found = {target: card_of(target).data.library_name for target in ("hf", "onnx", "spacy", "peft")}
    assert found == {"hf": "transformers", "onnx": "onnx", "spacy": "spacy", "peft": "peft"}


def test_a_base_that_no_hub_knows_is_named_in_the_text_alone(tmp_path):
    for base in (str(tmp_path), "a: b\n---\nlicense: mit", "x/y/z"):
        card = card_of(base=base)
        assert "base_model" not in card.data.to_dict() and "license" not in card.data.to_dict()
        assert "base: " in card.text
    assert "base_model" not in card_of().data.to_dict() and "base: " not in card_of().text
