"""`lorakit tune`: a search from the command line to settings that `lorakit train` takes."""

import json
import re
import shutil
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml

from lorakit.cli import tune
from lorakit.cli.__main__ import main
from lorakit.cli.tuning_record import energy_of, trials_of, weights_of
from lorakit.power.reading import Reading
from lorakit.training import tuning
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import MINI, ROOT, make_tiny_model

needs_optuna = pytest.mark.skipif(
    tuning.find_spec("optuna") is None, reason="Optuna is not installed (pip install 'lorakit[tune]')"
)
SMALL = [
    "--learning-rates", "1e-3", "4e-3", "--ranks", "1", "2", "--targets", "query", "--epochs", "2", "--trials", "3",
    "--factor", "2", "--finalists", "2", "--finalist-seeds", "2", "--at-once", "2", "--batch-size", "6",
    "--dropout", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """The folder of a small random base."""
    folder = tmp_path_factory.mktemp("base")
    make_tiny_model(num_hidden_layers=1).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(base, corpus):
    """Run the command into a folder."""

    def run(folder, *more):
        given = ["--model", str(base), "--dataset", str(corpus), "--output-dir", str(folder)]
        return main(["tune", *given, *SMALL, *more])

    return run


@pytest.fixture(scope="module")
def found(tuned, tmp_path_factory):
    """A folder with a finished search."""
    folder = tmp_path_factory.mktemp("tune") / "found"
    assert tuned(folder) == 0
    return folder


@pytest.fixture
def refused(base, corpus, tmp_path, monkeypatch, capsys):
    """Check that the flags end with status 2, one line that holds a message, and no file."""

    def check(flags, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match="2"):
            main(["tune", "--model", str(base), "--dataset", str(corpus), *flags])
        printed = capsys.readouterr()
        assert message in printed.err and len(printed.err.splitlines()) == 1, printed.err
        assert printed.out == "" and list(tmp_path.iterdir()) == []

    return check


def timeless(record):
    """The record of a search without what differs from one run of it to the next."""
    costs = {"wh", "cost"}
    trials = [{name: value for name, value in trial.items() if name not in costs} for trial in record["trials"]]
    finalists = [{name: value for name, value in one.items()} for one in record["finalists"]]
    return trials, finalists, record["seeds"], record["front"]


@needs_optuna
def test_the_record_has_every_trial_the_front_and_the_finalists_with_intervals(found):
    record = json.loads((found / "tuning.json").read_text())
    trials = {trial["name"]: trial for trial in record["trials"]}
    assert (len(trials), record["combinations"], record["seeds"]) == (3, 4, [1, 2])
    for trial in trials.values():
        assert trial["learning_rate"] in (1e-3, 4e-3) and trial["r"] in (1, 2) and trial["lora_alpha"] == 2 * trial["r"]
        assert trial["state"] in ("finished", "stopped") and trial["epochs"] == len(trial["f1"]) > 0
        assert trial["tokens"] % trial["epochs"] == 0 and trial["operations"] > 0
    best = max(trial["best_f1"] for trial in trials.values())
    assert trials[record["front"][-1]]["best_f1"] == best
    winner, *others = record["finalists"]
    assert (
        winner["f1"]["validation"]["low"] <= winner["f1"]["validation"]["value"] <= winner["f1"]["validation"]["high"]
    )
    assert all(one["f1"]["validation"]["value"] <= winner["f1"]["validation"]["value"] for one in others)
    assert set(winner["f1"]) == {"validation", "test"}
    assert len(record["comparison"]["comparisons"]) == len(others)
    assert not list(found.rglob("checkpoints"))
    assert "<svg" in (found / "tune.html").read_text()


@needs_optuna
def test_the_winners_settings_train(found, tmp_path):
    settings = yaml.safe_load((found / "winner.yaml").read_text())
    winner = json.loads((found / "tuning.json").read_text())["finalists"][0]
    assert settings["learning-rate"] == winner["learning_rate"] and settings["target-modules"] == ["query"]
    out = tmp_path / "trained"
    assert main(["train", "--config", str(found / "winner.yaml"), "--output-dir", str(out), "--epochs", "1"]) == 0
    mode = json.loads((out / "comparison.json").read_text())["modes"]["lora"]
    assert (mode["learning_rate"], mode["adapter"]["r"]) == (winner["learning_rate"], winner["r"])
    assert (out / "adapter" / "adapter_config.json").exists()


@needs_optuna
def test_a_search_that_is_killed_continues_to_the_same_result(found, tuned, tmp_path, capsys):
    step, calls = StackedParameters.step, iter(range(99))
    killed_at = {7, 27}  # among the trials, and among the finalists

    def die(*given):
        if next(calls) in killed_at:
            raise KeyboardInterrupt
        return step(*given)

    with mock.patch.object(StackedParameters, "step", die):
        assert tuned(tmp_path / "found") == 130
        assert capsys.readouterr().err.endswith("run the same again with --resume to continue\n")
        assert not (tmp_path / "found" / "search.json").exists()
        assert tuned(tmp_path / "found", "--resume") == 130
        assert (tmp_path / "found" / "search.json").exists()
        for part, value in (("--trials", "4"), ("--ranks", "2"), ("--sentences", "20")):  # another search
            with pytest.raises(SystemExit, match="2"):
                tuned(tmp_path / "found", part, value, "--resume")
        capsys.readouterr()
        assert tuned(tmp_path / "found", "--resume") == 0
    assert re.search(r"The winner is trial-00\d \(learning rate .*, rank ., targets query\)", capsys.readouterr().out)
    records = [json.loads((folder / "tuning.json").read_text()) for folder in (found, tmp_path / "found")]
    assert timeless(records[0]) == timeless(records[1])


@needs_optuna
def test_a_folder_of_another_search_is_left_alone(found, tuned, capsys):
    before = (found / "tuning.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        tuned(found)
    told = capsys.readouterr().err
    assert "holds another search; give another folder, --overwrite" in told and len(told.splitlines()) == 1
    assert (found / "tuning.json").read_bytes() == before


@needs_optuna
def test_a_search_deletes_what_searches_wrote_and_nothing_else(found, tuned, tmp_path, capsys):
    """Neither another run's checkpoints, nor a note in the folder of a trial; and no search is inside of a run."""
    folder = shutil.copytree(found, tmp_path / "found")
    trial = next(path for path in (folder / "trials").iterdir() if path.is_dir())
    mine = [trial / "adapter" / "notes.txt", folder / "my" / "checkpoints" / "mine", trial / "checkpoints" / "mine"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    trial.rename(trial.with_name("former"))
    mine = [path.parent / path.name if path.is_relative_to(folder / "my") else
            folder / "trials" / "former" / path.relative_to(trial) for path in mine]  # fmt: skip
    assert tuned(folder, "--overwrite") == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert {path.name for path in (folder / "trials" / "former").iterdir()} == {"adapter", "checkpoints"}
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        tuned(folder / "trials" / "mine")
    assert f"is inside the results of another run, in {folder}" in capsys.readouterr().err


@needs_optuna
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_a_search_and_a_run_share_no_folder(more, found, tuned, tmp_path, capsys):
    (run := tmp_path / "run").mkdir()
    (run / "comparison.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        tuned(run, *more)
    assert f"--output-dir {run} holds the results of a training run; give another folder" in capsys.readouterr().err
    before = sorted(found.rglob("*"))
    train = ["train", "--model", str(MINI), "--dataset", str(ROOT / "examples" / "conll"), "--output-dir", str(found)]
    with pytest.raises(SystemExit, match="2"):
        main([*train, *more])
    assert f"--output-dir {found} holds a search of lorakit tune; give another folder" in capsys.readouterr().err
    assert sorted(found.rglob("*")) == before
    tuned(tmp_path / "run-tune")


@needs_optuna
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "20"], "'20' is not a time; write 90s, 20m or 2h"),
        (["--budget", "0m"], "'0m' is not a time"),
        (["--budget-wh", "0"], "--budget-wh is 0; it must be above 0"),
        (["--trials", "0"], "--trials is 0; it must be at least 1"),
        (["--factor", "1"], "--factor is 1; it must be at least 2"),
        (["--ranks", "4", "9999"], "the highest of --ranks is 9999, and no weight of this base has a rank above"),
        (["--ranks", "0"], "error: --ranks has 0; each must be an integer of at least 1"),
        (["--learning-rates", "0"], "error: --learning-rates has 0.0; it must be a finite number above 0"),
        (["--learning-rates", "1e-3", "1e-3"], "error: --learning-rates has 0.001 twice"),
        (["--targets", "quarry"], "quarry"),
        (["--precision", "fp16"], "--precision fp16 scales the loss of each run"),
        (["--resume", "--overwrite"], "--resume continues the search in the folder and --overwrite deletes it"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refused, flags, message):
    refused(flags, message)


def test_without_optuna_one_line_says_how_to_install_it(refused, monkeypatch):
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    refused([], "needs Optuna, which is not installed: pip install")


@needs_optuna
def test_a_budget_of_energy_needs_energy_that_is_known(refused, monkeypatch):
    monkeypatch.setattr(Reading, "measured_wh", None)
    monkeypatch.setattr(Reading, "estimated_wh", None)
    message = "--budget-wh 5: no energy is known on this machine (lorakit energy doctor says why); give --budget"
    refused(["--budget-wh", "5"], message)


def test_times_have_a_unit():
    assert [tune._seconds(text) for text in ("90s", "1.5m", "2h")] == [90, 90, 7200]


# What is written about it --------------------------------------------------------------------------------------------


def test_energy_is_shared_by_operations_and_unknown_stays_unknown():
    sizes = {"frozen": 1000, "trained": {'"all-linear"': (10, 50)}}
    trials = {
        name: SimpleNamespace(
            name=name,
            settings={"learning_rates": 1e-3, "ranks": rank, "targets": "all-linear"},
            state="finished",
            f1=[0.5],
            best_f1=0.5,
        )
        for name, rank in (("a", 1), ("b", 20))
    }
    results = {"a": SimpleNamespace(train_tokens=100), "b": SimpleNamespace(train_tokens=200)}
    made = trials_of(SimpleNamespace(trials=trials), results, sizes, 6.0)
    operations = [100 * (4000 + 6 * 60), 200 * (4000 + 6 * 250)]
    assert [trial["operations"] for trial in made] == operations
    assert [trial["wh"] for trial in made] == pytest.approx([6 * part / sum(operations) for part in operations])
    assert [trial["cost"] for trial in made] == [trial["wh"] for trial in made]
    made = trials_of(SimpleNamespace(trials=trials), results, sizes, None)
    assert [(trial["wh"], trial["cost"]) for trial in made] == [(None, part) for part in operations]


def test_energy_is_what_is_measured_or_else_estimated_or_unknown():
    for measured, estimated, expected in ((3.0, 9.0, ("measured", 3.0)), (None, 9.0, ("estimated", 9.0))):
        assert energy_of(SimpleNamespace(measured_wh=measured, estimated_wh=estimated)) == expected
    assert energy_of(SimpleNamespace(measured_wh=None, estimated_wh=None)) == (None, None)


@needs_optuna
def test_the_weights_of_a_search_are_those_of_layers_that_multiply(tmp_path):
    model = make_tiny_model()
    space = tuning.Space((1e-3,), (2, 4), (("query", "value"), "all-linear"))
    search = tuning.Search(space, 2, tune.TrainConfig(output_dir=tmp_path), tmp_path)
    found = weights_of(model, search)
    linear = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    head = 32 * 5
    assert found["frozen"] == linear + head
    assert found["trained"]['["query", "value"]'] == (2 * 2 * (32 + 32), head + 5)
    assert found["trained"]['"all-linear"'] == (2 * (4 * (32 + 32) + 2 * (32 + 64)), head + 5)
