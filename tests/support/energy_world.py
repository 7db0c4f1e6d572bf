"""A machine in virtual time for the energy tests: devices with known power, and the sensors that show it.

Power is piecewise constant, so that the true energy of any stretch of time is an exact sum. NVML and powercap show the
integral with a tick and faults of the test's choice; nothing in here shares code with lorakit.
"""

import errno
import os
import threading
from bisect import bisect_right
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import lorakit.energy as energy

OPEN, LIST = os.open, os.listdir


class Profile:
    """Power over time: `steps` are (start in s, watts) with rising starts, the first at 0."""

    def __init__(self, *steps: tuple[float, float]) -> None:
        assert steps[0][0] == 0
        self.starts, self.watts = [start for start, _ in steps], [watts for _, watts in steps]
        self.sums = [0.0]
        for index in range(1, len(steps)):
            width = self.starts[index] - self.starts[index - 1]
            self.sums.append(self.sums[-1] + self.watts[index - 1] * width)

    def at(self, time: float) -> float:
        return self.watts[bisect_right(self.starts, time) - 1]

    def joules(self, until: float) -> float:
        if until <= 0:
            return 0.0
        index = bisect_right(self.starts, until) - 1
        return self.sums[index] + self.watts[index] * (until - self.starts[index])

    def between(self, start: float, end: float) -> float:
        return self.joules(end) - self.joules(start)


class VirtualClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep_s = 0.0
        self.wall_s = 1.7e9

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now + self.asleep_s

    def wall(self) -> float:
        return self.wall_s

    def wait(self, event: threading.Event, seconds: float) -> bool:
        raise AssertionError("the tests' meters have no thread")


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeGpu:
    """One GPU: its energy since `origin` is shown in full ticks of time, as by NVML."""

    def __init__(self, uuid, profile, name="Tesla V100", tick_s=0.1, counter=True, limit_w=400.0, start_mj=5_000_000):
        self.uuid, self.profile, self.name = uuid, profile, name
        self.tick_s, self.counter, self.limit_w, self.start_mj = tick_s, counter, limit_w, start_mj
        self.utilization = 90
        self.faults = {}  # function -> NVML error code that it raises
        self.counter_shift_mj = 0
        self.counter_gain = 1.0
        self.frozen_at = None
        self.processes = []
        self.utilizations = {}  # process id -> % of the GPU's time
        self.mig = None  # True and False: the GPU's MIG mode; None: a GPU without MIG
        self.instances = []  # UUIDs of its MIG instances


