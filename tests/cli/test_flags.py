"""A setting has one default: in LoRAConfig and TrainConfig, which the command lines, their help and the API share."""

import contextlib
import importlib.util
import inspect
import io
import json
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pytest

import lorakit
from lorakit.adapters.config import LoRAConfig
from lorakit.cli.__main__ import build_parser, main
from lorakit.cli.flags import LORA_ONLY, add_lora_flags, class_weights, lora_options, modes_of, train_config
from lorakit.cli.parser import Parser
from lorakit.training.config import DEFAULT_LEARNING_RATE, TrainConfig
from tests.integration.test_bionlp import bionlp
from tests.support.tiny import MINI, ROOT

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
    others = {"cache_prefix", "module_learning_rates", "loraplus_lr_ratio"}
    assert {*vars(parser.parse_args([])), *others} - {"given"} == set(LORA_ONLY)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cache-prefix"], "--cache-prefix"),
        (["--r", "8"], "--r"),
        (["--loraplus-lr-ratio", "16"], "--loraplus-lr-ratio"),
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
        it = "them" if "," in named else "it"
        message = f"{named}: only for LoRA, but the mode is full; leave {it} out, or use --mode lora or both\n"
        assert capsys.readouterr().err.endswith(f"error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ([], None),
        (["--modules-to-save", "word_embeddings"], {"word_embeddings": DEFAULT_LEARNING_RATE["full"]}),
        (["--modules-to-save", "word_embeddings", "--learning-rate", "1e-3"], None),  # one rate for everything
        (["--module-learning-rates", "lora_B=8e-3", "pooler=1e-5"], {"lora_B": 8e-3, "pooler": 1e-5}),
        (["--modules-to-save", "x", "--module-learning-rates", "x=1e-5"], {"x": 1e-5}),
    ],
)
def test_modules_trained_in_full_have_the_rate_of_full_fine_tuning_unless_a_rate_is_given(flags, rates):
    arguments = build_parser().parse_args(["train", "--model", "x", "--dataset", "y", "--mode", "both", *flags])
    assert train_config(arguments, "lora", Path("out")).module_learning_rates == rates
    assert train_config(arguments, "full", Path("out")).module_learning_rates is None


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (["query"], ["query"]),
        (["query,value"], ["query", "value"]),
        (["query", "value,dense"], ["query", "value", "dense"]),
        (["attention.output.dense"], ["attention.output.dense"]),
        (["all-linear"], "all-linear"),
        ([".*attention.*"], ".*attention.*"),
        ([r".*\.(query|value)"], r".*\.(query|value)"),
    ],
)
def test_target_names_are_separated_by_spaces_or_commas_and_one_pattern_is_a_regex(words, targets):
    for command in (["train", "--model", "x", "--dataset", "y"], ["params", "x"]):
        arguments = build_parser().parse_args([*command, "--target-modules", *words, "--modules-to-save", "a,b"])
        options = lora_options(arguments)
        assert (options["target_modules"], options["modules_to_save"]) == (targets, ["a", "b"])


@pytest.mark.parametrize("words", [["query"], ["query,value"], ["query", "value"], [r".*\.(query|value)"]])
def test_such_targets_fit_a_model(words, capsys):
    assert main(["params", str(MINI), "--target-modules", *words, "--json", "-"]) == 0
    layers = 4 if words == ["query"] else 8
    assert json.loads(capsys.readouterr().out)["lora"]["layers"] == layers


@pytest.mark.parametrize("wrong", ["lora_B", "=1e-3", "lora_B=", "lora_B=fast"])
def test_a_module_rate_that_is_not_a_name_and_a_number_is_refused(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["train", "--model", "x", "--dataset", "y", "--module-learning-rates", wrong])
    assert f"{wrong!r} is not NAME=RATE, such as word_embeddings=5e-4" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["lora", "both"])
def test_a_flag_for_lora_is_taken_where_a_mode_is_lora(mode):
    arguments = build_parser().parse_args(["train", "--model", "x", "--dataset", "y", "--mode", mode, "--r", "8"])
    assert modes_of(arguments) == (("full", "lora") if mode == "both" else ("lora",))


