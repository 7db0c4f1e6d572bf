"""What a refusal of an adapter says to do works: every message is here, and its advice is followed here, or in the test
that is named, or it has none to follow, for the reason given."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit.adapters import patterns
from lorakit.adapters.config import INITS
from lorakit.adapters.files import CONFIG, OWN, TENSORS
from lorakit.adapters.quantization import shrink_base
from lorakit.adapters.storage import load_adapter
from lorakit.adapters.strength import scale_lora
from lorakit.lora import (
    apply_lora,
    combine_adapters,
    delete_adapter,
    disable_lora,
    lora_plus_groups,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import (
    IDS,
    LABEL_NAMES,
    labelled_roberta,
    logits,
    tiny_roberta,
)
from tests.support.refusals import Act, check_advice, check_lists, check_tests_exist
from tests.support.saved_adapters import (
    adapter,
    diverged,
    for_another_task,
    foreign,
    load,
    sentence_classifier,
    word_classifier,
)
from tests.support.tiny import ROOT

peft = pytest.importorskip("peft", reason="some advice is to use PEFT, which is of the dev extra")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # PEFT calls it
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),
    pytest.mark.filterwarnings("ignore:.*r=.* is more than.*"),
]
FILES = [*sorted((ROOT / "lorakit" / "adapters").glob("*.py")), ROOT / "lorakit" / "lora.py"]
TABLE = "roberta.embeddings.word_embeddings"
SAVE_AGAIN = "fetch or save the adapter again"


# What is refused, and what the message says to do ---------------------------------------------------------------------


def lora(**options: object) -> nn.Module:
    return apply_lora(tiny_roberta(), **{"r": 2, **options})


def given(**options: object) -> Act:
    return lambda folder: lora(**options)


def setting(bad: dict, *good: dict) -> tuple[Act, ...]:
    """A setting of apply_lora that is refused, and those that are advised."""
    return (given(**bad), *(given(**options) for options in good))


def configured(change: dict, right: dict) -> tuple[Act, Act]:
    """An adapter's configuration that is refused, and the corrected one."""
    return lambda folder: load(foreign(folder, change)), lambda folder: load(foreign(folder, right))


def damaged(name: str, text: str | None) -> tuple[Act, Act]:
    """A file of an adapter that is damaged or missing, and the adapter saved again."""

    def refused(folder: Path) -> None:
        path = adapter(folder) / name
        path.unlink() if text is None else path.write_text(text)
        load(path.parent)

    return refused, lambda folder: load(adapter(folder))


def own_changed(change: dict, signed: bool = False) -> tuple[Act, Act]:
    """lorakit.json with a change, with or without a digest that fits, and the adapter saved again."""

    def refused(folder: Path) -> None:
        from lorakit.adapters.files import digest

        path = adapter(folder) / OWN
        found = json.loads(path.read_text()) | change
        if signed:
            del found["digest"]
            found["digest"] = digest(json.dumps(found, sort_keys=True).encode())
        path.write_text(json.dumps(found))
        load(path.parent)

    return refused, lambda folder: load(adapter(folder))


def with_files_lost(folder: Path) -> None:
    """PEFT's own two files are there, and one that lorakit.json lists is not."""
    own_changed({"files": {"lost.bin": "0"}}, signed=True)[0](folder)


def copied_too(folder: Path) -> None:
    own = (adapter(folder) / OWN).read_bytes()
    (folder / "adapter" / OWN).write_bytes(own)
    load(folder / "adapter")


def without_own(folder: Path, **options: object) -> None:
    (adapter(folder) / OWN).unlink()
    load(folder / "adapter", **options)


def with_nan_on_disk(folder: Path) -> None:
    path = foreign(folder) / TENSORS
    tensors = load_file(path)
    next(iter(tensors.values()))[0] = torch.nan
    save_file(tensors, path)
    load(path.parent)


