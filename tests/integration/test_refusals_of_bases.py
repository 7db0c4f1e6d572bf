"""What a refusal of a base, a checkpoint, a layout or a loss says to do works: as in test_refusals.py."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.adapters.storage import save_adapter
from lorakit.lora import apply_lora
from lorakit.training.layout import check_layout, layout_for
from lorakit.training.models import load_tagger, load_token_classifier, save_model, set_dropout
from tests.support.lora_models import tiny_roberta
from tests.support.refusals import Act, check_advice, check_lists, check_tests_exist
from tests.support.saved_adapters import adapter, diverged, for_another_task, load, sentence_classifier
from tests.support.tiny import LABELS, MINI, ROOT, make_tiny_model
from tests.support.token_classifiers import build

FILES = [
    ROOT / "lorakit" / "training" / f"{name}.py"
    for name in "architectures gradients layout loading_report loss models output_layer untrusted".split()
]


def base(folder: Path, tokenizer: bool = True, **settings: object) -> Path:
    """A tagger's folder with changes in its configuration."""
    found = folder / "base"
    shutil.rmtree(found, ignore_errors=True)
    make_tiny_model().save_pretrained(found)
    for path in MINI.glob("tokenizer*.json"):
        shutil.copy(path, found)
    config = json.loads((found / "config.json").read_text()) | settings
    (found / "config.json").write_text(json.dumps(config))
    return found


def from_an_onnx_export(folder: Path, with_weights: bool) -> None:
    found = base(folder)
    (found / "model.onnx").touch()
    if not with_weights:
        (found / "model.safetensors").unlink()
    load_token_classifier(found, LABELS)


def loaded(**settings: object) -> Act:
    return lambda folder: load_token_classifier(base(folder, **settings), LABELS)


def loaded_with(name: str | None) -> Act:
    """A tagger whose checkpoint is without this weight, and saved again with it if None."""

    def act(folder: Path) -> None:
        path = base(folder) / "model.safetensors"
        tensors = load_file(path)
        tensors.pop(name, None)
        save_file(tensors, path, metadata={"format": "pt"})
        load_token_classifier(path.parent, LABELS)

    return act


def loaded_by_index(weights: str) -> Act:
    def act(folder: Path) -> None:
        model = make_tiny_model()
        model.save_pretrained(base(folder), max_shard_size="100KB")
        path = folder / "base" / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"] = dict.fromkeys(index["weight_map"], weights) if weights else index["weight_map"]
        path.write_text(json.dumps(index))
        (folder / "base" / "model.safetensors").unlink(missing_ok=True)
        load_token_classifier(folder / "base", LABELS)

    return act


def tagger(folder: Path) -> str:
    """An adapter on a base that is there."""
    model, _ = load_token_classifier(base(folder), LABELS)
    return str(save_adapter(apply_lora(model, r=2), folder / "run" / "adapter"))


