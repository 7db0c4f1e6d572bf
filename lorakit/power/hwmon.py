"""Power and energy sensors of the kernel's hwmon folder: GPUs of AMD and Intel, Grace CPUs, and whole machines.

A sensor's role comes from the driver's name and the channel's label, never from its number:

- amdgpu: a GPU's power; on an APU that of the whole chip (Documentation/gpu/amdgpu/thermal.rst).
- i915, xe: a graphics card's energy. The channel "pkg" is part of "card", and tiles (i915_gt0) are part of their device
  (Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon and -xe-hwmon).
- power_meter: an ACPI meter. By `power1_oem_info` it is a Grace socket, one of its rails or its module, else the whole
  machine (Documentation/hwmon/acpi_power_meter.rst; NVIDIA's Grace tuning guide, "Power telemetry").
- ina3221: a Jetson's input, the rail VDD_IN (Documentation/hwmon/ina3221.rst).
- aem: an IBM server's own meter, through IPMI (Documentation/hwmon/ibmaem.rst).
- ibmpex: the same of older servers (drivers/hwmon/ibmpex.c). It names no channel, so several cannot be told apart.
- ibmpowernv: a POWER server: "System", "Chip N" and "Chip N Memory"; what else it has are parts or channels of these
  (Documentation/hwmon/ibmpowernv.rst; the labels: hw/occ-sensor.c of skiboot).
- apm_xgene: an X-Gene, eMAG or Altra: its CPU's power and its IO's (Documentation/hwmon/xgene-hwmon.rst).
- smpro_hwmon: an Altra's voltage regulators (Documentation/hwmon/smpro-hwmon.rst). On a board controller (BMC), known
  by its chip in the device tree, the same driver shows the server that it controls: named, and not counted.
- scmi_sensors: whatever the firmware calls by names of its own, so it is named and not counted.

A machine's own power contains its parts, so it is a quantity of its own that is added to nothing. Not yet run on such
hardware: the tests use trees of public reports and of the kernel's documentation.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.power.kernel_files import closed_folder, read_count, read_if_allowed, read_text

CHANNEL = re.compile(r"^(energy|power)(\d+)_(input|average)$")
GRACE = re.compile(r"^(Module|Grace|CPU|SysIO) Power Socket (\d+)$", re.IGNORECASE)
MACHINE = "machine"
BOARD_CONTROLLERS = r"aspeed,ast\d+|nuvoton,npcm\d+"  # Documentation/devicetree/bindings/arm/aspeed, …/arm/npcm
UNKNOWN_W = {"gpu": 1000.0, "cpu": 1000.0, "ram": 1000.0, MACHINE: 20_000.0}  # no such device draws more
PEAK = 1.25  # power may exceed its cap by this factor for a moment
INTERVAL_S = 1.0  # over which a driver averages that does not tell


@dataclass(frozen=True)
class HwmonSensor:
    """One channel.

    `kind` is "gpu", "cpu", "ram" or "machine"; None for what is not counted, with the reason in `why`: nobody knows
    what it measures (`is_unknown`), or it is a part of another sensor's device. `paths` are the files to read: one, or
    a voltage and a current. `closed` are files, or a folder, that this user may not read and without which it is not
    known what the sensor measures, so it is not read either.
    """

    id: str
    name: str
    driver: str
    kind: str | None
    scope: str
    paths: tuple[Path, ...]
    why: str = ""
    is_unknown: bool = False
    max_w: float = UNKNOWN_W[MACHINE]
    lag_s: float = INTERVAL_S
    busy_path: Path | None = None
    closed: tuple[Path, ...] = ()

    @property
    def counts_energy(self) -> bool:
        """Whether it is a running energy in µJ; otherwise it is a power."""
        return self.paths[0].name.startswith("energy")


def find_hwmon(root: Path) -> list[HwmonSensor]:
    """All sensors of power and energy, sorted by device; a folder that this user may not list stands for its own."""
    root = Path(root)
    found: list[HwmonSensor] = []
    try:
        names = [name for name in os.listdir(root) if name.startswith("hwmon")]
    except PermissionError:
        return [_closed_folder(root)]
    except OSError:
        return []  # a kernel without it
    for folder in (root / name for name in sorted(names, key=lambda name: (len(name), name))):
        driver = read_if_allowed(folder / "name") or read_if_allowed(folder / "device" / "name")
        reader = next((read for name, read in DRIVERS if re.fullmatch(name, driver)), None)
        if reader is not None:
            found += reader(folder, driver)
        elif not driver:
            found += _nameless(folder)
    return _without_rails(found)


def closed_files(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those that exist but that this user may not read."""
    found = []
    for path in paths:
        try:
            read_text(path)
        except PermissionError:
            found.append(path)
        except OSError:
            continue  # the driver's failure, which reading the sensor reports
    return tuple(found)


