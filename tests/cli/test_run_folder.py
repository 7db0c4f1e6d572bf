"""A run folder belongs to one run: refused, numbered, overwritten, continued or made longer, never mixed."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.cli.measured_training import RunMeter
from lorakit.cli.run_folder import check_own_place, choose_folder, clear_after_error
from tests.integration.test_bionlp import bionlp
from tests.support.tiny import MINI


def words(corpus, *more):
    base = ["train", "--model", MINI, "--dataset", corpus, "--epochs", 1, "--batch-size", 24, "--r", 2]
    return [str(word) for word in (*base, *more)]


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run of one epoch, with its checkpoints."""
    folder = tmp_path_factory.mktemp("finished") / "x"
    assert main(words(corpus, "--output-dir", folder, "--keep-checkpoints")) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(arguments, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    printed = capsys.readouterr()
    corpus, *rest = printed.err.splitlines() if ": corpus: " in printed.err else ("", *printed.err.splitlines())
    assert printed.out == "" and len(rest) == 1, printed.err
    return printed.err


def test_another_run_is_refused_and_each_way_that_the_message_names_works(copy, corpus, tmp_path, capsys):
    before = content(copy)
    error = error_of(words(corpus, "--output-dir", copy), capsys)
    assert f"--output-dir {copy} holds the results of another run (lorakit train " in error
    assert error.endswith("; give another folder, --overwrite to delete them, or --resume to continue that run\n")
    assert content(copy) == before
    assert main(words(corpus, "--output-dir", copy, "--resume")) == 0
    printed = capsys.readouterr()
    assert f"note: the run in {copy} has finished, and nothing is left to train" in printed.err
    assert "validation LoRA" in printed.out and content(copy) == before
    (copy / "notes.txt").write_text("mine")
    full = [word for word in words(corpus, "--mode", "full", "--output-dir", copy) if word not in ("--r", "2")]
    assert main([*full, "--overwrite"]) == 0
    assert (copy / "notes.txt").read_text() == "mine" and (copy / "model").is_dir()
    assert not (copy / "adapter").exists() and not (copy / "checkpoints").exists()


def test_a_run_that_was_stopped_while_its_page_was_written_is_completed(finished, copy, corpus, capsys):
    """comparison.json says that it has finished, so --resume has nothing to train; the rest of its end is due."""
    for name in ("report.html", "comparison.png"):
        (copy / name).unlink()
    assert main(words(corpus, "--output-dir", copy, "--resume")) == 0
    assert "nothing is left to train" in capsys.readouterr().err
    assert (copy / "comparison.png").read_bytes() == (finished / "comparison.png").read_bytes()
    assert (copy / "report.html").is_file() and not (copy / "checkpoints").exists()


def test_a_stopped_second_run_leaves_nothing_of_the_first(copy, corpus, monkeypatch, capsys):
    monkeypatch.setattr(RunMeter, "power_w", lambda meter: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words(corpus, "--output-dir", copy, "--seed", 1, "--overwrite")) == 143
    assert {path.name for path in copy.iterdir()} == {"checkpoints", "energy.jsonl", "metrics.jsonl"}
    assert "has finished" not in error_of(words(corpus, "--output-dir", copy, "--seed", 1), capsys)


def test_the_default_folder_gets_a_number_and_resume_takes_the_newest(finished, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs/train")
    shutil.copytree(finished, "runs/train-2")
    assert main(words(corpus, "--resume")) == 0
    assert "written to runs/train-2:" in capsys.readouterr().out
    assert main(words(corpus)) == 0
    assert "written to runs/train-3:" in capsys.readouterr().out
    assert not Path("runs/train-3/checkpoints").exists()  # none is kept by default
    before = content(Path("runs/train-2"))
    assert main(words(corpus, "--overwrite")) == 0
    assert "written to runs/train:" in capsys.readouterr().out and content(Path("runs/train-2")) == before


def test_the_example_takes_the_next_folder_too_and_a_stopped_run_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags, wanted in (([], "runs/bionlp"), ([], "runs/bionlp-2"), (["--resume"], "runs/bionlp-2")):
        arguments = bionlp.parse(flags)
        choose_folder(arguments)
        assert arguments.output_dir == Path(wanted)
        (arguments.output_dir / "lora").mkdir(parents=True, exist_ok=True)
        (arguments.output_dir / "lora" / "metrics.jsonl").touch()
    other = bionlp.parse(["--output-dir", "runs/bionlp"])
    with pytest.raises(ValueError, match="runs/bionlp holds the results of another run; give another folder"):
        choose_folder(other)


@pytest.mark.parametrize("flag", ["model", "dataset"])
def test_overwrite_never_deletes_what_the_command_reads(flag, copy, corpus, capsys):
    shutil.copytree({"model": MINI, "dataset": corpus}[flag], copy / "model")
    arguments = words(corpus, "--output-dir", copy, "--overwrite")
    arguments[arguments.index(f"--{flag}") + 1] = str(copy / "model")
    before = content(copy)
    assert f"--overwrite would delete --{flag} {copy / 'model'}; give another --output-dir" in error_of(
        arguments, capsys
    )
    assert content(copy) == before
    assert "give one of them" in error_of([*arguments, "--resume"], capsys)


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_with_a_model_of_the_users_own_is_left_alone(more, corpus, tmp_path, monkeypatch, capsys):
    """In the folder that holds the base, a full run would replace it, and one that diverges would delete it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MINI, "model")
    before = content(tmp_path)
    arguments = words(corpus, "--output-dir", ".", *more)
    arguments[arguments.index("--model") + 1] = "model"
    error = error_of(arguments, capsys)
    assert "--output-dir . has model, which is of no run, and a run would write its own there; give another" in error
    assert error.endswith(", such as run\n") and content(tmp_path) == before
    assert main([*arguments, "--output-dir", "run"]) == 0


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(copy, corpus):
    """Notes of the user's stay in each folder that a run makes; the next mode leaves nothing of the former one."""
    for name in ("adapter", "model", "checkpoints", "tensorboard", "wandb"):
        (copy / name).mkdir(exist_ok=True)
        (copy / name / "notes.txt").write_text("mine")
    full = [word for word in words(corpus, "--mode", "full", "--output-dir", copy) if word not in ("--r", "2")]
    assert main([*full, "--overwrite", "--keep-checkpoints"]) == 0
    assert [path.name for path in (copy / "adapter").iterdir()] == ["notes.txt"]
    assert (copy / "model" / "config.json").is_file()
    card = copy / "adapter" / "README.md"
    assert main(words(corpus, "--output-dir", copy, "--overwrite")) == 0
    assert [path.name for path in (copy / "model").iterdir()] == ["notes.txt"]
    card.write_text(f"Do not use on Mondays.\n{card.read_text()}")
    assert main([*full, "--overwrite"]) == 0
    assert {path.name for path in (copy / "adapter").iterdir()} == {"notes.txt", "README.md"}
    for name in ("adapter", "model", "checkpoints", "tensorboard", "wandb"):
        assert (copy / name / "notes.txt").read_text() == "mine"


def test_a_run_that_goes_on_leaves_the_notes_beside_its_model(corpus, tmp_path):
    base = [
        word for word in words(corpus, "--mode", "full", "--output-dir", tmp_path / "x") if word not in ("--r", "2")
    ]
    assert main([*base, "--keep-checkpoints"]) == 0
    model = tmp_path / "x" / "model"
    (model / "notes.txt").write_text("mine")
    (model / "calibration.json").write_text("of the former weights")
    before = (model / "model.safetensors").read_bytes()
    assert main([*base, "--resume", "--epochs", "2"]) == 0
    assert (model / "model.safetensors").read_bytes() != before
    assert (model / "notes.txt").read_text() == "mine" and not (model / "calibration.json").exists()


@pytest.mark.parametrize("inside", ["adapter", "checkpoints/mine", "full", "seed-1"])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_inside_another_run_is_refused(inside, more, copy, corpus, monkeypatch, capsys):
    (copy.parent / "link").symlink_to(copy)
    before = content(copy)
    monkeypatch.chdir(copy)
    for folder in (copy / inside, Path(inside), copy.parent / "link" / inside):
        error = error_of(words(corpus, "--output-dir", folder, *more), capsys)
        assert f"--output-dir {folder} is inside the results of another run, in {copy}; give a folder" in error
        assert error.endswith(f", such as {copy}-2\n")
    assert content(copy) == before


def test_names_of_other_folders_are_free_beside_and_inside_a_run(copy):
    for free in (copy.with_name("copy-2"), copy / "second", copy.parent / "full"):
        check_own_place(free)


def test_a_finished_run_trains_longer_on_the_longer_schedule(copy, corpus, capsys):
    """The rates are those of 3 steps, by hand: one of warm-up, then linearly down to 0 after the last."""
    longer = words(corpus, "--output-dir", copy, "--resume", "--epochs", 3, "--keep-checkpoints")
    assert main(longer) == 0
    assert "continued from step 1, now for 3 epochs in place of 1: the learning rate rises" in capsys.readouterr().err
    record = json.loads((copy / "comparison.json").read_text())
    assert (record["modes"]["lora"]["epochs"], len(record["modes"]["lora"]["history"])) == (3, 3)
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["event"] == "step"]
    assert rates[1:] == [2e-3, 1e-3]
    assert any(line["event"] == "note" for line in lines)
    assert main(longer) == 0 and "nothing is left to train" in capsys.readouterr().err


def test_a_finished_run_of_another_seed_is_not_taken_for_this_one(copy, corpus, capsys):
    error = error_of(words(corpus, "--output-dir", copy, "--resume", "--seed", 3), capsys)
    assert "have finished with seed = 0, now it is 3; resume with the former value" in error


def test_a_run_without_checkpoints_cannot_become_longer_and_the_advice_works(copy, corpus, capsys):
    shutil.rmtree(copy / "checkpoints")
    error = error_of(words(corpus, "--output-dir", copy, "--resume", "--epochs", 2), capsys)
    assert (
        "its checkpoints were deleted then, so it cannot be trained longer; train all 2 epochs with --overwrite"
        in error
    )
    assert main(words(corpus, "--output-dir", copy, "--epochs", 2, "--overwrite", "--keep-checkpoints")) == 0
    assert list(copy.glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--r", "4"], "LoRA: r = 2, now it is 4"),
        (["--learning-rate", "1e-4"], "--learning-rate = 0.002, now it is 0.0001"),
        (["--seed", "5"], "seed = 0, now it is 5"),
        (["--batch-size", "8"], "sentences per step"),
    ],
)
def test_an_unfinished_run_is_not_resumed_with_other_settings(flags, what, copy, corpus, capsys):
    for name in ("comparison.json", "report.html", "comparison.md", "comparison.png"):
        (copy / name).unlink()
    before = content(copy)
    error = error_of(words(corpus, "--output-dir", copy, "--resume", *flags), capsys)
    assert what in error and len(error) < 600
    assert "; resume with the former value, or start again with --overwrite instead of --resume" in error
    assert content(copy) == before


