"""A file gives flags other defaults, and an invalid setting is named."""

import re
import sys

import pytest

from lorakit.cli.__main__ import main
from lorakit.cli.config import add_config_flag, read_config
from lorakit.cli.energy import add_arguments
from lorakit.cli.parser import Parser

YAML = "epochs: 4\nlearning-rate: 1e-3\ntarget_modules: [query, value]\nresume: true\nmodel: base\nbias: null\n"
TOML = 'epochs = 4\nlearning-rate = 1e-3\ntarget_modules = ["query", "value"]\nresume = true\nmodel = "base"\n'


def parse(text, tmp_path, *argv, ending=".yaml", before=()):
    path = tmp_path / f"settings{ending}"
    path.write_text(text, encoding="utf-8")
    parser = Parser(allow_abbrev=False)
    add_config_flag(parser)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--target-modules", nargs="+", default=["all-linear"])
    parser.add_argument("--bias", choices=("none", "all"), default="all")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--model", required=True)
    parser.add_argument("texts", nargs="*")
    return parser.parse_args([*before, "--config", str(path), *argv])


@pytest.mark.parametrize(("text", "ending"), [(YAML, ".yaml"), (YAML, ".yml"), (TOML, ".toml")])
def test_values_become_defaults_of_the_flags_types(text, ending, tmp_path):
    if ending == ".toml" and sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    found = parse(text, tmp_path, ending=ending)
    assert (found.epochs, found.learning_rate, found.target_modules) == (4, 1e-3, ["query", "value"])
    assert (found.resume, found.model, found.bias) == (True, "base", "all")


def test_a_flag_overrides_the_file_before_and_after_it_even_with_its_default(tmp_path):
    flags = ("--epochs", "1", "--target-modules", "key")
    for found in (parse(YAML, tmp_path, *flags), parse(YAML, tmp_path, before=flags)):
        assert (found.epochs, found.target_modules, found.learning_rate) == (1, ["key"], 1e-3)


def test_what_the_command_line_and_the_file_set_is_given(tmp_path):
    found = parse("resume: true\nbias: null\n", tmp_path, "--epochs", "1", "--model", "x")
    assert found.given == {"resume", "epochs", "model", "config"}


def test_what_the_file_leaves_out_is_still_required(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse("epochs: 3", tmp_path)
    assert capsys.readouterr().err.endswith("error: the following arguments are required: --model\n")


def test_a_single_value_is_a_list_of_one_and_an_empty_file_sets_nothing(tmp_path):
    assert parse("target-modules: key\nmodel: x\n", tmp_path).target_modules == ["key"]
    assert parse("", tmp_path, "--model", "x").epochs == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown key 'epoch'; did you mean epochs?"),
        ("zzz: 3", "unknown key 'zzz'; the keys are bias, epochs, learning-rate"),
        ("config: x.yaml", "unknown key 'config'"),
        ("texts: x", "unknown key 'texts'"),
        ("epochs: 1.5", "epochs: invalid int value: 1.5"),
        ("epochs: true", "epochs: True is not a single value"),
        ("epochs: [1]", r"epochs: \[1\] is not a single value"),
        ("resume: 1", "resume: 1 is not true or false"),
        ("bias: some", "bias: 'some' is not one of none, all"),
        ("target-modules: []", "target-modules: the list is empty"),
        ("epochs: 1\nepochs: 2", "the key 'epochs' appears twice"),
        ("- epochs", r"it holds \['epochs'\] instead of keys"),
        ("a: [", "not YAML: "),
        ("!!python/object/apply:os.system ['true']", "not YAML: "),
    ],
)
def test_an_invalid_setting_is_one_error(text, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(text, tmp_path)
    error = capsys.readouterr().err
    assert re.search(rf"settings.yaml: {message}", error)
    assert len(error.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "settings.toml").write_text("a = [")
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="settings.toml: not TOML: "):
        read_config(tmp_path / "settings.toml")
    with pytest.raises(ValueError, match="settings.json: give a .yaml, .yml or .toml file"):
        read_config(tmp_path / "settings.json")
    with pytest.raises(ValueError, match="nowhere.yaml: No such file or directory"):
        read_config(tmp_path / "nowhere.yaml")


def test_config_after_a_double_hyphen_is_a_text(tmp_path):
    assert parse("epochs: 3\n", tmp_path, "--model", "x", "--", "--config", "nowhere.yaml").texts == [
        "--config",
        "nowhere.yaml",
    ]


def test_toml_without_a_parser_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.version_info", (3, 10))
    monkeypatch.setitem(sys.modules, "tomli", None)
    (tmp_path / "settings.toml").write_text(TOML)
    with pytest.raises(ValueError, match=r"needs Python 3.11 or the package tomli \(pip install tomli\)"):
        read_config(tmp_path / "settings.toml")


def energy_run(*words):
    """The arguments of `lorakit energy run`; its command is not run."""
    root = Parser()
    add_arguments(root)
    return root.parse_args(["run", *map(str, words)])


def test_energy_run_takes_its_own_config_and_leaves_its_commands_alone(tmp_path):
    (tmp_path / "site.yaml").write_text("co2: 300\nout: energy.jsonl\nbaseline: 5\n")
    theirs = ["python", "train.py", "--config", str(tmp_path / "none.yaml"), "--co2", "1"]
    for words in (theirs, ["--", *theirs]):
        assert energy_run(*words).co2 is None
        found = energy_run("--config", tmp_path / "site.yaml", *words)
        assert (found.co2, str(found.out), found.baseline) == (300.0, "energy.jsonl", 5.0)
        assert [word for word in found.command if word != "--"] == theirs
    assert energy_run("--co2", "5", "--config", tmp_path / "site.yaml", "true").co2 == 5.0


def test_an_invalid_setting_for_energy_run_is_one_error(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text("co2: much\n")
    words = ["run", "--config", str(tmp_path / "site.yaml"), "--", "touch", str(tmp_path / "ran")]
    with pytest.raises(SystemExit, match="2"):
        main(["energy", *words])
    assert "site.yaml: co2: much is not a number of 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
