import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.training import checkpoint
from lorakit.training.checkpoint import (
    Checkpoint,
    Checkpointer,
    FolderInUseError,
    OtherRunError,
    check_resumable,
    delete_checkpoints,
    gather_state,
    load_checkpoint,
    run_lock,
    save_checkpoint,
    state_of_this_rank,
)
from lorakit.training.identity import SENTENCES
from lorakit.training.optimizer import build_optimizer
from lorakit.training.state import TrainState


def state(number):
    return Checkpoint({"a/b": torch.full((3, 2), float(number)), "step": torch.tensor(number)}, {"n": number})


def test_what_was_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "new", 7, state(7))
    found = load_checkpoint(tmp_path / "new")
    assert (found.state["n"], found.state["step"]) == (7, 7)
    assert torch.equal(found.tensors["a/b"], torch.full((3, 2), 7.0))
    assert torch.equal(found.tensors["step"], torch.tensor(7))


def test_where_there_is_none_none_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_two_are_kept(tmp_path):
    for number in (1, 3, 20):
        save_checkpoint(tmp_path, number, state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000020"]
    assert load_checkpoint(tmp_path).state["n"] == 20
    delete_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 0.999), cut=st.booleans())
def test_any_damage_is_noticed_and_the_one_before_is_used(tmp_path, file, where, cut):
    save_checkpoint(tmp_path, 1, state(1))
    path = save_checkpoint(tmp_path, 2, state(2)) / file
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged \(.*\); an older one is used"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_a_second_checkpoint_of_a_step_never_touches_the_first(tmp_path, monkeypatch):
    """A process killed between deleting the first and naming the second would have neither."""
    save_checkpoint(tmp_path, 7, state(1))
    deleted = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: deleted.append(path.name))
    names = [save_checkpoint(tmp_path, 7, state(number)).name for number in range(2, 13)]
    assert names[:2] + names[-1:] == ["step-00000007.01", "step-00000007.02", "step-00000007.11"]
    assert deleted[0] == "step-00000007" and names[1] not in deleted[:2]
    assert load_checkpoint(tmp_path).state["n"] == 12


