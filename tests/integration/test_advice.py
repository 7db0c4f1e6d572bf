"""What messages tell users to write exists: flags, functions and arguments; and some of the advice, followed."""

import argparse
import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lorakit
from lorakit.adapters.config import LoRAConfig
from lorakit.cli.__main__ import build_parser, main
from lorakit.export.packages import check_packages
from lorakit.power.calibration import calibrate
from lorakit.report.carbon import Carbon
from lorakit.training.models import load_tagger
from tests.support.tiny import MINI, ROOT

THEIRS = {  # flags and arguments of others, and of flags and records of ours, that texts name
    "flags": {"--nproc-per-node", "--gpus", "--device", "--pid", "--privileged", "--force-reinstall", "--security-opt"},
    "arguments": {
        "num_labels", "id2label", "label2id", "dtype", "attn_implementation", "push_to_hub", "create_graph",
        "word_embeddings", "nf", "nx", "wh", "grams_per_kwh", "word", "tag", "rows", "protein", "weights_only",
        "stride",
    },
}  # fmt: skip
OTHERS_WITH_ARGUMENTS = (load_tagger, calibrate, Carbon, check_packages)
SENTENCE = "IL-2\tB-DNA\ngene\tI-DNA\nbinds\tO\n\n"


def strings(path: Path) -> list[str]:
    """The texts that a file raises, warns or prints; parts that vary are `…`."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | docs:
            found.append(node.value)
    return found


CODE = re.compile(r"var\(--|^(from \w+ )?import ", re.MULTILINE)  # style sheets, and programs that a card shows
TEXTS = [text for path in sorted((ROOT / "lorakit").rglob("*.py")) for text in strings(path) if not CODE.search(text)]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(flags_of, action.choices.values()))
    return found


def test_every_flag_that_a_message_names_exists():
    known = flags_of(build_parser()) | THEIRS["flags"]
    named = {flag for text in TEXTS for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+[a-z0-9]", text)}
    assert len(named) > 20
    assert named - known == set()


def test_every_argument_that_a_message_names_exists():
    """`name=value` in a sentence: a setting of a config, or an argument of a public function or method."""
    known = {field.name for record in (lorakit.TrainConfig, LoRAConfig) for field in fields(record)}
    for function in (*(getattr(lorakit, name) for name in lorakit.__all__), *OTHERS_WITH_ARGUMENTS):
        known |= set(inspect.signature(function).parameters)
    named = {}
    for text in TEXTS:
        if " " in text.strip() and "<" not in text:
            for name in re.findall(r"(?<![\w.\"'=-])([a-z][a-z_]+)=(?=[A-Z\[{\"'0-9…rl])", text):
                named.setdefault(name, text)
    assert len(named) > 8
    assert {name: text for name, text in named.items() if name not in known | THEIRS["arguments"]} == {}


def test_every_function_that_a_message_says_to_call_exists():
    told = {name for text in TEXTS for name in re.findall(r"\b(?:call|calling|with|use|by) ([a-z_]+_[a-z_]+)\(", text)}
    assert {"remove_lora", "unmerge_lora"} < told
    transformers = {"save_pretrained", "resize_token_embeddings", "from_pretrained"}
    assert {name for name in told if not hasattr(lorakit, name)} - transformers == set()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "corpus" / f"{split}.tsv").write_text(SENTENCE * 4, encoding="utf-8")
    return tmp_path


def error_of(arguments, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([str(word) for word in arguments])
    return capsys.readouterr().err


def train(folder, *more):
    base = ["train", "--model", MINI, "--dataset", folder / "corpus", "--epochs", 1, "--batch-size", 4, "--r", 2]
    return [*base, "--output-dir", folder / "run", *more]


def test_a_scheme_that_is_not_recognised_can_be_named_as_the_message_says(folder, capsys):
    (folder / "corpus" / "train.tsv").write_text(SENTENCE.replace("B-DNA", "O"), encoding="utf-8")
    (folder / "corpus" / "test.tsv").write_text(SENTENCE.replace("B-", "I-") * 2 + "a\tB-DNA\n", encoding="utf-8")
    error = error_of(train(folder), capsys)
    advice = ["--scheme", re.search(r"--scheme (\w+)", error)[1]]
    assert main([str(word) for word in train(folder, *advice)]) == 0


def test_layers_that_can_be_cached_are_those_that_the_message_names(folder, capsys):
    error = error_of(train(folder, "--cache-prefix", "--dropout", 0), capsys)
    advice = re.search(r"--layers-to-transform [\d ]+\d", error)[0].split()
    assert main([str(word) for word in train(folder, "--cache-prefix", "--dropout", 0, *advice)]) == 0


def test_a_single_file_is_scored_by_its_path_as_the_message_says(folder, capsys):
    assert main([str(word) for word in train(folder)]) == 0
    for split in ("train", "valid"):
        (folder / "corpus" / f"{split}.tsv").unlink()
    score = ["evaluate", "--adapter", folder / "run" / "adapter", "--dataset"]
    assert "or give a file instead of the folder" in error_of([*score, folder / "corpus"], capsys)
    assert main([str(word) for word in (*score, folder / "corpus" / "test.tsv")]) == 0
    printed = capsys.readouterr()
    assert "4 sentences" in printed.out and "no splits" in printed.err


def test_a_corpus_without_a_split_to_score_says_what_to_add_and_long_sentences_are_noted(folder, capsys):
    (folder / "corpus" / "valid.tsv").unlink()
    (folder / "corpus" / "test.tsv").unlink()
    with (folder / "corpus" / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("a\tO\n" * 600 + "\n" + "b" * 3000 + "\tO\n")
    assert main([str(word) for word in train(folder)]) == 0
    notes = capsys.readouterr().err
    assert "so nothing is scored and the last epoch's weights are kept; put a part of the sentences into" in notes
    assert "1 of 6 training sentences is longer than the model can read at once" in notes
    assert "indexing errors" not in notes
    (folder / "corpus" / "valid.tsv").write_text(SENTENCE, encoding="utf-8")
    assert main([str(word) for word in train(folder, "--overwrite")]) == 0
    assert "nothing is scored" not in capsys.readouterr().err


def test_an_edited_adapter_loads_after_what_the_messages_say(folder, capsys):
    assert main([str(word) for word in train(folder)]) == 0
    adapter = folder / "run" / "adapter"
    config = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    (adapter / "adapter_config.json").write_text(config.replace('"lora_alpha": 32', '"lora_alpha": 16'))
    score = ["evaluate", "--adapter", adapter, "--dataset", folder / "corpus"]
    assert "delete lorakit.json and the safetensors' metadata" in error_of(score, capsys)
    from safetensors.torch import load_file, save_file

    (adapter / "lorakit.json").unlink()
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    assert "such as --labels O B-DNA I-DNA" in error_of(score, capsys)
    assert main([str(word) for word in (*score, "--labels", "O", "B-DNA", "I-DNA")]) == 0


def test_a_corpus_of_other_types_is_scored_after_what_the_message_says(folder, capsys):
    assert main([str(word) for word in train(folder)]) == 0
    (folder / "other.tsv").write_text(SENTENCE.replace("DNA", "gene") + "aspirin\tB-drug\n\n", encoding="utf-8")
    score = ["evaluate", "--adapter", folder / "run" / "adapter", "--dataset", folder / "other.tsv"]
    assert "leave them out, with a label map (--label-map)" in error_of(score, capsys)
    (folder / "map.tsv").write_text("gene\tDNA\ndrug\t\n", encoding="utf-8")
    assert main([str(word) for word in (*score, "--label-map", folder / "map.tsv")]) == 0
