import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit import checkpoint
from lorakit.checkpoint import Checkpoint, delete_checkpoints, load_checkpoint, save_checkpoint


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
    for number in (1, 20, 3):
        save_checkpoint(tmp_path, number, state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000020"]
    assert load_checkpoint(tmp_path).state["n"] == 20
    delete_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 0.999), cut=st.booleans())
def test_any_damage_is_noticed_and_the_one_before_is_taken(tmp_path, file, where, cut):
    save_checkpoint(tmp_path, 1, state(1))
    path = save_checkpoint(tmp_path, 2, state(2)) / file
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged \(.*\); an older one is taken"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_a_missing_file_is_damage(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    (save_checkpoint(tmp_path, 2, state(2)) / "tensors.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert load_checkpoint(tmp_path).state["n"] == 1


def test_another_format_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(tmp_path, 1, state(1))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="its format is 99, this version reads 1"):
        assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("failing", ["save_file", "_flush", "_hash"])
def test_a_write_that_fails_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, monkeypatch, failing):
    save_checkpoint(tmp_path, 1, state(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, failing, full)
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
