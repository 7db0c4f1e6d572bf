"""Ctrl-C and SIGTERM outside of training, which saves its state: one line, and the status that a shell expects.

A KeyboardInterrupt alone is not enough. Libraries that are being imported catch it and continue half-loaded, and fail
later with errors of their own; so the signal is remembered, and whatever ends the command after it is its doing.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_arrived: list[int] = []  # signals that should have ended the command that runs now
_advice: list[str] = []  # what its blocks said on their way out, the innermost first


def stoppable(program: str, run: Callable[[], int]) -> int:
    """Run a command; returns its exit status, or 130 after Ctrl-C and 143 after SIGTERM, with one line on stderr.

    Args:
        program: The command's name, for the line.
        run: The command's body. Training has handlers of its own meanwhile, and saves its state.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        usual = {}  # other threads may not set handlers
    caught = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    status = 1
    try:
        for number in caught:
            signal.signal(number, _interrupt)
        status = run()
    except BaseException as error:
        if not _arrived and not isinstance(error, KeyboardInterrupt):
            raise
        number = signal.Signals(_arrived[-1] if _arrived else signal.SIGINT)
        if os.environ.get("RANK", "0") == "0":
            print("; ".join([f"{program}: stopped by {number.name}", *_advice[:1]]), file=sys.stderr)
        status = 128 + number
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
        _arrived.clear()
        _advice.clear()
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) and caught:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # libraries' own hooks do not expect one
    return status


def check_stopped() -> None:
    """Stop now if a library has swallowed a signal; for a command that is about to do long work.

    Raises:
        KeyboardInterrupt: A signal arrived earlier.
    """
    if _arrived:
        raise KeyboardInterrupt


@contextmanager
def advice_if_stopped(advice: Callable[[], str]) -> Iterator[None]:
    """While active, a signal that ends the command is reported together with what stays and how to continue.

    Args:
        advice: Is asked once the block has been left; of nested blocks the innermost counts.
    """
    try:
        yield
    except BaseException as error:
        if _arrived or isinstance(error, KeyboardInterrupt):
            _advice.append(advice())
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    raise KeyboardInterrupt
