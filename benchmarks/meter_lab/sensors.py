"""A machine's sensors: the kernel's files, written again and again as time passes, and a fake NVML.

Only the standard library is imported: the processes of all meters use this file.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from machines import ENERGY, LIMITS, OPEN, RANGE, Gpu, Hwmon, Machine, Zone

NOT_SUPPORTED, NOT_FOUND = 3, 6
TICK_S = 0.1  # of NVML's energy counter and power
FIELD_AVERAGE, FIELD_INSTANT = 185, 186
BUSY = 90  # % of the time that GPUs compute
RIPPLE_W = 0.2  # real power is never quite constant
MEMORY_KB = 67_108_864


def shown_uj(zone: Zone, time: float) -> int:
    """What energy_uj says at a time."""
    if zone.still:
        return zone.start_uj
    if zone.resets_s is not None and time >= zone.resets_s:
        return int((zone.power.joules(time) - zone.power.joules(zone.resets_s)) * zone.gain * 1e6)
    return (zone.start_uj + int(zone.power.joules(time) * zone.gain * 1e6)) % (zone.range_uj + 1)


class Tree:
    """A machine's `sys` and `proc` below a folder. `write` brings its counters to a time, s since the start."""

    def __init__(self, machine: Machine, root: Path) -> None:
        self.machine, self.root = machine, root
        self._moving: list[tuple[int, Callable[[float], str]]] = []  # descriptors that stay open: nothing is renamed
        self._leaving: list[tuple[Path, tuple[float, float]]] = []
        (root / "sys" / "class").mkdir(parents=True)
        (root / "proc").mkdir()
        if machine.powercap:
            self._make_powercap(machine.of(Zone))
        for index, sensor in enumerate(machine.of(Hwmon)):
            self._make_hwmon(index, sensor)
        self._make_cpus()
        self._make_proc()
        self.write(0.0)

    def close(self) -> None:
        for file, _ in self._moving:
            os.close(file)

    def write(self, time: float) -> None:
        """Bring the counters to a time."""
        for file, text in self._moving:
            line = text(time).encode()
            os.pwrite(file, line, 0)  # numbers keep their length: nobody reads half of an old one
        for path, (leaves, returns) in self._leaving:
            hidden = path.with_name(f".{path.name}")
            if leaves <= time < returns and path.exists():
                path.rename(hidden)
            elif time >= returns and hidden.exists():
                hidden.rename(path)

    def _make(self, path: Path, text: str, mode: int = OPEN) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="ascii")
        path.chmod(mode)

    def _move(self, path: Path, text: Callable[[float], str], mode: int = OPEN) -> None:
        """A file that changes; numbers are padded with blanks so that a shorter one overwrites a longer one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._moving.append((os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), text))
        path.chmod(mode)

    def _make_powercap(self, zones: list[Zone]) -> None:
        """As the kernel lays them: folders in devices/virtual, children in their parents, and links in class."""
        real, links = self.root / "sys/devices/virtual/powercap", self.root / "sys/class/powercap"
        links.mkdir()
        places = {}
        for zone in zones:
            control, *ids = zone.id.split(":")
            if control not in places:
                places[control] = real / control
                self._make(places[control] / "enabled", "1")
                (places[control] / "subsystem").symlink_to("../../../../class/powercap")
                (links / control).symlink_to(f"../../devices/virtual/powercap/{control}")
            parent = zone.id.rsplit(":", 1)[0] if len(ids) > 1 else control
            places[zone.id] = place = places[parent] / zone.id
            self._make_zone(place, zone)
            (links / zone.id).symlink_to(Path("../..") / place.relative_to(self.root / "sys"))

    def _make_zone(self, place: Path, zone: Zone) -> None:
        def mode(files: str) -> int:
            return 0 if files in zone.closed else OPEN

        self._make(place / "name", zone.name)
        self._make(place / "enabled", "1")
        self._make(place / "max_energy_range_uj", str(zone.range_uj), mode(RANGE))
        if zone.limits_w is not None:
            limit_w, nominal_w = zone.limits_w
            files = {"name": "long_term", "power_limit_uw": int(limit_w * 1e6), "max_power_uw": int(nominal_w * 1e6)}
            for name, value in files.items():
                self._make(place / f"constraint_0_{name}", str(value), mode(LIMITS))
        width = len(str(zone.range_uj))
        self._move(place / "energy_uj", lambda time: f"{shown_uj(zone, time)}\n".ljust(width + 1), mode(ENERGY))
        if zone.away_s is not None:
            self._leaving.append((place / "energy_uj", zone.away_s))

    def _make_hwmon(self, index: int, sensor: Hwmon) -> None:
        device = self.root / "sys/devices/platform" / sensor.id
        place = self.root / "sys/class/hwmon" / f"hwmon{index}"
        device.mkdir(parents=True)
        place.mkdir(parents=True)
        (place / "device").symlink_to(Path("../../..") / device.relative_to(self.root / "sys"))
        for name, text in sensor.files.items():
            self._make(place / name, text)
        energy = sensor.shows.rpartition("/")[2].startswith("energy")

        def text(time: float) -> str:
            micro = 5e9 + sensor.power.joules(time) * 1e6 if energy else sensor.power.at(time) * 1e6
            return f"{int(micro)}\n"

        self._move(place / sensor.shows, text)

    def _make_cpus(self) -> None:
        cpus, folder = self.machine.cpus, self.root / "sys/devices/system/cpu"
        for name in ("online", "present", "possible"):
            self._make(folder / name, f"0-{cpus - 1}")
        for cpu in range(cpus):
            socket = cpu % self.machine.sockets
            beside = [other for other in range(cpus) if other % self.machine.sockets == socket]
            place = folder / f"cpu{cpu}" / "topology"
            for name, value in (("physical_package_id", socket), ("core_id", cpu), ("die_id", 0)):
                self._make(place / name, str(value))
            members = {"thread_siblings": [cpu], "core_cpus": [cpu], "core_siblings": beside, "package_cpus": beside}
            for name, cpus_of in members.items():
                self._make(place / name, f"{sum(1 << member for member in cpus_of):x}")
                self._make(place / f"{name}_list", ",".join(map(str, cpus_of)))

    def _make_proc(self) -> None:
        machine, proc = self.machine, self.root / "proc"
        cpus = [
            f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {machine.cpu_model}\n"
            f"model name\t: {machine.cpu_name}\nphysical id\t: {cpu % machine.sockets}\ncpu MHz\t\t: 2500.000\n"
            f"core id\t\t: {cpu}\ncpu cores\t: {machine.cpus}\nflags\t\t: fpu lm sse2\n"
            for cpu in range(machine.cpus)
        ]
        self._make(proc / "cpuinfo", "\n".join(cpus))
        names = ("MemFree", "MemAvailable", "Buffers", "Cached", "Shmem", "Active", "Inactive", "Slab", "SReclaimable")
        lines = [f"MemTotal: {MEMORY_KB} kB", *(f"{name}: {MEMORY_KB // 4} kB" for name in names)]
        self._make(proc / "meminfo", "\n".join([*lines, "SwapTotal: 0 kB", "SwapFree: 0 kB"]))
        self._move(proc / "stat", self._stat)

    def _stat(self, time: float) -> str:
        """/proc/stat: every CPU is busy for the same share of the time."""
        busy = round((1000 + time * self.machine.load) * 100)
        idle = round((1000 + time * (1 - self.machine.load)) * 100)
        lines = [
            f"cpu{name} {busy * count:09d} 0 0 {idle * count:09d} 0 0 0 0 0 0"
            for name, count in [(" ", self.machine.cpus), *((str(cpu), 1) for cpu in range(self.machine.cpus))]
        ]
        rest = ("ctxt 1", "btime 1700000000", "processes 1", "procs_running 1", "procs_blocked 0")
        return "\n".join([*lines, *rest, ""])


class CodedError(Exception):
    """NVML's error where there is no pynvml to take it from."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """The functions of NVML that meters call.

    Args:
        now: seconds since the machine's start.
        error: makes the exception of an error code.
    """

    NVMLError = CodedError

    def __init__(self, machine: Machine, now: Callable[[], float], error: Callable[[int], Exception] = CodedError):
        self._machine, self._now, self._error = machine, now, error
        self._gpus = machine.of(Gpu)

    # ---- the session and the list of GPUs

    def nvmlInit(self) -> None:
        if self._machine.nvml_fault is not None:
            raise self._error(self._machine.nvml_fault)

    def nvmlInitWithFlags(self, _flags: int) -> None:
        self.nvmlInit()

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.124.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12080

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if not 0 <= index < len(self._gpus):
            raise self._error(2)  # invalid argument
        return self._gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> Gpu:
        uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
        for gpu in self._gpus:
            if gpu.id == uuid:
                return gpu
        raise self._error(NOT_FOUND)

    def nvmlDeviceGetIndex(self, gpu: Gpu) -> int:
        return self._gpus.index(gpu)

    def nvmlDeviceGetUUID(self, gpu: Any) -> str:
        return gpu.id

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetArchitecture(self, gpu: Gpu) -> int:
        return gpu.architecture

    # ---- what it uses

    def _supported(self, gpu: Gpu) -> None:
        if gpu.unsupported:
            raise self._error(NOT_SUPPORTED)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: Gpu) -> int:
        """Millijoules, renewed every tenth of a second."""
        self._supported(gpu)
        if not gpu.counter:
            raise self._error(NOT_SUPPORTED)
        time = self._now()
        if gpu.frozen_s is not None:
            time = min(time, gpu.frozen_s)
        return 5_000_000 + int(gpu.power.joules(int(time / TICK_S + 1e-9) * TICK_S) * 1000)

    def nvmlDeviceGetPowerUsage(self, gpu: Gpu) -> int:
        """Milliwatts at this moment."""
        self._supported(gpu)
        time = self._now()
        watts = (gpu.shown or gpu.power).at(time)
        ripple_w = RIPPLE_W * (-1) ** int(time / TICK_S) if watts > 10 else 0.0
        return round((watts + ripple_w) * 1000)

    def nvmlDeviceGetFieldValues(self, gpu: Gpu, fields: list) -> list[SimpleNamespace]:
        found = []
        for field in fields:
            identifier = field[0] if isinstance(field, tuple) else field
            known = identifier == FIELD_INSTANT or (identifier == FIELD_AVERAGE and gpu.architecture >= 7)
            value = SimpleNamespace(uiVal=self.nvmlDeviceGetPowerUsage(gpu) if known else 0)
            found.append(SimpleNamespace(fieldId=identifier, nvmlReturn=0 if known else NOT_SUPPORTED, value=value))
        return found

    def nvmlDeviceGetUtilizationRates(self, gpu: Gpu) -> SimpleNamespace:
        self._supported(gpu)
        return SimpleNamespace(gpu=BUSY, memory=40)

    # ---- limits and the rest

    def nvmlDeviceGetPowerManagementLimitConstraints(self, gpu: Gpu) -> list[int]:
        self._supported(gpu)
        return [50_000, int(gpu.limit_w * 1000)]

    def nvmlDeviceGetPowerManagementLimit(self, gpu: Gpu) -> int:
        self._supported(gpu)
        return int(gpu.limit_w * 1000)

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerManagementDefaultLimit = nvmlDeviceGetPowerManagementLimit

    def nvmlDeviceGetPersistenceMode(self, _gpu: Gpu) -> int:
        return 1

    def nvmlDeviceGetComputeMode(self, _gpu: Gpu) -> int:
        return 0

    def nvmlDeviceGetTemperature(self, _gpu: Gpu, _sensor: int) -> int:
        return 60

    def nvmlDeviceGetTemperatureV(self, _gpu: Gpu, _sensor: int) -> int:
        return 60

    def nvmlDeviceGetClockInfo(self, _gpu: Gpu, _kind: int) -> int:
        return 1410

    def nvmlDeviceGetMemoryInfo(self, _gpu: Gpu) -> SimpleNamespace:
        return SimpleNamespace(total=16 << 30, used=4 << 30, free=12 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in (os.getpid(), *gpu.others)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, _gpu: Gpu) -> list[SimpleNamespace]:
        return []

    # ---- MIG

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:
        if not gpu.mig:
            raise self._error(NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:
        return 7 if gpu.mig else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> SimpleNamespace:
        if index >= len(gpu.instances):
            raise self._error(NOT_FOUND)
        return SimpleNamespace(id=gpu.instances[index], parent=gpu)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, instance: SimpleNamespace) -> Gpu:
        return instance.parent
