"""What stands for a measurement that failed: how long its windows were open, and why there is no energy."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from lorakit.power.accumulator import WindowTime
from lorakit.power.clock import Clock
from lorakit.power.device_sums import DeviceEnergy, sum_devices
from lorakit.power.journal import Journal, times
from lorakit.power.reading import KINDS, Reading
from lorakit.power.steadiness import PowerCourse
from lorakit.power.windows import IDLE, WHOLE

NOTHING: Mapping[str, str] = MappingProxyType({})


class Unmeasured:
    """Answers like a `lorakit.energy.Session`, with every energy unknown.

    Args:
        reason: why nothing is measured.
        clock: the meter's.
        windows: how long windows have been open so far, by path; that of the whole block is opened if it never was.
        journal: to end the run in, None without one.
    """

    power_w: float | None = None

    def __init__(
        self, reason: str, clock: Clock, windows: Mapping[str, WindowTime], journal: Journal | None = None
    ) -> None:
        self._reason, self._clock, self._journal = reason, clock, journal
        self.pid = self.tree_root = os.getpid()
        self._windows = dict(windows)
        self.course = PowerCourse()
        self.finished = False
        if WHOLE not in self._windows:
            self.open_window(WHOLE, exact=True)

    def is_mine(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self.pid

    def open_window(self, path: str, exact: bool) -> None:
        """Open a window."""
        self._windows.setdefault(path, WindowTime()).mark_edge(+1, self._clock.monotonic())

    def close_window(self, path: str, exact: bool, failed: bool) -> None:
        """Close a window."""
        window = self._windows.get(path)
        if self.is_mine() and not self.finished and window is not None and window.open:
            window.mark_edge(-1, self._clock.monotonic())
            window.errors += failed

    def sample(self) -> None:
        """There is nothing to read."""

    write_reading = refresh = sample

    def reading(self, path: str, without: Mapping[str, str] = NOTHING) -> Reading:
        """The window's time, and the reason in place of each energy."""
        window = self._windows.get(path, WindowTime())
        duration_s = window.duration_s(self._clock.monotonic())
        # a device without a number: in a sum with other runs or ranks it says that theirs is not everything
        part = sum_devices([DeviceEnergy("the failed meter", "", "unavailable", self._reason, None)], duration_s)
        return Reading(
            **dict.fromkeys(KINDS, part),
            duration_s=duration_s,
            count=window.count,
            errors=window.errors,
            notes=(f"the meter failed: {self._reason}",) if path == WHOLE else (),
        )

    def windows(self) -> dict[str, Reading]:
        """Each window of the user."""
        return {path: self.reading(path) for path in self._windows if path not in (WHOLE, IDLE)}

    def end(self, failed: bool) -> None:
        """Close the window of the whole block; `failed` if an exception ended it."""
        self.close_window(WHOLE, exact=True, failed=failed)

    def finish(self, error: str | None) -> None:
        """End the block; `error` names the exception that ended it."""
        self.end(error is not None)
        self.finished = True
        if self._journal is not None:
            windows = {path: reading.to_json() for path, reading in self.windows().items()}
            line = {"reading": self.reading(WHOLE).to_json(), "windows": windows, "error": error}
            self._journal.write("end", {**line, **times(self._clock)})
