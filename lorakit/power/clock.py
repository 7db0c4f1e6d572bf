"""Time for the energy meter, passed in so that tests can drive it.

Durations come from the monotonic clock, which neither an administrator nor an NTP daemon sets. The boot-time clock
also runs while the machine is suspended, so the difference of the two is the suspended time. The wall clock only dates
a report; it is read once, so that all times of one meter agree even if somebody sets it in between.
"""

import platform
import threading
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """The clocks that the meter reads. All values are seconds."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float: ...
    def wall(self) -> float: ...
    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep until `event` is set (True) or `seconds` have passed (False)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._wall_at_boot = time.time() - self.boottime()

    def monotonic(self) -> float:
        """Seconds since an arbitrary start, without suspended time."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since boot, with suspended time."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()  # outside Linux a suspension is not noticed; durations stay right

    def wall(self) -> float:
        """Seconds since 1970, by the wall clock as it was when this object was made."""
        return self._wall_at_boot + self.boottime()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep until `event` is set (True) or `seconds` have passed (False)."""
        return event.wait(seconds)


def boot_id(proc: Path = Path("/proc")) -> str:
    """An id of this machine since its last boot, which is when `Clock.boottime` started; else the host's name."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()
