"""A signal outside of training is one line and the status that a shell expects, also if a library swallows it."""

import os
import signal
import subprocess
import sys

import pytest

from lorakit.cli import measured_training
from lorakit.cli.__main__ import main
from lorakit.cli.stopping import advice_if_stopped, check_stopped, stoppable
from tests.support.tiny import MINI, ROOT

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    yield
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("then", ["fails", "is asked", "ends"])
def test_a_swallowed_signal_still_ends_the_command(number, status, then, capsys):
    def run():
        try:
            os.kill(os.getpid(), number)
        except BaseException:  # as libraries do while they are imported
            pass
        if then == "is asked":
            check_stopped()
        raise ImportError("half-loaded")

    if then == "ends":
        assert stoppable("lorakit", lambda: os.kill(os.getpid(), number)) == status
    else:
        assert stoppable("lorakit", run) == status
    assert capsys.readouterr().err == f"lorakit: stopped by {number.name}\n"


def test_without_a_signal_errors_and_statuses_are_as_they_were(capsys):
    check_stopped()
    assert stoppable("lorakit", lambda: 3) == 3
    with pytest.raises(SystemExit, match="2"):
        stoppable("lorakit", lambda: (_ for _ in ()).throw(SystemExit(2)))
    with pytest.raises(RuntimeError, match="ours"):
        stoppable("lorakit", lambda: (_ for _ in ()).throw(RuntimeError("ours")))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "status", "resume"), [(signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--resume"])]
)
def test_a_signal_before_the_first_step_leaves_no_run_behind(
    number, status, resume, corpus, tmp_path, monkeypatch, capsys
):
    """The meter's journal is there by then, and would keep the same command from being given again."""
    arguments = ["train", "--model", MINI, "--dataset", corpus, "--epochs", 1, "--r", 2, "--output-dir", tmp_path / "x"]
    arguments = [str(word) for word in (*arguments, *resume)]
    monkeypatch.setattr(measured_training, "train", lambda *given, **more: os.kill(os.getpid(), number))
    assert main(arguments) == status
    assert (tmp_path / "x").exists() == bool(resume)
    assert capsys.readouterr().err.splitlines()[-1].endswith("; nothing was kept yet: run the same again")


def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)


STAGES = {  # what a stage calls -> what is said of a stop there, and what completes the command
    "lorakit.cli.train.read_corpus": ("nothing was changed: run the same again", []),
    "lorakit.cli.train.save_mode": ("run the same again with --resume to continue", ["--resume"]),
    "lorakit.cli.train.write_results": ("run the same again with --resume to continue", ["--resume"]),
    "lorakit.cli.train.show_results": ("run the same again with --resume to continue", ["--resume"]),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stop_outside_of_training_says_how_to_continue_and_that_works(stage, corpus, tmp_path, monkeypatch, capsys):
    said, more = STAGES[stage]
    arguments = ["train", "--model", MINI, "--dataset", corpus, "--epochs", 1, "--r", 2, "--output-dir", tmp_path / "x"]
    arguments = [str(word) for word in arguments]
    with monkeypatch.context() as patch:
        patch.setattr(stage, stop)
        assert main(arguments) == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lorakit: stopped by SIGTERM; ") and last.endswith(said)
    assert (str(tmp_path / "x") in last) == bool(more) == (tmp_path / "x").exists()
    assert main([*arguments, *more]) == 0
    assert (tmp_path / "x" / "report.html").exists() and (tmp_path / "x" / "adapter").exists()


def test_the_advice_names_only_flags_that_go_together(corpus, tmp_path, monkeypatch, capsys):
    arguments = ["train", "--model", MINI, "--dataset", corpus, "--epochs", 1, "--r", 2, "--output-dir", tmp_path / "x"]
    arguments = [str(word) for word in arguments]
    monkeypatch.setattr("lorakit.cli.train.save_mode", stop)
    assert main([*arguments, "--overwrite"]) == 143
    assert capsys.readouterr().err.endswith("run the same again with --resume instead of --overwrite to continue\n")
    assert main([*arguments, "--resume"]) == 143
    assert capsys.readouterr().err.endswith(f"what was done is in {tmp_path / 'x'}: run the same again to continue\n")


def test_the_innermost_advice_counts_and_none_is_kept_for_the_next_command(capsys):
    def run():
        with advice_if_stopped(lambda: "outer"), advice_if_stopped(lambda: "inner"):
            stop()

    assert stoppable("lorakit", run) == 143
    assert stoppable("lorakit", stop) == 143
    assert capsys.readouterr().err == "lorakit: stopped by SIGTERM; inner\nlorakit: stopped by SIGTERM\n"


@pytest.mark.parametrize("status", [130, "SIGINT"])
def test_a_second_interrupt_while_the_process_ends_is_no_traceback(status):
    """A library's hook at the end of the process, such as torch's, is interrupted; also after a saved state."""
    run = "130" if status == 130 else "os.kill(os.getpid(), signal.SIGINT)"
    code = "import atexit, os, signal, sys\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    code += f"from lorakit.cli.stopping import stoppable\nsys.exit(stoppable('lorakit', lambda: {run}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (130, "" if status == 130 else "lorakit: stopped by SIGINT\n")
