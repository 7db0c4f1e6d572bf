"""`lorakit evaluate` as a user calls it, in this process."""

import json
import re

import pytest

from lorakit.cli.__main__ import main
from tests.support.saved_run import saved


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_was_saved_scores_as_it_did_at_the_end_of_training(run, corpus, mode, tmp_path, capsys):
    scores = tmp_path / "new" / "scores.json"
    assert main(["evaluate", *saved(run, mode), "--dataset", str(corpus), "--json", str(scores)]) == 0
    wanted = json.loads((run / "comparison.json").read_text())["modes"][mode]["test"]
    found = json.loads(scores.read_text())
    assert {key: found[key] for key in wanted} == {**wanted, "loss": pytest.approx(wanted["loss"], rel=1e-6)}
    assert (found["split"], found["sentences"]) == ("test", 24)
    table = capsys.readouterr().out
    for name in ("all", "DNA", "protein"):
        assert re.search(rf"^\| {name} +\|", table, re.MULTILINE)
    assert f"{wanted['strict']['f1']:.4f}" in table


def test_json_to_standard_output_replaces_the_table(run, corpus, capsys):
    assert (
        main(["evaluate", *saved(run, "lora"), "--dataset", str(corpus), "--split", "validation", "--json", "-"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["split"] == "validation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--dataset", "CORPUS"], "give --adapter FOLDER_OR_ID, or --model FOLDER_OR_ID"),
        (["evaluate", "--adapter", "LORA", "--dataset", "CORPUS/train.json"], "has no test set; it has train"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)
