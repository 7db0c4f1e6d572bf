"""An adapter's folder: complete or as it was after any fault, fetched from the hub, never unpickled."""

import os
import signal
from pathlib import Path

import pytest
import torch

from lorakit.adapters import files as adapter_files
from lorakit.adapters.storage import CONFIG, OWN, TENSORS, load_adapter, save_adapter
from tests.support.lora_models import labelled_roberta, logits, trained_roberta


def test_a_hub_id_loads_what_the_hub_returns(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, set(allow_patterns)))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = load_adapter(labelled_roberta(), "someone/an-adapter")
    assert torch.equal(logits(model), logits(trained_roberta(bias="all", lora_alpha=8)))
    assert asked == [("someone/an-adapter", {CONFIG, TENSORS, OWN, "calibration.json"})]  # no pickle comes along
    (saved / CONFIG).unlink()
    with pytest.raises(
        FileNotFoundError, match="'someone/an-adapter' on the hub is not an adapter: it has no adapter_config"
    ):
        load_adapter(labelled_roberta(), "someone/an-adapter")


@pytest.mark.parametrize("hub_id", ["someone/not-in-the-cache", "a..b/--"])
def test_a_hub_that_returns_nothing_gives_one_error_with_the_fix(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, so the hub's own errors: not in its cache, and a name that it does not allow."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = labelled_roberta()
    with pytest.raises(
        FileNotFoundError, match=rf"no adapter folder '{hub_id}' .* \(hf download .*pass the folder"
    ) as caught:
        load_adapter(model, hub_id)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__  # not the hub's stack
    assert "\n" not in str(caught.value)
    assert all(p.requires_grad for p in model.parameters())


def test_a_pickle_is_never_read(saved: Path) -> None:
    (saved / TENSORS).rename(saved / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin is a pickle, which can run any code"):
        load_adapter(labelled_roberta(), saved)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter folder .*/there"):
        load_adapter(labelled_roberta(), tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="adapter_config.json is not there"):
        load_adapter(labelled_roberta(), tmp_path)


def test_a_full_disk_leaves_the_earlier_adapter_complete(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    calls = iter(range(9))

    def fsync(_: int) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(trained_roberta(r=4), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(OSError, match="No space left"):
        calls = iter([2])
        save_adapter(trained_roberta(r=4), saved.parent / "new")
    assert not (saved.parent / "new").exists()


def test_a_new_folder_appears_with_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "deep" / "adapter", os.rename

    def watched(source: Path, target: Path) -> None:
        assert not folder.exists()
        rename(source, target)
        assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, OWN, "README.md"}

    monkeypatch.setattr(os, "rename", watched)
    monkeypatch.setattr(os, "replace", None)  # so files cannot be replaced one by one
    save_adapter(trained_roberta(), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_another_process_made_meanwhile_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rename = trained_roberta(), os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        save_adapter(model, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    folder = save_adapter(model, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {CONFIG, TENSORS, OWN, "README.md"}
    load_adapter(labelled_roberta(), folder)


def test_a_crash_between_two_files_leaves_a_set_that_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, iter(range(9))

    def crash(source: Path, target: Path) -> None:
        if next(calls) == 2:
            raise OSError("power cut")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        save_adapter(trained_roberta(bias="all", seed=3), saved)
    with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
        load_adapter(labelled_roberta(), saved)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("written", range(4))
def test_a_process_killed_between_two_files_leaves_the_old_the_new_or_a_refused_set(
    written: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved / "mine.txt").write_text("a file of the user's own")
    old, new = trained_roberta(bias="all", lora_alpha=8), trained_roberta(bias="all", lora_alpha=8, seed=3)
    replace, calls = os.replace, iter(range(9))

    def killed(source: Path, target: Path) -> None:
        if next(calls) == written:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    def in_a_child(folder: Path, files: dict[str, bytes]) -> Path:
        if not (child := os.fork()):
            os.replace = killed
            adapter_files.write_all(folder, files)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return folder

    monkeypatch.setattr("lorakit.adapters.storage.write_all", in_a_child)
    save_adapter(new, saved)
    assert (saved / "mine.txt").exists()
    if written == 3:  # card, configuration (the same) and tensors are new; what says which belong together is old
        with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
            load_adapter(labelled_roberta(), saved)
    else:
        assert torch.equal(logits(load_adapter(labelled_roberta(), saved)), logits(old))
    monkeypatch.undo()
    save_adapter(new, saved)  # the fix
    assert torch.equal(logits(load_adapter(labelled_roberta(), saved)), logits(new))