def tagged(**options: object) -> Act:
    """`load_tagger` with paths by name of what is in the folder."""

    def act(folder: Path) -> None:
        adapter = tagger(folder)
        paths = {"ADAPTER": adapter, "BASE": str(folder / "base"), "RUN": str(folder / "run")}
        load_tagger(
            **{key: paths.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
        )

    return act


def from_a_file(folder: Path, name: str) -> None:
    load_token_classifier(base(folder) / name, LABELS)


def without_a_head(folder: Path, given_one: bool) -> None:
    from transformers import RobertaForMaskedLM

    RobertaForMaskedLM(make_tiny_model().config).save_pretrained(base(folder))
    if given_one:
        save_model(*load_token_classifier(folder / "base", LABELS), folder / "base")
    load_tagger(model=str(folder / "base"))


def of_equal_lengths(engine: str, whole: bool) -> Act:
    return lambda folder: check_layout(layout_for(build("fnet")), engine, whole)


def saved_model(model: nn.Module) -> Act:
    from transformers import AutoTokenizer

    return lambda folder: save_model(model, AutoTokenizer.from_pretrained(MINI), folder / "model")


# words of a message, as they stand in the code -> what is refused with it, and each advice, followed
FOLLOWED: dict[str, tuple[Act, ...]] = {
    "needs packed rows…: use engine 'eager'": (of_equal_lengths("compile", False), of_equal_lengths("eager", False)),
    "sentences of equal length in a batch…: use strategy 'ddp'": (
        of_equal_lengths("eager", True),
        of_equal_lengths("eager", False),
    ),
    "has no dropout to set to …: leave dropout out": (
        lambda folder: set_dropout(SimpleNamespace(model_type="none"), 0.1),
        loaded(),
    ),
    "the model is not saved, because … has values that are not finite": (
        saved_model(diverged(tiny_roberta(), "classifier")),
        saved_model(tiny_roberta()),
    ),
    "there is no model folder …; give a folder with config.json": (
        lambda folder: load_token_classifier(folder / "gone", LABELS),
        loaded(),
    ),
    "the name of the model is empty; give a folder with config.json": (
        lambda folder: load_token_classifier("", LABELS),
        loaded(),
    ),
    "the name of the adapter is empty; give an adapter's folder": (
        lambda folder: load_tagger(""),
        lambda folder: load(adapter(folder)),
    ),
    "has no config.json, so it is no model; …": (lambda folder: load_token_classifier(folder, LABELS), loaded()),
    "holds a graph for onnxruntime and no model: its README.md shows how to use it; give": (
        lambda folder: from_an_onnx_export(folder, with_weights=False),
        lambda folder: from_an_onnx_export(folder, with_weights=True),
    ),
    "is a file; give the model's folder": (lambda folder: from_a_file(folder, "config.json"), loaded()),
    "it is a base without a trained head (… is missing): fine-tune it first": (
        lambda folder: without_a_head(folder, given_one=False),
        lambda folder: without_a_head(folder, given_one=True),
    ),
    "cannot load a model from … …: …": (loaded_with("classifier.bias"), loaded_with(None)),
    "the checkpoint has only a part of its head: … is missing; save it again": (
        loaded_with("classifier.bias"),
        loaded_with(None),
    ),
    "the checkpoint lacks weights of the encoder, which would be random:": (
        loaded(num_hidden_layers=3),
        loaded(num_hidden_layers=2),
        loaded_with(None),
    ),
    "in the checkpoint and … by config.json; correct config.json": (loaded(vocab_size=9000), loaded(vocab_size=8192)),
    "and only safetensors files beside it are read": (loaded_by_index("pytorch_model.bin"), loaded_by_index("")),
    "give adapter='FOLDER_OR_ID', or model='FOLDER_OR_ID'": (
        tagged(),
        tagged(adapter="ADAPTER"),
        tagged(model="BASE"),
    ),
    "is a LoRA adapter: give it as adapter=": (tagged(model="ADAPTER"), tagged(adapter="ADAPTER")),
    "has its own: leave it out": (tagged(model="BASE", labels=LABELS), tagged(model="BASE")),
    "is a whole model: leave it out": (tagged(model="BASE", check_base=False), tagged(model="BASE")),
    "labels= differs from the adapter's own": (
        tagged(adapter="ADAPTER", labels=["O", "X"]),
        tagged(adapter="ADAPTER"),
    ),
    "is not there; did you mean": (tagged(adapter="RUN"), tagged(adapter="ADAPTER")),
    "and this command tags words (TOKEN_CLS); load it in code with lorakit.load_adapter": (
        for_another_task,
        lambda folder: for_another_task(folder, sentence_classifier),
    ),
    "given as token ids and their mask": (
        lambda folder: layout_for(build("deberta"), precision="bf16"),
        lambda folder: layout_for(build("deberta"), precision="fp32"),
    ),
}  # fmt: skip
ELSEWHERE = {
    "does not say which labels its head has": "advice::test_an_edited_adapter_loads_after",
    "got no gradient in the first step": "gradients::test_a_layer_that_never_runs_is_named",
    "cannot be packed, because": "architectures::test_packing_that_is_impossible_is_refused",
    "does not name the base (base_model_name_or_path)": "models::test_a_base_that_is_elsewhere_is_given_by_hand",
    "names this base: give it with model= if it is elsewhere": "models::test_a_base_that_is_elsewhere_is_given",
    "is a LoRA adapter, not a model": "pretrained::test_training_on_from_such_a_folder",
    "the checkpoint holds LoRA's tensors beside the base's": "pretrained::test_a_state_of_an_adapted_model_alone",
    "has no place for these weights of the checkpoint": "loading_report::test_a_taggers_other_weights_are_not_dropped",
    "so it cannot be added up over batches": "loss::test_a_loss_that_cannot_be_added_up",
    "computes a loss of its own (…): …": "loss::test_a_model_with_a_loss_of_its_own_is_refused",
    "in a packed row it runs from one sentence into the next": "loss::test_a_models_own_loss_trains_as_in",
    "forward takes no labels, so it computes no loss": "loss::test_a_model_without_labels_has_no_loss",
    "class_weights names": "loss::test_weights_that_do_not_fit_the_labels",
    "class_weights has": "loss::test_weights_that_do_not_fit_the_labels",
    "computes a loss of its own, and failed to do so": "loss::test_a_loss_that_fails_or_is_no_number",
    "failed to compute its own loss": "loss::test_the_loss_of_a_class_that_takes_few_kinds_of_batches",
}  # fmt: skip
NOTHING_TO_FOLLOW = {
    "may not be read: give yourself the right with chmod u+r": "tests may run as root, who reads everything",
    "so it cannot be used in batches: use another model": "another model",
    "has no linear output layer with": "a fact: the class is no tagger",
    "… is damaged (…)": "a damaged index",
}


def test_every_message_is_here() -> None:
    check_lists(FILES, FOLLOWED, ELSEWHERE, NOTHING_TO_FOLLOW)


def test_the_tests_that_are_named_exist() -> None:
    check_tests_exist(ELSEWHERE)


@pytest.mark.parametrize("words", FOLLOWED)
def test_what_the_message_says_to_do_works(words: str, tmp_path: Path) -> None:
    check_advice(words, FOLLOWED[words], tmp_path)
