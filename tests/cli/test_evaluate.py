"""`lorakit evaluate` as a user calls it, in this process."""

import json
import re
import shutil

import pytest

from lorakit.cli.__main__ import main
from lorakit.training.calibration_file import Calibration, save_calibration
from tests.support.saved_run import saved
from tests.support.tiny import LABELS, MINI


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


def test_a_file_alone_is_scored_as_the_split_that_it_is(run, corpus, capsys):
    """Without --split, and with what the message about a split that is not there says."""
    found = []
    for dataset, more in ((corpus, []), (corpus / "test.json", []), (corpus / "test.json", ["--split", "train"])):
        assert main(["evaluate", *saved(run, "lora"), "--dataset", str(dataset), *more, "--json", "-"]) == 0
        found.append({**json.loads(capsys.readouterr().out), "dataset": "", "split": ""})
    assert found[0] == found[1] == found[2]
    assert main(["evaluate", *saved(run, "lora"), "--dataset", str(corpus / "test.json")]) == 0
    assert f"on all of {corpus / 'test.json'} (24 sentences)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
def test_an_adapter_that_peft_made_is_scored_with_labels_as_the_model_itself(corpus, tmp_path, capsys):
    """The oracle is PEFT's model, whose tags are scored by lorakit's evaluate without any of lorakit's loading."""
    import lorakit
    from lorakit.training.models import load_token_classifier
    from tests.support.lora_models import perturb

    peft = pytest.importorskip("peft")
    model, tokenizer = load_token_classifier(MINI.resolve(), LABELS)
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="TOKEN_CLS", init_lora_weights=False)
    theirs = peft.get_peft_model(model, config)
    perturb(theirs)
    theirs.save_pretrained(tmp_path)
    base = ["evaluate", "--adapter", str(tmp_path), "--dataset", str(corpus), "--json", "-"]
    with pytest.raises(SystemExit, match="2"):
        main(base)
    error = capsys.readouterr().err
    assert "does not say which labels its head has" in error and "such as --labels O B-DNA I-DNA" in error
    for words in (LABELS, [",".join(LABELS)]):
        assert main([*base, "--labels", *words]) == 0
        found = json.loads(capsys.readouterr().out)
    wanted = lorakit.evaluate(theirs.merge_and_unload(), tokenizer, lorakit.read_ner(corpus).test)
    assert found["loss"] == pytest.approx(wanted.loss, rel=1e-5)
    other = json.loads((tmp_path / "adapter_config.json").read_text()) | {"task_type": "SEQ_CLS"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="2"):
        main([*base, "--labels", *LABELS])
    assert "was trained for the task SEQ_CLS, and this command tags words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--dataset", "CORPUS"], "give --adapter FOLDER_OR_ID, or --model FOLDER_OR_ID"),
        (
            ["evaluate", "--adapter", "LORA", "--dataset", "CORPUS/train.json", "--split", "test"],
            "has no test set; it has train: choose one with --split",
        ),
        (
            ["evaluate", "--model", "RUN/full/model", "--dataset", "CORPUS", "--labels", "O"],
            "has its own: leave it out",
        ),
        (["evaluate", "--adapter", "LORA", "--dataset", "CORPUS", "--labels", "O", "B-X"], "; leave --labels out"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)


def test_errors_are_written_as_a_page_or_data_and_add_up(run, corpus, tmp_path, capsys):
    command = ["evaluate", *saved(run, "lora"), "--dataset", str(corpus), "--errors"]
    assert main([*command, str(tmp_path / "errors.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "errors.json").read_text())
    right = sum(row["right"] for row in found["outcomes"].values())
    gold = sum(sum(row.values()) for row in found["outcomes"].values())
    assert f"gold entities: {right} right" in printed and gold == 36
    recall = float(next(line for line in printed.splitlines() if line.startswith("| all")).split("|")[3])
    assert recall == pytest.approx(right / gold, abs=1e-4)
    assert found["leaks"] == {"train/validation": 2, "train/test": 2, "validation/test": 2}
    assert "2 sentences are in both train and test" in printed
    assert main([*command, str(tmp_path / "new" / "errors.html")]) == 0
    assert (tmp_path / "new" / "errors.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_in_the_runs_folder_names_the_command_that_links_it(run, corpus, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    command = ["evaluate", *saved(run, "lora"), "--dataset", str(corpus), "--errors", str(run / "lora" / "errors.html")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"(lorakit report {run} makes a report that links to it)" in said
    assert main(["report", str(run)]) == 0
    assert '<a href="lora/errors.html">' in (run / "report.html").read_text()


def test_the_reliability_of_a_calibrated_model_is_that_of_the_scores_that_predict_gives(run, corpus, tmp_path):
    adapter = shutil.copytree(run / "lora" / "adapter", tmp_path / "adapter")
    command = ["--adapter", str(adapter), "--dataset", str(corpus)]
    means = []
    for temperature in (None, 30.0):
        if temperature:
            save_calibration(Calibration(temperature, {}), adapter)
        assert main(["evaluate", *command, "--errors", str(tmp_path / "errors.json")]) == 0
        tenths = json.loads((tmp_path / "errors.json").read_text())["reliability"]
        means.append(sum(n * score for n, score, _ in tenths) / sum(n for n, _, _ in tenths))
    assert means[1] < means[0] - 0.1


def test_an_unknown_ending_of_the_errors_file_is_refused(refuses):
    refuses(["evaluate", "--adapter", "LORA", "--dataset", "CORPUS", "--errors", "x.txt"], "must end in .html")
