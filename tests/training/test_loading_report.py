import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForPreTraining,
    BigBirdConfig,
    BigBirdForQuestionAnswering,
)

from lorakit.training.models import load_tagger, load_token_classifier
from tests.support.tiny import LABELS, make_tiny_model

SMALL = {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def base(tokenizer, tmp_path):
    """A base as BERT's are published: an encoder with a pooler and two pretraining heads, and an old buffer."""
    folder = tmp_path / "base"
    BertForPreTraining(BertConfig(**SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder, lambda tensors: tensors.update({"bert.embeddings.position_ids": torch.arange(512)[None]}))
    return folder


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_bases_pretraining_heads_pooler_and_old_buffers_are_expected(base):
    tensors = load_file(base / "model.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"bert", "cls"}
    model, _ = load_token_classifier(base, LABELS)  # a warning would be an error
    for name, parameter in model.bert.named_parameters(prefix="bert"):
        assert torch.equal(parameter, tensors[name]), name


def test_a_base_saved_without_its_prefix_loads_alike(base):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("bert.")] = tensors.pop(name)

    edit(base, strip)
    model, _ = load_token_classifier(base, LABELS)
    key = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.bert.get_parameter(key), load_file(base / "model.safetensors")[key])


def test_a_missing_encoder_weight_is_named(base):
    edit(base, lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.bias"))
    with pytest.raises(ValueError, match=r"lacks weights of the encoder.*random: bert\.encoder\.layer\.1\.output\.den"):
        load_token_classifier(base, LABELS)


def test_a_missing_pooler_that_no_tagger_runs_is_no_loss(tokenizer, tmp_path):
    """BigBird's token classifier has a pooler, which question answering does not, and does not run it."""
    config = BigBirdConfig(**SMALL, intermediate_size=64)
    trained = BigBirdForQuestionAnswering(config)
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_token_classifier(tmp_path, LABELS)
    assert model.bert.pooler is not None
    ids = torch.arange(20, 44)[None]
    with torch.no_grad():
        assert torch.equal(model.bert(ids)[0], trained.eval().bert(ids)[0])


def test_a_configuration_with_too_few_layers_is_refused_and_correcting_it_helps(base):
    configure(base, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"has no place for .*: bert\.encoder\.layer\.1\.\S+, .* and 12 more; correct"):
        load_token_classifier(base, LABELS)
    configure(base, num_hidden_layers=2)
    load_token_classifier(base, LABELS)


def test_a_configuration_with_too_many_layers_is_refused(base):
    configure(base, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"lacks weights of the encoder.*bert\.encoder\.layer\.2\..* a larger model"):
        load_token_classifier(base, LABELS)


def test_a_weight_of_another_shape_is_refused(base):
    configure(base, vocab_size=9000)
    with pytest.raises(ValueError, match=r"word_embeddings.weight has the shape \(8192, 32\) .* \(9000, 32\) by con"):
        load_token_classifier(base, LABELS)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_taggers_other_weights_are_not_dropped_in_silence(tokenizer, tmp_path, labels):
    """A CRF's matrix: without it the tagger would predict something else."""
    make_tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({"crf.transitions": torch.zeros(5, 5)}))
    with pytest.raises(ValueError, match=r"has no place for these weights of the checkpoint: crf\.transitions; cor"):
        load_token_classifier(tmp_path, labels)
    # what the message advises
    AutoModelForTokenClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    load_token_classifier(tmp_path, labels)


def test_updates_of_an_adapter_in_a_checkpoint_are_not_dropped(base):
    name = "bert.encoder.layer.0.attention.self.query.lora_A"
    edit(base, lambda tensors: tensors.update({name: torch.zeros(2, 32)}))
    with pytest.raises(ValueError, match="the checkpoint holds LoRA.s tensors beside the base.s, but no adapter"):
        load_token_classifier(base, LABELS)


def test_a_tagger_without_a_head_is_a_base(base):
    with pytest.raises(ValueError, match=r"a base without a trained head \(classifier.bias, classifier.weight is miss"):
        load_tagger(model=str(base))
