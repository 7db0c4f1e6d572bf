import json
import resource

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.training import checkpoint
from lorakit.training.checkpoint import Checkpoint, delete_checkpoints, load_checkpoint, save_checkpoint


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
