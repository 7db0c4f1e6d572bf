"""`lorakit calibrate`, and the flags of `predict` that rest on it."""

import json
import shutil

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.training.models import load_tagger

TEXT = "IL-2 gene in T cells. NF-kappaB binds the GATA-1 gene."


@pytest.fixture
def adapter(run, tmp_path):
    return shutil.copytree(run / "lora" / "adapter", tmp_path / "adapter")


def found(adapter, capsys, *flags):
    capsys.readouterr()
    assert main(["predict", "--adapter", str(adapter), "--format", "jsonl", *flags, "--", TEXT]) == 0
    return json.loads(capsys.readouterr().out)["entities"]


def test_scores_change_and_entities_stay_and_low_scores_can_be_left_out(adapter, corpus, capsys):
    plain = found(adapter, capsys)
    assert len(plain) > 1
    assert main(["calibrate", "--adapter", str(adapter), "--dataset", str(corpus)]) == 0
    assert "calibration.json: temperature " in capsys.readouterr().out
    after = found(adapter, capsys)
    assert [{**e, "score": 0} for e in after] == [{**e, "score": 0} for e in plain]
    assert [e["score"] for e in after] != [e["score"] for e in plain]
    least = sorted(e["score"] for e in after)[1]
    assert found(adapter, capsys, "--min-score", str(least)) == [e for e in after if e["score"] >= least]
    kinds = {e["type"] for e in after}
    for kind in kinds:
        assert found(adapter, capsys, "--min-score", f"{kind}=1") == [e for e in after if e["type"] != kind]
    with pytest.raises(SystemExit, match="2"):  # 24 validation sentences
        found(adapter, capsys, "--min-precision", "DNA=0.9")
    told = capsys.readouterr().err
    assert "too few to promise a precision of 0.9 for DNA" in told and len(told.splitlines()) == 1


def test_a_file_alone_is_the_validation_set(adapter, corpus, capsys):
    valid = next(path for path in corpus.iterdir() if path.name.startswith("valid"))
    kept = []
    for dataset in (corpus, valid):
        assert main(["calibrate", "--adapter", str(adapter), "--dataset", str(dataset)]) == 0
        kept.append((adapter / "calibration.json").read_text())
    assert kept[0] == kept[1]


def test_another_decoder_than_the_calibrated_one_is_noted_and_promises_nothing(adapter, corpus, capsys):
    assert main(["calibrate", "--adapter", str(adapter), "--dataset", str(corpus), "--decode", "viterbi"]) == 0
    found(adapter, capsys, "--decode", "viterbi")
    capsys.readouterr()
    assert main(["predict", "--adapter", str(adapter), "--decode", "greedy", "--", TEXT]) == 0
    told = capsys.readouterr().err
    assert "calibrated for --decode viterbi, not greedy; lorakit calibrate --decode greedy fits them again" in told
    with pytest.raises(SystemExit, match="2"):
        found(adapter, capsys, "--decode", "greedy", "--min-precision", "DNA=0.5")
    told = capsys.readouterr().err
    assert "is for --decode viterbi, not greedy; predict with --decode viterbi, or run lorakit calibrate again" in told


def test_least_scores_reach_every_adapter_and_a_type_is_looked_for_in_all(adapter, tmp_path, capsys):
    """The other adapter finds the same under other names of types, so without least scores nothing of it is left."""
    model, tokenizer = load_tagger(str(adapter))
    before = model.config.id2label
    model.config.id2label = {i: label.replace("DNA", "gene").replace("protein", "drug") for i, label in before.items()}
    other = lorakit.save_adapter(model, tmp_path / "other")
    more = ["--more-adapters", str(other)]
    assert found(adapter, capsys, *more) == found(adapter, capsys)
    renamed = found(adapter, capsys, *more, "--min-score", "DNA=1", "protein=1")
    assert {e["type"] for e in renamed} <= {"gene", "drug"} and renamed
    assert found(adapter, capsys, *more, "--min-score", "1") == []
    least = sorted(e["score"] for e in renamed)[-1]
    some = found(adapter, capsys, *more, "--min-score", "DNA=1", "protein=1", str(least))
    assert some == [e for e in renamed if e["score"] >= least]
    with pytest.raises(SystemExit, match="2"):
        found(adapter, capsys, *more, "--min-score", "RNA=0.5")
    assert "no type 'RNA'; it has DNA, drug, gene, protein" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        found(adapter, capsys, *more, "--min-precision", "gene=0.5")
    assert f"needs {other}/calibration.json: run lorakit calibrate --adapter {other} first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["predict", "--adapter", "LORA", "--min-score", "x", "--", "IL"],
            "--min-score x: give X or TYPE=X with X from 0 to 1, such as 0.8 or DNA=0.8; texts come first",
        ),
        (["predict", "--adapter", "LORA", "--min-score", "RNA=0.5", "--", "IL"], "no type 'RNA'; it has DNA, protein"),
        (
            ["predict", "--adapter", "LORA", "--min-precision", "0.9", "--", "IL"],
            "needs LORA/calibration.json: run lorakit calibrate --adapter LORA first",
        ),
        (
            ["calibrate", "--adapter", "some/hub-id", "--dataset", "CORPUS"],
            "is not a folder, so the calibration cannot be saved",
        ),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)
