"""RAPL through powercap: what each zone contains, and a counter for those that are counted.

The sysfs tree is not the energy tree. `dram` is a child of its package but not part of its energy; `psys` is a sibling
of the packages and contains them; `intel-rapl-mmio` repeats a package; die zones may repeat each other; ids are
hexadecimal; the TPMI driver also calls its zones `intel-rapl`. So a zone's role comes from its `name` and its control
type, never from its path.

Sources: Documentation/power/powercap, drivers/powercap/intel_rapl_common.c.
"""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lorakit.power.kernel_files import closed_folder, is_folder, read_text

ZONE = re.compile(r"^(?P<control>[a-z][a-z0-9_-]*?)(?P<ids>(:[0-9a-f]+)+)$")
CONTROL = re.compile(r"^[a-z]+[_-]rapl[a-z0-9_-]*$")
PACKAGE = re.compile(r"^package-(?P<package>[0-9a-f]+)(-die-(?P<die>[0-9a-f]+))?$")
PSYS = re.compile(r"^psys(-[0-9a-f]+)?$")  # of the second and further sockets: psys-1, ...
DENIED_NAME = "<denied>"
BESIDE = "contains the packages; shown separately"
MAX_SOCKET_W = 1000.0  # 65 kJ counters then need one reading per minute
LAG_S = 0.002  # the register is updated about every millisecond


@dataclass(frozen=True)
class Zone:
    """One powercap zone.

    `role` is package, core, uncore, dram, psys or unknown; `counted` says whether its energy enters a measurement, and
    `why` gives the reason.
    """

    key: str  # "intel-rapl:0:1"
    path: Path
    name: str  # "dram"
    role: str
    socket: str  # "package-0"
    counted: bool
    why: str

    @property
    def kind(self) -> str | None:
        """The kind of device that the zone belongs to, None if none."""
        return {"package": "cpu", "dram": "ram", "psys": "platform"}.get(self.role)

    @property
    def is_read(self) -> bool:
        """Whether its counter is read: for zones that are counted, and for a psys that repeats no other."""
        return self.counted or self.why == BESIDE


def find_zones(root: Path) -> list[Zone]:
    """All RAPL zones under a powercap folder, each with its role, sorted by key; empty if there are none."""
    folders: dict[str, Path] = {}
    _collect(Path(root), folders, depth=4)
    named: list[tuple[str, Path, str, str, str]] = []
    names = {key: _name(path) for key, path in folders.items()}
    for key in sorted(folders, key=_zone_order):
        control, parent = key.split(":")[0], key.rsplit(":", 1)[0]
        role = _role(names[key])
        socket = names[key] if role in ("package", "psys") else names.get(parent, "") or key
        named.append((key, folders[key], role, socket, control))
    return [_judge(entry, names[entry[0]], named) for entry in named]


def _role(name: str) -> str:
    if PACKAGE.match(name):
        return "package"
    if PSYS.match(name):
        return "psys"
    return name if name in ("core", "uncore", "dram") else "unknown"


def _judge(entry: tuple[str, Path, str, str, str], name: str, all_zones: list[tuple[str, Path, str, str, str]]) -> Zone:
    key, path, role, socket, control = entry

    def zone(counted: bool, why: str) -> Zone:
        return Zone(key, path, name, role, socket, counted, why)

    if role in ("core", "uncore"):
        return zone(False, f"part of {socket}")
    if name == DENIED_NAME:
        closed = closed_folder(path)
        what = f"{closed} may not be searched" if closed else f"{path}/name may not be read"
        return zone(False, f"{what} by this user")
    if role == "unknown":
        return zone(False, f"no known RAPL domain is named {name!r}")
    for other_key, _, other_role, other_socket, other_control in all_zones:
        same = (other_role, other_socket) == (role, socket) and _zone_order(other_key) < _zone_order(key)
        if same and other_control != control:  # intel-rapl comes before intel-rapl-mmio
            return zone(False, f"repeats {other_key}")
        if same:
            return zone(False, f"has the name of {other_key}")
        if role == "package" and "-die-" in name and other_role == role and other_socket == name.split("-die-")[0]:
            return zone(False, f"part of {other_key}")
    if role == "psys":
        return zone(False, BESIDE)
    return zone(True, "next to its package, not part of it" if role == "dram" else "one package or die")


def _collect(folder: Path, found: dict[str, Path], depth: int) -> None:
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        is_zone = ZONE.match(entry) and "rapl" in entry
        if not is_zone and not CONTROL.match(entry):
            continue
        path = folder / entry
        if is_folder(path) is False:
            continue  # a dangling link of a masked container
        if is_zone:  # one in a folder that may not be searched, too: it is denied, not absent
            found.setdefault(entry, path)
        if depth > 1:
            _collect(path, found, depth - 1)


def _zone_order(key: str) -> tuple:
    control, *ids = key.split(":")
    return control, *(int(part, 16) for part in ids)


def _name(folder: Path) -> str:
    """A zone's name; one that may not be read is told from one that is missing."""
    try:
        return read_text(folder / "name") or ""
    except PermissionError:
        return DENIED_NAME
    except OSError:
        return ""


class OpenCounter:
    """What RAPL's counters have in common, by powercap or by perf: a file that stays open, and a CPU's limits."""

    method = "counter"
    lag_s = LAG_S
    max_w = MAX_SOCKET_W
    _file: int | None = None

    def busy(self) -> bool | None:
        """None: RAPL does not tell."""
        return None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class RaplCounter(OpenCounter):
    """A zone's running energy.

    The file stays open: reading it again costs microseconds and keeps working if the permission is taken away.

    Args:
        zone: its powercap folder.
        unit_factor: true energy of a count ÷ 1 µJ, where the kernel has the unit wrong (`unit_faults`).

    Raises:
        OSError: the counter or its range cannot be opened or read (PermissionError: denied).
        ValueError: the zone has no usable `max_energy_range_uj`.
    """

    def __init__(self, zone: Zone, unit_factor: float = 1.0) -> None:
        self.zone = zone
        self.unit_j = 1e-6 * unit_factor
        self.kind = zone.kind or "other"
        self.id = zone.key
        self.name = zone.name if zone.role != "dram" else f"dram of {zone.socket}"
        self.scope = "node" if zone.role == "psys" else "socket"
        self.source = f"RAPL {zone.key} ({self.name})"
        if zone.role == "psys":
            self.max_w = 4 * MAX_SOCKET_W
        text = read_text(zone.path / "max_energy_range_uj") or ""
        if not text.isdigit() or int(text) == 0:
            raise ValueError(f"{zone.path}/max_energy_range_uj holds {text!r}, not a count of microjoules")
        self.modulus = int(text) + 1
        self.read()

    def read(self) -> int:
        """Microjoules since an arbitrary start; the modulus is `max_energy_range_uj` + 1."""
        try:
            if self._file is None:
                self._file = os.open(self.zone.path / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
            text = os.pread(self._file, 64, 0)
        except OSError as error:
            self.close()  # the zone may come back as another file
            code = errno.EIO if error.errno == errno.ENODEV else error.errno
            raise OSError(code, f"{self.id}: {error.strerror}") from error
        digits = text.strip()
        if not digits.isdigit() or not digits.isascii():
            raise OSError(errno.EIO, f"{self.id}: energy_uj holds {text!r}, not one integer")
        return int(digits)
