"""Forty machines whose joules are known: what their sensors show, and what they truly used.

Each is a description; `sensors.py` makes files and a fake NVML of it. Power is piecewise constant, so that the true
energy of any stretch of time is an exact sum. Most are public reports, named in `source`; the others are plain machines
on which every meter should be right. Nothing here is of lorakit, and only the standard library is imported: the
processes of the other meters import this file too.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MIDWAY_S = 6.0  # when something happens on a machine on which something happens
RANGE_262_KJ = 262_143_328_850  # µJ: 2**32 counts of 2**-14 J
RANGE_65_KJ = 65_532_610_987  # µJ: 2**32 counts of 2**-16 J, AMD's packages
RANGE_15_3 = 65_712_999_613  # µJ: 2**32 counts of 15.3 µJ, the DRAM of Intel's servers
RANGE_JOULES = 4_294_967_295_000_000  # µJ: Sapphire Rapids' psys counts whole joules
QUARTER = 15.3 / 61.03515625  # what a kernel with the wrong unit shows of Sapphire Rapids' DRAM
CLOSED, OPEN = 0o000, 0o444
ENERGY, LIMITS, RANGE = "energy_uj", "constraint", "max_energy_range_uj"


class Power:
    """Watts over time: (start in s, watts), the first start at 0."""

    def __init__(self, *steps: tuple[float, float]) -> None:
        self.starts, self.watts = [start for start, _ in steps], [watts for _, watts in steps]

    def at(self, time: float) -> float:
        """Watts at a time."""
        return self.watts[max(0, bisect_right(self.starts, time) - 1)]

    def joules(self, until: float) -> float:
        """Energy from 0 to a time."""
        ends = [*self.starts[1:], float("inf")]
        spans = zip(self.starts, ends, self.watts, strict=True)
        return sum(watts * (min(end, until) - start) for start, end, watts in spans if until > start)


@dataclass(frozen=True)
class Device:
    """Something that draws power, and the part of the machine that its energy belongs to.

    `part` is "cpu", "ram", "gpu" or "machine"; None if its energy is in another device, or not this process's.
    """

    id: str
    part: str | None
    power: Power


@dataclass(frozen=True)
class Zone(Device):
    """A powercap zone. `id` is its key, such as "intel-rapl:0:1"."""

    name: str = ""
    range_uj: int = RANGE_262_KJ
    start_uj: int = 5_000_000_000
    gain: float = 1.0  # what it shows of the true energy
    limits_w: tuple[float, float] | None = None  # long-term limit in force, nominal power
    closed: tuple[str, ...] = ()  # files that this user may not read: ENERGY, LIMITS, RANGE
    still: bool = False  # the counter does not move
    resets_s: float | None = None  # when it starts again at 0
    away_s: tuple[float, float] | None = None  # when energy_uj does not exist


@dataclass(frozen=True)
class Gpu(Device):
    """An NVIDIA GPU. `id` is its UUID."""

    name: str = "Tesla V100-SXM2-32GB"
    architecture: int = 5  # NVML's: 4 Pascal, 5 Volta, 6 Turing, 7 Ampere, 9 Hopper
    counter: bool = True
    limit_w: float = 400.0
    mig: bool = False
    instances: tuple[str, ...] = ()
    shown: Power | None = None  # what its power reading says, if not the truth
    frozen_s: float | None = None  # when its energy counter stops
    unsupported: bool = False  # NVML answers "not supported" to every reading
    others: tuple[int, ...] = ()  # other processes that compute on it


@dataclass(frozen=True)
class Hwmon(Device):
    """A folder of /sys/class/hwmon. `shows` names the file with the power (µW) or energy (µJ) of this device."""

    files: Mapping[str, str] = field(default_factory=dict)  # other files; "device/…" are the device's own
    shows: str = "power1_average"


@dataclass(frozen=True)
class Machine:
    """One machine.

    Attributes:
        what: its point, in words. source: where it was reported.
        judged: the parts that are compared. needs: the kind of sensor that they need, as in `CLAIMS` of `drive.py`.
        measurable: the sensors allow a right number; if not, to give none and say why is right.
    """

    name: str
    what: str
    source: str
    judged: tuple[str, ...]
    needs: str
    devices: tuple[Device, ...]
    measurable: bool = True
    environ: Mapping[str, str] = field(default_factory=dict)
    powercap: bool = True
    nvml_fault: int | None = 12  # error of nvmlInit, None if there is a driver; 12: no library
    cpu_model: int = 158  # of Intel's family 6
    cpu_name: str = "Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz"
    sockets: int = 1
    load: float = 0.7  # share of the CPUs' time that is used

    @property
    def cpus(self) -> int:
        """Logical CPUs."""
        return max(4, 2 * self.sockets)

    def of(self, kind: type) -> list:
        """The devices of a class."""
        return [device for device in self.devices if isinstance(device, kind)]

    def joules(self, parts: Iterable[str], start: float, end: float) -> float:
        """True energy of some parts between two times."""
        counted = [device for device in self.devices if device.part in parts]
        return sum(device.power.joules(end) - device.power.joules(start) for device in counted)


def zone(key: str, name: str, watts: float | Power, part: str | None = None, **more) -> Zone:
    """A zone whose part follows from its name; core, uncore and psys have none."""
    part = part or ("cpu" if name.startswith("package") else "ram" if name == "dram" else None)
    return Zone(key, part, watts if isinstance(watts, Power) else Power((0, watts)), name=name, **more)


def repeated(key: str, name: str, watts: float, **more) -> Zone:
    """A zone that shows what another shows too."""
    return Zone(key, None, Power((0, watts)), name=name, **more)


def gpu(uuid: str, watts: float | Power, part: str | None = "gpu", **more) -> Gpu:
    return Gpu(uuid, part, watts if isinstance(watts, Power) else Power((0, watts)), **more)


def package(watts: float, **more) -> tuple[Zone, ...]:
    """A package with its core and uncore, to whose files the same happens."""
    children = {"core": 0.6, "uncore": 0.1}
    same = {name: value for name, value in more.items() if name in ("closed", "still", "resets_s", "away_s")}
    return (
        zone("intel-rapl:0", "package-0", watts, **more),
        *(zone(f"intel-rapl:0:{k}", name, watts * share, **same) for k, (name, share) in enumerate(children.items())),
    )


def sockets(*watts: tuple[float, float], **more) -> tuple[Zone, ...]:
    """Packages with a DRAM zone each: (package, dram) watts."""
    found = []
    for k, (cpu_w, ram_w) in enumerate(watts):
        start = 7_000_000_000 * (k + 1)
        found.append(zone(f"intel-rapl:{k}", f"package-{k}", cpu_w, start_uj=start))
        found.append(zone(f"intel-rapl:{k}:0", "dram", ram_w, start_uj=start // 3, **{"range_uj": RANGE_15_3, **more}))
    return tuple(found)


def near_the_end(range_uj: int, watts: float, seconds: float) -> int:
    """Where a counter stands that starts again after so many seconds."""
    return range_uj - int(watts * seconds * 1e6)


def pascal(watts: Power, shown: Power | None = None) -> Gpu:
    return gpu(
        "GPU-p100", watts, name="Tesla P100-PCIE-16GB", architecture=4, counter=False, limit_w=250.0, shown=shown
    )


def a30(index: int, watts: float, part: str | None) -> Gpu:
    slices = tuple(f"MIG-3e1a{index}00{k}-5d52-5a1c-8b5e-0c4b4d3f1a{index}{k}" for k in range(4))
    more = {"name": "NVIDIA A30", "architecture": 7, "limit_w": 165.0, "mig": True, "instances": slices}
    return gpu(f"GPU-a3000000-0000-0000-0000-00000000000{index}", watts, part, **more)


A30S = (a30(0, 152.636, "gpu"), a30(1, 156.121, None))
UUIDS = [f"GPU-{k}a2b3c4d-0000-1111-2222-33333333000{k}" for k in range(8)]
FAST = {"name": "NVIDIA A100-SXM4-40GB", "architecture": 7}
SLOW = {"name": "Tesla T4", "architecture": 6, "limit_w": 70.0}
XEON = {"cpu_model": 85, "cpu_name": "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"}
TREES = "the kernel's powercap documentation"

MACHINES = (
    # ---- RAPL: which zones make up the machine
    Machine("laptop", "a package with core and uncore", TREES, ("cpu",), "rapl", package(28)),
    Machine(
        "desktop", "a package with core, uncore and dram", TREES, ("cpu", "ram"), "rapl-dram",
        (*package(65), zone("intel-rapl:0:2", "dram", 6)),
    ),
    Machine(
        "two-sockets", "two packages, each with dram", TREES, ("cpu", "ram"), "rapl-dram",
        sockets((150, 20), (140, 18)), sockets=2, **XEON,
    ),
    Machine(
        "four-sockets", "four packages, and four zones called dram", "siomon #70", ("cpu", "ram"), "rapl-dram",
        sockets((50, 14), (60, 14.1), (51.2, 14.05), (51, 14.05)), sockets=4, **XEON,
    ),
    Machine(
        "psys", "psys beside the package contains it", "kernel, intel_rapl_common.c", ("cpu",), "rapl",
        (*package(20), zone("intel-rapl:1", "psys", 38)),
    ),
    Machine(
        "psys-between", "psys is the second of three zones", "powertelemetry #3", ("cpu",), "rapl",
        (zone("intel-rapl:0", "package-0", 210), zone("intel-rapl:1", "psys", 640, range_uj=RANGE_JOULES),
         zone("intel-rapl:2", "package-1", 190, start_uj=9_000_000_000)),
        sockets=2, cpu_model=143, cpu_name="Intel(R) Xeon(R) Platinum 8480+",
    ),
    Machine(
        "mmio-still", "the MMIO twin of the package stands still", "constructed", ("cpu",), "rapl",
        (*package(24), repeated("intel-rapl-mmio:0", "package-0", 24, still=True)),
    ),
    Machine(
        "dies", "two dies with a zone each", "kernel, intel_rapl_common.c", ("cpu",), "rapl",
        (zone("intel-rapl:0", "package-0-die-0", 90),
         zone("intel-rapl:1", "package-0-die-1", 95, start_uj=11_000_000_000)),
    ),
    Machine(
        "mirrored-dies", "two die zones show one register", "codecarbon #1274", ("cpu",), "rapl",
        (zone("intel-rapl:0", "package-0-die-0", 68), repeated("intel-rapl:1", "package-0-die-1", 68)),
    ),
    Machine(
        "twelve-packages", "the ids of zones are hexadecimal: intel-rapl:a, :b", "kernel, powercap_sys.c", ("cpu",),
        "rapl", tuple(zone(f"intel-rapl:{k:x}", f"package-{k}", 40 + k, start_uj=10**9 * (k + 2)) for k in range(12)),
        sockets=12,
    ),
    # ---- RAPL: counters that start again
    Machine(
        "wrap", "the counter starts again midway", TREES, ("cpu",), "rapl",
        package(120, start_uj=near_the_end(RANGE_262_KJ, 120, MIDWAY_S)),
    ),
    Machine(
        "wrap-65kj", "two AMD packages of 65 kJ start again at different times", "energymon #53", ("cpu",), "rapl",
        tuple(zone(f"intel-rapl:{k}", f"package-{k}", watts, range_uj=RANGE_65_KJ,
                   start_uj=near_the_end(RANGE_65_KJ, watts, after))
              for k, watts, after in ((0, 280, 3.5), (1, 260, 8.5))), sockets=2,
    ),
    Machine(
        "reset", "the counter restarts at 0 far from its end (driver reloaded)", "constructed",
        ("cpu",), "rapl", package(90, start_uj=200_100_000_000, resets_s=MIDWAY_S),
    ),
    # ---- RAPL: files that cannot be read
    Machine(
        "denied", "energy_uj may not be read", "codecarbon #244", ("cpu",), "rapl",
        package(12, closed=(ENERGY,), limits_w=(15.0, 15.0)), measurable=False,
    ),
    Machine(
        "denied-all", "only the name may be read", "pyJoules #13", ("cpu",), "rapl",
        package(12, closed=(ENERGY, LIMITS, RANGE), limits_w=(15.0, 15.0)), measurable=False,
    ),
    Machine(
        "vanishes", "energy_uj is away for three seconds", "constructed", ("cpu",),
        "rapl", package(80, away_s=(4.0, 7.0)),
    ),
    Machine(
        "still", "the counter can be read and stands still (virtual machine)", "constructed", ("cpu",), "rapl",
        package(40, still=True, limits_w=(65.0, 65.0)), measurable=False,
    ),
    Machine(
        "masked", "a container without powercap", "GHSA-jq35-85cj-fj4p", ("cpu",), "rapl",
        (Device("package-0", "cpu", Power((0, 12))),), measurable=False, powercap=False,
    ),
    Machine(
        "limits", "denied; 135 W are allowed where 55 W are nominal", "raplcap #14", ("cpu",), "rapl",
        package(130, closed=(ENERGY,), limits_w=(135.0, 55.0)), measurable=False, load=1.0,
        cpu_model=183, cpu_name="13th Gen Intel(R) Core(TM) i9-13900HX",
    ),
    # ---- RAPL: units that the kernel has wrong
    Machine(
        "spr-dram", "Sapphire Rapids' DRAM, shown at a quarter", "likwid #642", ("ram",), "rapl-dram",
        (*sockets((200, 40), (190, 40), gain=QUARTER),
         zone("intel-rapl:2", "psys", 600, range_uj=RANGE_JOULES, start_uj=60_293_987_000_000)),
        sockets=2, cpu_model=143, cpu_name="Intel(R) Xeon(R) Platinum 8480+",
    ),
    Machine(
        "haswell-dram", "Haswell-EP's DRAM, shown four times too high", "HPCPerfStats #9", ("ram",), "rapl-dram",
        sockets((90, 15), (95, 16), range_uj=RANGE_262_KJ, gain=1 / QUARTER), sockets=2, cpu_model=63,
        cpu_name="Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz",
    ),
    # ---- NVML
    Machine("v100", "a GPU with an energy counter", "plain", ("gpu",), "nvml", (gpu(UUIDS[0], 250),), nvml_fault=None),
    Machine(
        "eight-gpus", "eight GPUs", "plain", ("gpu",), "nvml",
        tuple(gpu(UUIDS[k], 290 + k) for k in range(8)), nvml_fault=None,
    ),
    Machine(
        "pascal", "a GPU without an energy counter", "codecarbon #1316", ("gpu",), "nvml-power",
        (pascal(Power((0, 220))),), nvml_fault=None,
    ),
    Machine(
        "visible-one", "CUDA_VISIBLE_DEVICES=1 of two GPUs", "codecarbon #567", ("gpu",), "nvml-visible",
        (gpu(UUIDS[0], 60, None), gpu(UUIDS[1], 240)), nvml_fault=None, environ={"CUDA_VISIBLE_DEVICES": "1"},
    ),
    Machine(
        "visible-uuid", "CUDA_VISIBLE_DEVICES names the GPU by UUID", "zeus #109", ("gpu",), "nvml-visible",
        (gpu(UUIDS[0], 60, None), gpu(UUIDS[1], 240)), nvml_fault=None, environ={"CUDA_VISIBLE_DEVICES": UUIDS[1]},
    ),
    Machine(
        "fastest-first", "CUDA's GPU 0 is the fastest, NVML's the first on the bus", "CUDA programming guide",
        ("gpu",), "nvml-visible", (gpu(UUIDS[0], 30, None, **SLOW), gpu(UUIDS[1], 310, **FAST)), nvml_fault=None,
        environ={"CUDA_VISIBLE_DEVICES": "0"},
    ),
    Machine(
        "mig-by-uuid", "one MIG instance of two GPUs, by UUID", "slurm-job-exporter #55", ("gpu",), "nvml-visible",
        A30S, nvml_fault=None, environ={"CUDA_VISIBLE_DEVICES": A30S[0].instances[2]},
    ),
    Machine(
        "mig-bare", "MIG on two GPUs, CUDA_VISIBLE_DEVICES not set: CUDA uses one", "dcgm-exporter #317", ("gpu",),
        "nvml-visible", A30S, nvml_fault=None,
    ),
    Machine(
        "shared-gpu", "others compute on the same GPU: the number is the whole GPU's", "plain", ("gpu",), "nvml",
        (gpu(UUIDS[0], 280, others=(4_194_000,)),), nvml_fault=None,
    ),
    Machine(
        "eight-milliwatts", "a busy GPU that shows 8 mW", "MangoHud #1607", ("gpu",), "nvml-power",
        (pascal(Power((0, 60)), Power((0, 0.008))),), nvml_fault=None, measurable=False,
    ),
    Machine(
        "garbage-power", "3,700 W for three seconds, then the truth", "MangoHud #2144", ("gpu",), "nvml-power",
        (pascal(Power((0, 100)), Power((0, 3700.12), (3, 100))),), nvml_fault=None,
    ),
    Machine(
        "frozen-counter", "a busy GPU's energy counter stops midway", "constructed", ("gpu",), "nvml",
        (gpu(UUIDS[0], 250, frozen_s=MIDWAY_S),), nvml_fault=None,
    ),
    Machine(
        "jetson", "NVML starts and supports nothing", "intelligence-per-watt #40", ("gpu",), "nvml",
        (gpu(UUIDS[0], 25, name="Orin (nvgpu)", architecture=7, unsupported=True),), nvml_fault=None, measurable=False,
    ),
    Machine(
        "grace-hopper", "the GPU's counter holds the module, its CPU included", "zeus #172", ("gpu",), "nvml",
        (gpu(UUIDS[0], 620, name="NVIDIA GH200 480GB", architecture=9, limit_w=900.0),), nvml_fault=None,
        powercap=False,
    ),
    Machine(
        "no-driver", "an NVIDIA GPU whose driver is not loaded", "ollama #1888", ("gpu",), "nvml",
        (Device("gpu", "gpu", Power((0, 70))),), nvml_fault=9, measurable=False,
    ),
    # ---- hwmon
    Machine(
        "amd-gpu", "a Radeon's power through amdgpu", "Vitals #320", ("gpu",), "hwmon",
        (Hwmon("0000:03:00.0", "gpu", Power((0, 180)), files={
            "name": "amdgpu", "power1_label": "PPT", "power1_cap": "291000000", "power1_cap_max": "291000000",
            "in0_input": "825", "in0_label": "vddgfx", "device/gpu_busy_percent": "97"}),),
    ),
    Machine(
        "intel-gpu", "a Battlemage's energy through xe: the card, and its package as a part", "btop PR #1457", ("gpu",),
        "hwmon", (Hwmon("0000:03:00.0", "gpu", Power((0, 206)), shows="energy1_input", files={
            "name": "xe", "energy1_label": "card", "power1_label": "card", "power1_cap": "275000000"}),),
    ),
    Machine(
        "grace-cpu", "Grace's socket, CPU rail and SysIO rail through ACPI", "NVIDIA's Grace tuning guide", ("cpu",),
        "hwmon-grace", tuple(
            Hwmon(f"ACPI000D:0{k}", "cpu" if rail == "Grace" else None, Power((0, watts)), files={
                "name": "power_meter", "device/power1_oem_info": f"{rail} Power Socket 0",
                "device/power1_average_interval": "50"}, shows="device/power1_average")
            for k, (rail, watts) in enumerate((("Grace", 180), ("CPU", 120), ("SysIO", 20)))),
        powercap=False,
    ),
    Machine(
        "server-meter", "a server's own ACPI power meter, beside RAPL", "kernel, acpi_power_meter.rst", ("machine",),
        "hwmon", (*package(100), Hwmon("ACPI000D:00", "machine", Power((0, 230)), files={
            "name": "power_meter", "device/power1_average_interval": "1000"}, shows="device/power1_average")),
    ),
)  # fmt: skip
NAMED = {machine.name: machine for machine in MACHINES}
