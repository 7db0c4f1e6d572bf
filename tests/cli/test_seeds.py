"""--seeds: a folder per seed that equals its lone run, resumed at the first unfinished seed, compared at the end."""

import contextlib
import io
import json
import os
import shutil
import signal

import pytest

from lorakit.cli.__main__ import main
from lorakit.cli.measured_training import RunMeter
from lorakit.report.run_comparison import compare_runs
from tests.integration.test_bionlp import bionlp
from tests.support.tiny import MINI
from tests.training.test_distributed import torchrun

WEIGHTS = ("lora/adapter/adapter_model.safetensors", "full/model/model.safetensors", "lora/sentences.json")


def words(corpus, folder, *more, mode="both"):
    base = ["train", "--model", MINI, "--dataset", corpus, "--mode", mode, "--epochs", 1, "--batch-size", 8]
    return [str(word) for word in (*base, "--learning-rate", 1e-3, "--output-dir", folder, *more)]


def record_in(folder):
    return json.loads((folder / "comparison.json").read_text())


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory):
    """Seeds 1 and 2 of both modes, and what the command printed."""
    folder = tmp_path_factory.mktemp("seeds") / "x"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(words(corpus, folder, "--seed", 1, "--seeds", 2)) == 0
    return folder, shown.getvalue()


@pytest.fixture
def copy(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "copy")


