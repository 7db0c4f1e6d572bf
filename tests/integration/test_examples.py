"""The examples do what they say. They run as a user runs them, but in one process, to import transformers once."""

import json
import re
import runpy
import sys

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.tags import spans
from tests.support.tiny import MINI, ROOT

EXAMPLES = ROOT / "examples"
ON_A_CPU = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script of examples/ in an empty folder; returns the lines it printed."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    yield run
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


def numbers(lines: list[str], pattern: str) -> list[float]:
    """The numbers that the pattern's group matches, in the order of the lines."""
    return [float(m[1]) for line in lines if (m := re.search(pattern, line))]


def test_the_own_loop_learns_and_its_adapter_gives_the_same_on_a_fresh_base(run):
    lines = run("own_loop")
    before, *after, reloaded, merged = numbers(lines, r"off by ([\d.]+)")
    assert len(after) == 2 and after[-1] < 0.6 * before
    assert reloaded == merged == after[-1]
    # r=8 on 4 x (query, key, value, output 256x256, up 256x1024, down) and the head's 256 + 1
    trained = 4 * 8 * (4 * (256 + 256) + 2 * (256 + 1024)) + 257
    assert lines[0].startswith(f"trainable params: {trained:,} ||")


def test_own_ner_reads_conll_tags_new_text_and_reloads(run, tmp_path):
    lines = run("own_ner", "--output-dir", tmp_path / "adapter")
    assert lines[0] == "84 + 28 sentences, labels O, B-DOSE, I-DOSE, B-DRUG, I-DRUG"
    f1 = [float(x) for x in next(line for line in lines if "by epoch" in line).split(": ")[1].split()]
    assert len(f1) == 8 and max(f1) > 0.9
    assert lines[-2] == (
        "The dose of vancomycin was raised to 500 mg . -> vancomycin (DRUG), 500 mg (DOSE)"  # a drug it has never seen
    )
    assert json.loads((tmp_path / "adapter" / "lorakit.json").read_text())["labels"][1] == "B-DOSE"


def test_own_ner_takes_another_folder(run, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.tsv").write_text("IL-2\tB-gene\nbinds\tO\n\nNo\tO\n")
    lines = run("own_ner", "--dataset", corpus, "--model", MINI, "--epochs", 1)
    assert lines[0] == "2 + 0 sentences, labels O, B-gene, I-gene"
    assert not any("by epoch" in line for line in lines)


def test_the_text_classifier_beats_the_larger_class(run):
    lines = run("text_classification")
    larger, _, first, last = numbers(lines, r"accuracy ([\d.]+)")
    assert last > larger + 0.15 and last >= first - 0.1
    assert lines[-3].startswith("names a cell |")
    assert lines[-1] == "the adapter on a fresh base classifies 60 texts alike"


def test_the_decoder_turns_round_and_back(run):
    lines = run("causal_lm")
    forwards = "   Wed Thu Fri Sat Sun Mon "
    backwards = "   Wed Tue Mon Sun Sat Fri "
    assert [line for line in lines if line.startswith("   ")] == [forwards, backwards, forwards]
    before, learned, merged = numbers(lines, r"perplexity.* ([\d.]+) backwards")
    assert before > 3 and learned < 1.2 and merged == pytest.approx(learned, abs=0.01)
    once, again = numbers(lines, r"perplexity ([\d.]+) forwards")
    assert once == again < 1.2  # with LoRA off the base answers as before


@ON_A_CPU
def test_trainer_learns_and_its_adapter_reloads(run):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    lines = run("trainer", "--epochs", 1, "--learning-rate", 4e-3)
    before, after = re.search(r"validation loss ([\d.]+) -> ([\d.]+)", "\n".join(lines)).groups()
    assert float(after) < 0.5 * float(before)
    assert lines[-1] == "the adapter on a fresh base tags 30 sentences alike"


def test_own_ners_corpus_is_as_its_docstring_counts_it():
    data = read_ner(EXAMPLES / "conll")
    drugs = [
        {" ".join(words[a : a + 1]).lower() for words, tags in split for kind, a, _ in spans(tags) if kind == "DRUG"}
        for split in (data.train, data.validation)
    ]
    counted = f"{len(drugs[1] - drugs[0])} of the {len(drugs[1])} drugs"
    text = (EXAMPLES / "own_ner.py").read_text()
    assert counted in text and f"({len(data.train)} and {len(data.validation)} made-up sentences" in text
