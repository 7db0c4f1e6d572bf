"""GPU sensors through NVML, and estimates where there is no sensor: each says what it is.

NVML is imported when it is first needed. Its facts, from NVIDIA's reference: the energy counter (Volta and later)
counts millijoules since the driver was loaded and is renewed every 20 to 100 ms; power is instantaneous up to GA100
and a one-second average on later chips; a MIG instance has no power of its own; a GH200's counter holds its CPU too.
"""

import errno
import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNINITIALIZED, TIMEOUT = 3, 4, 15, 1, 10
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, LIB_RM_VERSION_MISMATCH = 9, 12, 18
FIELD_POWER_AVERAGE = 185
COUNTER_LAG_S = 0.1
UNKNOWN_GPU_W = 3000.0  # no board draws more; used where the limit cannot be read
PEAK = 1.25  # a board may pass its limit by this for a tenth of a second


class SensorUnavailable(Exception):
    """There is no such sensor here; the text says why, `fix` what would help."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML lists it."""

    index: int
    uuid: str
    name: str
    handle: Any


def open_nvml(nvml: Any = None, pci: Path = Path("/sys/bus/pci/devices"), dev: Path = Path("/dev")) -> Any:
    """Start NVML and return it (pynvml's functions); `close_nvml` ends it.

    Args:
        pci, dev: where the kernel lists devices; they tell what is missing.

    Raises:
        SensorUnavailable: no pynvml, no driver, or another version of it.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError as error:
            raise SensorUnavailable(f"pynvml cannot be imported ({error})", "pip install nvidia-ml-py") from error
    missing = [name for name in ("nvmlInit", "NVMLError", "nvmlDeviceGetCount") if not hasattr(nvml, name)]
    if missing:
        fix = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
        raise SensorUnavailable(f"the module pynvml has no {missing[0]}: it is not NVIDIA's", fix)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise SensorUnavailable(f"NVML: {error}", nvml_fix(getattr(error, "value", None), pci, dev)) from error
    return nvml


def nvml_fix(code: int | None, pci: Path, dev: Path) -> str:
    """What helps when NVML does not start, by its error and by what the kernel shows."""
    if code == NO_PERMISSION:
        return f"add this user to the group that may open {dev}/nvidiactl (ls -l {dev}/nvidia*)"
    if code == LIB_RM_VERSION_MISMATCH:
        return "restart the machine: the driver was updated, the kernel still runs the old one"
    if code == DRIVER_NOT_LOADED:
        return "sudo modprobe nvidia"
    if code != LIBRARY_NOT_FOUND:
        return "nvidia-smi shows the driver's own diagnosis"
    if (dev / "nvidiactl").exists():
        return "the driver runs, its library libnvidia-ml.so.1 is missing; in a container: docker run --gpus all ..."
    devices = [(_read(path / "vendor") or "", _read(path / "class") or "") for path in pci.glob("*")]
    if any(vendor.strip() == "0x10de" and kind.startswith("0x03") for vendor, kind in devices):
        return "install NVIDIA's driver for the GPU on the PCI bus; in a container: docker run --gpus all ..."
    if devices:
        return "there is no NVIDIA GPU on the PCI bus (other makers' GPUs are not read)"
    return "install NVIDIA's driver if there is a GPU; in a container: docker run --gpus all ..."


def close_nvml(nvml: Any) -> None:
    """Give the session back; errors at this point harm nobody."""
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        pass


def list_gpus(nvml: Any) -> tuple[list[Gpu], list[str]]:
    """All GPUs of the machine in NVML's order, and a note for each that cannot be opened."""
    gpus, notes = [], []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise SensorUnavailable(f"NVML: {error}", "nvidia-smi shows the driver's own diagnosis") from error
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError as error:
            notes.append(f"GPU {index} cannot be opened: {error}")
            continue
        gpus.append(Gpu(index, _text(uuid), _text(name), handle))
    return gpus, notes


def open_gpu(nvml: Any, gpu: Gpu) -> "GpuEnergy | GpuPower":
    """The best sensor of this GPU: its energy counter, else its power; each is asked twice, for it may time out once.

    Raises:
        SensorUnavailable: it has neither.
    """
    reasons = []
    for sensor in (GpuEnergy, GpuEnergy, GpuPower, GpuPower):
        try:
            return sensor(nvml, gpu)
        except OSError as error:
            reasons.append(str(error.strerror))
    raise SensorUnavailable(f"GPU {gpu.index} ({gpu.name}): {'; '.join(dict.fromkeys(reasons))}")


