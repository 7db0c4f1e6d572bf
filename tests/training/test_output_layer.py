"""The rows of a fine-tuned head, by label name. The oracle is the checkpoint's own weight, read from its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorakit
from lorakit.training.models import load_tagger, load_token_classifier, save_model
from tests.support.tiny import make_tiny_model

SMALL = {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OWN = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
SORTED = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]  # the order in which read_ner names them


def named(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


@pytest.fixture(scope="module")
def tagger(tokenizer, tmp_path_factory):
    """A folder with a tagger for OWN, whose rows all differ, and its head."""
    folder = tmp_path_factory.mktemp("tagger") / "model"
    model = make_tiny_model()
    model.classifier = torch.nn.Linear(32, len(OWN))
    model.config.update(named(OWN))
    save_model(model, tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    return folder, dict(
        zip(OWN, torch.column_stack([tensors["classifier.weight"], tensors["classifier.bias"]]), strict=True)
    )


def rows_for(folder, labels, **options):
    notes = []
    model, _ = load_token_classifier(folder, labels, note=notes.append, **options)
    assert list(model.config.id2label.values()) == labels
    head = torch.column_stack([model.classifier.weight, model.classifier.bias]).detach()
    return dict(zip(labels, head, strict=True)), [note.partition(": ")[2] for note in notes]


def test_the_same_labels_in_another_order_take_their_rows_along(tagger):
    folder, own = tagger
    rows, notes = rows_for(folder, SORTED)
    assert all(torch.equal(rows[label], own[label]) for label in OWN)
    assert notes == [f"the checkpoint's head is kept, each row with its label ({', '.join(SORTED)})"]


def test_the_same_labels_in_the_same_order_need_no_note(tagger):
    folder, own = tagger
    rows, notes = rows_for(folder, OWN)
    assert all(torch.equal(rows[label], own[label]) for label in OWN)
    assert notes == []


def test_a_tagger_with_moved_rows_finds_the_same_entities(tagger, tokenizer):
    folder, _ = tagger
    moved, _ = load_token_classifier(folder, SORTED, note=lambda message: None)
    words = [["IL-2", "gene", "expression", "in", "human", "T", "cells"]] * 2
    tags = lorakit.predict(moved, tokenizer, words)
    assert tags == lorakit.predict(*load_tagger(model=str(folder)), words)
    assert len({tag for row in tags for tag in row}) > 1


@pytest.mark.parametrize("labels", [["O", "B-a", "I-a", "B-b", "I-b", "B-c", "I-c"], ["O", "B-a", "I-a"]])
def test_other_labels_get_a_new_head(tagger, labels):
    folder, own = tagger
    rows, notes = rows_for(folder, labels)
    for row in rows.values():
        assert not any(torch.equal(row, old) for old in own.values())
        assert row[-1] == 0 and 0.005 < row[:-1].std() < 0.05  # as transformers starts one
    assert notes == [f"the head is new: the checkpoint's own was trained for other labels ({', '.join(OWN)})"]
    again, _ = rows_for(folder, labels)
    other, _ = rows_for(folder, labels, seed=1)
    assert torch.equal(rows["B-a"], again["B-a"]) and not torch.equal(rows["B-a"], other["B-a"])


def test_labels_in_part_known_keep_the_rows_of_those(tagger):
    folder, own = tagger
    rows, notes = rows_for(folder, ["O", "B-gene", "B-LOC", "I-LOC"])
    assert all(torch.equal(rows[label], own[label]) for label in ("O", "B-LOC", "I-LOC"))
    assert not any(torch.equal(rows["B-gene"], old) for old in own.values())
    kept = "the checkpoint's head is kept, each row with its label (O, B-LOC, I-LOC)"
    assert notes == [f"{kept}; new rows: B-gene; rows without use: B-PER, I-PER, B-ORG, I-ORG"]


def test_without_a_listener_the_note_is_a_warning(tagger):
    with pytest.warns(UserWarning, match="the head is new: the checkpoint's own was trained for other labels"):
        load_token_classifier(tagger[0], ["O", "B-a", "I-a"])


def test_a_head_with_a_part_missing_is_refused(tagger, tokenizer, tmp_path):
    save_model(load_tagger(model=str(tagger[0]))[0], tokenizer, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["classifier.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="only a part of its head: classifier.bias is missing; save it again"):
        load_token_classifier(tmp_path / "model", SORTED)


def test_a_sentence_classifier_lends_no_rows(tagger, tokenizer, tmp_path):
    """Its head has the same name as a tagger's, and would otherwise become that of three entity labels."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**SMALL, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    old = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    rows, notes = rows_for(tmp_path, ["O", "B-a", "I-a"])
    assert not any(torch.equal(row[:-1], theirs) for row in rows.values() for theirs in old)
    assert "(LABEL_0, LABEL_1, LABEL_2)" in notes[0]


def test_an_adapter_on_a_fine_tuned_base_loads_without_a_note(tagger, tokenizer, tmp_path):
    folder, _ = tagger
    model, _ = load_token_classifier(folder, ["O", "B-a", "I-a"], note=lambda message: None)
    lorakit.save_adapter(lorakit.apply_lora(model, r=2), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    loaded, _ = load_tagger(str(tmp_path / "adapter"))  # a warning would be an error here
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