def _closed_folder(folder: Path) -> HwmonSensor:
    folder = closed_folder(folder) or folder
    return HwmonSensor(str(folder), f"sensors in {folder}", "", MACHINE, "node", (folder,), closed=(folder,))


def _nameless(folder: Path) -> Iterator[HwmonSensor]:
    """A folder with power or energy whose driver's name is closed, or that is closed itself: nobody knows of what."""
    try:
        os.listdir(folder)
    except PermissionError:
        yield _closed_folder(folder)
        return
    except OSError:
        return
    closed = closed_files([folder / "name", folder / "device" / "name"])
    path = next((path for path, _ in _channels(folder)), None)
    if closed and path is not None:
        yield HwmonSensor(folder.name, f"sensor {folder.name}", "", MACHINE, "node", (path,), closed=closed)


def _channels(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of power and energy in a folder and in its device, each with its label; averages before instants."""
    seen = set()
    for place in (folder, folder / "device"):
        try:
            names = sorted(os.listdir(place), key=lambda name: (not name.startswith("energy"), name))
        except OSError:
            continue
        for name in names:
            match = CHANNEL.match(name)
            if match and match.group(1, 2) not in seen:
                seen.add(match.group(1, 2))
                yield place / name, read_if_allowed(place / f"{match.group(1)}{match.group(2)}_label")


def _address(folder: Path) -> str:
    """The device's address on its bus, which stays the same when hwmon numbers change; else the folder's name."""
    device = folder / "device"
    return device.resolve().name if device.is_symlink() else folder.name


def _watts(path: Path) -> float | None:
    text = read_if_allowed(path)
    return int(text) / 1e6 if text.isdigit() and int(text) else None


def _amdgpu(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    label_paths = sorted(folder.glob("*_label"))
    labels = {read_if_allowed(path).lower() for path in label_paths}
    is_apu = "vddnb" in labels or "slowppt" in labels  # the north bridge's voltage: the CPU is on the same chip
    cap_w = _watts(folder / "power1_cap_max") or _watts(folder / "power1_cap")
    for path, _ in _channels(folder):
        yield HwmonSensor(
            id=f"amdgpu {_address(folder)}",
            name="AMD APU" if is_apu else "AMD GPU",
            driver=driver,
            kind="cpu" if is_apu else "gpu",
            scope="socket" if is_apu else "device",
            paths=(path,),
            max_w=cap_w * PEAK if cap_w and not is_apu else UNKNOWN_W["gpu"],
            busy_path=None if is_apu else folder / "device" / "gpu_busy_percent",
            closed=() if is_apu else closed_files(label_paths),
        )
        return  # one power per GPU


def _intel(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    """The card's energy, else the first channel; parts are listed."""
    channels = [(path, label) for path, label in _channels(folder) if path.name.startswith("energy")]
    whole = next((path for path, label in channels if label == "card"), channels[0][0] if channels else None)
    limit_w = _watts(folder / "power1_rated_max") or _watts(folder / "power1_max")
    label_paths = [path.with_name(path.name.replace("_input", "_label")) for path, _ in channels]
    closed = () if "card" in (label for _, label in channels) else closed_files(label_paths)
    for path, label in channels:
        tile = "_gt" in driver
        part = path != whole or tile
        yield HwmonSensor(
            id=f"{driver} {_address(folder)}" + (f" {label}" if part and label else ""),
            name=f"Intel GPU {label}".strip(),
            driver=driver,
            kind=None if part else "gpu",
            scope="device",
            paths=(path,),
            why=("a tile of its device" if tile else "part of the card") if part else "",
            max_w=2 * limit_w if limit_w else UNKNOWN_W["gpu"],
            lag_s=0.1,
            closed=() if part else closed,
        )


def _acpi(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    for path, _ in _channels(folder):
        about_path = path.parent / "power1_oem_info"
        about = read_if_allowed(about_path)
        interval_ms = read_if_allowed(path.parent / "power1_average_interval")
        match = GRACE.match(about)
        rail = match.group(1).lower() if match else ""
        kind = {"grace": "cpu", "cpu": "cpu", "sysio": None}.get(rail, MACHINE)
        yield HwmonSensor(
            id=f"acpi {about or _address(folder)}",
            name=about or "ACPI power meter",
            driver=driver,
            kind=kind,
            scope="socket" if kind != MACHINE else "module" if rail else "node",
            paths=(path,),
            why="part of the Grace socket's power" if kind is None else "",
            max_w=UNKNOWN_W[kind or "cpu"],
            lag_s=int(interval_ms) / 1e3 if interval_ms.isdigit() else INTERVAL_S,
            closed=closed_files([about_path]),
        )


def _jetson(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    for label_path in sorted(folder.glob("in*_label")):
        label, index = read_if_allowed(label_path), label_path.name.removeprefix("in").removesuffix("_label")
        paths = (folder / f"in{index}_input", folder / f"curr{index}_input")
        if label == "VDD_IN" and all(path.exists() for path in paths):
            yield HwmonSensor(f"ina3221 {label}", f"Jetson {label}", driver, MACHINE, "node", paths, max_w=500.0)
            return
    closed = closed_files(folder.glob("in*_label"))
    if closed:
        paths = (folder / "in1_input", folder / "curr1_input")
        yield HwmonSensor(f"ina3221 {_address(folder)}", "ina3221", driver, MACHINE, "node", paths, closed=closed)


def _server(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    for path, label in _channels(folder):  # energy first, where it counts energy
        name = f"{driver} {label}".strip()
        yield HwmonSensor(f"{driver} {label or path.name}", name, driver, MACHINE, "node", (path,))
        return


def _ibmpex(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    paths = tuple(path for path, _ in _channels(folder))
    if len(paths) == 1:
        yield HwmonSensor(f"{driver} {_address(folder)}", driver, driver, MACHINE, "node", paths, lag_s=2.0)
    elif paths:
        yield _unknown(
            folder, driver, paths, f"{driver} does not say which of its {len(paths)} powers is the machine's"
        )


def _scmi(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    channels = list(_channels(folder))
    if channels:
        named = ", ".join(label or path.name for path, label in channels)
        why = f"what the firmware calls {named} is documented nowhere"
        yield _unknown(folder, driver, tuple(path for path, _ in channels), why)


def _unknown(folder: Path, driver: str, paths: tuple[Path, ...], why: str) -> HwmonSensor:
    return HwmonSensor(f"{driver} {_address(folder)}", driver, driver, None, "node", paths, why, is_unknown=True)


LABELS = {  # of the channels that are whole devices or disjoint rails of one
    "apm_xgene": ((r"CPU power|IO power", "cpu"),),
    "smpro_hwmon": ((r"power\d+ (CORE VRD|SoC|RCA VRD)", "cpu"), (r"power\d+ DIMM VRD\d", "ram")),
    "ibmpowernv": ((r"System", MACHINE), (r"Chip \d+", "cpu"), (r"Chip \d+ Memory( \d+)?", "ram")),
}


def _labelled(folder: Path, driver: str) -> Iterator[HwmonSensor]:
    """One sensor per label, by energy where the driver counts it; the labels alone say what a channel is."""
    channels = list(_channels(folder))  # energy first
    if driver == "smpro_hwmon" and _is_board_controller(folder.parent):
        paths = tuple(path for path, _ in channels)
        yield _unknown(folder, driver, paths, "it is of the server that this board controller (BMC) controls")
        return
    closed = closed_files(path.with_name(path.name.rpartition("_")[0] + "_label") for path, _ in channels)
    if closed:
        id_ = f"{driver} {_address(folder)}"
        yield HwmonSensor(id_, driver, driver, MACHINE, "node", (channels[0][0],), closed=closed)
        return
    named: dict[str, Path] = {}
    for path, label in channels:
        named.setdefault(label or path.name, path)
    for name, path in named.items():
        kind = next((kind for pattern, kind in LABELS[driver] if re.fullmatch(pattern, name)), None)
        is_unknown = name == path.name
        why = "" if kind else f"{driver} has no label for it" if is_unknown else "part of the machine"
        if kind == "ram" and path.name.startswith("power") and read_if_allowed(path) == "0":
            kind, why = None, "draws nothing: no memory module is on it"
        yield HwmonSensor(
            id=f"{driver} {_address(folder)} {name}",
            name=f"{driver} {name}",
            driver=driver,
            kind=kind,
            scope="node" if kind == MACHINE else "socket",
            paths=(path,),
            why=why,
            is_unknown=is_unknown,
            max_w=UNKNOWN_W[kind or MACHINE],
        )


def _is_board_controller(root: Path) -> bool:
    """Whether this machine is a board controller, by the device tree beside sysfs' class/hwmon."""
    chips = read_if_allowed(root.parent.parent / "firmware" / "devicetree" / "base" / "compatible").split("\0")
    return any(re.fullmatch(BOARD_CONTROLLERS, chip) for chip in chips)


DRIVERS = (
    (r"amdgpu", _amdgpu),
    (r"i915(_gt\d+)?", _intel),
    (r"xe", _intel),
    (r"power_meter", _acpi),
    (r"ina3221", _jetson),
    (r"aem\d*", _server),
    (r"ibmpex", _ibmpex),
    (r"scmi_sensors", _scmi),
    ("|".join(LABELS), _labelled),
)


def _without_rails(sensors: list[HwmonSensor]) -> list[HwmonSensor]:
    """The same, with a Grace CPU's rail as a part where its socket has a sensor of its own."""
    names = [sensor.name.lower() for sensor in sensors]
    found = []
    for sensor, name in zip(sensors, names, strict=True):
        if name.startswith("cpu power socket") and name.replace("cpu", "grace", 1) in names:
            sensor = replace(sensor, kind=None, why="part of the Grace socket's power")
        found.append(sensor)
    return found


class HwmonSource:
    """A sensor as the accumulator reads it: a running energy, or a power.

    Raises:
        OSError: it cannot be read (PermissionError: denied, or what it measures is).
    """

    modulus: int | None = None  # the drivers extend the register to 64 bits

    def __init__(self, sensor: HwmonSensor) -> None:
        self.sensor = sensor
        self.kind = sensor.kind or "other"
        self.id, self.name, self.scope = sensor.id, sensor.name, sensor.scope
        self.method = "counter" if sensor.counts_energy else "sampled"
        self.source = f"hwmon {sensor.driver} ({sensor.paths[0].name})"
        self.unit_j = 1e-6 if sensor.counts_energy else 1.0
        self.max_w, self.lag_s = sensor.max_w, sensor.lag_s
        if sensor.closed:
            raise PermissionError(errno.EACCES, f"{sensor.closed[0]} may not be read by this user")
        self.read()

    def read(self) -> float:
        """Microjoules, or watts."""
        counts = []
        for path in self.sensor.paths:
            try:
                count = read_count(path)
            except ValueError as error:
                raise OSError(errno.EIO, str(error)) from error
            if count is None:
                raise OSError(errno.EIO, f"{path} is missing")  # it may come back, as a GPU that slept
            counts.append(count)
        if self.sensor.counts_energy:
            return counts[0]
        return counts[0] / 1e6 if len(counts) == 1 else counts[0] * counts[1] / 1e6  # µW, or mV times mA

    def busy(self) -> bool | None:
        """Whether the device is working, None where a GPU's driver does not tell."""
        if self.kind != "gpu":
            return True  # this code runs on it
        try:
            text = read_text(self.sensor.busy_path) if self.sensor.busy_path else None
        except OSError:
            return None
        return int(text) > 0 if text and text.isdigit() else None

    def close(self) -> None:
        """Nothing is kept open."""
