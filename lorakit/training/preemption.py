"""Notice SIGTERM and SIGINT without dying of them, so that a loop can save its state and leave.

With several ranks it is enough that one of them gets the signal: `StopAgreement` lets all of them leave together.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from lorakit.training.distributed import all_sum, world_size

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# All ranks should leave within 10 s. That allows for a step of up to 5 s, or for steps that take up to four times as
# long as those before them; the rest of the time is for writing the checkpoint.
MEET_EVERY_S = 1.0


class Preempted(SystemExit):
    """Training was told to stop and has saved its state; the process's exit status is 128 + the signal's number.

    That is 143 for SIGTERM and 130 for SIGINT (Ctrl-C), as a shell reports a process that a signal ended.

    Attributes:
        signal: what asked to stop.
        where: the folder of the checkpoints.
        saved: whether the state could be saved.
    """

    def __init__(self, number: int, where: object, saved: bool = True) -> None:
        super().__init__(128 + number)
        self.signal, self.where, self.saved = signal.Signals(number), where, saved

    def __str__(self) -> str:
        if not self.saved:
            return (
                f"stopped by {self.signal.name}; the state could not be saved, only an older one may be in {self.where}"
            )
        return (
            f"stopped by {self.signal.name}; the state is in {self.where}: run the same again with resume=True to"
            " continue"
        )


class StopRequest:
    """While open, the first SIGTERM or SIGINT only sets `number`; a second SIGINT acts as usual.

    Handlers belong to a process's main thread; in other threads, or when `active` is False, nothing is caught.
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


class Meetings:
    """The steps after which ranks ask each other whether one was told to stop: about every MEET_EVERY_S, or every step.

    An exchange after each step would cost more than it tells, and one every few steps comes too late where steps are
    slow. So ranks exchange the time since they last met along with the question, and all choose the same next step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.pace = 1  # steps between two meetings
        self.next_step = 0
        self._clock, self._step, self._at = clock, 0, 0.0

    def resume(self, step: int) -> None:
        """Training continues after this step; an evaluation before it says nothing about how long steps take."""
        self._step, self._at, self.next_step = step, self._clock(), step + self.pace

    def elapsed_s(self) -> float:
        """This rank's time since it last met the others."""
        return self._clock() - self._at

    def met(self, step: int, elapsed_s: float) -> None:
        """Plan the next meeting from the time that the steps up to this one took, the same number on all ranks."""
        self.pace = max(1, int(MEET_EVERY_S * (step - self._step) / max(elapsed_s, 1e-9)))
        self.resume(step)


class StopAgreement:
    """Whether to stop, with the same answer on all ranks; in a single process that is its own `StopRequest`."""

    def __init__(self, request: StopRequest, device: torch.device) -> None:
        self.request, self.device = request, device
        self._meetings, self._agreed = Meetings(), False

    @property
    def signal(self) -> int:
        """The signal to report: this rank's own, or SIGTERM where another rank was told to stop."""
        return self.request.number or signal.SIGTERM

    def is_agreed(self) -> bool:
        """Whether all ranks know that they stop now; costs nothing."""
        return bool(self.request.number) if world_size() == 1 else self._agreed

    def resume(self, step: int) -> None:
        """Training continues after this step."""
        self._meetings.resume(step)

    def is_due(self, step: int) -> bool:
        """Whether the ranks should meet after this step; the same answer on all ranks."""
        return world_size() > 1 and step == self._meetings.next_step

    def meet(self, step: int, loss: Tensor) -> float:
        """Sum a loss over the ranks, and in the same exchange agree whether to stop and when to meet again."""
        asked, elapsed_s = torch.tensor([self.request.number, self._meetings.elapsed_s()], device=self.device)
        total, stop, elapsed_s = all_sum(torch.stack([loss, asked, elapsed_s])).tolist()
        self._agreed = stop > 0
        self._meetings.met(step, elapsed_s / world_size())
        return total

    def ask_all(self) -> bool:
        """Ask all ranks at once, as between the batches of an evaluation."""
        if world_size() == 1:
            return self.is_agreed()
        return bool(all_sum(torch.tensor(float(self.request.number), device=self.device)) > 0)