class FakeNvml:
    """The functions of pynvml that lorakit calls."""

    NVMLError = NVMLError

    def __init__(self, clock: VirtualClock, gpus) -> None:
        self.clock, self.gpus, self.origin = clock, list(gpus), clock.now
        self.calls = []
        self.sessions = 0
        self.init_fault = None
        self.read_s = 0.0
        self.has_average = False

    def _enter(self, function, gpu=None):
        self.calls.append((function, threading.get_ident()))
        self.clock.now += self.read_s
        code = gpu.faults.get(function, gpu.faults.get("*")) if gpu is not None else None
        if code is not None:
            raise NVMLError(code)

    def nvmlInit(self):
        if self.init_fault is not None:
            raise NVMLError(self.init_fault)
        self.sessions += 1

    def nvmlShutdown(self):
        self.sessions -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        gpu = self.gpus[index]
        self._enter("nvmlDeviceGetHandleByIndex", gpu)
        return gpu

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu):
        return gpu.name

    def nvmlDeviceGetPowerManagementLimitConstraints(self, gpu):
        self._enter("nvmlDeviceGetPowerManagementLimitConstraints", gpu)
        return [100_000, int(gpu.limit_w * 1000)]

    def nvmlDeviceGetPowerManagementLimit(self, gpu):
        return int(gpu.limit_w * 1000)

    def nvmlDeviceGetPersistenceMode(self, gpu):
        return 1

    def nvmlDeviceGetTemperature(self, gpu, _sensor):
        return 40 + int(self.clock.now - self.origin) // 10

    def nvmlDeviceGetClockInfo(self, gpu, kind):
        return {1: 1530, 2: 877}[kind]

    def nvmlSystemGetDriverVersion(self):
        return "570.1"

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=pid) for pid in gpu.processes]

    def nvmlDeviceGetMigMode(self, gpu):
        if gpu.mig is None:
            raise NVMLError(3)
        return [int(gpu.mig), int(gpu.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu):
        return 0 if gpu.mig is None else 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, index):
        if index >= len(gpu.instances):
            raise NVMLError(6)
        return FakeGpu(gpu.instances[index], None)

    def nvmlDeviceGetProcessUtilization(self, gpu, since_us):
        now_us = int(self.clock.now * 1e6)
        if not gpu.utilizations or now_us <= since_us:
            raise NVMLError(6)
        return [SimpleNamespace(pid=p, timeStamp=now_us, smUtil=u) for p, u in gpu.utilizations.items()]

    def nvmlDeviceGetUtilizationRates(self, gpu):
        self._enter("nvmlDeviceGetUtilizationRates", gpu)
        return SimpleNamespace(gpu=gpu.utilization)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        self._enter("nvmlDeviceGetTotalEnergyConsumption", gpu)
        if not gpu.counter:
            raise NVMLError(3)
        time = self.clock.now - self.origin
        if gpu.frozen_at is not None:
            time = min(time, gpu.frozen_at)
        shown = time if gpu.tick_s == 0 else int(time / gpu.tick_s + 1e-9) * gpu.tick_s
        return gpu.start_mj + gpu.counter_shift_mj + int(gpu.profile.joules(shown) * 1000 * gpu.counter_gain)

    def nvmlDeviceGetFieldValues(self, gpu, fields):
        self._enter("nvmlDeviceGetFieldValues", gpu)
        assert fields == [185]
        if not self.has_average:
            return [SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(uiVal=0))]
        time = self.clock.now - self.origin
        watts = gpu.profile.between(time - 1, time) if time >= 1 else gpu.profile.at(0)
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=int(watts * 1000)))]

    def nvmlDeviceGetPowerUsage(self, gpu):
        self._enter("nvmlDeviceGetPowerUsage", gpu)
        return int(gpu.profile.at(self.clock.now - self.origin) * 1000)


class FakeZone:
    """One powercap folder, filled by `write`."""

    def __init__(self, root: Path, key, name, profile=None, max_range=262_143_328_850, start_uj=1_000_000, tdp_w=None):
        self.path, self.profile, self.max_range, self.start_uj = root / key, profile, max_range, start_uj
        self.path.mkdir(parents=True)
        (self.path / "name").write_text(name + "\n")
        (self.path / "max_energy_range_uj").write_text(f"{max_range}\n")
        if tdp_w is not None:
            (self.path / "constraint_0_max_power_uw").write_text(f"{int(tdp_w * 1e6)}\n")
        self.file = self.path / "energy_uj"
        self.write(0.0)

    def write(self, time: float) -> None:
        joules = self.profile.joules(time) if self.profile is not None else 0.0
        self.file.write_text(f"{(self.start_uj + int(joules * 1e6)) % (self.max_range + 1)}\n")


def write_meminfo(proc: Path, total_kb: int = 33_554_432) -> None:
    """The lines of /proc/meminfo that psutil reads, with a total and zeros."""
    names = ("MemFree", "MemAvailable", "Buffers", "Cached", "Shmem", "Active", "Inactive", "Slab")
    lines = [f"MemTotal: {total_kb} kB", *(f"{name}: 0 kB" for name in names)]
    (proc / "meminfo").write_text("\n".join(lines) + "\n")


