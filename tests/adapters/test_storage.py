"""Saving and loading adapters: the same output again, and strict about everything that would compute something else.

More cases, drawn at random: LORAKIT_CASES=5000 python -m pytest tests/adapters/test_storage.py -k fault
"""

import copy
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.adapters.storage import CONFIG, OWN, TENSORS, load_adapter, save_adapter
from lorakit.lora import (
    adapter_names,
    apply_lora,
    count_parameters,
    disable_lora,
    merge_lora,
    remove_lora,
)
from tests.support.lora_models import (
    LABEL_NAMES,
    as_peft_would_write,
    labelled_roberta,
    logits,
    perturb,
    tiny_roberta,
    trained_roberta,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": "all", "lora_dropout": 0.1},
        {"bias": "lora_only", "use_dora": True},
        {"target_modules": "all-linear", "rank_pattern": {"key": 3}, "alpha_pattern": {"value": 5}},
        {"modules_to_save": []},
        {"target_modules": ["word_embeddings", "query"], "use_rslora": True},
        {"layers_to_transform": [1], "modules_to_save": ["LayerNorm"]},
        {"init_lora_weights": "pissa", "r": 4},
    ],
)
def test_a_saved_adapter_loads_into_a_fresh_base_with_the_same_output(options: dict, tmp_path: Path) -> None:
    model = trained_roberta(**options)
    fresh = load_adapter(labelled_roberta(), save_adapter(model, tmp_path))
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-6, atol=1e-6)
    if "init_lora_weights" not in options:
        assert torch.equal(logits(fresh), logits(model))
        assert count_parameters(fresh) == count_parameters(model)


def test_buffers_of_a_fully_trained_module_are_saved_loaded_and_restored(tmp_path: Path) -> None:
    """A batch norm's running mean and its counter are part of what was trained."""

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    base, untouched = fresh()(x), fresh().state_dict()
    model = apply_lora(fresh(), r=2, target_modules=["0"], modules_to_save=["1"])
    perturb(model)
    model.train()(x)
    tuned = model.eval()(x)
    with disable_lora(model):
        assert torch.equal(model(x), base)
        model.train()(x)  # changes nothing that lasts
        model.eval()
    assert torch.equal(model(x), tuned)
    folder = save_adapter(model, tmp_path)
    loaded = load_adapter(fresh(), folder)
    assert torch.equal(loaded(x), tuned) and loaded[1].num_batches_tracked == 1
    as_peft_would_write(folder)
    tensors = load_file(folder / TENSORS)
    key = "base_model.model.1.num_batches_tracked"
    save_file(tensors | {key: tensors[key].float()}, folder / TENSORS)
    with pytest.raises(ValueError, match="num_batches_tracked is torch.float32, an integer here"):
        load_adapter(fresh(), folder)
    merged = remove_lora(copy.deepcopy(model), merge=True)
    torch.testing.assert_close(merged(x), tuned, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, untouched[name]) for name, value in remove_lora(model).state_dict().items())


def test_a_merged_or_copied_model_saves_the_same_files(tmp_path: Path) -> None:
    model = trained_roberta()
    plain = save_adapter(model, tmp_path / "plain")
    merged = save_adapter(merge_lora(copy.deepcopy(model)), tmp_path / "merged")
    for name in (CONFIG, TENSORS, OWN):
        assert (plain / name).read_bytes() == (merged / name).read_bytes()


def test_saving_needs_no_network(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    model = trained_roberta(target_modules=["query", "word_embeddings"])
    model.config._name_or_path = "someone/a-base-that-only-the-hub-has"
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    load_adapter(labelled_roberta(), save_adapter(model, tmp_path / "again"))


def test_a_base_without_label_names_takes_the_adapters(saved: Path) -> None:
    model = load_adapter(tiny_roberta(), saved)
    assert model.config.id2label == dict(enumerate(LABEL_NAMES))
    assert model.config.label2id["I-type"] == 10


def test_another_order_of_labels_is_refused(saved: Path) -> None:
    swapped = [LABEL_NAMES[0], LABEL_NAMES[2], LABEL_NAMES[1], *LABEL_NAMES[3:]]
    with pytest.raises(ValueError, match="label 1 is 'B-DNA' in the adapter and 'I-DNA' in this model; .* O, B-"):
        load_adapter(labelled_roberta(swapped), saved)


def test_another_base_is_refused_unless_allowed(saved: Path) -> None:
    model = labelled_roberta()
    with torch.no_grad():
        model.roberta.encoder.layer[0].output.dense.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match="another base: .* pass check_base=False"):
        load_adapter(model, saved)
    assert all(p.requires_grad for p in model.parameters())
    load_adapter(model, saved, check_base=False)


def test_the_same_base_in_half_precision_is_accepted(saved: Path) -> None:
    load_adapter(labelled_roberta().to(torch.bfloat16), saved)
    other = labelled_roberta().to(torch.bfloat16)
    with torch.no_grad():
        other.roberta.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match="another base"):
        load_adapter(other, saved)


def test_a_base_of_another_name_is_refused_where_there_is_no_fingerprint(saved: Path) -> None:
    as_peft_would_write(saved)
    config = json.loads((saved / CONFIG).read_text()) | {"base_model_name_or_path": "some/roberta-base"}
    (saved / CONFIG).write_text(json.dumps(config))
    model = labelled_roberta()
    model.config._name_or_path = "other/roberta-large"
    with pytest.raises(ValueError, match="trained on 'some/roberta-base', this model is 'other/roberta-large'"):
        load_adapter(model, saved)
    model.config._name_or_path = "/home/me/roberta-base"
    load_adapter(model, saved)


