"""Each mode's model is built once, and what is wrong with a mode shows before the first one is trained."""

import gc
import shutil
import weakref

import pytest
import torch

from lorakit.cli.__main__ import main
from lorakit.cli.building import ModelBuilder
from lorakit.cli.train import tagger_builder
from lorakit.lora import apply_lora
from tests.support.tiny import LABELS, MINI, make_tiny_model


@pytest.fixture
def counted(monkeypatch):
    """How often a base or tokenizer is loaded, LoRA is applied to a model with weights, and an SVD is computed."""
    import transformers

    counts = {"model": 0, "tokenizer": 0, "apply_lora": 0, "svd": 0}

    def count(name, function):
        def call(*args, **kwargs):
            has_weights = name != "apply_lora" or not next(args[0].parameters()).is_meta
            counts[name] += has_weights
            return function(*args, **kwargs)

        return call

    for name, owner in (
        ("model", transformers.AutoModelForTokenClassification),
        ("tokenizer", transformers.AutoTokenizer),
    ):
        monkeypatch.setattr(owner, "from_pretrained", count(name, owner.from_pretrained))
    monkeypatch.setattr("lorakit.lora.apply_lora", count("apply_lora", apply_lora))
    monkeypatch.setattr(torch.linalg, "svd", count("svd", torch.linalg.svd))
    return counts


PISSA = {"r": 4, "init_lora_weights": "pissa"}


def test_training_in_both_modes_loads_one_base_per_mode_and_computes_each_svd_once(corpus, tmp_path, counted):
    arguments = ["--model", MINI, "--dataset", corpus, "--sentences", 2, "--epochs", 1, "--output-dir", tmp_path]
    arguments += ["--mode", "both", "--init-lora-weights", "pissa"]
    assert main(["train", *map(str, arguments)]) == 0
    assert counted == {"model": 2, "tokenizer": 2, "apply_lora": 1, "svd": 24}  # 6 matrices of 4 layers


@pytest.mark.parametrize(
    ("modes", "at_once", "at_the_end"),
    [
        (("lora",), {"model": 1, "tokenizer": 1, "apply_lora": 1, "svd": 24}, {}),
        (("full",), {"model": 1, "tokenizer": 1, "apply_lora": 0, "svd": 0}, {}),
        (
            ("full", "lora"),
            {"model": 1, "tokenizer": 1, "apply_lora": 0, "svd": 0},
            {"model": 2, "tokenizer": 2, "apply_lora": 1, "svd": 24},
        ),
    ],
)
def test_the_first_mode_is_built_at_once_and_the_second_when_its_turn_comes(modes, at_once, at_the_end, counted):
    builder = tagger_builder(modes, str(MINI), LABELS, PISSA)
    assert counted == at_once
    for mode in modes:
        builder.build(mode)
    assert counted == {**at_once, **at_the_end}


def test_both_modes_start_from_the_same_weights_and_the_same_head():
    builder = tagger_builder(("full", "lora"), str(MINI), LABELS, {"r": 4}, seed=3)
    full, _ = builder.build("full")
    lora, _ = builder.build("lora")
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter, lora.get_parameter(name)), name


def test_the_builder_keeps_no_model_in_memory():
    builder = tagger_builder(("full", "lora"), str(MINI), LABELS, {"r": 4})
    model, _ = builder.build("full")
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"target_modules": ["qery"]}, {}, "qery"),
        ({"r": 0}, {}, "r must be"),
        ({"r": 300, "init_lora_weights": "pissa"}, {}, "r is 300, and no weight of this base has a rank above 256"),
        ({"target_modules": ["word_embeddings"], "init_lora_weights": "olora"}, {}, "is for linear layers"),
        ({"layers_to_transform": [9], "target_modules": ["query"]}, {}, "layers_to_transform"),
        ({}, {"cache_prefix": True, "dropout": 0.0}, "layer 0 is trained"),
        (
            {"target_modules": ["query"], "layers_to_transform": [3]},
            {"cache_prefix": True},
            "below the trained layers has dropout 0.1",
        ),
    ],
)
def test_what_is_wrong_with_the_second_mode_shows_without_its_weights(options, more, message, counted):
    with pytest.raises(ValueError, match=message):
        tagger_builder(("full", "lora"), str(MINI), LABELS, options, **more)
    assert counted == {"model": 1, "tokenizer": 1, "apply_lora": 0, "svd": 0}


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json"])
def test_a_broken_file_of_the_base_shows_before_anything_is_written(broken, corpus, tmp_path, monkeypatch, capsys):
    base = shutil.copytree(MINI, tmp_path / "base", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (base / broken).write_bytes(b"{")
    monkeypatch.chdir(tmp_path)
    for mode in ("both", "lora"):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "--model", "base", "--dataset", str(corpus), "--mode", mode])
        error = capsys.readouterr().err
        assert "cannot load a model from the folder" in error and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_full_fine_tuning_freezes_and_names_what_the_output_does_not_depend_on(capsys):
    kept = []

    def load():
        kept.append(make_tiny_model("esm", mask_token_id=4))
        return kept[-1], None

    builder = ModelBuilder(("full", "lora"), load, lambda model: apply_lora(model, r=2))
    model, _ = builder.build("full")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [f"esm.contact_head.regression.{part}" for part in ("weight", "bias")]
    assert (
        capsys.readouterr().err
        == f"not trained, because the model's output does not depend on them: {', '.join(frozen)}\n"
    )
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == frozen
