"""PEFT's format: our tensors under its names, and files by others are read as the same adapter or refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.adapters.storage import CONFIG, TENSORS, load_adapter, save_adapter
from lorakit.lora import count_parameters
from tests.support.lora_models import as_peft_would_write, labelled_roberta, logits, trained_roberta


def test_the_file_holds_what_was_trained_in_float32(saved: Path) -> None:
    tensors = load_file(saved / TENSORS)
    count = count_parameters(trained_roberta(bias="all", lora_alpha=8)).trainable
    assert sum(t.numel() for t in tensors.values()) == count  # neither a table nor a base layer
    # A and B of 4 layers, 8 biases in each of 2 layers, the embeddings' bias, the head: PEFT's without its head copies
    assert len(tensors) == 8 + 2 * 8 + 1 + 2
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert "base_model.model.roberta.encoder.layer.0.attention.self.query.base_layer.bias" in tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"r": None}, "r is missing"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; lorakit reads 'LORA'"),
        ({"r": 16}, r"is \(8, 32\), this model needs \(16, 32\)"),
        ({"bias": "none"}, "unexpected: .*bias"),
        ({"bias": "lora_only"}, "unexpected: .*bias"),
        ({"use_dora": True}, "missing: .*lora_magnitude_vector"),
        ({"target_modules": ["query"]}, "unexpected: .*value.lora_A.weight"),
        ({"target_modules": ["query", "value", "key"]}, "missing: .*key.lora_A.weight"),
        ({"modules_to_save": ["scorer"]}, "modules_to_save 'scorer' of the adapter is not in this"),
        ({"megatron_config": {"a": 1}}, "megatron_config=.* is a feature that lorakit does not have"),
        ({"lora_bias": True}, "lora_bias is on, and .*lora_B.bias is missing"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4': the base was changed .* save it with PEFT's"),
        ({"init_lora_weights": "corda"}, "'corda': the base was changed"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights must be True, False, .* got 'loftq'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict, message: str, saved: Path) -> None:
    as_peft_would_write(saved)
    config = json.loads((saved / CONFIG).read_text()) | changes
    (saved / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    model = labelled_roberta()
    with pytest.raises(ValueError, match=message):
        load_adapter(model, saved)
    assert all(p.requires_grad for p in model.parameters())  # the model is unchanged


def _renamed(old: str, new: str):
    return lambda tensors: {key.replace(old, new): t for key, t in tensors.items()}


QUERY = "base_model.model.roberta.encoder.layer.0.attention.self.query"


FOREIGN = {
    "no peft_type": ({"peft_type": None}, None, "peft_type is None; lorakit reads 'LORA'"),
    "no task_type": ({"task_type": None}, None, None),
    "no bias key": ({"bias": None}, None, "unexpected: .*bias"),
    "no biases": (
        {},
        lambda t: {k: v for k, v in t.items() if "bias" not in k or "classifier" in k},
        "missing: .*bias",
    ),
    "bias under its plain name": ({}, _renamed(".base_layer.", "."), "missing: .*base_layer.bias.*unexpected: .*bias"),
    "a tensor too many": (
        {},
        lambda t: t | {"base_model.model.more": torch.ones(1)},
        "unexpected: base_model.model.more",
    ),
    "one A missing": ({}, lambda t: {k: v for k, v in t.items() if k != f"{QUERY}.lora_A.weight"}, "missing: .*lora_A"),
    "no head": ({}, lambda t: {k: v for k, v in t.items() if "classifier" not in k}, "missing: .*classifier.weight"),
    "no prefix": ({}, _renamed("base_model.model.", ""), "missing: base_model.model.*unexpected: "),
    "an unknown key": ({"future_key": True}, None, "future_key=True is a feature that lorakit does not have"),
    "an unknown key that is off": ({"future_key": None, "other": False}, None, None),
    "half precision": ({}, lambda t: {k: v.half().float().half() for k, v in t.items()}, None),
    "a layer that never was": ({"layers_to_transform": [0, 1, 77], "layers_pattern": "layer"}, None, None),
    "an empty list of layers": ({"layers_to_transform": [], "layers_pattern": []}, None, None),
    "other layers": ({"layers_to_transform": [1]}, None, "unexpected: .*layer.0"),
    "an exclusion of nothing": ({"exclude_modules": ["encoder", "vision"]}, None, None),
    "an exclusion": ({"exclude_modules": ["query"]}, None, "unexpected: .*query"),
    "a regex": ({"target_modules": r".*\.(query|value)", "exclude_modules": r".*pooler.*"}, None, None),
    "a regex for a part": ({"target_modules": "query|value"}, None, "adapts query.value, which"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_by_others_give_the_same_adapter_or_are_refused(case: str, saved: Path) -> None:
    """PEFT is silent about most of these and computes something else."""
    changes, edit, message = FOREIGN[case]
    as_peft_would_write(saved)
    tensors, config = load_file(saved / TENSORS), json.loads((saved / CONFIG).read_text()) | changes
    save_file(edit(tensors) if edit else tensors, saved / TENSORS, metadata={"format": "pt"})
    (saved / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    model = labelled_roberta()
    if message:
        with pytest.raises(ValueError, match=message):
            load_adapter(model, saved)
        return
    load_adapter(model, saved)
    if edit is None:
        assert torch.equal(logits(model), logits(trained_roberta(bias="all", lora_alpha=8)))
    else:
        torch.testing.assert_close(
            logits(model), logits(trained_roberta(bias="all", lora_alpha=8)), rtol=1e-2, atol=1e-2
        )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_smallest_sufficient_configuration_loads(saved: Path) -> None:
    as_peft_would_write(saved)
    least = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["query", "value"],
    }
    (saved / CONFIG).write_text(json.dumps(least | {"bias": "all"}))
    assert torch.equal(
        logits(load_adapter(labelled_roberta(), saved)), logits(trained_roberta(bias="all", lora_alpha=8))
    )


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_missing_targets_are_pefts_defaults_and_must_fit_the_tensors(targets: str | None, tmp_path: Path) -> None:
    """PEFT takes the architecture's defaults where the file names none."""
    right, wrong = (["query", "value"], "all-linear") if targets is None else ("all-linear", ["query", "value"])
    for wanted in (right, wrong):
        model = trained_roberta(target_modules=wanted)
        folder = save_adapter(model, tmp_path / str(wanted))
        as_peft_would_write(folder)
        config = json.loads((folder / CONFIG).read_text()) | {"target_modules": targets}
        (folder / CONFIG).write_text(json.dumps(config))
        if wanted is right:
            assert torch.equal(logits(load_adapter(labelled_roberta(), folder)), logits(model))
        else:
            with pytest.raises(ValueError, match="unexpected: " if targets is None else "missing: "):
                load_adapter(labelled_roberta(), folder)
    if targets is None:
        model = labelled_roberta()
        model.config.model_type = "novel"
        with pytest.raises(ValueError, match="has no target_modules, and there is no default .* 'novel'; name some"):
            load_adapter(model, folder)


def test_pefts_all_linear_also_holds_a_head_that_was_not_trained_in_full(tmp_path: Path) -> None:
    """Ours leaves out such a head and an unused pooler; the file's tensors decide."""
    every = ["query", "key", "value", "dense", "classifier"]
    model = trained_roberta(target_modules=every, modules_to_save=[])
    folder = save_adapter(model, tmp_path)
    as_peft_would_write(folder)
    config = json.loads((folder / CONFIG).read_text()) | {"target_modules": "all-linear", "task_type": None}
    (folder / CONFIG).write_text(json.dumps(config))
    assert torch.equal(logits(load_adapter(labelled_roberta(), folder)), logits(model))
