"""What the commands' tests share: a small corpus, and a run of both modes on it."""

import json
import re

import pytest

from lorakit.cli.__main__ import main
from tests.support.energy_world import FakeGpu, Profile, World
from tests.support.tiny import LABELS, MINI


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {"tokens": ["IL-2", "gene", "in", "T", "cells", "."], "tags": [1, 2, 0, 0, 0, 0]},
        {"tokens": ["NF-kappaB", "binds", "the", "GATA-1", "gene"], "tags": [3, 0, 0, 1, 2]},
    ]
    for name in ("train", "valid", "test"):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines * 12))
    (folder / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    return folder


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory):
    """A folder trained in both modes, with settings from a file."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"model": MINI, "dataset": corpus, "epochs": 9, "learning-rate": 1e-3, "batch_size": 4, "r": 4}
    settings |= {"target-modules": "all-linear", "init-lora-weights": "pissa", "lora-alpha": 32}
    (folder / "settings.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    command = ["train", "--config", folder / "settings.yaml", "--mode", "both", "--epochs", 2]
    assert main([*map(str, command), "--output-dir", str(folder / "x")]) == 0
    return folder / "x"


@pytest.fixture
def refuses(run, corpus, tmp_path, monkeypatch, capsys):
    """Check that a command line ends with status 2, one line that holds a message, and no file."""

    def check(arguments, message):
        names = {"CORPUS": str(corpus), "LORA": str(run / "lora" / "adapter"), "RUN": str(run)}

        def filled(text):
            return re.sub(r"\b(CORPUS|LORA|RUN)\b", lambda match: names[match[0]], str(text))

        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match="2"):
            main([filled(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert filled(message) in printed.err
        assert len(printed.err.splitlines()) == 1, printed.err
        assert list(tmp_path.iterdir()) == []

    return check


@pytest.fixture
def world(tmp_path):
    """A machine of two GPUs and one package, in virtual time."""
    gpus = [FakeGpu(f"GPU-{name}", Profile((0, 100.0))) for name in "ab"]
    return World(tmp_path, gpus, [("intel-rapl:0", "package-0", Profile((0, 50.0)))])
