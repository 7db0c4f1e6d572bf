"""The thread that takes a meter's readings."""

import logging
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lorakit.power.clock import Clock

MAIN_THREADS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
log = logging.getLogger("lorakit.energy")


class Sampler:
    """Calls a function every few seconds, in a daemon thread that sleeps in between.

    Args:
        take: takes a reading. An exception is logged once and does not end the thread.
        period_s: mean time between calls, s. Each interval is jittered by half, so that it cannot beat with the
            training step.
        seed: of the jitter.
    """

    def __init__(self, take: Callable[[], None], clock: Clock, period_s: float, seed: int | None = None) -> None:
        self._take, self._clock, self._period_s = take, clock, period_s
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which receives none of the signals meant for the main thread."""
        self._thread = threading.Thread(target=self._run, name="lorakit-energy", daemon=True)
        with _blocked_signals():
            self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for a call that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        delay_s = min(1.0, self._period_s)  # a progress bar wants watts soon
        complained = False
        while not self._clock.wait(self._stop, delay_s):
            try:
                self._take()
            except Exception:  # the thread must never take the training down with it
                if not complained:
                    log.exception("the energy meter could not take a reading; it keeps trying")
                complained = True
            delay_s = self._period_s * self._random.uniform(0.5, 1.5)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block signals while a thread starts: it inherits the mask and keeps it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_THREADS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
