"""Adapter files: both ways with PEFT, strict about everything that would compute something else, atomic, no pickle.

Other faults, and more of them: LORAKIT_CASES=5000 python -m pytest tests/adapters/test_storage.py -k fault
"""

import copy
import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.adapters import files as adapter_files
from lorakit.adapters.storage import CONFIG, OWN, TENSORS, fingerprint, load_adapter, save_adapter
from lorakit.lora import adapter_names, apply_lora, count_parameters, disable_lora, merge_lora, remove_lora
from tests.test_lora import logits, perturb, tiny_roberta

LABELS = ["O", *(f"{kind}-{name}" for name in ("DNA", "RNA", "protein", "line", "type") for kind in "BI")]


def labelled_roberta(labels: list[str] = LABELS) -> nn.Module:
    return tiny_roberta(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})


def trained(**options: object) -> nn.Module:
    model = apply_lora(labelled_roberta(), **options)
    perturb(model)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_adapter(trained(bias="all", lora_alpha=8), tmp_path / "adapter")


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
    model = trained(**options)
    fresh = load_adapter(labelled_roberta(), save_adapter(model, tmp_path))
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-6, atol=1e-6)
    if "init_lora_weights" not in options:
        assert torch.equal(logits(fresh), logits(model))
        assert count_parameters(fresh) == count_parameters(model)


def test_buffers_of_a_module_trained_whole_are_saved_loaded_and_put_back(tmp_path: Path) -> None:
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
        model.train()(x)  # moves nothing that stays
        model.eval()
    assert torch.equal(model(x), tuned)
    folder = save_adapter(model, tmp_path)
    loaded = load_adapter(fresh(), folder)
    assert torch.equal(loaded(x), tuned) and loaded[1].num_batches_tracked == 1
    _forget_who_wrote(folder)
    tensors = load_file(folder / TENSORS)
    key = "base_model.model.1.num_batches_tracked"
    save_file(tensors | {key: tensors[key].float()}, folder / TENSORS)
    with pytest.raises(ValueError, match="num_batches_tracked is torch.float32, an integer here"):
        load_adapter(fresh(), folder)
    merged = remove_lora(copy.deepcopy(model), merge=True)
    torch.testing.assert_close(merged(x), tuned, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, untouched[name]) for name, value in remove_lora(model).state_dict().items())


def test_a_merged_or_copied_model_saves_the_same_files(tmp_path: Path) -> None:
    model = trained()
    plain = save_adapter(model, tmp_path / "plain")
    merged = save_adapter(merge_lora(copy.deepcopy(model)), tmp_path / "merged")
    for name in (CONFIG, TENSORS, OWN):
        assert (plain / name).read_bytes() == (merged / name).read_bytes()


def test_saving_needs_no_network(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    model = trained(target_modules=["query", "word_embeddings"])
    model.config._name_or_path = "someone/a-base-that-only-the-hub-has"
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    load_adapter(labelled_roberta(), save_adapter(model, tmp_path / "again"))


def test_the_tensors_are_those_that_were_trained_in_float32(saved: Path) -> None:
    tensors = load_file(saved / TENSORS)
    count = count_parameters(trained(bias="all", lora_alpha=8)).trainable
    assert sum(t.numel() for t in tensors.values()) == count  # no table, no base layer comes along
    # A and B of 4 layers, 8 biases in each of 2 layers, the embeddings' bias, the head: PEFT's without its head copies
    assert len(tensors) == 8 + 2 * 8 + 1 + 2
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert "base_model.model.roberta.encoder.layer.0.attention.self.query.base_layer.bias" in tensors


def test_the_model_card_tells_labels_metrics_and_energy(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path, metrics={"test": {"f1": 0.75}}, energy={"gpu": {"wh": None}, "cpu": {"wh": 1.5}})
    card = (tmp_path / "README.md").read_text()
    assert "3 B-RNA" in card
    assert "| test.f1 | 0.75 |" in card
    assert "| gpu.wh | None |" in card
    assert card.startswith("---\nlibrary_name: peft\n")


def test_labels_are_taken_over_by_a_base_without_names(saved: Path) -> None:
    model = load_adapter(tiny_roberta(), saved)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id["I-type"] == 10


def test_another_order_of_labels_is_refused(saved: Path) -> None:
    swapped = [LABELS[0], LABELS[2], LABELS[1], *LABELS[3:]]
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


def test_the_same_base_in_half_precision_is_the_same_base(saved: Path) -> None:
    load_adapter(labelled_roberta().to(torch.bfloat16), saved)
    other = labelled_roberta().to(torch.bfloat16)
    with torch.no_grad():
        other.roberta.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match="another base"):
        load_adapter(other, saved)


