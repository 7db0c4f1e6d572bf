"""`lorakit params` as a user calls it, in this process."""

import json
import logging
import re

import pytest

from lorakit.cli.__main__ import main
from tests.support.tiny import MINI


def test_params_counts_the_study_from_a_configuration_alone(tmp_path, capsys):
    shape = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "model_type": "roberta"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    flags = ["--num-labels", "11", "--r", "16", "--lora-alpha", "16", "--target-modules", "query", "value"]
    assert main(["params", str(tmp_path), *flags, "--bias", "all", "--json", str(tmp_path / "counts.json")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^\| full +\| 124,063,499 \| 124,063,499 \| 100.0000 % \|$", text, re.MULTILINE)
    assert re.search(r"^\| LoRA +\| +700,427 \| 124,653,323 \| +0.5619 % \|$", text, re.MULTILINE)
    assert "589,824 in updates, 102,144 biases, 8,459 in the head" in text
    assert "PEFT would print 700,427 of 124,661,782" in text
    assert json.loads((tmp_path / "counts.json").read_text())["lora"]["peft_total"] == 124_661_782


def test_params_counts_modules_trained_in_full_separately_and_once(capsys):
    names = ["embeddings", "word_embeddings", "LayerNorm"]
    options = ["--num-labels", "11", "--r", "2", "--bias", "all", "--modules-to-save", *names]
    assert main(["params", str(MINI), *options]) == 0
    text = capsys.readouterr().out
    # embeddings: 8,192 words, 514 positions and a type of 256, a LayerNorm; eight LayerNorms above
    embeddings, norms = (8192 + 514 + 1) * 256, 9 * 2 * 256
    assert f"2,827 in the head, {embeddings + norms:,} in {', '.join(names)}\n" in text
    biases = 4 * (4 * 256 + 1024 + 256)  # of the linear layers
    assert f" {biases:,} biases, " in text


def test_params_counts_other_heads(tmp_path, capsys):
    shape = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert main(["params", str(tmp_path), "--task", "causal-lm", "--r", "4", "--bias", "none"]) == 0
    assert "0 biases, 0 in the head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["params", "./nowhere"], "there is no './nowhere'; give a folder with config.json"),
        (["params", "CORPUS"], "it has no config.json"),
        (["params", ""], "the name of the model is empty"),
        (["params", MINI, "--target-modules", "qery"], "qery"),
        (["params", MINI, "--modules-to-save", "embedings"], "did you mean 'embeddings'"),
        (["params", MINI, "--num-labels", "0"], "--num-labels is 0"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch, refuses):
    shown = []

    def fetch(*arguments, **options):
        shown.append(logging.getLogger("huggingface_hub.utils").isEnabledFor(logging.WARNING))  # a line per retry
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fetch)
    refuses(["params", "nobody/none"], "'nobody/none': there is no folder of that name here, the hub cannot be reached")
    assert shown == [False]
