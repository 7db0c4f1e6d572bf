"""metrics.jsonl is written by the main rank, cut on resume, and given up on a full disk."""

import json
import math
import os

import pytest

from lorakit.training.logger import TrainingLog
from lorakit.training.progress import ProgressBars
from lorakit.training.scores import EntityScores, Scores

SCORES = Scores(math.nan, 0.5, 0.5, 0.5, 0.9, EntityScores(0.5, 0.5, 0.5, 4), {})
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


def test_the_loss_of_an_epoch_that_diverged_is_null(tmp_path):
    log, bars = TrainingLog(settings(tmp_path)), ProgressBars(1, 10, quiet=True)
    with bars, log.open(0, 0):
        log.step(bars, **STEP, grad_norm=float("inf"))
        log.evaluation("validation", 1, 3, SCORES)
    step, evaluation = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert step["grad_norm"] is None and evaluation["loss"] is None and evaluation["f1"] == SCORES.f1


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


def test_a_full_disk_from_the_first_line_to_the_closing_of_the_file_ends_the_log_only(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log, bars = TrainingLog(settings(tmp_path)), ProgressBars(1, 10, quiet=True)
    with pytest.warns(RuntimeWarning, match="can no longer be written: .*No space left"), bars, log.open(0, 0):
        log.step(bars, **STEP)
        log.step(bars, **STEP)


def test_a_log_that_cannot_be_opened_ends_the_log_only(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    log, bars = TrainingLog(settings(tmp_path)), ProgressBars(1, 10, quiet=True)
    with pytest.warns(RuntimeWarning, match="can no longer be written: .*Is a directory"), bars, log.open(0, 0):
        log.step(bars, **STEP)


def test_a_stderr_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as closed_pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", closed_pipe)
        log, bars = TrainingLog(settings(tmp_path, progress=True)), ProgressBars(1, 10)
        with bars, log.open(0, 0):
            log.step(bars, **STEP)
            log.compiled(rows=1, width=16, seconds=0.5)
        try:
            closed_pipe.close()
        except BrokenPipeError:
            pass
    assert events(tmp_path) == ["step", "compile"]


def test_setting_the_clock_during_a_run_does_not_move_its_times(tmp_path, monkeypatch):
    log, bars = TrainingLog(settings(tmp_path)), ProgressBars(1, 10, quiet=True)
    with bars, log.open(0, 0):
        log.step(bars, **STEP)
        monkeypatch.setattr("time.time", lambda: 0.0)
        log.step(bars, **STEP)
    first, second = (json.loads(line)["wall_s"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert 0 <= second - first < 60