def inside(act: Callable[[nn.Module], object]) -> tuple[Act, Act]:
    """What cannot be done while LoRA is switched off, and the same outside."""

    def refused(folder: Path) -> None:
        with disable_lora(model := lora()):
            act(model)

    def followed(folder: Path) -> None:
        with disable_lora(model := lora()):
            pass
        act(model)

    return refused, followed


def two(**options: object) -> nn.Module:
    return apply_lora(lora(), **{"r": 2, "adapter_name": "b", **options})


def combined(how: str = "cat", weights: dict | None = None, name: str = "c", **options: object) -> Act:
    weights = {"default": 1.0, "b": 0.5} if weights is None else weights
    return lambda folder: combine_adapters(two(**options), weights, name, how)


def over_a_name_that_is_free_again(folder: Path) -> None:
    model = combine_adapters(two(), {"b": 1.0}, "c")
    combine_adapters(delete_adapter(model, "c"), {"b": 1.0}, "c")


def tied_head() -> nn.Module:
    return apply_lora(ARCHITECTURES["gpt2-lm"].build(), r=2, target_modules=["lm_head"])


def merged_once_untied(folder: Path) -> None:
    model = ARCHITECTURES["gpt2-lm"].build()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    merge_lora(apply_lora(model, r=2, target_modules=["lm_head"]))


def unmerged_first(act: Callable[[nn.Module], object]) -> tuple[Act, Act]:
    return lambda folder: act(merge_lora(lora())), lambda folder: act(unmerge_lora(merge_lora(lora())))


def scaled(strength: object) -> Callable[[nn.Module], None]:
    def act(model: nn.Module) -> None:
        with scale_lora(model, strength):
            logits(model)

    return act


def mixed(names: object, prepare: Callable[[nn.Module], object] = nn.Module.eval) -> Act:
    """One batch with an adapter for each row."""

    def act(folder: Path) -> None:
        prepare(model := two())
        model(IDS, adapter_names=names)

    return act


def alone_instead(folder: Path) -> None:
    logits(set_adapter(two(use_dora=True), "b"))


def with_other_names() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    config = DistilBertConfig(vocab_size=100, **sizes, num_labels=len(LABEL_NAMES))
    config.id2label = dict(enumerate(LABEL_NAMES))
    return DistilBertForTokenClassification(config)


