"""`lorakit compare` as a user calls it."""

import json

import pytest

from lorakit.cli.__main__ import main
from tests.support.sentence_runs import make_run


def test_the_two_modes_of_a_trained_run_are_compared(run, capsys, tmp_path):
    assert main(["compare", str(run), "--split", "validation", "--json", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert "LoRA − full" in printed and "cannot tell" in printed and "validation set, 24 sentences" in printed
    record = json.loads((tmp_path / "c.json").read_text())
    recorded = json.loads((run / "comparison.json").read_text())["modes"]
    for side, mode in zip(record["sides"], ("full", "lora"), strict=True):
        assert side["f1"]["default"]["value"] == pytest.approx(recorded[mode]["validation"]["f1"], abs=1e-12)


def test_json_alone_is_printed_with_a_dash(tmp_path, capsys):
    folders = [str(make_run(tmp_path / str(seed), {"full": 0.7, "lora": 0.7}, seed)) for seed in range(2)]
    assert main(["compare", *folders, "--margin", "0.5", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["comparisons"][0]["f1"]["strict"]["verdict"] == "equal"


def test_runs_on_other_corpora_are_one_line_with_both_names_and_status_2(tmp_path, capsys):
    folders = [make_run(tmp_path / name, {"lora": 0.7}, digest=name) for name in ("a", "b")]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *map(str, folders)])
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert all(str(folder / "lora") in printed.err for folder in folders)


def test_what_is_no_run_or_no_margin_is_refused(refuses):
    refuses(["compare", "nowhere"], "there is no folder nowhere")
    refuses(
        ["compare", "RUN", "--margin", "2"], "error: --margin is 2.0; it must be a difference of F1 above 0 and below 1"
    )