def test_another_base_is_found_out_late_and_leaves_the_journal_as_it_was(copy, corpus, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(MINI, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["roberta.embeddings.word_embeddings.weight"] += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (copy / "comparison.json").unlink()
    before = (copy / "energy.jsonl").read_bytes()
    arguments = words(corpus, "--output-dir", copy, "--resume")
    arguments[arguments.index("--model") + 1] = str(base)
    assert "was written with frozen weights" in error_of(arguments, capsys)
    assert (copy / "energy.jsonl").read_bytes() == before


@pytest.mark.parametrize("got_further", [False, True])
def test_an_error_in_the_first_step_leaves_nothing_and_a_later_one_everything(got_further, tmp_path):
    written = tmp_path / "x" / "lora" / "energy.jsonl"
    written.parent.mkdir(parents=True)
    written.touch()
    if got_further:
        (tmp_path / "x" / "full" / "checkpoints" / "step-00000001").mkdir(parents=True)
    clear_after_error(tmp_path / "x", tmp_path / "x")
    assert written.exists() == (tmp_path / "x").exists() == got_further


def test_a_run_that_diverges_is_one_line_leaves_nothing_and_the_advice_works(corpus, tmp_path, capsys):
    """In one mode, in both, and in a later seed, whose earlier one keeps its results."""
    arguments = words(corpus, "--output-dir", tmp_path / "x", "--learning-rate", 1e6)
    for more in ([], ["--mode", "both"]):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, *more])
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("lorakit train: error: the validation loss is nan after epoch 1: training diverged")
        assert "(learning rate 1e+06, precision auto); train again with a lower learning rate" in last
        assert not (tmp_path / "x").exists()
    assert main([*arguments, "--learning-rate", "1e-3"]) == 0
    seed = shutil.copytree(tmp_path / "x", tmp_path / "seeds" / "seed-0")
    kept = content(seed)
    (tmp_path / "seeds" / "seed-1").mkdir()
    (tmp_path / "seeds" / "seed-1" / "energy.jsonl").touch()
    for name in ("seed-1", "seed-0"):
        clear_after_error(tmp_path / "seeds" / name, tmp_path / "seeds")
    assert content(tmp_path / "seeds") == {Path("seed-0") / name: found for name, found in kept.items()}