def test_the_study_sets_lora_in_the_example_and_full_fine_tuning_ignores_that():
    assert modes_of(bionlp.parse(["--study", "--mode", "full"])) == ("full",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, None),
        (["balanced"], "balanced"),
        (["1", "5", "2.5"], [1.0, 5.0, 2.5]),
        (["B-DNA=5", "I-DNA=2.5"], {"B-DNA": 5.0, "I-DNA": 2.5}),
        (["a=b=2"], {"a=b": 2.0}),
        ([1, 2.5], [1.0, 2.5]),  # from a --config file
    ],
)
def test_class_weights_of_the_command_line_are_those_of_the_api(words, expected):
    assert class_weights(words) == expected


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_settings_of_the_loss_and_of_lora_plus_reach_the_training(mode, tmp_path):
    words = ["train", "--model", "x", "--dataset", "y", "--class-weights", "O=0.5", "--loraplus-lr-ratio", "16"]
    config = train_config(build_parser().parse_args(words), mode, tmp_path)
    assert config.class_weights == {"O": 0.5}
    assert config.loraplus_lr_ratio == (16.0 if mode == "lora" else None)


def test_class_weights_that_are_no_numbers_are_one_line(capsys, tmp_path, corpus):
    words = ["train", "--model", MINI, "--dataset", corpus, "--output-dir", tmp_path / "new"]
    for given in (["balanced", "O=1"], ["O=1", "2"], ["O=much"], ["O=0"], ["1", "2"], ["B-RNA=2"]):
        with pytest.raises(SystemExit, match="2"):
            main([*map(str, words), "--class-weights", *given])
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("lorakit train: error: ") and re.search("class.weights", line)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_taking_no_turns_is_refused_where_there_is_one_mode(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["train", "--model", "x", "--dataset", "y"], []):
        with pytest.raises(SystemExit, match="2"):
            (main if command else bionlp.main)([*command, "--mode", mode, "--sequential"])
        assert f"--sequential: only for --mode both, but the mode is {mode}; leave it out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert modes_of(bionlp.parse(["--mode", "both", "--sequential"])) == ("full", "lora")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ["--epochs", "0"]),
        ("train", ["--learning-rate", "nan"]),
        ("train", ["--module-learning-rates", "lora_B=0"]),
        ("train", ["--weight-decay=-1"]),
        ("train", ["--warmup-ratio", "2"]),
        ("train", ["--loraplus-lr-ratio", "0.5"]),
        ("train", ["--class-weights", "O=0"]),
        ("train", ["--seed=-1"]),
        ("train", ["--seeds", "0"]),
        ("train", ["--mode", "both", "--seeds", "2", "--margin", "1"]),
        ("train", ["--dropout", "1"]),
        ("train", ["--r", "0"]),
        ("train", ["--lora-alpha", "0"]),
        ("train", ["--lora-dropout", "1"]),
        ("train", ["--mode", "full", "--r", "4"]),
        ("train", ["--engine", "compile", "--packing", "off"]),
        ("train", ["--init-lora-weights", "orthogonal", "--r", "3"]),
        ("tune", ["--epochs", "0"]),
        ("tune", ["--ranks", "4", "0"]),
        ("tune", ["--learning-rates", "0"]),
        ("tune", ["--dropout", "1"]),
        ("tune", ["--factor", "1"]),
        ("params", ["--r", "0"]),
        ("params", ["--lora-dropout", "1"]),
    ],
)
def test_a_bad_flag_is_told_before_anything_is_looked_for(command, flags, tmp_path, monkeypatch, capsys):
    """Neither the base nor the corpus exists, and the error is of the flag: so it is checked before both."""
    monkeypatch.chdir(tmp_path)
    given = ["./none"] if command == "params" else ["--model", "./none", "--dataset", "./none"]
    with pytest.raises(SystemExit, match="2"):
        main([command, *given, *flags])
    (line,) = capsys.readouterr().err.splitlines()
    flag = [word for word in flags if word.startswith("--")][-1].split("=")[0]
    assert "./none" not in line and flag in line
    assert list(tmp_path.iterdir()) == []


def test_a_bad_flag_is_told_before_torch_is_loaded(tmp_path):
    for words in (["train", "--model", "x", "--dataset", "y"], ["tune", "--model", "x", "--dataset", "y"], ["predict"]):
        flags = ["--min-score", "2"] if words == ["predict"] else ["--epochs", "0"]
        code = f"import sys; from lorakit.cli.__main__ import main\ntry: main({[*words, *flags]})\n"
        code += "finally: print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
