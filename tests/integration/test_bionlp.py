"""The example as a user starts it: a real process, its files and its messages."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from lorakit.power.journal import read_journal
from tests.support.tiny import LABELS, MINI, ROOT

EXAMPLE = ROOT / "examples" / "bionlp.py"


def load_example():
    """Import the script as a module, with its folder on the path, as when Python runs it."""
    sys.path.insert(0, str(EXAMPLE.parent))
    specification = importlib.util.spec_from_file_location("bionlp", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


bionlp = load_example()


def start(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {"tokens": ["IL-2", "gene", "in", "T", "cells"], "tags": [1, 2, 0, 0, 0]},
        {"tokens": ["NF-kappaB", "binds"], "tags": [3, 0]},
    ]
    for name in ("train", "valid", "test"):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines * 4))
    (folder / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    return folder


def test_the_smallest_run_prints_both_tables_and_writes_its_files(tmp_path):
    out = tmp_path / "out"
    done = start("--sentences", 48, "--epochs", 1, "--seed", 3, "--output-dir", out)
    assert done.returncode == 0, done.stderr
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert {
        "report.html",
        "comparison.json",
        "comparison.md",
        "comparison.png",
        "full/metrics.jsonl",
        "lora/metrics.jsonl",
    } < set(files)
    assert {"lora/adapter/adapter_config.json", "lora/adapter/adapter_model.safetensors"} < set(files)
    record = json.loads((out / "comparison.json").read_text())
    page = (out / "report.html").read_text()
    assert f'<data value="{record["modes"]["lora"]["test"]["f1"]!r}">' in page
    assert shlex.join(["python", "examples/bionlp.py", "--sentences", "48"]) in page
    assert (record["schema"], set(record["modes"])) == (1, {"full", "lora"})
    full, lora = record["modes"]["full"], record["modes"]["lora"]
    assert full["train_tokens"] == lora["train_tokens"] > 0
    assert lora["computed_tokens"] <= 1.05 * lora["train_tokens"]
    assert 0 < lora["trainable_parameters"] < full["trainable_parameters"] == full["total_parameters"]
    assert {"epochs", "seed", "train_seconds", "train_tokens_per_s", "duration_s", "test"} < set(lora)
    assert (lora["seed"], lora["epochs"]) == (3, 1)
    for part in ("gpu", "cpu", "ram"):
        energy = lora["energy"][part]
        assert (energy["kwh"] is None) == (energy["method"] == "unavailable")
    for expected in ("validation full", "difference", "RAM (Wh)", "total measured (Wh)", "PEFT would print"):
        assert expected in done.stdout
    for table in (out / "comparison.md").read_text().split("\n\n"):
        if table.startswith("| "):
            assert table in done.stdout


def test_an_interrupted_run_continues_with_resume_and_all_its_energy_is_counted(corpus, tmp_path):
    arguments = [
        "--dataset",
        corpus,
        "--mode",
        "lora",
        "--epochs",
        60,
        "--batch-size",
        2,
        "--output-dir",
        tmp_path / "out",
    ]
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    log = tmp_path / "out" / "lora" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (log.exists() and "evaluation" in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "bionlp.py: stopped by SIGTERM; the state is in" in err
    assert not (tmp_path / "out" / "comparison.json").exists()
    first = read_journal(tmp_path / "out" / "lora" / "energy.jsonl")[0]
    done = start(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    energy = json.loads((tmp_path / "out" / "comparison.json").read_text())["modes"]["lora"]["energy"]
    assert energy["estimated_kwh"] > first.reading["estimated_kwh"] > 0
    assert energy["duration_s"] > first.reading["duration_s"]
    assert energy["measured_kwh"] is None or energy["measured_kwh"] > 0


def test_one_mode_on_a_corpus_of_ones_own(corpus, tmp_path):
    arguments = ("--mode", "lora", "--dataset", corpus, "--epochs", 1, "--r", 4, "--target-modules", "query", "value")
    done = start(*arguments, "--bias", "none", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert set(record["modes"]) == {"lora"}
    assert record["modes"]["lora"]["trainable_parameters"] == 4 * 2 * 4 * (256 + 256) + 256 * 5 + 5
    assert record["dataset"] == str(corpus)
    assert not (tmp_path / "out" / "full").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "./nowhere"], "nowhere"),
        (["--model", "./nowhere"], "there is no model folder './nowhere'"),
        (["--model", EXAMPLE], "is a file; give the model's folder"),
        (["--r", "0"], "error: --r must be an integer of at least 1, got 0"),
        (["--r", "x"], "argument --r: invalid int value: 'x'"),
        (["--learning-rate", "abc"], "argument --learning-rate: invalid float value: 'abc'"),
        (["--learning-rate", "nan"], "error: --learning-rate is nan; it must be a finite number above 0"),
        (["--learning-rate", "-1"], "error: --learning-rate is -1.0"),
        (["--epochs", "0"], "error: --epochs is 0; it must be an integer of at least 1"),
        (["--batch-size", "0"], "error: --batch-size is 0"),
        (["--sentences", "0"], "--sentences is 0"),
        (["--target-modules", "qery"], "qery"),
        (
            ["--init-lora-weights", "psisa"],
            "is no way to start; give kaiming, gaussian, orthogonal, pissa, pissa_niter_",
        ),
        (["--mode", "both", "--lora-dropout", "1.5"], "error: --lora-dropout must be a probability from 0 to below 1"),
        (["--dropout", "1"], "error: --dropout is 1.0; it must be from 0 to below 1"),
        (["--log-to", "mlflow"], "argument --log-to: invalid choice: 'mlflow'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--study"], "tner/bionlp2004"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match="2"):
        bionlp.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1, printed.err
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_a_real_process_with_status_2_and_no_traceback(tmp_path):
    done = start("--model", "./nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "bionlp.py: error: there is no model folder './nowhere'; give a folder with config.json, or a hub id"
    ]


def test_a_logger_that_is_not_installed_is_one_line_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lorakit.training.trackers.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(SystemExit, match="2"):
        bionlp.main(["--log-to", "wandb", "--output-dir", str(tmp_path / "out")])
    assert capsys.readouterr().err == (
        "bionlp.py: error: --log-to needs a package that is not installed: pip install wandb; or leave it out\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        bionlp.main(["--output-dir", str(tmp_path / "file" / "out")])
    assert f"cannot be written: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_help_shows_examples_and_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        bionlp.main(["--help"])
    text = capsys.readouterr().out
    assert "python examples/bionlp.py --dataset" in text
    for flag in ("--mode", "--model", "--lora-alpha", "--target-modules", "--precision", "--resume", "--study"):
        assert flag in text
    assert "None" not in text
    assert str(MINI) not in text


def test_the_study_sets_what_is_known_of_it_and_other_flags_override_it():
    arguments = bionlp.parse(["--study", "--epochs", "2"])
    assert (arguments.model, arguments.dataset) == ("roberta-base", ["tner/bionlp2004"])
    assert (arguments.r, arguments.lora_alpha, arguments.lora_dropout, arguments.bias) == (16, 16.0, 0.1, "all")
    assert (arguments.target_modules, arguments.epochs) == (["query", "value"], 2)
