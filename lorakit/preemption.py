"""Notice SIGTERM and SIGINT without dying of them, so that a loop can save its state and leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """Training was told to stop and has saved its state; the process's exit status is 128 + the signal's number.

    That is 143 for SIGTERM and 130 for SIGINT (Ctrl-C), as a shell reports a process that a signal ended.
    """

    def __init__(self, number: int, where: object) -> None:
        super().__init__(128 + number)
        self.signal, self.where = signal.Signals(number), where

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}; the state is in {self.where}: the same command with resume goes on"


class StopRequest:
    """While open, the first SIGTERM or SIGINT only sets `number`; a second SIGINT acts as ever.

    Handlers belong to a process's main thread; elsewhere, or when `active` is False, nothing is caught.
    """

    def __init__(self, active: bool = True) -> None:
        self.number = 0  # of the signal, 0 while there is none
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._active:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            signal.raise_signal(signal.SIGINT)
        self.number = number
