import hashlib
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import lorakit
from lorakit.data.corpus import NerData
from lorakit.training.checkpoint import Checkpointer
from lorakit.training.evaluation import encode_tagged
from lorakit.training.identity import (
    UNKNOWN_BEFORE,
    OtherRunError,
    check_same_run,
    hash_of_tensors,
)
from lorakit.training.same_run import run_identity
from tests.support.toy import quick, toy_sentences


@pytest.fixture
def identity_of(tiny_model, tokenizer, data):
    def identity(corpus=data, change=lambda model: None, dropout=None, **options):
        model = tiny_model()
        for module in model.modules() if dropout is not None else ():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        lorakit.apply_lora(model, **{"r": 4, **options})
        change(model)
        return run_identity(quick(), model, encode_tagged(model, tokenizer, corpus.train), corpus)

    return identity


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora_alpha": 4}, "LoRA: lora_alpha = 32, now it is 4"),
        ({"lora_dropout": 0.3}, "LoRA: lora_dropout = 0.0, now it is 0.3"),
        ({"init_lora_weights": "gaussian"}, "LoRA: init_lora_weights = True, now it is 'gaussian'"),
        ({"use_rslora": True}, "LoRA: use_rslora = False, now it is True"),
        ({"dropout": 0.45}, "dropout: modules with 0.45 = None, now it is"),
    ],
)
def test_a_run_with_other_settings_is_another_run(tmp_path, identity_of, options, named):
    with pytest.raises(OtherRunError, match=named):
        check_same_run(tmp_path, identity_of(), identity_of(**options))


def test_a_replaced_validation_set_is_another_run(tmp_path, identity_of, data):
    other = replace(data, validation=toy_sentences(8, 3))
    with pytest.raises(OtherRunError, match="validation set"):
        check_same_run(tmp_path, identity_of(), identity_of(other))


def test_a_base_with_two_layers_exchanged_is_another_base(tmp_path, identity_of):
    """The sum of their weights is the same."""

    def exchange(model):
        layers = model.base_model.encoder.layer
        one, two = (layers[i].attention.output.dense.weight.data.clone() for i in (0, 1))
        layers[0].attention.output.dense.weight.data, layers[1].attention.output.dense.weight.data = two, one

    with pytest.raises(OtherRunError, match=r"frozen weights \(hash\)"):
        check_same_run(tmp_path, identity_of(), identity_of(change=exchange))


def test_the_hash_is_that_of_the_bytes_on_any_number_of_threads():
    weights = torch.rand(300, 1000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(hash_of_tensors([("w", weights)]))
    finally:
        torch.set_num_threads(before)
    expected = hashlib.sha256(b"w:torch.float32:(300, 1000);" + weights.numpy().tobytes()).hexdigest()[:16]
    assert found == [expected, expected]


def test_a_checkpoint_of_an_earlier_version_resumes_and_says_what_is_not_checked(tmp_path, identity_of):
    now = identity_of()
    former = {name: value for name, value in now.items() if name not in UNKNOWN_BEFORE} | {"frozen weights (sum)": 1.0}
    with pytest.warns(UserWarning, match="did not record frozen weights .*LoRA, dropout, validation set .*not checked"):
        check_same_run(tmp_path, former, now)
    with pytest.warns(UserWarning), pytest.raises(OtherRunError, match="epochs = 9, now it is 3"):
        check_same_run(tmp_path, {**former, "epochs": 9}, {**now, "epochs": 3})


def test_a_long_value_is_cut_in_the_message(tmp_path, identity_of):
    now = {**identity_of(), "trained parameters": {}}
    with pytest.raises(OtherRunError, match="trained parameters: .* now it is None") as caught:
        check_same_run(tmp_path, identity_of(), now)
    assert len(str(caught.value)) < 500
    with pytest.raises(OtherRunError, match=r"corpus \(hash\) = '1{50,99}…, now") as caught:
        check_same_run(tmp_path, {**now, "training corpus (hash)": "1" * 9999}, now)
    assert len(str(caught.value)) < 500


def test_the_same_run_is_the_same(tmp_path, identity_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_run(tmp_path, identity_of(), identity_of())


def test_without_a_validation_split_there_is_an_identity_too(tiny_model, tokenizer, data):
    corpus = NerData(data.train, (), (), data.labels, "")
    model = tiny_model()
    identity = run_identity(quick(), model, encode_tagged(model, tokenizer, corpus.train), corpus)
    assert identity["LoRA"] is None
    assert Checkpointer(None, identity).identity == identity
