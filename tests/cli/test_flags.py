"""A setting has one default: in LoRAConfig and TrainConfig, which the command lines, their help and the API share."""

import contextlib
import importlib.util
import inspect
import io
import re
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest

import lorakit
from lorakit.adapters.config import LoRAConfig
from lorakit.cli.__main__ import build_parser, main
from lorakit.cli.flags import LORA_ONLY, add_lora_flags, lora_options, modes_of, train_config
from lorakit.cli.parser import Parser
from lorakit.training.config import DEFAULT_LEARNING_RATE, TrainConfig
from tests.integration.test_bionlp import bionlp
from tests.support.tiny import ROOT

ELSEWHERE = "roberta-base"  # not the embedded base, which has epochs and a dropout of its own


def settings(name: str) -> Namespace:
    words = {"train": ["train", "--model", "x", "--dataset", "y"], "params": ["params", "x"]}
    if name == "example":
        return bionlp.parse(["--model", ELSEWHERE])
    return build_parser().parse_args(words[name])


@pytest.mark.parametrize("name", ["train", "params", "example"])
def test_lora_has_the_same_defaults_on_every_command_line_and_in_the_api(name):
    config, asked = LoRAConfig(), lora_options(settings(name))
    assert {key: getattr(LoRAConfig(**asked), key) for key in asked} == {key: getattr(config, key) for key in asked}


def test_apply_lora_has_the_defaults_of_its_configuration():
    signature = inspect.signature(lorakit.apply_lora).parameters
    shared = [field.name for field in fields(LoRAConfig) if field.name in signature]
    assert len(shared) == len(fields(LoRAConfig))
    for name in shared:
        default = signature[name].default
        wanted = getattr(LoRAConfig(), name)
        assert default == wanted or (default, wanted) == (None, {}), name


@pytest.mark.parametrize("name", ["train", "example"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_training_has_the_same_defaults_on_every_command_line_and_in_the_api(name, mode, tmp_path):
    wanted = TrainConfig(output_dir=tmp_path, learning_rate=DEFAULT_LEARNING_RATE[mode])
    assert train_config(settings(name), mode, tmp_path) == wanted


def test_the_api_trains_with_the_default_rate_of_lora():
    assert TrainConfig().learning_rate == DEFAULT_LEARNING_RATE["lora"]
    assert DEFAULT_LEARNING_RATE.keys() == {"lora", "full"}


def test_the_embedded_base_of_the_example_changes_what_its_help_says_and_nothing_else():
    base = vars(bionlp.parse(["--model", ELSEWHERE]))
    embedded = vars(bionlp.parse([]))
    assert {name for name in base if base[name] != embedded[name]} == {"model", "epochs", "dropout", "given", "parser"}
    assert (embedded["epochs"], embedded["dropout"]) == (bionlp.EMBEDDED["epochs"], bionlp.EMBEDDED["dropout"])
    assert (bionlp.parse(["--epochs", "3", "--dropout", "0.1"]).epochs) == 3
    assert (bionlp.parse(["--epochs", "3", "--dropout", "0.1"]).dropout) == 0.1


def help_texts() -> dict[str, str]:
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    page = hooks.with_help((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    texts = {name: re.search(rf"^usage: lorakit {name} .*?^```$", page, re.M | re.S)[0] for name in ("train", "params")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
            bionlp.main(["--help"])
    return {**texts, "example": shown.getvalue()}


def test_the_help_of_every_command_shows_these_defaults():
    lora, training = LoRAConfig(), TrainConfig()
    start = "kaiming" if lora.init_lora_weights is True else lora.init_lora_weights
    shown = {"r": lora.r, "lora-alpha": lora.lora_alpha, "lora-dropout": lora.lora_dropout, "bias": lora.bias}
    shown |= {"init-lora-weights": start, "target-modules": lora.target_modules}
    trained = {"epochs": training.epochs, "batch-size": training.batch_size, "seed": training.seed}
    trained |= {"precision": training.precision, "strategy": training.strategy}
    trained |= {
        "learning-rate": f"{DEFAULT_LEARNING_RATE['full']:g} for full, {DEFAULT_LEARNING_RATE['lora']:g} for lora"
    }
    for name, text in help_texts().items():
        for flag, default in {**shown, **(trained if name != "params" else {})}.items():
            entry = re.search(rf"^  --{flag} .*?(?=^  -|^$)", text, re.M | re.S)[0]
            assert f"default: {default}" in " ".join(entry.split()), f"{name} --{flag}: {entry}"


# ---- flags that do not fit the mode


def test_the_flags_of_lora_are_all_named():
    parser = Parser()
    add_lora_flags(parser)
    assert {*vars(parser.parse_args([])), "cache_prefix"} - {"given"} == set(LORA_ONLY)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cache-prefix"], "--cache-prefix"),
        (["--r", "8"], "--r"),
        (["--target-modules", "query", "--modules-to-save", "x"], "--target-modules, --modules-to-save"),
        (["--lora-dropout", "0"], "--lora-dropout"),
        (["--config", "settings.yaml"], "--r"),
    ],
)
def test_a_flag_for_lora_is_refused_where_the_mode_is_full(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("mode: full\nr: 8\nresume: true\ncache-prefix: false\nbias: null\n")
    for command in (["train", "--model", "x", "--dataset", "y"], [])[: 1 if "--config" in flags else 2]:
        with pytest.raises(SystemExit, match="2"):
            (main if command else bionlp.main)([*command, "--mode", "full", *flags])
        message = f"{named}: only for LoRA, but the mode is full; leave it out, or use --mode lora or both\n"
        assert capsys.readouterr().err.endswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


@pytest.mark.parametrize("mode", ["lora", "both"])
def test_a_flag_for_lora_is_taken_where_a_mode_is_lora(mode):
    arguments = build_parser().parse_args(["train", "--model", "x", "--dataset", "y", "--mode", mode, "--r", "8"])
    assert modes_of(arguments) == (("full", "lora") if mode == "both" else ("lora",))


def test_the_study_sets_lora_in_the_example_and_full_fine_tuning_ignores_that():
    assert modes_of(bionlp.parse(["--study", "--mode", "full"])) == ("full",)