def test_every_seed_has_a_folder_that_equals_its_lone_run(two, corpus, tmp_path):
    folder, _ = two
    assert main(words(corpus, tmp_path / "alone", "--seed", 2)) == 0
    assert {path.name for path in folder.iterdir()} == {
        "seed-1", "seed-2", "comparison.json", "comparison.md", "comparison.png", "report.html"
    }  # fmt: skip
    assert {path.name for path in (folder / "seed-2").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
    for name in WEIGHTS:
        assert (folder / "seed-2" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (folder / "seed-1" / WEIGHTS[0]).read_bytes() != (folder / "seed-2" / WEIGHTS[0]).read_bytes()


def test_two_processes_train_every_seed_as_one_with_twice_the_batch(corpus, tmp_path):
    few = ("--r", 2, "--seeds", 2, "--dropout", 0)  # every process draws other dropout
    process = torchrun(
        "--standalone", "--nproc-per-node=2", "-m", "--", "lorakit.cli",
        *words(corpus, tmp_path / "x", *few, "--batch-size", 4, mode="lora"),
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert out.count("written to") == 1  # by the first process alone
    assert main(words(corpus, tmp_path / "alone", *few, mode="lora")) == 0
    for name in ("seed-0", "seed-1", "."):
        found, alone = (record_in(tmp_path / folder / name)["modes"]["lora"] for folder in ("x", "alone"))
        assert found["test"]["loss"] == pytest.approx(alone["test"]["loss"], abs=1e-4)
        assert (found["steps"], found["train_tokens"]) == (alone["steps"], alone["train_tokens"])
    assert {path.name for path in (tmp_path / "x").iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


def test_the_seeds_are_compared_and_the_verdict_is_printed_last(two):
    folder, shown = two
    record = record_in(folder)
    assert [(seed["seed"], seed["folder"]) for seed in record["seeds"]] == [(1, "seed-1"), (2, "seed-2")]
    for seed in record["seeds"]:
        assert seed["modes"] == record_in(folder / seed["folder"])["modes"]
    f1 = [seed["modes"]["lora"]["test"]["f1"] for seed in record["seeds"]]
    assert record["modes"]["lora"]["test"]["f1"] == pytest.approx(sum(f1) / 2)
    energy = [seed["modes"]["full"]["energy"]["estimated_kwh"] for seed in record["seeds"]]
    assert record["modes"]["full"]["energy"]["estimated_kwh"] == pytest.approx(sum(energy))
    assert record["comparison"] == compare_runs([folder / "seed-1", folder / "seed-2"])
    sentence = record["comparison"]["comparisons"][0]["f1"]["strict"]["sentence"]
    assert sentence in shown.split("written to")[1]
    page, text = ((folder / name).read_text() for name in ("report.html", "comparison.md"))
    assert "## Seeds" in text and sentence in text and "mean of 2 seeds" in text and "total of 2 seeds" in text
    assert "LoRA (2 seeds)" in page and sentence in page and 'id="seeds-1"' in page


def test_resume_keeps_finished_seeds_and_adds_new_ones(copy, corpus):
    kept = {path: path.read_bytes() for path in copy.glob("seed-*/**/*") if path.is_file()}
    assert main(words(corpus, copy, "--seed", 1, "--seeds", 3, "--resume", "--margin", 0.5)) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    record = record_in(copy)
    assert [seed["seed"] for seed in record["seeds"]] == [1, 2, 3]
    assert (record["margin"], record["comparison"]["margin"]) == (0.5, 0.5)


def stop(meter):
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_command_resumes_at_its_unfinished_seed_with_the_same_result(two, copy, corpus, monkeypatch, capsys):
    shutil.rmtree(copy / "seed-2")
    kept = (copy / "seed-1" / "comparison.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(RunMeter, "power_w", stop)
        assert main(words(corpus, copy, "--seed", 1, "--seeds", 2, "--resume")) == 143
    assert str(copy / "seed-2") in capsys.readouterr().err and not (copy / "seed-2" / "comparison.json").exists()
    assert list(copy.glob("seed-2/*/checkpoints/step-*"))
    assert main(words(corpus, copy, "--seed", 1, "--seeds", 2, "--resume")) == 0
    assert (copy / "seed-1" / "comparison.json").stat().st_mtime_ns == kept
    for name in WEIGHTS:
        assert (copy / "seed-2" / name).read_bytes() == (two[0] / "seed-2" / name).read_bytes()


def test_finished_runs_with_other_settings_are_refused_and_the_advice_works(copy, corpus, monkeypatch, capsys):
    other = ["--seed", "1", "--seeds", "2", "--r", "4"]
    with pytest.raises(SystemExit, match="2"):
        main(words(corpus, copy, *other, "--resume"))
    error = capsys.readouterr().err
    assert f"the runs in {copy / 'seed-1'} have finished with lora.r = 16, now it is 4; resume with" in error
    assert len(error.splitlines()) == 1
    assert main(words(corpus, copy, "--seed", 1, "--seeds", 2, "--r", 16, "--resume")) == 0  # the former value
    monkeypatch.setattr(RunMeter, "power_w", stop)
    assert main(words(corpus, copy, *other, "--overwrite")) == 143
    assert not list(copy.glob("seed-*/comparison.json")) and not list(copy.glob("seed-2/*/checkpoints/step-*"))


def test_another_corpus_is_another_setting(copy, corpus, tmp_path, capsys):
    moved = shutil.copytree(corpus, tmp_path / "corpus")
    lines = (moved / "test.json").read_text().splitlines()
    (moved / "test.json").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(SystemExit, match="2"):
        main(words(moved, copy, "--seed", 1, "--seeds", 2, "--resume"))
    assert "have finished with test set = " in capsys.readouterr().err


def test_one_mode_gives_means_without_a_verdict(corpus, tmp_path, capsys):
    assert main(words(corpus, tmp_path, "--seeds", 2, "--r", 2, mode="lora")) == 0
    assert (tmp_path / "seed-1" / "adapter" / "lorakit.json").exists()
    record = record_in(tmp_path)
    assert (len(record["comparison"]["sides"]), record["comparison"]["comparisons"]) == (1, [])
    assert "total of 2 seeds" in capsys.readouterr().out


def test_one_seed_has_the_layout_of_a_single_run(run):
    assert not list(run.glob("seed-*")) and "seeds" not in record_in(run)


def test_the_example_takes_the_same_flags():
    arguments = bionlp.parse(["--seeds", "5", "--margin", "0.01"])
    assert (arguments.seeds, arguments.margin) == (5, 0.01)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "--seeds is 0; it must be from 1 to 1000"),
        (["--seeds", "two"], "argument --seeds: invalid int value: 'two'"),
        (["--margin", "0.01"], "--margin needs --mode both and --seeds of at least 2; leave it out"),
        (
            ["--seeds", "2", "--margin", "1"],
            "error: --margin is 1.0; it must be a difference of F1 above 0 and below 1",
        ),
        (["--seeds", "2", "--mode", "lora", "--margin", "0.01"], "--margin needs --mode both"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(flags, message, refuses):
    refuses(["train", "--model", MINI, "--dataset", "CORPUS", "--mode", "both", *flags], message)