class _NvmlSensor:
    """What both GPU sensors share: identity, power bound, and NVML's errors as OSError."""

    kind = "gpu"
    modulus: int | None = None

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        self.nvml, self.gpu = nvml, gpu
        self.id, self.name = gpu.uuid, gpu.name
        self.scope = "module" if "GH200" in gpu.name or "GB200" in gpu.name else "device"
        try:
            limits_mw = self._call("nvmlDeviceGetPowerManagementLimitConstraints")
            self.max_w = max(limits_mw) / 1e3 * PEAK
        except OSError:
            self.max_w = UNKNOWN_GPU_W
        if self.scope == "module" or self.max_w <= 0:
            self.max_w = UNKNOWN_GPU_W
        self.read()

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self.nvml, function)(self.gpu.handle, *arguments)
        except AttributeError as error:
            raise OSError(errno.ENOTSUP, f"this pynvml has no {function}") from error
        except self.nvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code == UNINITIALIZED:  # someone else in this process shut NVML down once too often
                try:
                    self.nvml.nvmlInit()
                except self.nvml.NVMLError:
                    pass
            known = {NOT_SUPPORTED: errno.ENOTSUP, NO_PERMISSION: errno.EACCES, GPU_IS_LOST: errno.ENODEV}
            raise OSError(known.get(code, errno.EIO), f"{function}: {error}") from error

    def busy(self) -> bool | None:
        try:
            return self._call("nvmlDeviceGetUtilizationRates").gpu > 0
        except OSError:
            return None

    def close(self) -> None:
        """Nothing is held; NVML's session is closed by the meter."""


class GpuEnergy(_NvmlSensor):
    """NVML's total energy counter, mJ."""

    method = "counter"
    source = "NVML total energy"
    unit_j = 1e-3
    lag_s = COUNTER_LAG_S

    def read(self) -> int:
        return int(self._call("nvmlDeviceGetTotalEnergyConsumption"))


class GpuPower(_NvmlSensor):
    """NVML's power, W: the one-second average where the chip has one, else what `nvmlDeviceGetPowerUsage` gives."""

    method = "sampled"
    unit_j = 1.0
    lag_s = 1.0

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        self._averages: bool | None = None  # settled by the first reading: the two are not mixed afterwards
        super().__init__(nvml, gpu)
        self.source = "NVML power, 1 s average" if self._averages else "NVML power"

    def read(self) -> float:
        if self._averages is not False:
            try:
                watts = self._average_w()
                self._averages = True
                return watts
            except OSError as error:
                if self._averages or error.errno != errno.ENOTSUP:
                    raise
                self._averages = False
        return self._call("nvmlDeviceGetPowerUsage") / 1e3

    def _average_w(self) -> float:
        field = self._call("nvmlDeviceGetFieldValues", [FIELD_POWER_AVERAGE])[0]
        if field.nvmlReturn != 0:  # the call succeeds even where this one field does not
            code = errno.EIO if field.nvmlReturn == TIMEOUT else errno.ENOTSUP
            raise OSError(code, f"power average: NVML error {field.nvmlReturn}")
        return field.value.uiVal / 1e3


class GpuPowerCheck(GpuPower):
    """The power of a GPU whose energy counter is counted: in no quantity, only beside it."""

    kind = "check"

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        super().__init__(nvml, gpu)
        self.id = f"{gpu.uuid} power"


def mig_parents(nvml: Any, gpus: list[Gpu]) -> dict[str, str]:
    """UUID of each MIG instance -> UUID of its GPU."""
    parents = {}
    for gpu in gpus:
        try:
            slots = nvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)
        except (nvml.NVMLError, AttributeError):
            continue  # a GPU without MIG
        for slot in range(slots):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, slot)
                parents[_text(nvml.nvmlDeviceGetUUID(instance))] = gpu.uuid
            except nvml.NVMLError:
                continue  # an empty slot
    return parents


def compute_processes(nvml: Any, gpu: Gpu) -> list[int]:
    """Ids of the processes that compute on a GPU; empty where NVML does not tell."""
    try:
        return [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle)]
    except (nvml.NVMLError, AttributeError):
        return []


def driver_version(nvml: Any) -> str | None:
    """NVIDIA's driver, None where NVML does not tell."""
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except (nvml.NVMLError, AttributeError):
        return None


def gpu_conditions(nvml: Any, gpu: Gpu) -> dict[str, Any]:
    """What makes two runs comparable; what NVML does not tell is None."""

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(gpu.handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    limit_mw = ask("nvmlDeviceGetPowerManagementLimit")
    persistence = ask("nvmlDeviceGetPersistenceMode")
    return {
        "name": gpu.name,
        "temperature_c": ask("nvmlDeviceGetTemperature", 0),
        "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
        "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", 1),
        "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", 2),
        "persistence": None if persistence is None else bool(persistence),
    }


@dataclass(frozen=True)
class PowerRange:
    """An estimate: between `low_w` and `high_w`; `source` says from what."""

    low_w: float
    high_w: float
    source: str


