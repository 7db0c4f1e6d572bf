"""GPU sensors through NVML.

NVML is imported when it is first needed. From NVIDIA's reference: the energy counter (Volta and later) counts
millijoules since the driver was loaded and is renewed every 20 to 100 ms; power is instantaneous up to GA100 and a
one-second average on later chips; a MIG instance has no power reading of its own. A GH200's counter includes its CPU.
"""

import errno
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lorakit.power.kernel_files import read_if_allowed

NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNINITIALIZED, TIMEOUT = 3, 4, 15, 1, 10
NOT_FOUND = 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, LIB_RM_VERSION_MISMATCH = 9, 12, 18
FIELD_POWER_AVERAGE = 185
MIG_ENABLED = 1
COUNTER_LAG_S = 0.1
UNKNOWN_GPU_W = 3000.0  # no board draws more; used where the power limit cannot be read
JETSON_DEVICES = ("nvhost-gpu", "nvmap", "nvgpu")  # an integrated GPU is not on the PCI bus
WSL_LIBRARY = "/usr/lib/wsl/lib/libnvidia-ml.so.1"
NO_GPU = "there is no NVIDIA GPU on the PCI bus"
IF_THERE_IS = " if there is a GPU"  # ends what helps only where there is one, which the kernel does not tell
PEAK = 1.25  # a board may exceed its limit by this factor for a tenth of a second


class SensorUnavailable(Exception):
    """There is no such sensor here; the text says why, `fix` how to get it."""

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
    """Start NVML; `close_nvml` ends the session.

    Args:
        nvml: a module with pynvml's functions, None to import pynvml.
        pci, dev: folders in which the kernel lists devices; they show what is missing.

    Returns:
        The module whose functions to call.

    Raises:
        SensorUnavailable: pynvml or the driver is missing, or their versions differ.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError as error:
            fix = pynvml_fix(pci, dev)
            raise SensorUnavailable(f"pynvml cannot be imported ({error})", fix) from error
    missing = [name for name in ("nvmlInit", "NVMLError", "nvmlDeviceGetCount") if not hasattr(nvml, name)]
    if missing:
        fix = "pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py"
        raise SensorUnavailable(f"the module pynvml has no {missing[0]}: it is not NVIDIA's", fix)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise SensorUnavailable(f"NVML: {error}", nvml_fix(getattr(error, "value", None), pci, dev)) from error
    return nvml


def pynvml_fix(pci: Path, dev: Path) -> str:
    """What installing pynvml would give, by the devices that the kernel lists."""
    install = "pip install nvidia-ml-py"
    if (dev / "dxg").exists() or (dev / "nvidiactl").exists():
        return install
    found = nvml_fix(LIBRARY_NOT_FOUND, pci, dev)
    if found.startswith(("Jetson", NO_GPU)):
        return found
    return f"{install}{IF_THERE_IS}" if IF_THERE_IS in found else install


def nvml_fix(code: int | None, pci: Path, dev: Path) -> str:
    """How to make NVML start, by its error code and by the devices that the kernel lists."""
    if (dev / "dxg").exists():  # the GPU is behind Microsoft's adapter, and no driver module belongs here
        return (
            f"WSL2: use the library of Windows' driver, {WSL_LIBRARY} (export LD_LIBRARY_PATH=/usr/lib/wsl/lib), and "
            "remove the distribution's own (sudo apt remove 'libnvidia-compute-*' 'nvidia-compute-utils-*')"
        )
    if any((dev / name).exists() for name in JETSON_DEVICES):
        return (
            "Jetson: NVML has no power reading for its GPU; the board's sensor (ina3221), if there is one, is shown "
            "as machine"
        )
    if code == NO_PERMISSION:
        return f"add this user to the group that may open {dev}/nvidiactl (ls -l {dev}/nvidia*)"
    if code == LIB_RM_VERSION_MISMATCH:
        return "restart the machine: the driver was updated, but the kernel still runs the old one"
    if code == DRIVER_NOT_LOADED:
        return "sudo modprobe nvidia"
    if code != LIBRARY_NOT_FOUND:
        return "nvidia-smi shows the driver's own diagnosis"
    if (dev / "nvidiactl").exists():
        return (
            "the driver runs, but its library libnvidia-ml.so.1 is missing; in a container: docker run --gpus all ..."
        )
    devices = [(read_if_allowed(path / "vendor"), read_if_allowed(path / "class")) for path in pci.glob("*")]
    if any(vendor == "0x10de" and kind.startswith("0x03") for vendor, kind in devices):
        return "install NVIDIA's driver for the GPU on the PCI bus; in a container: docker run --gpus all ..."
    if devices:
        return NO_GPU
    return f"install NVIDIA's driver{IF_THERE_IS}; in a container: docker run --gpus all ..."


def close_nvml(nvml: Any) -> None:
    """End the session; an error at this point has no consequence."""
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        pass


def list_gpus(nvml: Any) -> tuple[list[Gpu], list[str]]:
    """All GPUs of the machine in NVML's order, and a note for each that cannot be opened.

    Raises:
        SensorUnavailable: NVML does not list them.
    """
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
    """The best sensor of this GPU: its energy counter, else its power.

    Each is tried twice, because a first call may time out.

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


