"""Whether the CPU's energy can be read here, and if not, why and how to change that."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit._counts import counted
from lorakit.power.kernel_files import closed_folder, is_missing, read_if_allowed, read_text
from lorakit.power.rapl import CONTROL, DENIED_NAME, RaplCounter, Zone, find_zones

NEEDED = ("name", "energy_uj", "max_energy_range_uj")
DRIVER_LOG = "sudo dmesg | grep -i rapl"
WALL_METER = "lorakit energy calibrate, with the readings of a wall-outlet meter"


@dataclass(frozen=True)
class Access:
    """Whether CPU or DRAM energy can be read here: measured, denied, masked, absent or vm; why, and how to fix it.

    Where some zones are measured and others denied, `fix` is the command for the others.
    """

    state: str
    reason: str
    fix: str

    @property
    def is_shut(self) -> bool:
        """Whether zones exist, or may, that this user may not read."""
        return self.state in ("denied", "masked") or self.state == "measured" and bool(self.fix)


NO_DRAM = Access("absent", "this CPU has no DRAM counter", "")


def diagnose(root: Path, proc: Path = Path("/proc"), role: str = "package") -> Access:
    """Tell whether the energy of the zones of a role, package or dram, can be read; if not, why and how to fix it."""
    root, proc = Path(root), Path(proc)
    unlisted = [folder for folder in (root, *_control_folders(root)) if not _may_list(folder)]
    if root in unlisted:
        return _closed([closed_folder(root) or root])
    everything = find_zones(root)
    zones = [zone for zone in everything if zone.role == role or zone.name == DENIED_NAME]
    sought = [zone for zone in zones if zone.role == role]
    denied = list(dict.fromkeys(path for zone in zones for path in _denied(zone)))
    closed = list(dict.fromkeys(filter(None, (closed_folder(zone.path) for zone in zones))))
    closed = closed or ([] if everything else [closed_folder(folder) or folder for folder in unlisted])
    broken = ""
    read = 0
    for zone in sought:
        try:
            RaplCounter(zone).close()
            read += 1
        except PermissionError:
            continue
        except (OSError, ValueError) as error:
            broken = broken or f"the counter of {zone.name} cannot be read: {error}"
    names = dict.fromkeys(path.name for path in denied)
    fix = "sudo chmod a+r " + " ".join(f"{root}/intel-rapl*/{name}" for name in names) if names else ""
    if closed:  # first of all: what is inside shows only then
        fix = _closed(closed).fix
    if read:
        count = counted(len(sought), f"{role} zone")
        inside = f"; what is inside {_names(closed)} is not known, which only root may search" if closed else ""
        return Access("measured", f"{count if read == len(sought) else f'{read} of {count}'}{inside}", fix)
    if closed:
        return _closed(closed)
    if denied:
        return Access("denied", f"{', '.join(map(str, denied[:2]))} may be read by root only (CVE-2020-8694)", fix)
    if broken and _is_masked(root, proc):  # a container may mount /dev/null over single files
        return _masked(root, broken)
    if broken:
        return Access("absent", broken, DRIVER_LOG)
    if role == "dram" and any(zone.role == "package" for zone in everything):
        return NO_DRAM
    return _why_there_is_none(root, proc)


def _closed(folders: list[Path]) -> Access:
    fix = f"sudo chmod a+rx {' '.join(map(str, folders))}"
    return Access("denied", f"{_names(folders)} may be listed and searched by root only", fix)


def _names(folders: list[Path]) -> str:
    return ", ".join(map(str, folders[:2])) + (", ..." if len(folders) > 2 else "")


def _control_folders(root: Path) -> list[Path]:
    try:
        return sorted(root / entry for entry in os.listdir(root) if CONTROL.match(entry))
    except OSError:
        return []


def _may_list(folder: Path) -> bool:
    try:
        os.listdir(folder)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _denied(zone: Zone) -> Iterator[Path]:
    """The files of a zone that exist but may not be read."""
    for name in NEEDED:
        try:
            read_text(zone.path / name)
        except PermissionError:
            yield zone.path / name
        except OSError:
            continue  # the driver's failure, which opening the counter reports


def _why_there_is_none(root: Path, proc: Path) -> Access:
    cpuinfo = read_if_allowed(proc / "cpuinfo")
    if "CPU implementer" in cpuinfo:
        reason = f"{_arm_name(cpuinfo)} has no RAPL, and no sensor under /sys/class/hwmon is known to measure it"
        return Access("absent", reason, WALL_METER)
    if "microsoft" in read_if_allowed(proc / "sys/kernel/osrelease").lower():
        return Access(
            "vm", f"{root} has no RAPL zone: WSL2 is a virtual machine", f"measure on Windows, or {WALL_METER}"
        )
    if "hypervisor" in cpuinfo:  # also seen from a container, where no option helps
        return Access("vm", f"{root} has no RAPL zone: virtual machines do not see them", "measure on the host")
    if _is_masked(root, proc) or _in_container(proc):
        return _masked(root, f"{root} has no RAPL zone: container runtimes hide them")
    return Access("absent", f"{root} has no RAPL zone", "sudo modprobe intel_rapl_msr")


def _masked(root: Path, reason: str) -> Access:
    return Access("masked", reason, f"docker run --security-opt systempaths=unconfined -v {root}:{root}:ro ...")


def _arm_name(cpuinfo: str) -> str:
    """What to call an ARM processor: the two whose users ask, else the architecture."""
    parts = {line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("CPU part")}
    if "0xd4f" in parts:
        return "an ARM Neoverse V2 (NVIDIA Grace, AWS Graviton4)"
    if "0xd42" in parts:
        return "an ARM Cortex-A78AE (NVIDIA Jetson Orin)"
    return "an ARM processor"


def _is_masked(root: Path, proc: Path) -> bool:
    """Whether links are dangling, or something is mounted over the zones: how container runtimes hide them."""
    try:
        dangling = any(is_missing(root / entry) for entry in os.listdir(root))
    except OSError:
        dangling = False
    mounts = read_if_allowed(proc / "self" / "mountinfo").splitlines()
    return dangling or any("/powercap" in line.split(" ", 5)[4] for line in mounts if line.count(" ") > 5)


def _in_container(proc: Path) -> bool:
    groups = read_if_allowed(proc / "1" / "cgroup")
    marked = os.path.lexists(proc.parent / ".dockerenv")
    return marked or any(word in groups for word in ("docker", "kubepods", "containerd", "lxc"))
