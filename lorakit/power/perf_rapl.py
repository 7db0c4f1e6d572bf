"""RAPL through the kernel's perf events, for users who may not read powercap.

The event's file shows a 64-bit count that the kernel extends by itself, in units of 2**-32 J. Reading it needs
CAP_PERFMON or a `perf_event_paranoid` below 1. There is one counter per package, on the CPUs that `cpumask` lists.

Source: arch/x86/events/rapl.c; Documentation/admin-guide/perf-security.rst. Not yet run on such hardware.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorakit._counts import counted
from lorakit.power.kernel_files import read_if_allowed, read_text
from lorakit.power.rapl import OpenCounter

EVENTS = {"energy-pkg": "cpu", "energy-ram": "ram"}  # psys contains both, cores and gpu are parts of pkg
SYSTEM_CALL = {"x86_64": 298}
ATTRIBUTE_BYTES = 112  # PERF_ATTR_SIZE_VER5
CLOSE_ON_EXEC = 8


@dataclass(frozen=True)
class PerfEvent:
    """One counter: an event on one CPU, which stands for its package."""

    name: str  # "energy-pkg"
    kind: str
    cpu: int
    type: int
    config: int
    scale_j: float  # per count

    @property
    def id(self) -> str:
        """Unique on the machine."""
        return f"perf {self.name} cpu{self.cpu}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} of the package of CPU {self.cpu}"


def find_perf_events(root: Path) -> list[PerfEvent]:
    """The energy events of the `power` unit under the kernel's folder of event sources, empty without one.

    An event whose files hold anything but what the kernel documents is left out: what it would count is unknown.
    """
    unit = Path(root) / "power"
    mask = read_if_allowed(unit / "cpumask")
    found = []
    for name, kind in EVENTS.items():
        code, scale, measure = (read_if_allowed(unit / "events" / f"{name}{part}") for part in ("", ".scale", ".unit"))
        if measure != "Joules":
            continue
        try:
            config, scale_j, type_ = int(code.removeprefix("event="), 16), float(scale), int(read_text(unit / "type"))
            cpus = _listed(mask)
        except (OSError, ValueError, TypeError):
            continue
        if 0 < scale_j < float("inf"):
            found += [PerfEvent(name, kind, cpu, type_, config, scale_j) for cpu in cpus]
    return found


def _listed(mask: str) -> list[int]:
    """The numbers in a list such as `0,18` or `0-3`."""
    numbers: list[int] = []
    for part in filter(None, mask.split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def open_event(event: PerfEvent) -> int:
    """A descriptor that gives the event's count.

    Raises:
        OSError: this system has no such call, or this user may not use it.
    """
    number = SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"perf events are read on x86-64 only, not on {platform.machine()}")
    attributes = struct.pack("=IIQ", event.type, ATTRIBUTE_BYTES, event.config).ljust(ATTRIBUTE_BYTES, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, ctypes.c_char_p(attributes), -1, event.cpu, -1, CLOSE_ON_EXEC)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"perf_event_open: {os.strerror(code)}")
    return descriptor


class PerfCounter(OpenCounter):
    """An event as the accumulator reads it.

    Raises:
        OSError: it cannot be opened or read (EACCES: denied).
    """

    scope = "socket"
    modulus: int | None = None  # at 2**-32 J, 64 bits last for more than a century

    def __init__(self, event: PerfEvent, opened: Callable[[PerfEvent], int] = open_event) -> None:
        self.kind, self.unit_j = event.kind, event.scale_j
        self.id, self.name = event.id, event.title
        self.source = f"RAPL by perf ({event.name})"
        self._file = opened(event)
        self.read()

    def read(self) -> int:
        """Counts since the event was opened."""
        if self._file is None:
            raise OSError(errno.EIO, f"{self.id} is closed")
        content = os.read(self._file, 8)
        if len(content) != 8:
            raise OSError(errno.EIO, f"{self.id}: {counted(len(content), 'byte')} instead of 8")
        return struct.unpack("=Q", content)[0]
