"""A command as a shell would run it; what `lorakit energy run` adds is in test_energy.py."""

import os
import signal
import threading
import time

import pytest

from lorakit.cli.child_process import run_command


@pytest.mark.parametrize("moment", ["before the command is started", "while it starts"])
def test_signal_that_comes_early_is_delivered_to_the_command(monkeypatch, moment):
    name = "pthread_sigmask" if moment.startswith("before") else "posix_spawnp"
    owner = signal if moment.startswith("before") else os
    real = getattr(owner, name)

    def late(*arguments, **options):
        monkeypatch.setattr(owner, name, real)
        result = real(*arguments, **options) if owner is signal else None
        os.kill(os.getpid(), signal.SIGTERM)
        return result if owner is signal else real(*arguments, **options)

    monkeypatch.setattr(owner, name, late)
    assert run_command(["sleep", "60"]) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_signal_that_another_thread_takes_is_delivered_too():
    """A driver's thread blocks no signal, so the kernel may hand it ours: neither of us may die of it."""
    started, over = threading.Event(), threading.Event()

    def other() -> None:
        started.set()
        over.wait()

    def send() -> None:
        time.sleep(0.3)
        signal.pthread_kill(thread.ident, signal.SIGTERM)

    thread, sender = threading.Thread(target=other), threading.Thread(target=send)
    thread.start()
    started.wait()
    sender.start()
    try:
        assert run_command(["sleep", "60"]) == 128 + signal.SIGTERM
    finally:
        over.set()
        thread.join()
        sender.join()


def test_run_works_where_signals_cannot_be_waited_for(monkeypatch):
    """macOS."""
    monkeypatch.delattr(signal, "sigtimedwait")
    assert run_command(["sh", "-c", "exit 4"]) == 4
    assert run_command(["sh", "-c", "kill -9 $$"]) == 128 + 9
