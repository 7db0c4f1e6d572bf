"""Time for the energy meter, handed in so that tests can drive it.

Durations come from the monotonic clock, which no administrator or NTP daemon moves. The boot-time clock also runs while
the machine is suspended, so the difference of the two is the time slept. The wall clock only dates a report.
"""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the meter asks of time. All values are seconds."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float: ...
    def wall(self) -> float: ...
    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep until `event` is set (True) or `seconds` are over (False)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def boottime(self) -> float:
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()  # outside Linux: suspension is not seen, the durations stay right

    def wall(self) -> float:
        return time.time()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)
