"""Files and folders may have any name: one that reads as mathematics in a picture, as a format, or is no UTF-8."""

import json
import os
import shutil
import sys

import pytest

from lorakit.cli.__main__ import main
from tests.support.tiny import MINI, make_tiny_model

NAMES = {
    "two dollars": "$x^2$ of $y_1$",
    "per cent and braces": "100 % %s {r} {0}",
    "HTML and Markdown": "a <b>&amp; | `c` [d](e)",
    "not UTF-8": os.fsdecode(b"caf\xe9"),
}
SENTENCE = "IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\n\n"


def run(*words):
    assert main([str(word) for word in words]) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_every_command_works_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    home = tmp_path / name
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "settings"))
    (corpus := home / "corpus").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (corpus / f"{split}.tsv").write_text(SENTENCE * 4, encoding="utf-8")
    models = tmp_path if name == NAMES["not UTF-8"] else home  # safetensors opens no file of such a name
    folder, output = models / "base", models / "run"
    make_tiny_model().save_pretrained(folder)
    for file in MINI.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    settings = ("--epochs", 1, "--batch-size", 4, "--r", 2, "--learning-rate", "1e-2")
    base = ("--model", folder, "--dataset", corpus)
    run("train", *base, *settings, "--mode", "both", "--output-dir", output)
    adapter = output / "lora" / "adapter"
    run("evaluate", "--adapter", adapter, "--dataset", corpus, "--json", home / "scores.json")
    run("evaluate", "--adapter", adapter, "--dataset", corpus, "--errors", home / "errors.html")
    run("predict", "--adapter", adapter, "IL-2 gene binds.", "--output", home / "found.html")
    run("calibrate", "--adapter", adapter, "--dataset", corpus)
    run("report", output, "--label", name, "--output", home / "page.html")
    run("data", "convert", corpus, home / "other", "--format", "conll")
    run("params", folder, "--num-labels", 3, "--json", home / "params.json")
    run("energy", "run", "--out", home / "energy.jsonl", "--", sys.executable, "-c", "")
    run("energy", "merge", home / "energy.jsonl", "--json", home / "energy.json")
    record = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    assert record["modes"].keys() == {"full", "lora"}
    for page in ("page.html", "errors.html", "found.html"):
        assert (home / page).read_bytes()
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