def superchip_note(gpu: Gpu) -> str | None:
    """What is not known about the counter of a GPU that shares its board with a Grace CPU; None for all others.

    A GH200's counter is the whole module's (Zeus, pull request 172). A GB200 or GB300 has two GPUs to one Grace.
    """
    name = next((name for name in ("GB200", "GB300") if name in gpu.name), None)
    if name is None:
        return None
    return (
        f"{name}: it is not documented whether a GPU's energy counter holds the GPU alone or the module with its CPU; "
        "each is compared with the GPU's power samples, and a note says so if they differ"
    )


class _NvmlSensor:
    """Common to both GPU sensors: identity, power bound, and NVML's errors as OSError."""

    kind = "gpu"
    modulus: int | None = None

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        self.nvml, self.gpu = nvml, gpu
        self.id, self.name = gpu.uuid, gpu.name
        self.scope = "module" if "GH200" in gpu.name else "device"
        try:
            limits_mw = self._call("nvmlDeviceGetPowerManagementLimitConstraints")
            self.max_w = max(limits_mw) / 1e3 * PEAK
        except OSError:
            self.max_w = UNKNOWN_GPU_W
        if self.scope == "module" or superchip_note(gpu) or self.max_w <= 0:
            self.max_w = UNKNOWN_GPU_W
        self.read()

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self.nvml, function)(self.gpu.handle, *arguments)
        except AttributeError as error:
            raise OSError(errno.ENOTSUP, f"this pynvml has no {function}") from error
        except self.nvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code == UNINITIALIZED:  # another library in this process shut NVML down once too often
                try:
                    self.nvml.nvmlInit()
                except self.nvml.NVMLError:
                    pass
            known = {NOT_SUPPORTED: errno.ENOTSUP, NO_PERMISSION: errno.EACCES, GPU_IS_LOST: errno.ENODEV}
            raise OSError(known.get(code, errno.EIO), f"{function}: {error}") from error

    def busy(self) -> bool | None:
        """Whether the GPU is computing, None where NVML does not tell."""
        try:
            return self._call("nvmlDeviceGetUtilizationRates").gpu > 0
        except OSError:
            return None

    def close(self) -> None:
        """Nothing is kept open; the meter ends NVML's session."""


class GpuEnergy(_NvmlSensor):
    """NVML's total energy counter, mJ."""

    method = "counter"
    source = "NVML total energy"
    unit_j = 1e-3
    lag_s = COUNTER_LAG_S

    def read(self) -> int:
        """Millijoules since the driver was loaded."""
        return int(self._call("nvmlDeviceGetTotalEnergyConsumption"))


class GpuPower(_NvmlSensor):
    """NVML's power, W: the one-second average where the chip has one, else `nvmlDeviceGetPowerUsage`."""

    method = "sampled"
    unit_j = 1.0
    lag_s = 1.0

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        self._averages: bool | None = None  # set by the first reading, so that the two are never mixed
        super().__init__(nvml, gpu)
        self.source = "NVML power, 1 s average" if self._averages else "NVML power"

    def read(self) -> float:
        """Power, W."""
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
        if field.nvmlReturn != 0:  # the call succeeds even if this field failed
            code = errno.EIO if field.nvmlReturn == TIMEOUT else errno.ENOTSUP
            raise OSError(code, f"power average: NVML error {field.nvmlReturn}")
        return field.value.uiVal / 1e3


class GpuPowerCheck(GpuPower):
    """The power of a GPU whose energy counter is counted: a second opinion that enters no total."""

    kind = "check"

    def __init__(self, nvml: Any, gpu: Gpu) -> None:
        super().__init__(nvml, gpu)
        self.id = f"{gpu.uuid} power"


def has_mig(nvml: Any, gpu: Gpu) -> bool:
    """Whether the GPU is divided into MIG instances now."""
    try:
        return nvml.nvmlDeviceGetMigMode(gpu.handle)[0] == MIG_ENABLED
    except (nvml.NVMLError, AttributeError):
        return False


def mig_parents(nvml: Any, gpus: list[Gpu]) -> dict[str, str]:
    """Map the UUID of each MIG instance to the UUID of its GPU."""
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


def compute_processes(nvml: Any, gpu: Gpu) -> list[int] | None:
    """Ids of the processes computing on a GPU, None where NVML does not tell."""
    try:
        return [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle)]
    except (nvml.NVMLError, AttributeError):
        return None


def process_utilization(nvml: Any, gpu: Gpu, since_us: int) -> tuple[dict[int, float], int] | None:
    """How busy each process kept a GPU lately, 0 to 1 by process id, None where NVML does not tell.

    Args:
        since_us: the time of the newest sample seen before, µs as NVML counts, 0 for all that the driver still has.

    Returns:
        The mean over each process's new samples, and the time of the newest.
    """
    try:
        samples = nvml.nvmlDeviceGetProcessUtilization(gpu.handle, since_us)
    except nvml.NVMLError as error:
        return ({}, since_us) if getattr(error, "value", None) == NOT_FOUND else None  # nobody computed
    except AttributeError:
        return None
    busy: dict[int, list[float]] = {}
    for sample in samples:
        if sample.timeStamp > since_us:
            busy.setdefault(sample.pid, []).append(sample.smUtil / 100)
    newest = max([since_us, *(sample.timeStamp for sample in samples)])
    return {pid: min(1.0, sum(shares) / len(shares)) for pid, shares in busy.items()}, newest


def driver_version(nvml: Any) -> str | None:
    """Version of NVIDIA's driver, None where NVML does not tell."""
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except (nvml.NVMLError, AttributeError):
        return None


def gpu_conditions(nvml: Any, gpu: Gpu) -> dict[str, Any]:
    """Temperature, power limit and clocks, to compare runs; None for what NVML does not tell."""

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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
