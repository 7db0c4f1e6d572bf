"""Bars on a terminal, an occasional line elsewhere."""

import fcntl
import io
import os
import pty
import re
import struct
import termios

import pytest

import lorakit
from lorakit.training.progress import ProgressBars
from tests.support.toy import quick, toy_data


def walk(progress, clock=None, seconds_per_step=0.0):
    """Two epochs of 50 steps, logged every tenth, with an evaluation of 4 batches after each."""
    with progress as bar:
        for epoch in (1, 2):
            bar.start_epoch(epoch, 0)
            for step in range(1, 51):
                if clock:
                    clock[0] += seconds_per_step
                bar.update()
                if step % 10 == 0:
                    bar.set_postfix({"loss": "0.5", "tokens/s": "4,000"})
            with bar.evaluation("validation") as show:
                for done in range(1, 5):
                    show(done, 4)


def shown_on_a_terminal(act):
    """What `act(stream)` writes on a terminal of 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        act(stream)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # Linux's end of file, when the other side is closed
        pass
    os.close(master)
    return shown.decode()


def test_without_a_terminal_a_line_comes_at_most_every_minute_and_no_carriage_return():
    stream, clock = io.StringIO(), [0.0]  # with a log step every 30 s
    walk(
        ProgressBars(2, 50, stream=stream, clock=lambda: clock[0]), clock, seconds_per_step=3.0
    )  # a log step every 30 s
    assert stream.getvalue().splitlines() == [
        f"epoch {1 + (step - 1) // 50}/2, step {step}/100: loss 0.5, tokens/s 4,000" for step in range(10, 101, 20)
    ]
    assert "\r" not in stream.getvalue()


def test_a_short_run_without_a_terminal_has_one_line_and_a_quiet_one_none():
    for quiet, lines in ((False, 1), (True, 0)):
        stream = io.StringIO()
        walk(ProgressBars(2, 50, quiet=quiet, stream=stream, clock=lambda: 0.0))
        assert len(stream.getvalue().splitlines()) == lines


def test_on_a_terminal_the_bars_are_nested_and_all_but_the_first_vanish():
    shown = shown_on_a_terminal(lambda stream: walk(ProgressBars(2, 50, stream=stream)))
    assert re.search(r"training:\s+0%.*0/100 ", shown)
    assert re.search(r"\n\r?epoch 2/2: ", shown), "the epoch's bar is a line below"
    assert re.search(r"\n\r?\n\r?validation: ", shown), "the evaluation's two lines below"
    assert re.search(r"training: 100%.*100/100 .*loss=0.5", shown)
    last = shown[shown.rindex("training:") :]
    assert "epoch" not in last and "validation" not in last


def test_a_resumed_run_shows_the_steps_already_taken():
    def act(stream):
        with ProgressBars(2, 50, done=60, stream=stream) as bar:
            bar.start_epoch(2, 10)
            bar.epoch_bar.refresh()

    shown = shown_on_a_terminal(act)
    assert re.search(r"training:\s+60%.*60/100 ", shown)
    assert re.search(r"epoch 2/2:\s+20%.*10/50 ", shown)


@pytest.mark.parametrize(("rank", "lines"), [(0, 4), (1, 0)])
def test_a_captured_run_prints_a_line_per_evaluation_on_the_first_rank_only(
    tiny_model, tokenizer, monkeypatch, capfd, rank, lines
):
    monkeypatch.setattr("lorakit.training.logger.is_main", lambda: rank == 0)
    lorakit.train(tiny_model(), tokenizer, toy_data(16, 8, 8), quick(progress=True, log_every=1))
    err = capfd.readouterr().err
    assert "\r" not in err
    assert len(err.splitlines()) == lines, err
    if lines:
        assert re.fullmatch(r"epoch 1/2, step 1/4: loss \d\.\d+, tokens/s [\d,]+", err.splitlines()[0])
        assert re.fullmatch(r"epoch \d: test loss [\d.]+, F1 [\d.]+", err.splitlines()[-1])