class World:
    """A clock, GPUs and zones, and meters that read them."""

    def __init__(self, tmp_path: Path, gpus=(), zones=()) -> None:
        """`zones` are (key, name, profile, options)."""
        self.clock = VirtualClock()
        self.nvml = FakeNvml(self.clock, gpus)
        self.root = tmp_path / "powercap"
        self.root.mkdir()
        self.zones = {zone[0]: FakeZone(self.root, *zone[:3], **(zone[3] if len(zone) > 3 else {})) for zone in zones}
        self.proc = tmp_path / "proc"
        self.proc.mkdir()
        self.busy_s = self.own_s = self.steal_s = self.pressure_s = 0.0
        self.has_pressure = True
        write_meminfo(self.proc)
        self.write()

    def meter(self, **given) -> energy.EnergyMeter:
        options = {"environ": {}, "thread": False, "proc": self.proc, "edac": self.root.parent / "edac"}
        options = {**options, "hwmon": self.root.parent / "hwmon", "events": self.root.parent / "events"} | given
        return energy.EnergyMeter(self.root, self.nvml, self.clock, **options)

    @property
    def time(self) -> float:
        return self.clock.now - self.nvml.origin

    def write(self) -> None:
        for zone in self.zones.values():
            zone.write(self.time)
        ticks, stolen = round(self.busy_s * 100), round(self.steal_s * 100)
        line = f"{ticks} 0 0 99999 0 0 0 {stolen} 0 0"
        (self.proc / "stat").write_text(f"cpu  {line}\ncpu0 {line}\n")
        own = self.proc / str(os.getpid())
        (own / "task" / own.name).mkdir(parents=True, exist_ok=True)
        (own / "task" / own.name / "children").write_text("")
        (own / "stat").write_text(f"{own.name} (python) S 1 {'0 ' * 9}{round(self.own_s * 100)} 0 0 0 {'0 ' * 30}\n")
        pressure = self.proc / "pressure"
        if self.has_pressure:
            pressure.mkdir(exist_ok=True)
            (pressure / "cpu").write_text(
                f"some avg10=0.00 avg60=0.00 avg300=0.00 total={round(self.pressure_s * 1e6)}\n"
            )

    def use(
        self, seconds: float, own: float = 0.0, others: float = 0.0, steal: float = 0.0, pressure: float = 0.0
    ) -> None:
        """Let time pass in which so many CPUs are used by us and by others, stolen, and waited for (0 to 1)."""
        self.busy_s += (own + others) * seconds
        self.own_s += own * seconds
        self.steal_s += steal * seconds
        self.pressure_s += pressure * seconds
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        self.write()

    def run(self, meter: energy.EnergyMeter, seconds: float, every_s: float = 5.0) -> None:
        """Let time pass with the sampler at work."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.advance(min(every_s, end - self.clock.now))
            meter.sample()


P100, P200 = Profile((0, 100.0)), Profile((0, 200.0))
ZONE = [("intel-rapl:0", "package-0", P100)]


def two_gpus(tmp_path, **options):
    return World(tmp_path, [FakeGpu("GPU-a", P100, **options), FakeGpu("GPU-b", P200)], ZONE)


def deny(monkeypatch, closed=("*/energy_uj",)):
    """Make the kernel refuse to open the files, and to list the folders, that these patterns name."""

    def check(path):
        if any(fnmatch(str(path), pattern) for pattern in closed):
            raise PermissionError(errno.EACCES, "Permission denied")

    def opened(path, *arguments, **options):
        check(path)
        return OPEN(path, *arguments, **options)

    def listed(path="."):
        check(path)
        return LIST(path)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "listdir", listed)


def device(reading, name):
    return next(part for part in reading.gpu.devices if part["id"] == name)


def slow_reads(nvml):
    """Make NVML's next energy reading wait; returns the events that announce and end the wait."""
    held, go_on = threading.Event(), threading.Event()
    real = nvml.nvmlDeviceGetTotalEnergyConsumption

    def slow(gpu):
        nvml.nvmlDeviceGetTotalEnergyConsumption = real
        held.set()
        assert go_on.wait(30), "somebody waited for the sampler"
        return real(gpu)

    nvml.nvmlDeviceGetTotalEnergyConsumption = slow
    return held, go_on


class FakeTorch:
    """The part of torch that the meter looks at."""

    def __init__(self, initialized):
        self.synchronized = 0
        self.cuda = SimpleNamespace(is_initialized=lambda: initialized, synchronize=self.count, device_count=lambda: 0)

    def count(self):
        self.synchronized += 1
