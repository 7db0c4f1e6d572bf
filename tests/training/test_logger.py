"""metrics.jsonl is written by the main rank, cut on resume, and given up on a full disk."""

import json

import pytest

from lorakit.training.logger import TrainingLog
from lorakit.training.progress import ProgressBars

STEP = {"epoch": 1, "step": 3, "loss": None, "tokens_per_s": 10.0}


def settings(folder, **changes):
    return {"output_dir": folder, "progress": False, "log_to": (), **changes}


def events(folder):
    return [json.loads(line)["event"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_resumed_run_logs_again_is_cut_off(tmp_path):
    log, bars = TrainingLog(settings(tmp_path)), ProgressBars(1, 10, quiet=True)
    with bars, log.open(0, 0):
        log.step(bars, **STEP)
        kept = log.length()
        log.compiled(rows=1, width=16, seconds=0.5)
    assert events(tmp_path) == ["step", "compile"]
    log = TrainingLog(settings(tmp_path))
    with log.open(kept, 3):
        log.cached(layers=2, bytes=100, seconds=0.1)
    assert events(tmp_path) == ["step", "cache_prefix"]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = TrainingLog(settings(None))
    with log.open(0, 0):
        log.compiled(rows=1, width=16, seconds=0.5)
    assert log.length() == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "written"), [(0, True), (1, False)])
def test_only_the_main_rank_writes(tmp_path, monkeypatch, rank, written):
    monkeypatch.setattr("lorakit.training.logger.is_main", lambda: rank == 0)
    log = TrainingLog(settings(tmp_path, progress=True))
    assert log.quiet is not written
    with log.open(0, 0), pytest.warns(RuntimeWarning, match="something is wrong"):
        log.problem("something is wrong")
    assert (tmp_path / "metrics.jsonl").exists() is written


class Full:
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path):
    log = TrainingLog(settings(tmp_path))
    with log.open(0, 0):
        log.file = Full()
        with pytest.warns(RuntimeWarning, match="metrics.jsonl can no longer be written: .*No space left"):
            log.compiled(rows=1, width=16, seconds=0.5)
        log.compiled(rows=1, width=16, seconds=0.5)  # says nothing more
