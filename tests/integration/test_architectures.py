"""The command line on bases of other families: what it loads, packs, and says."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

import lorakit
from lorakit.cli.__main__ import main
from lorakit.training.evaluation import tag_words
from lorakit.training.models import load_tagger, load_token_classifier, set_dropout
from tests.support.tiny import LABELS, MINI
from tests.support.token_classifiers import OPTIONS, build
from tests.support.toy import toy_sentences


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 16), ("test", 8)):
        words = ({"tokens": s.words, "tags": [LABELS.index(tag) for tag in s.tags]} for s in toy_sentences(count, 0))
        (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in words))
    (folder / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A function that saves an architecture's tiny model with the embedded tokenizer."""

    def save(name, **options):
        folder = tmp_path_factory.mktemp(name) / "base"
        build(name, **options).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", ["deberta-v2", "fnet"])
def test_a_base_of_another_family_trains_by_the_defaults(base, corpus, tmp_path, name):
    run = tmp_path / "run"
    given = ["train", "--model", str(base(name)), "--dataset", str(corpus), "--epochs", "1", "--output-dir", str(run)]
    assert main(given) == 0
    model, tokenizer = load_tagger(str(run / "adapter"))
    sentences = [sentence.words for sentence in toy_sentences(20, 5)]
    alone = [lorakit.predict(model, tokenizer, [words], packing="off")[0] for words in sentences]
    assert lorakit.predict(model, tokenizer, sentences) == alone
    assert main(["evaluate", "--adapter", str(run / "adapter"), "--dataset", str(corpus), "--packing", "off"]) == 0


@pytest.mark.parametrize("name", ["mpnet", "longformer", "big_bird", "luke", "roformer", "modernbert", "gpt2", "llama"])
def test_a_class_with_whatever_attention_and_dropout_trains_by_the_defaults(base, corpus, tmp_path, name):
    """Some have no sdpa, some no packed rows, and some only names of their own for what BERT's configuration has."""
    given = ["train", "--model", str(base(name)), "--dataset", str(corpus), "--epochs", "1"]
    assert main([*given, "--r", "2", "--output-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_packing_that_is_impossible_is_refused_before_anything_is_written_and_its_fix_works(
    base, corpus, tmp_path, capsys
):
    given = ["train", "--model", str(base("convbert")), "--dataset", str(corpus), "--epochs", "1", "--r", "4"]
    given += ["--output-dir", str(tmp_path / "run")]
    for more, message in (
        (
            ["--packing", "on"],
            "cannot be packed, because its convolutions mix neighbouring tokens: train in plain rows",
        ),
        (["--engine", "compile"], "--engine compile needs packed rows, and this model is not packed"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*given, *more])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main([*given, "--packing", "off"]) == 0


def test_the_attention_is_what_the_class_has_and_eager_is_told(base, caplog):
    assert load_token_classifier(base("bert"), LABELS)[0].config._attn_implementation == "sdpa"
    assert not [record for record in caplog.records if record.name.startswith("lorakit")]
    assert load_token_classifier(base("mpnet"), LABELS)[0].config._attn_implementation == "eager"
    told = [record.getMessage() for record in caplog.records if record.name.startswith("lorakit")]
    assert told == ["MPNetForTokenClassification has no 'sdpa' attention: it is loaded with 'eager'"]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_dropout_is_set_whatever_its_name(name):
    """The oracle: in training mode the model then computes the same twice, and with dropout 0.5 it does not."""
    config, ids = build(name).config, torch.arange(20, 44)[None]
    for dropout in (0.0, 0.5):
        set_dropout(config, dropout)
        model = AutoModelForTokenClassification.from_config(config).train()
        if not hasattr(config, "classifier_dropout") and hasattr(model, "dropout"):
            model.dropout.p = dropout  # a decoder's head has 0.1 that is in no field; loading sets it
        with torch.no_grad():
            first, second = (model(input_ids=ids)[0] for _ in range(2))
        assert torch.equal(first, second) is (dropout == 0)


@pytest.mark.parametrize("name", ["llama", "distilbert", "t5", "fnet", "bert"])
def test_a_base_is_loaded_with_the_dropout_asked_for_also_in_its_head(base, name):
    for dropout in (0.0, 0.25):
        model, _ = load_token_classifier(base(name), LABELS, dropout=dropout)
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {dropout}


def test_dropout_is_refused_where_there_is_none_or_out_of_range():
    with pytest.raises(ValueError, match=r"none has no dropout to set to 0.1: leave dropout out"):
        set_dropout(SimpleNamespace(model_type="none", classifier_dropout=None, token_dropout=True), 0.1)
    with pytest.raises(ValueError, match="dropout is 1.5; it must be from 0 to below 1"):
        set_dropout(build("bert").config, 1.5)


@pytest.mark.parametrize("name", ["deberta-v2", "modernbert"])
def test_predictions_for_a_thousand_real_sentences_equal_those_one_by_one(bionlp2004, name):
    """Plain transformers computes the latter, one sentence at a time."""
    data = lorakit.read_ner(bionlp2004)
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    model = build(name)
    sentences = [sentence.words for sentence in data.train[:1000]]
    tagged = tag_words(model, tokenizer, sentences, packing="on")
    for words, tags, probabilities in zip(sentences, tagged.tags, tagged.probabilities, strict=True):
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        numbers = encoded.word_ids()
        first = [numbers.index(word) for word in range(len(words))]
        with torch.no_grad():
            alone = model(input_ids=encoded.input_ids)[0][0][first].softmax(-1).max(-1)
        assert [LABELS[number] for number in alone.indices.tolist()] == tags
        assert alone.values.tolist() == pytest.approx(probabilities, abs=1e-5)