def estimate_cpu(tdp_w: float | None, threads: int) -> PowerRange:
    """CPU power between idle and full load, W.

    With the packages' TDP: a tenth of it to all of it. Without: 0.5 to 8 W per logical CPU, which spans laptops (28 W
    for 8) to servers (280 W for 128) and desktops (125 W for 16).

    Args:
        tdp_w: long-term limit of all packages, W, None if unknown.
        threads: logical CPUs that the kernel shows.
    """
    if tdp_w is not None:
        return PowerRange(0.1 * tdp_w, tdp_w, f"10 to 100 % of {tdp_w:g} W (constraint_0_max_power_uw), by load")
    return PowerRange(0.5 * threads, 8.0 * threads, f"0.5 to 8 W for each of {threads} logical CPUs, by load")


def estimate_ram(total_bytes: int, dimms: int | None) -> PowerRange:
    """RAM power, W: 2 to 6 W per DIMM where their number is known, else 0.1 to 0.4 W per GiB."""
    if dimms:
        return PowerRange(2.0 * dimms, 6.0 * dimms, f"2 to 6 W for each of {dimms} DIMMs")
    gib = total_bytes / 2**30
    return PowerRange(0.1 * gib, 0.4 * gib, f"0.1 to 0.4 W for each of {gib:.1f} GiB")


def count_dimms(edac: Path) -> int | None:
    """DIMMs that the memory controllers list (ECC servers only), None if there is no such list."""
    sizes = [_read(path) for path in Path(edac).glob("mc*/dimm*/size")]
    filled = sum(1 for size in sizes if size and size.strip() not in ("", "0"))
    return filled or None


def memory_bytes(proc: Path) -> int | None:
    """Installed memory less the kernel's reservation (MemTotal)."""
    for line in (_read(Path(proc) / "meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


class CpuLoad:
    """Busy CPU-seconds of the machine, a count that an estimate turns into energy.

    Its joules are the part above idle: (high − low)/CPUs for each busy CPU-second. The constant low part is added for
    the time that the window lasted.

    Raises:
        OSError: there is no /proc/stat.
    """

    kind = "cpu"
    id = "cpu-load"
    name = "CPU load"
    method = "estimated"
    scope = "node"
    modulus: int | None = None
    lag_s = 0.05

    def __init__(self, power: PowerRange, threads: int, proc: Path) -> None:
        self.power, self.source = power, power.source
        self._path = Path(proc) / "stat"
        self._ticks = os.sysconf("SC_CLK_TCK")
        self.unit_j = (power.high_w - power.low_w) / threads
        self.max_w = (power.high_w - power.low_w) * 4  # the ticks of the kernel are not exact
        self.read()

    def read(self) -> float:
        return busy_cpu_s(self._path, self._ticks)

    def busy(self) -> bool | None:
        return False  # a machine that does nothing is no fault

    def close(self) -> None:
        """Nothing is held."""


def busy_cpu_s(stat: Path, ticks: int) -> float:
    """CPU-seconds that the machine spent working since boot: all but idle and waiting for disks.

    Raises:
        OSError: the file is missing or not in the kernel's format.
    """
    line = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
    if len(line) < 8 or line[0] != "cpu":
        raise OSError(errno.EIO, f"{stat} does not start with the sum over CPUs")
    if not all(word.isdigit() for word in line[1:8]):
        raise OSError(errno.EIO, f"{stat} holds {' '.join(line)!r}, not counts")
    user, nice, system, _idle, _iowait, irq, softirq = map(int, line[1:8])
    return (user + nice + system + irq + softirq) / ticks


def process_tree_cpu_s(proc: Path, root: int) -> float | None:
    """CPU-seconds of a process and all its descendants, alive or waited for; None where /proc does not tell.

    Children that lived and died between two looks are in their parent's sum, so none is missed. Only the tree is looked
    at: a server has thousands of other processes.
    """
    proc = Path(proc)
    members = _descendants(proc, root) or _descendants_by_parent(proc, root)
    stats = {pid: _process_stat(proc, pid) for pid in members}
    if stats[root] is None:
        return None
    return sum(ticks for _, ticks in filter(None, stats.values())) / os.sysconf("SC_CLK_TCK")


def _descendants(proc: Path, root: int) -> list[int] | None:
    """A process and its descendants as its threads' lists of children give them; None where the kernel keeps none."""
    found, listed = [root], False
    for pid in found:  # which grows
        try:
            threads = os.listdir(proc / str(pid) / "task")
        except OSError:
            continue  # it has ended
        for thread in threads:
            children = _read(proc / str(pid) / "task" / thread / "children")
            if children is not None:
                listed = True
                found += map(int, children.split())
    return found if listed else None


def _descendants_by_parent(proc: Path, root: int) -> list[int]:
    """The same from every process's parent, for kernels built without PROC_CHILDREN."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir() if proc.is_dir() else ():
        stat = _process_stat(proc, int(entry.name)) if entry.name.isdigit() else None
        if stat is not None:
            children.setdefault(stat[0], []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _process_stat(proc: Path, pid: int) -> tuple[int, int] | None:
    """A process's parent, and the clock ticks that it and its children that were waited for have used."""
    text = _read(proc / str(pid) / "stat")
    if not text:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return int(fields[1]), sum(map(int, fields[11:15]))  # utime stime cutime cstime


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