def test_saving_a_model_without_lora_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no LoRA; call apply_lora"):
        save_adapter(labelled_roberta(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("training", [False, True])
def test_loading_does_not_change_the_mode_of_the_model(training: bool, tmp_path: Path) -> None:
    folder = save_adapter(trained_roberta(lora_dropout=0.5), tmp_path)
    model = load_adapter(labelled_roberta().train(training), folder)
    assert all(module.training is training for module in model.modules())
    if not training:
        assert torch.equal(logits(model), logits(model))


def test_an_adapter_is_replaced_in_a_running_model_without_changing_the_base(saved: Path, tmp_path: Path) -> None:
    model = load_adapter(labelled_roberta(), saved)
    first, ids = logits(model), {name: id(p) for name, p in model.named_parameters()}
    with disable_lora(model):
        base = logits(model)
    other = trained_roberta(bias="all", lora_alpha=8, seed=3)
    with torch.no_grad():
        other.classifier.bias += 1
    load_adapter(model, save_adapter(other, tmp_path / "other"))
    assert torch.equal(logits(model), logits(other))
    assert {name: id(p) for name, p in model.named_parameters()} == ids
    load_adapter(model, saved, "first")
    assert adapter_names(model) == ("first", "default")
    assert torch.equal(logits(model), first)
    with disable_lora(model):
        assert torch.equal(logits(model), base)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(trained_roberta(bias="all", lora_alpha=8), tmp_path_factory.mktemp("fuzz") / "adapter")


CASES = os.environ.get("LORAKIT_CASES")


FAULTS = ("drop", "rename", "permute", "truncate", "flip", "reshape", "config", "bytes", "missing file")


@settings(
    max_examples=int(CASES or 120),
    deadline=None,
    derandomize=CASES is None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fault=st.sampled_from(FAULTS), peft=st.booleans(), at=st.integers(0, 10**6), data=st.data())
def test_any_one_fault_in_the_files_is_refused(
    fault: str, peft: bool, at: int, data: st.DataObject, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Drop, rename, permute, truncate or flip one thing: loading raises, with and without lorakit's own metadata."""
    folder = tmp_path_factory.mktemp("copy")
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if peft:
        as_peft_would_write(folder)
    with safe_open(folder / TENSORS, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / TENSORS)
    keys = sorted(tensors)
    key = keys[at % len(keys)]
    if fault == "drop":
        del tensors[key]
    elif fault == "rename":
        tensors[f"{key}x"] = tensors.pop(key)
    elif fault == "reshape":
        tensors[key] = tensors[key].flatten()[:-1].clone()
    elif fault == "permute" and not peft:  # PEFT's own files have nothing to notice these by
        one, other = (k for k in keys if f"{at % 2}.attention.self" in k and "lora_A" in k)
        tensors[one], tensors[other] = tensors[other], tensors[one]
    elif fault == "flip" and not peft:
        tensors[key].view(-1)[at % tensors[key].numel()] *= -1
    elif fault == "config":
        config = json.loads((folder / CONFIG).read_text())
        if peft:
            gone = data.draw(st.sampled_from(["r", "lora_alpha", "peft_type", "bias"]))
            del config[gone]
        else:
            config[data.draw(st.sampled_from(["r", "lora_alpha", "use_rslora", "lora_dropout", "bias"]))] = 3
        (folder / CONFIG).write_text(json.dumps(config))
    elif fault == "missing file":
        present = [TENSORS, CONFIG] if peft else [TENSORS, CONFIG, OWN]
        (folder / data.draw(st.sampled_from(present))).unlink()
    elif fault == "truncate" or peft:
        path = folder / data.draw(st.sampled_from([TENSORS, CONFIG]))
        path.write_bytes(path.read_bytes()[: at % (path.stat().st_size - 2)])
    else:
        path = folder / data.draw(st.sampled_from([TENSORS, CONFIG, OWN]))
        changed = bytearray(path.read_bytes())
        changed[at % len(changed)] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(changed)
    if fault in ("drop", "rename", "reshape") or fault in ("permute", "flip") and not peft:
        save_file(tensors, folder / TENSORS, metadata=metadata)
    with pytest.raises((ValueError, FileNotFoundError), match=r"."):
        load_adapter(labelled_roberta(), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_not_finite_is_neither_saved_nor_loaded(tmp_path, value):
    model = trained_roberta()
    save_adapter(model, tmp_path / "good")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("lora_B"))[0, 0] = value
    with pytest.raises(FloatingPointError, match="the adapter is not saved, because .*lora_B.* not finite"):
        save_adapter(model, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    tensors = load_file(tmp_path / "good" / TENSORS)
    next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = value
    (tmp_path / "good" / OWN).unlink()
    save_file(tensors, tmp_path / "good" / TENSORS)
    other = tiny_roberta()
    before = logits(other)
    with pytest.raises(ValueError, match="lora_B.* not finite: its training diverged"):
        load_adapter(other, tmp_path / "good")
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("name", [CONFIG, OWN])
@pytest.mark.parametrize("fault", ["deep", "large", "pipe"])
def test_a_file_that_would_cost_much_to_read_is_one_clear_error(tmp_path, name, fault):
    path = save_adapter(trained_roberta(), tmp_path / "a") / name
    path.unlink()
    if fault == "deep":
        path.write_text("[" * 100_000)
    elif fault == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room
    else:
        os.mkfifo(path)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"{name} is (damaged|missing|not there)|has 1,099,511,627,776 bytes"
    ) as caught:
        load_adapter(tiny_roberta(), tmp_path / "a")
    assert len(str(caught.value)) < 400