def test_the_fingerprint_is_of_the_untouched_base() -> None:
    base = labelled_roberta()
    expected = fingerprint(base, saved=("classifier",))
    model = trained(bias="all")
    assert fingerprint(model) == expected
    assert fingerprint(merge_lora(model)) == expected


def test_the_fingerprint_leaves_the_storages_resizable() -> None:
    """FSDP2 resizes what it gathers; numpy would fix the size."""
    model = trained(bias="all")
    fingerprint(model)
    assert all(parameter.untyped_storage().resizable() for parameter in model.parameters())


def test_a_base_of_another_name_is_refused_where_there_is_no_fingerprint(saved: Path) -> None:
    _forget_who_wrote(saved)
    config = json.loads((saved / CONFIG).read_text()) | {"base_model_name_or_path": "some/roberta-base"}
    (saved / CONFIG).write_text(json.dumps(config))
    model = labelled_roberta()
    model.config._name_or_path = "other/roberta-large"
    with pytest.raises(ValueError, match="trained on 'some/roberta-base', this model is 'other/roberta-large'"):
        load_adapter(model, saved)
    model.config._name_or_path = "/home/me/roberta-base"
    load_adapter(model, saved)


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
        ({"lora_bias": True}, "lora_bias=True is a feature"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed at random"),
        ({"rank_pattern": {"quary": 4}}, "rank_pattern 'quary' matches nothing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict, message: str, saved: Path) -> None:
    _forget_who_wrote(saved)
    config = json.loads((saved / CONFIG).read_text()) | changes
    (saved / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    model = labelled_roberta()
    with pytest.raises(ValueError, match=message):
        load_adapter(model, saved)
    assert all(p.requires_grad for p in model.parameters())  # the model is as it was


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
    "a regex for a part": ({"target_modules": "query|value"}, None, "target_modules"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_others_wrote_is_the_same_adapter_or_refused(case: str, saved: Path) -> None:
    """PEFT is silent about most of these and computes something else."""
    changes, edit, message = FOREIGN[case]
    _forget_who_wrote(saved)
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
        assert torch.equal(logits(model), logits(trained(bias="all", lora_alpha=8)))
    else:
        torch.testing.assert_close(logits(model), logits(trained(bias="all", lora_alpha=8)), rtol=1e-2, atol=1e-2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_least_that_says_what_to_compute_loads(saved: Path) -> None:
    _forget_who_wrote(saved)
    least = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["query", "value"],
    }
    (saved / CONFIG).write_text(json.dumps(least | {"bias": "all"}))
    assert torch.equal(logits(load_adapter(labelled_roberta(), saved)), logits(trained(bias="all", lora_alpha=8)))


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_targets_that_only_peft_would_fill_in_are_its_own_and_the_tensors_decide(
    targets: str | None, tmp_path: Path
) -> None:
    """PEFT takes the architecture's defaults where the file names none."""
    right, wrong = (["query", "value"], "all-linear") if targets is None else ("all-linear", ["query", "value"])
    for wanted in (right, wrong):
        model = trained(target_modules=wanted)
        folder = save_adapter(model, tmp_path / str(wanted))
        _forget_who_wrote(folder)
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


def test_a_hub_id_loads_what_the_hub_hands_over(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, set(allow_patterns)))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = load_adapter(labelled_roberta(), "someone/an-adapter")
    assert torch.equal(logits(model), logits(trained(bias="all", lora_alpha=8)))
    assert asked == [("someone/an-adapter", {CONFIG, TENSORS, OWN})]  # no pickle comes along
    (saved / CONFIG).unlink()
    with pytest.raises(
        FileNotFoundError, match="'someone/an-adapter' on the hub is not an adapter: it has no adapter_config"
    ):
        load_adapter(labelled_roberta(), "someone/an-adapter")


@pytest.mark.parametrize("hub_id", ["someone/not-in-the-cache", "a..b/--"])
def test_a_hub_that_gives_nothing_is_one_error_with_the_way_out(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, so the hub's own errors: not in its cache, and a name that it does not allow."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = labelled_roberta()
    with pytest.raises(
        FileNotFoundError, match=rf"no adapter folder '{hub_id}' .* \(hf download .*pass the folder"
    ) as caught:
        load_adapter(model, hub_id)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # not the hub's stack
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters())


def test_a_pickle_is_never_read(saved: Path) -> None:
    (saved / TENSORS).rename(saved / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin is a pickle, which can run any code"):
        load_adapter(labelled_roberta(), saved)


def test_an_absent_folder_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter folder .*/there"):
        load_adapter(labelled_roberta(), tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="adapter_config.json is not there"):
        load_adapter(labelled_roberta(), tmp_path)


def test_saving_a_model_without_lora_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no LoRA; call apply_lora"):
        save_adapter(labelled_roberta(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_full_disk_leaves_the_earlier_adapter_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    calls = iter(range(9))

    def fsync(_: int) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(trained(r=4), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(OSError, match="No space left"):
        calls = iter([2])
        save_adapter(trained(r=4), saved.parent / "new")
    assert not (saved.parent / "new").exists()


def test_a_new_folder_appears_with_everything_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "deep" / "adapter", os.rename

    def watched(source: Path, target: Path) -> None:
        assert not folder.exists()
        rename(source, target)
        assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, OWN, "README.md"}

    monkeypatch.setattr(os, "rename", watched)
    monkeypatch.setattr(os, "replace", None)  # not one by one
    save_adapter(trained(), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_another_process_made_meanwhile_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rename = trained(), os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        save_adapter(model, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    folder = save_adapter(model, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, OWN, "README.md"}
    load_adapter(labelled_roberta(), folder)


def test_a_crash_between_two_files_leaves_a_set_that_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, iter(range(9))

    def crash(source: Path, target: Path) -> None:
        if next(calls) == 2:
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        save_adapter(trained(bias="all", seed=3), saved)
    with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
        load_adapter(labelled_roberta(), saved)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("written", range(4))
def test_a_process_killed_between_two_files_leaves_the_old_the_new_or_a_refused_set(
    written: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved / "mine.txt").write_text("a file of the user's own")
    old, new = trained(bias="all", lora_alpha=8), trained(bias="all", lora_alpha=8, seed=3)
    replace, calls = os.replace, iter(range(9))

    def killed(source: Path, target: Path) -> None:
        if next(calls) == written:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def in_a_child(folder: Path, files: dict[str, bytes]) -> Path:
        if not (child := os.fork()):
            os.replace = killed
            adapter_files.write_all(folder, files)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return folder

    monkeypatch.setattr("lorakit.adapters.storage.write_all", in_a_child)
    save_adapter(new, saved)
    assert (saved / "mine.txt").exists()
    if written == 3:  # card, configuration (the same) and tensors are new; what says which belong together is old
        with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
            load_adapter(labelled_roberta(), saved)
    else:
        assert torch.equal(logits(load_adapter(labelled_roberta(), saved)), logits(old))
    monkeypatch.undo()
    save_adapter(new, saved)  # the way out
    assert torch.equal(logits(load_adapter(labelled_roberta(), saved)), logits(new))


@pytest.mark.parametrize("training", [False, True])
def test_loading_leaves_the_mode_of_the_model_alone(training: bool, tmp_path: Path) -> None:
    folder = save_adapter(trained(lora_dropout=0.5), tmp_path)
    model = load_adapter(labelled_roberta().train(training), folder)
    assert all(module.training is training for module in model.modules())
    if not training:
        assert torch.equal(logits(model), logits(model))


def test_an_adapter_is_exchanged_in_a_running_model_without_touching_the_base(saved: Path, tmp_path: Path) -> None:
    model = load_adapter(labelled_roberta(), saved)
    first, ids = logits(model), {name: id(p) for name, p in model.named_parameters()}
    with disable_lora(model):
        base = logits(model)
    other = trained(bias="all", lora_alpha=8, seed=3)
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


def _forget_who_wrote(folder: Path) -> None:
    """Leave what PEFT would have written."""
    (folder / OWN).unlink()
    save_file(load_file(folder / TENSORS), folder / TENSORS, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(trained(bias="all", lora_alpha=8), tmp_path_factory.mktemp("fuzz") / "adapter")


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
        _forget_who_wrote(folder)
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