def test_a_damaged_later_checkpoint_is_gone_once_the_run_has_saved_again(tmp_path):
    for number in (10, 20):
        save_checkpoint(tmp_path, number, state(number))
    (tmp_path / "step-00000020" / "state.json").write_text("{")
    save_checkpoint(tmp_path, 12, state(12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]


def test_what_a_killed_process_left_unfinished_is_removed_by_the_next_write(tmp_path):
    save_checkpoint(tmp_path, 1, state(1)).rename(tmp_path / ".step-00000001.4711")
    save_checkpoint(tmp_path, 2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("size", [{"tensor": 100_000}, {"text": 100_000}])
def test_a_full_disk_is_an_oserror_and_harms_nothing(tmp_path, size):
    """A limit on file size stands in for it: the write fails, in Rust for tensors, in Python for the rest."""
    save_checkpoint(tmp_path, 1, state(1))
    big = Checkpoint({"a": torch.zeros(size.get("tensor", 1))}, {"n": "x" * size.get("text", 1)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, 2, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path).state["n"] == 1


def test_a_missing_file_is_damage(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    (save_checkpoint(tmp_path, 2, state(2)) / "tensors.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_another_format_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(tmp_path, 1, state(1))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="its format is 99, this version reads 1"):
        assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("failing", ["training.checkpoint.save_file", "_files.flush", "training.checkpoint.hash_of"])
def test_a_write_that_fails_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 1, state(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"lorakit.{failing}", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_checkpoint(tmp_path).state["n"] == 1


def test_an_unfinished_write_is_not_taken_for_a_checkpoint(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1))
    path.rename(tmp_path / ".step-00000001.4711")
    assert load_checkpoint(tmp_path) is None


def test_the_state_is_plain_json(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1))
    assert json.loads((path / "state.json").read_text())["n"] == 1


@pytest.fixture
def train_state():
    model = torch.nn.Linear(3, 2)
    state = TrainState(model, build_optimizer(model, 0.1, 0.0), torch.amp.GradScaler("cpu", enabled=False))
    model(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    state.keep_if_best({"f1": 0.5})
    state.count_step(torch.tensor(1.0), torch.tensor(False), tokens=10, computed_tokens=12)
    return state


RUN = {"epochs": 2, "engine": "compile", SENTENCES: 8}


def test_tensors_are_named_by_what_they_are_of_and_come_back(tmp_path, train_state):
    assert Checkpointer(tmp_path, RUN).save(train_state, pytest.fail)
    found = load_checkpoint(tmp_path)
    moments = {f"optimizer/{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    assert found.tensors.keys() == {"model/weight", "model/bias", "best/weight", "best/bias"} | moments
    expected = {name: p.detach().clone() for name, p in train_state.trained.items()}
    with torch.no_grad():
        for parameter in train_state.trained.values():
            parameter.zero_()
    train_state.counters.step = 0
    Checkpointer(tmp_path, RUN).restore(train_state)
    assert all(torch.equal(p, expected[name]) for name, p in train_state.trained.items())
    assert (train_state.counters.step, train_state.counters.train_tokens) == (1, 10)


def test_another_runs_checkpoint_is_refused(tmp_path, train_state):
    Checkpointer(tmp_path, RUN).save(train_state, pytest.fail)
    with pytest.raises(ValueError, match="was written with epochs = 2, now it is 1; resume with the former value, or"):
        Checkpointer(tmp_path, {**RUN, "epochs": 1}).restore(train_state)


def test_more_epochs_are_the_same_run_and_what_that_does_to_the_rate_is_said(tmp_path, train_state):
    Checkpointer(tmp_path, RUN).save(train_state, pytest.fail)
    assert Checkpointer(tmp_path, RUN).restore(train_state) is None
    note = Checkpointer(tmp_path, {**RUN, "epochs": 3}).restore(train_state)
    assert "now for 3 epochs in place of 2: the learning rate rises to the schedule of 3 epochs" in note


def test_what_would_not_be_restored_is_refused_before_anything_is_trained(tmp_path, train_state):
    check_resumable(tmp_path / "none", {"epochs": 1})
    Checkpointer(tmp_path, {**RUN, "trained parameters": {"a": [2], "b": [3]}}).save(train_state, pytest.fail)
    check_resumable(tmp_path, {"epochs": 3})
    with pytest.raises(OtherRunError, match=r"trained parameters: b = \[3\], now it is \[4\]"):
        check_resumable(tmp_path, {"trained parameters": {"b": [4]}})


@pytest.mark.parametrize(
    ("engine", "former"),
    [
        ("eager", {}),
        ("eager", {"compile": False, "cuda_graphs": False}),
        ("compile", {"compile": True, "cuda_graphs": False}),
        ("cuda_graphs", {"compile": False, "cuda_graphs": True}),
    ],
)
def test_a_checkpoint_from_before_engines_had_names_resumes(tmp_path, train_state, engine, former):
    before = {"epochs": 2, "sentences a step (batch_size × accumulate × processes)": 8, **former}
    Checkpointer(tmp_path, before).save(train_state, pytest.fail)
    Checkpointer(tmp_path, {**RUN, "engine": engine}).restore(train_state)
    with pytest.raises(ValueError, match=f"engine = '{engine}', now it is 'other'"):
        Checkpointer(tmp_path, {**RUN, "engine": "other"}).restore(train_state)


def test_on_another_number_of_ranks_tokens_are_counted_once(tmp_path, train_state, monkeypatch):
    own = gather_state(train_state.state_dict(), RUN)
    two = Checkpoint(own.tensors, {**own.state, "ranks": own.state["ranks"] * 2})
    state = state_of_this_rank(two)
    assert state["counters"]["train_tokens"] == 20 and "random" not in state
    monkeypatch.setattr(checkpoint, "world_size", lambda: 3)
    monkeypatch.setattr(checkpoint, "rank", lambda: 1)
    assert state_of_this_rank(two)["counters"]["train_tokens"] == 0
    monkeypatch.setattr(checkpoint, "world_size", lambda: 2)
    state = state_of_this_rank(two)
    assert (state["counters"]["train_tokens"], state["random"]) == (10, own.state["ranks"][0]["random"])


def test_a_disk_that_takes_nothing_is_reported(tmp_path, train_state, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    said = []
    assert not Checkpointer(tmp_path, RUN).save(train_state, said.append)
    assert len(said) == 1 and "the checkpoint of step 1 could not be written" in said[0]


def test_without_a_folder_nothing_is_saved(train_state):
    assert Checkpointer(None, {}).save(train_state, pytest.fail)


def test_a_new_run_replaces_an_earlier_one_only_if_told_to(tmp_path, train_state):
    checkpointer = Checkpointer(tmp_path / "checkpoints", RUN)
    checkpointer.begin("results", overwrite=False)
    checkpointer.save(train_state, pytest.fail)
    (tmp_path / "results").touch()
    with pytest.raises(OtherRunError, match=r"holds another run \(checkpoints/step-00000001, results\); choose"):
        checkpointer.begin("results", overwrite=False)
    checkpointer.begin("results", overwrite=True)
    assert load_checkpoint(tmp_path / "checkpoints") is None and not (tmp_path / "results").exists()


@pytest.mark.parametrize("copy", ["step-00000001-mine", "step-00000001.bak", "step-best", "step-00000099"])
def test_a_copy_that_somebody_made_is_neither_deleted_nor_read(tmp_path, copy):
    shutil.copytree(save_checkpoint(tmp_path, 1, state(1)), tmp_path / copy)
    for number in (2, 3, 4):
        save_checkpoint(tmp_path, number, state(number))
    assert (tmp_path / copy / "state.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["step-00000003", "step-00000004", copy])


def test_checkpoints_of_another_run_in_a_linked_folder_are_not_rotated_out(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "shared")
    for run, number in (("theirs", 1), ("mine", 2), ("mine", 3), ("mine", 4)):
        tensors, values = state(number)
        save_checkpoint(tmp_path / "checkpoints", number, Checkpoint(tensors, {**values, "run": {"seed": run}}))
    names = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert names == ["step-00000001", "step-00000003", "step-00000004"]


def test_a_state_that_is_nested_too_deeply_is_damage(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    (save_checkpoint(tmp_path, 2, state(2)) / "state.json").write_text("[" * 100_000)
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_a_state_that_is_no_regular_file_is_damage_and_is_not_waited_for(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    path = save_checkpoint(tmp_path, 2, state(2)) / "state.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged .*not a regular file"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    code = "import sys; from lorakit.training.checkpoint import run_lock\nwith run_lock(sys.argv[1]): input('locked')"
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.read(6) == "locked"
        with pytest.raises(FolderInUseError, match=r"another process trains into '.*out'; wait until it has ended, or"):
            with run_lock(tmp_path / "out"):
                pass
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    with run_lock(tmp_path / "out"), run_lock(tmp_path / "out"):  # killed: the lock is gone
        assert list((tmp_path / "out").iterdir()) == []