def read_by_peft(folder: Path) -> None:
    found = foreign(folder, {"loftq_config": {"loftq_bits": 4}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's: it is without effect
        peft.PeftModel.from_pretrained(labelled_roberta(), str(found))


def bias_free() -> nn.Module:
    model = tiny_roberta()
    for layer in model.roberta.encoder.layer:
        layer.attention.self.query = nn.Linear(32, 32, bias=False)
    return model


def with_biases_of_updates(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's: such a model cannot be merged
        config = peft.LoraConfig(r=2, target_modules=["query"], lora_bias=True)
        peft.get_peft_model(bias_free(), config).save_pretrained(folder / "theirs")
    return folder / "theirs"


def with_biases_of_updates_by_peft(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(bias_free(), str(with_biases_of_updates(folder)))


def resized(rows: int) -> nn.Module:
    model = labelled_roberta()
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def on_a_table_of(rows: int) -> Act:
    def act(folder: Path) -> None:
        load(adapter(folder, apply_lora(resized(103), r=2, modules_to_save=[TABLE])), resized(rows))

    return act


def started_from_pissa(folder: Path, converted: bool) -> None:
    """With PEFT's conversion the file says what changed in all, from the base as it is published."""
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="pissa_niter_4")
    model = peft.get_peft_model(tiny_roberta(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = "pissa_niter_4"
    start = {"path_initial_model_for_weight_conversion": str(folder / "start")} if converted else {}
    model.save_pretrained(folder / "trained", **start)
    found = load_adapter(tiny_roberta(), folder / "trained")
    torch.testing.assert_close(logits(found), logits(model.eval()), rtol=1e-4, atol=1e-4)


def of_a_new_kind(folder: Path, targets: object) -> None:
    model = labelled_roberta()
    model.config.model_type = "novel"
    load(foreign(folder, {"target_modules": targets}), model)


def put_in_by_transformers(folder: Path, again: bool) -> None:
    model = tiny_roberta()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    if not again:
        apply_lora(model)
    model.save_pretrained(folder / "theirs")
    load_adapter(tiny_roberta(), folder / "theirs")


def on_a_base_called(name: str, **options: object) -> Act:
    def act(folder: Path) -> None:
        model = labelled_roberta()
        model.config._name_or_path = name
        load(foreign(folder, {"base_model_name_or_path": "some/base"}), model, **options)

    return act


class Scaled(nn.Embedding):
    """A table that returns more than its rows."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


def rows_of_scaled(**options: object) -> Act:
    def act(folder: Path) -> None:
        model = tiny_roberta()
        model.roberta.embeddings.word_embeddings.__class__ = Scaled
        apply_lora(model, r=2, **options)

    return act


class Pair(nn.Module):
    """Not a model of transformers, so that nothing says which its token table is."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.up = nn.Embedding(9, 4), nn.Linear(4, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2))


def wrapped_afterwards(folder: Path) -> None:
    torch.compile(apply_lora(net(), r=1), backend="eager")(torch.ones(1, 2))


def settings_for_another_task(folder: Path, base: Callable[[], nn.Module], **settings: object) -> None:
    apply_lora(base(), peft.LoraConfig(target_modules=["query"], **settings))


def offline(folder: Path) -> None:
    import huggingface_hub

    with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        load(Path("nobody/no-adapter"))


# words of a message, as they stand in the code -> what is refused with it, and each advice, followed
FOLLOWED: dict[str, tuple[Act, ...]] = {
    # adapter, state, merging, strength, mixed
    "has no LoRA; call apply_lora(model) or load_adapter first": (
        lambda folder: logits(merge_lora(tiny_roberta())),
        lambda folder: merge_lora(lora()),
        lambda folder: merge_lora(load(adapter(folder))),
    ),
    "inside disable_lora(); leave the context first": inside(remove_lora),
    "is tied to …: merging would change both; run unmerged, or untie them first": (
        lambda folder: merge_lora(tied_head()),
        lambda folder: output_of(tied_head()),
        merged_once_untied,
    ),
    "scale_lora on a merged model, whose updates are part of the weights; call unmerge_lora first": unmerged_first(
        scaled(0.5)
    ),
    "strength must be a finite number, such as 0.5, got …": (
        lambda folder: scaled(float("nan"))(lora()),
        lambda folder: scaled(0.5)(lora()),
    ),
    "shrink_base on a merged model would keep two copies; call unmerge_lora first": unmerged_first(shrink_base),
    "adapter_names has one name for each row of the batch; got": (mixed(["b"]), mixed(["b", "default"])),
    "adapter_names is for inference, and the model is in training mode: call model.eval() first": (
        mixed(["b", "b"], nn.Module.train),
        mixed(["b", "b"]),
    ),
    "cannot share a batch with others, because …; call set_adapter(model, name) and give it a batch of its own": (
        lambda folder: two(use_dora=True)(IDS, adapter_names=["b", "default"]),
        alone_instead,
    ),
    "several adapters in a batch: LoRA is switched off; leave disable_lora() first": inside(
        lambda model: model.eval()(IDS, adapter_names=["default", "default"])
    ),
    # combination, lora
    'how="linear" needs adapters of equal rank, got …; use "cat" or "svd"': (
        combined("linear", r=1),
        combined("cat", r=1),
        combined("svd", r=1),
    ),
    "how must be one of …, got …": (combined("mean"), combined("linear"), combined("svd"), combined("cat")),
    "weights is empty; give at least one adapter and its factor": (combined(weights={}), combined(weights={"b": 1.0})),
    "is there already; delete_adapter it first": (combined(name="default"), over_a_name_that_is_free_again),
    "uses DoRA, whose changes cannot be added; merge it instead": (
        combined(use_dora=True),
        lambda folder: merge_lora(two(use_dora=True)),
    ),
    "the adapters train rows of other tokens in …, which cannot be added; train both with the same": (
        lambda folder: combine_adapters(
            apply_lora(lora(trainable_token_indices=[1]), adapter_name="b", trainable_token_indices=[2]),
            {"default": 1.0, "b": 1.0},
            "c",
        ),
        lambda folder: combine_adapters(
            apply_lora(lora(trainable_token_indices=[1]), adapter_name="b", trainable_token_indices=[1]),
            {"default": 1.0, "b": 1.0},
            "c",
        ),
        combined(),
    ),
    "is active; set_adapter another one first, or remove_lora(model)": (
        lambda folder: delete_adapter(two(), "b"),
        lambda folder: delete_adapter(set_adapter(two(), "default"), "b"),
        lambda folder: remove_lora(two()),
    ),
    "which would keep using the parameters it was given; apply_lora first, then wrap or compile": (
        lambda folder: apply_lora(torch.compile(net(), backend="eager")),
        wrapped_afterwards,
    ),
    "this model has LoRA already; call remove_lora(model) before another apply_lora, or add an adapter": (
        lambda folder: apply_lora(lora()),
        lambda folder: apply_lora(remove_lora(lora())),
        lambda folder: two(),
    ),
    # config, initialization, targets
    "must be an integer of at least 1, got": setting({"r": 0}, {"r": 1}),
    "must be a positive number, got": setting({"lora_alpha": 0}, {"lora_alpha": 0.5}),
    "lora_dropout must be a probability from 0 to below 1": setting({"lora_dropout": 1}, {"lora_dropout": 0.0}),
    "bias must be one of": setting({"bias": "some"}, *({"bias": bias} for bias in ("none", "all", "lora_only"))),
    "modules_to_save must be a list of names": setting({"modules_to_save": "key"}, {"modules_to_save": ["key"]}),
    "target_modules is empty; leave it out": setting({"target_modules": []}, {}, {"target_modules": None}),
    "layers_to_transform goes with a list of target_modules": setting(
        {"target_modules": ".*query", "layers_to_transform": [1]},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "layers_to_transform": [1]},
        {"target_modules": r".*layer\.1\..*query"},
    ),
    "layers_pattern says where layers_to_transform counts; give both": setting(
        {"layers_pattern": "layer"}, {"layers_pattern": "layer", "layers_to_transform": [1]}
    ),
    "ratio must be at least 1": (
        lambda folder: lora_plus_groups(lora(), 1e-3, ratio=0.5),
        lambda folder: lora_plus_groups(lora(), 1e-3, ratio=1),
    ),
    "trainable_token_indices must be numbers of tokens": setting(
        {"trainable_token_indices": ["<URL>"]},
        {"trainable_token_indices": [98, 99]},
        {"trainable_token_indices": {"word_embeddings": [98, 99]}},
    ),
    "more than once; name each token once": setting(
        {"trainable_token_indices": [1, 1]}, {"trainable_token_indices": [1]}
    ),
    "init_lora_weights must be True, False, …; got": setting(
        {"init_lora_weights": "zeros"},
        *({"init_lora_weights": how.replace("[steps]", "2")} for how in INITS),
        {"init_lora_weights": False},
    ),
    "needs an even rank, got r=": setting(
        {"init_lora_weights": "orthogonal", "r": 3}, {"init_lora_weights": "orthogonal", "r": 4}
    ),
    "is for linear layers; … is a": setting(
        {"init_lora_weights": "olora", "target_modules": ["word_embeddings", "query"]},
        {"init_lora_weights": "olora", "target_modules": ["query"]},
    ),
    "needs r <= … in …, got": setting(
        {"init_lora_weights": "pissa", "r": 33}, {"init_lora_weights": "pissa", "r": 32}
    ),
    "… … matches nothing in this model… has: …": setting({"target_modules": ["quary"]}, {"target_modules": ["query"]}),
    "is inside the head, which is trained in full; leave it out, or in Python": setting(
        {"target_modules": ["query", "classifier"]},
        {"target_modules": ["query"]},
        {"target_modules": ["query", "classifier"], "modules_to_save": []},
    ),
    "which cannot be adapted; these can:": setting(
        {"target_modules": ["LayerNorm"]}, {"target_modules": ["word_embeddings"]}, {"target_modules": ["query"]}
    ),
    "exclude_modules leaves no target": setting(
        {"target_modules": ["query"], "exclude_modules": ["query"]},
        {"target_modules": ["query", "key"], "exclude_modules": ["query"]},
    ),
    "matches no layer; the targets are in": setting({"layers_to_transform": [2]}, {"layers_to_transform": [0, 1]}),
    "is not a regular expression:": setting({"target_modules": "(query"}, {"target_modules": ".*(query)"}),
    "matches no layer: one string is a regular expression for the full name, such as": setting(
        {"target_modules": "query"},
        {"target_modules": r"roberta\.encoder\.layer\.0\.attention\.self\.query"},
        {"target_modules": ["query"]},
    ),
    "matches no target; one string is a regular expression for the full name, such as": setting(
        {"exclude_modules": "query"}, {"exclude_modules": r"roberta\.encoder\.layer\.0\.attention\.self\.query"}
    ),
    # token_indices
    "does not say which its token table is; name it:": (
        lambda folder: apply_lora(Pair(), r=2, trainable_token_indices=[1]),
        lambda folder: apply_lora(Pair(), r=2, trainable_token_indices={"word_embeddings": [1]}),
    ),
    "is adapted or trained in full already; leave it out of target_modules": setting(
        {"trainable_token_indices": [1], "modules_to_save": [TABLE]},
        {"trainable_token_indices": [1]},
        {"modules_to_save": [TABLE]},
    ),
    "of which single rows cannot be trained; train all of it with modules_to_save=[": (
        rows_of_scaled(trainable_token_indices=[1]),
        rows_of_scaled(modules_to_save=[TABLE]),
    ),
    # files, storage
    "no adapter in …: … is not there": (lambda folder: load(folder), lambda folder: load(adapter(folder))),
    "and the hub did not give it (…). Check the name; without network fetch it elsewhere": (
        offline,
        lambda folder: load(adapter(folder)),
    ),
    "the path is not UTF-8, and safetensors opens no file there; move the adapter": (
        lambda folder: load(shutil.copytree(adapter(folder), folder / os.fsdecode(b"caf\xe9"))),
        lambda folder: load(shutil.move(adapter(folder), folder / "cafe")),
    ),
    "is damaged: not an object": damaged(CONFIG, "[]"),
    "is missing. …": damaged(TENSORS, None),
    "is damaged: …; fetch or save the adapter again": damaged(CONFIG, "{"),
    "was changed after it was written": own_changed({"labels": ["O"]}),
    "is damaged: its files or labels are not names": own_changed({"labels": [1]}, signed=True),
    "which … lists, is not there": (with_files_lost, lambda folder: load(adapter(folder))),
    "without which nothing says which labels and base fit; copy it too": (
        without_own,
        copied_too,
        lambda folder: without_own(folder, check_base=False),
    ),
    "that are not finite: its training diverged, and its predictions would be": (
        with_nan_on_disk,
        lambda folder: load(adapter(folder)),
    ),
    "the adapter is not saved, because … has values that are not finite": (
        lambda folder: adapter(folder, diverged(lora())),
        lambda folder: adapter(folder, lora()),
    ),
    "in this model; build the base with the adapter's order:": (
        lambda folder: load(adapter(folder), labelled_roberta(LABEL_NAMES[::-1])),
        lambda folder: load(adapter(folder), labelled_roberta()),
    ),
    "the adapter has …, this model …; build the base with num_labels=": (
        lambda folder: load(adapter(folder), tiny_roberta(num_labels=3)),
        lambda folder: load(adapter(folder), tiny_roberta(num_labels=11)),
    ),
    "the adapter was trained on …, this model is …; load that base, or pass check_base=False": (
        on_a_base_called("other/base-2"),
        on_a_base_called("/elsewhere/base"),
        on_a_base_called("other/base-2", check_base=False),
    ),
    # patterns, peft_reading, peft_settings
    "which is of no type that PEFT writes there; correct it": configured({"r": "8"}, {"r": 8}),
    "is larger than every tensor of the adapter (…); correct it": configured({"r": 10**9}, {"r": 8}),
    "name the layers in a list instead": configured(
        {"target_modules": r"([a-z_.0-9]+)+!"}, {"target_modules": ["query", "value"]}
    ),
    "is missing and cannot be guessed; add it as it was in training": configured({"r": None}, {"r": 8}),
    "is a feature that lorakit does not have; load it with PEFT": (
        lambda folder: load(foreign(folder, {"loftq_config": {"loftq_bits": 4}})),
        read_by_peft,
    ),
    "has no bias of its own to add the adapter's to; load it with PEFT": (
        lambda folder: load_adapter(bias_free(), with_biases_of_updates(folder)),
        with_biases_of_updates_by_peft,
    ),
    "rows, and this model has …; call model.resize_token_embeddings(": (on_a_table_of(100), on_a_table_of(103)),
    "the adapter is for another architecture: … adapts …, which … does not have; load the base it was trained on": (
        lambda folder: load(foreign(folder, {"target_modules": ["query"]}), with_other_names()),
        lambda folder: load(foreign(folder)),
    ),
    "does not fit … and this model: …. Use the base it was trained on": (
        lambda folder: load(foreign(folder), tiny_roberta(hidden_size=16)),
        lambda folder: load(foreign(folder)),
    ),
    "the base was changed when training started, which the file does not hold; save it with PEFT's": (
        lambda folder: started_from_pissa(folder, converted=False),
        lambda folder: started_from_pissa(folder, converted=True),
    ),
    "… has no target_modules, and there is …": (
        lambda folder: of_a_new_kind(folder, None),
        lambda folder: of_a_new_kind(folder, ["query", "value"]),
    ),
    "no default target_modules for …; name some:": (
        lambda folder: apply_lora(net(), r=1, target_modules=None),
        lambda folder: apply_lora(net(), r=1, target_modules=["0"]),
        lambda folder: apply_lora(net(), r=1, target_modules="all-linear"),
    ),
    "apply_lora got a … and …; set": (
        lambda folder: apply_lora(tiny_roberta(), peft.LoraConfig(), lora_alpha=4),
        lambda folder: apply_lora(tiny_roberta(), peft.LoraConfig(lora_alpha=4)),
        lambda folder: apply_lora(tiny_roberta(), lora_alpha=4),
    ),
    "with an adapter that transformers put in through PEFT; load the base without it, then load_adapter": (
        lambda folder: put_in_by_transformers(folder, again=False),
        lambda folder: put_in_by_transformers(folder, again=True),
    ),
    "to must be torch.bfloat16, torch.float16, …; got": (
        lambda folder: shrink_base(lora(), "int4"),
        lambda folder: shrink_base(lora(), torch.bfloat16),
        lambda folder: shrink_base(lora(), torch.float16),
    ),
    "no adapter folder …; give the folder that holds": (
        lambda folder: load(folder / "gone"),
        lambda folder: load(adapter(folder)),
    ),
    # tasks
    "… is for …, and this … is for …; use a model for": (
        lambda folder: for_another_task(folder, word_classifier),
        lambda folder: for_another_task(folder, sentence_classifier),
        lambda folder: for_another_task(folder, word_classifier, check_base=False),
        lambda folder: settings_for_another_task(folder, sentence_classifier, task_type="SEQ_CLS"),
        lambda folder: settings_for_another_task(folder, word_classifier, modules_to_save=["classifier"]),
    ),
}  # fmt: skip
ELSEWHERE = {
    "is a layer of PEFT around lorakit's": "peft_settings::test_peft_on_an_adapted_model_is_named_and_both_fixes",
    "which is active, as their labels differ": "many_labels::test_each_adapter_brings",
    "has labels of its own (…), so its head is no change of the base's": "many_labels::test_each_adapter_brings",
    "a wrapper such as FSDP1 holds the parameters in parts": "adapters_under_ddp_and_fsdp::test_two_processes",
    "put it into the model itself (.module), then wrap that": "adapters_under_ddp_and_fsdp::test_two_processes",
    "is to be trained in full, and … is quantized": "full_training::test_a_quantized_module_cannot",
    "shares a tied parameter with": "full_training::test_the_advice_for_half_a_tie",
    "the adapter has different values for them": "full_training::test_peft_files_of_tied_modules",
    "is not the file that was saved with …": "advice::test_an_edited_adapter_loads_after",
    "do not fit …, which is …; load the resized base": "peft_reading::test_rows_of_new_tokens_load_on_a_base",
    "which has PEFT's layers; pass the model as it was before PEFT": "peft_settings::test_a_peft_model_is_refused",
    "apply_lora got a LoraConfig with": "peft_settings::test_what_the_messages_say_to_write",
    "nf4 packs blocks of": "quantization::test_a_layer_that_nf4_cannot_pack",
    "this base was shrunk while other modules were trained in full": "quantization::test_a_base_shrunk_beside_another",
    "the weights of this model have another fingerprint": "storage::test_another_base_is_refused_unless_allowed",
    "its token table had … rows, this one has": "token_table::test_saving_names_the_new_rows_and_both_fixes_work",
    "was resized here from … to … rows": "token_table::test_saving_names_the_new_rows_and_both_fixes_work",
    "or in Python name it: exclude_modules=": "targets::test_following_the_message_about_refused_layers_once_is_enough",
    "like every layer that target_modules matches": "targets::test_where_every_target_is_refused_the_message_does",
    "this model uses no linear layer outside its head": "unused::test_where_all_linear_leaves_nothing_it_names_layers",
    "which would not be adapted; target all of them or none": "targets::test_embeddings_that_share_a_table",
    "whose rows would stay as they are; train the table in full": "token_indices::test_a_table_that_others_share",
    "rows, the last of which is …; call model.resize_token": "token_indices::test_what_cannot_be_trained_is_refused",
}  # fmt: skip
NOTHING_TO_FOLLOW = {
    "the adapter is switched off; leave disable_lora() first": "asked of a state that no public function can reach",
    "on the hub is not an adapter": "a fact about a repository of others",
    "use a newer lorakit": "there is none yet",
    "needs torchao: pip install torchao": "an installation",
    "save_pretrained(push_to_hub=True) would upload": "an upload",
    "whose method is …; lorakit has LoRA only": "no adapter of another method can be had",
    "peft_type is …; lorakit reads 'LORA'": "the same",
    "of the adapter is not in this": "a fact: the base is another",
    "lora_bias is on, and … is missing": "a file with a part missing",
    "no trainable_tokens_delta for": "the same",
    "…: …": "hands on the message of another refusal",
}


def test_every_message_is_here() -> None:
    check_lists(FILES, FOLLOWED, ELSEWHERE, NOTHING_TO_FOLLOW)


def test_the_tests_that_are_named_exist() -> None:
    check_tests_exist(ELSEWHERE)


@pytest.mark.parametrize("words", FOLLOWED)
def test_what_the_message_says_to_do_works(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "TRY_S", 0.3)  # for a pattern that would never end
    check_advice(words, FOLLOWED[words], tmp_path)
