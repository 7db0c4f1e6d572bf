"""The devices of one machine as a meter counts them: which there are, which are counted, and why others are not.

`find_devices` looks for every GPU that the process can use, for every RAPL zone, and estimates what has no sensor. Each
gets an accumulator, from which `Devices` makes the measurements of a window. What is not counted, cannot be read or is
missing is kept with its reason, so that every number states what it leaves out.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorakit.power.accumulator import DeviceAccumulator, EnergyAccumulator, mirrored
from lorakit.power.calibration import Calibration, calibration_file, load_calibration, machine_name
from lorakit.power.cpu_time import CpuLoad
from lorakit.power.device_sums import DeviceEnergy, estimate_energy, sum_devices
from lorakit.power.estimates import PowerRange, count_dimms, estimate_cpu, estimate_ram, memory_bytes
from lorakit.power.hwmon import MACHINE, HwmonSensor, HwmonSource, closed_files, find_hwmon
from lorakit.power.kernel_files import is_folder, is_missing
from lorakit.power.nvml import (
    Gpu,
    GpuPowerCheck,
    SensorUnavailable,
    close_nvml,
    compute_processes,
    driver_version,
    gpu_conditions,
    has_mig,
    list_gpus,
    mig_parents,
    open_gpu,
    open_nvml,
    process_utilization,
    superchip_note,
)
from lorakit.power.perf_rapl import PerfCounter, PerfEvent, find_perf_events
from lorakit.power.power_limits import machine_limit
from lorakit.power.rapl import RaplCounter, Zone, find_zones
from lorakit.power.rapl_access import diagnose
from lorakit.power.reading import ESTIMATE, JOULES_PER_WH, KINDS, Measurement
from lorakit.power.unit_faults import PERF_FACTOR, find_unit_faults, perf_dram_doubt
from lorakit.power.visible_gpus import cuda_uuids, hidden_gpus, visible_gpus

NOTHING: Mapping[str, str] = MappingProxyType({})
RAM_ESTIMATE = "ram-estimate"  # stands for the RAM where it has no counter
IN_MODULE = "inside the GPU's counter, which holds the whole module"


class Devices:
    """What a meter counts, and what it leaves out.

    Args:
        accumulator: receives every device.

    Attributes:
        notes: remarks for the reader of the numbers.
        gpus: all GPUs of the machine. gpu_of_mig: maps the UUID of a MIG instance to that of its GPU.
        unread: by kind, devices that should count but cannot be read.
        not_counted: by kind, records of devices whose energy is not included: id, name, why.
        missing: by kind, why there is no number.
        ranges: by kind, the power range of an estimate.
        checks: by a GPU's id, the accumulator of its power samples beside its energy counter.
        most: by id, how many times its figure a device's energy may be, where its unit is in doubt.
    """

    def __init__(self, accumulator: EnergyAccumulator) -> None:
        self.accumulator = accumulator
        self.notes: list[str] = []
        self.nvml: Any = None
        self.gpus: list[Gpu] = []
        self.gpu_of_mig: dict[str, str] = {}
        self.unread: dict[str, list[DeviceEnergy]] = {kind: [] for kind in KINDS}
        self.not_counted: dict[str, list[dict[str, str]]] = {kind: [] for kind in KINDS}
        self.missing: dict[str, str] = {}
        self.ranges: dict[str, PowerRange] = {}
        self.checks: dict[str, DeviceAccumulator] = {}
        self.most: dict[str, float] = {}
        self.calibration: Calibration | None = None  # of the whole machine, where nothing of it is measured
        self._seen_us: dict[str, int] = {}  # by GPU, the newest sample of its processes' utilization

    def close(self) -> None:
        """Close all sources and the NVML session."""
        for device in self.accumulator.devices:
            device.source.close()
        if self.nvml is not None:
            close_nvml(self.nvml)

    # ---- one count per job

    def shared_ids(self) -> list[str]:
        """Ids of everything that one process of a job should count: devices, and estimates without a device."""
        devices = [device.source.id for device in self.accumulator.devices if device.source.kind != "check"]
        return devices + [RAM_ESTIMATE] * ("ram" in self.ranges)

    def give_up(self, device: str, reason: str) -> None:
        """Stop counting a device because another process counts it."""
        if device == RAM_ESTIMATE:
            self.ranges.pop("ram")
            self.missing["ram"] = reason
            return
        (found,) = (part for part in self.accumulator.devices if part.source.id == device)
        source = found.source
        self.accumulator.remove(found)
        if device in self.checks:
            self.accumulator.remove(self.checks.pop(device))
        kind = kind_of(source)
        self.not_counted[kind].append({"id": source.id, "name": source.name, "why": reason})
        self.missing[kind] = reason
        if source.method == "estimated":
            self.ranges.pop(kind)

    # ---- measurements

    def measured(self) -> list[DeviceAccumulator]:
        """The devices whose energies make up the measured total."""
        repeated = mirrored(self.accumulator.devices)
        counted = [part for part in self.accumulator.devices if part.source.kind in KINDS and part not in repeated]
        return [device for device in counted if device.source.method != "estimated"]

    def measure(
        self,
        kind: str,
        window: str,
        duration_s: float,
        idle: Mapping[str, tuple[float, float]],
        without: Mapping[str, str] = NOTHING,
    ) -> Measurement:
        """The energy of one kind in a window.

        Args:
            kind: "gpu", "cpu", "ram", or what stands beside them: "platform" (psys) or "machine".
            duration_s: how long the window was open, s.
            idle: maps a device's id to its idle power and that power's standard error, W.
            without: maps the ids of devices to leave out, as `reading.counted_devices` names them, to the reason.
        """
        devices, now = self.accumulator.of_kind(kind), self.accumulator.time()
        if kind in self.ranges and (why := without.get(ESTIMATE.format(kind.upper()))):
            return Measurement("unavailable", source=why)
        if kind in self.ranges:
            power = self.ranges[kind]
            load_j = sum(device.total(window, now).joules or 0.0 for device in devices) if devices else None
            if kind == "cpu" and self.calibration is not None:
                return _calibrated(self.calibration, load_j or 0.0, duration_s)
            return estimate_energy(power.low_w, power.high_w, power.source, duration_s, load_j)
        left_out = dict.fromkeys((device.source.id for device in mirrored(devices)), "repeats another die's counter")
        left_out |= without
        energies = [self._energy(device, window, idle) for device in devices if device.source.id not in left_out]
        energies += [part for part in self.unread.get(kind, []) if part.id not in left_out]
        not_counted = self.not_counted.get(kind, []) + [
            {"id": device.source.id, "name": device.source.name, "why": left_out[device.source.id]}
            for device in devices
            if device.source.id in left_out
        ]
        if not energies:
            reason = self.missing.get(kind) or "; ".join(dict.fromkeys(without.values())) or "there is no sensor"
            return Measurement("unavailable", source=reason, not_counted=tuple(not_counted))
        return sum_devices(energies, duration_s, not_counted)

    def _energy(self, device: DeviceAccumulator, window: str, idle: Mapping[str, tuple[float, float]]) -> DeviceEnergy:
        source, now = device.source, self.accumulator.time()
        total = device.total(window, now)
        samples = self.checks[source.id].total(window, now) if source.id in self.checks else None
        most = self.most.get(source.id, 1.0)
        return DeviceEnergy(
            id=source.id,
            name=source.name,
            method=source.method,
            source=source.source if total.joules is not None else device.trouble or "not read yet",
            scope=source.scope,
            joules=total.joules,
            covered_s=total.covered_s,
            wanted_s=total.wanted_s,
            uncertainty_j=most * total.uncertainty_j + (most - 1) * (total.joules or 0.0),
            uncertainty_kind=total.uncertainty_kind,
            gaps=tuple(vars(gap) for gap in total.gaps),
            gap_count=total.gap_count,
            failed_readings=device.failures,
            longest_interval_s=device.longest_s,
            wrap_risks=device.wrap_risks,
            idle=idle.get(source.id),
            power_w=(samples or total).power_w,
            integral_j=samples.joules if samples else None,
        )

    # ---- what makes runs comparable, and what makes a number doubtful

    def driver(self) -> str | None:
        """Version of NVIDIA's driver, None without one."""
        return driver_version(self.nvml) if self.nvml else None

    def conditions(self) -> dict[str, Any]:
        """Temperature, limits and clocks of the counted GPUs now, by UUID."""
        counted = [device.source.id for device in self.accumulator.devices]
        return {gpu.uuid: gpu_conditions(self.nvml, gpu) for gpu in self.gpus if gpu.uuid in counted}

    def busy_elsewhere(self, ours: Collection[int], proc: Path, counted_only: bool = False) -> list[int] | None:
        """Ids of other processes that compute on the GPUs, None if it cannot be told.

        Args:
            ours: ids of our own processes.
            proc: the kernel's /proc.
            counted_only: leave out GPUs that this meter does not count.
        """
        counted = {device.source.id for device in self.accumulator.devices}
        gpus = [gpu for gpu in self.gpus if gpu.uuid in counted or not counted_only]
        lists = [compute_processes(self.nvml, gpu) for gpu in gpus]
        if not lists or None in lists:
            return None
        found = {pid for pids in lists for pid in pids}
        others = _strangers(found, ours, proc)
        return None if others is None else sorted(others)

    def gpus_in_use(self, ours: Collection[int], proc: Path) -> tuple[float, float] | None:
        """Counted GPUs that compute for our processes and for others, None if it cannot be told.

        1.0 is one GPU that computes all the time.
        """
        counted = {device.source.id for device in self.accumulator.devices}
        own = others = 0.0
        for gpu in self.gpus:
            if gpu.uuid not in counted:
                continue
            found = process_utilization(self.nvml, gpu, self._seen_us.get(gpu.uuid, 0))
            if found is None:
                return None
            busy, self._seen_us[gpu.uuid] = found
            strangers = _strangers(busy, ours, proc)
            if strangers is None:
                return None
            own += sum(share for pid, share in busy.items() if pid not in strangers)
            others += sum(share for pid, share in busy.items() if pid in strangers)
        return own, others

    def uncounted_cuda_gpus(self) -> list[str]:
        """GPUs that CUDA uses in this process but that are not counted, by UUID."""
        counted = {device.source.id for device in self.accumulator.devices}
        used = [self.gpu_of_mig.get(f"MIG-{uuid}", f"GPU-{uuid}") for uuid in cuda_uuids() or ()]
        return [uuid for uuid in dict.fromkeys(used) if uuid not in counted] if self.nvml is not None else []

    def checked(self) -> Iterator[tuple[DeviceAccumulator, DeviceAccumulator]]:
        """Each GPU's energy counter with its power samples, where both are read."""
        for device in self.accumulator.of_kind("gpu"):
            if device.source.id in self.checks:
                yield device, self.checks[device.source.id]


def kind_of(device: Any) -> str:
    """The kind that lists a source or zone: its own, or "cpu" for psys and what belongs to no kind."""
    return device.kind if device.kind in KINDS else "cpu"


def _strangers(found: Collection[int], ours: Collection[int], proc: Path) -> set[int] | None:
    """Which of the processes that NVML lists are not ours, None if it cannot be told.

    In a container NVML may list the host's ids. If none of them is ours and some are not processes here, ours may be
    among them, so nothing is known.
    """
    others = set(found) - set(ours)
    if len(others) == len(found) and any(is_missing(proc / str(pid)) for pid in others):
        return None
    return others


def find_devices(
    accumulator: EnergyAccumulator,
    *,
    powercap: Path,
    proc: Path,
    edac: Path,
    nvml: Any,
    environ: Mapping[str, str],
    hwmon: Path,
    events: Path,
) -> Devices:
    """Find what can be counted on this machine, best sensor first.

    Args:
        accumulator: receives every device.
        powercap, proc, edac, hwmon, events: the kernel's folders.
        nvml: a module with pynvml's functions, None to import pynvml.
        environ: names the visible GPUs.
    """
    devices = Devices(accumulator)
    _find_gpus(devices, nvml, environ)
    zones = find_zones(powercap)
    _find_rapl(devices, zones, proc)
    access, dram = diagnose(powercap, proc), diagnose(powercap, proc, "dram")
    shut = {kind for kind, part in (("cpu", access), ("ram", dram)) if part.is_shut}
    if access.state in ("denied", "masked") and not accumulator.of_kind("ram"):
        shut.add("ram")
    for kind in sorted(shut):
        _find_perf(devices, [event for event in find_perf_events(events) if event.kind == kind], kind, proc)
    _find_hwmon(devices, find_hwmon(hwmon), environ)
    if not accumulator.of_kind("cpu"):
        unread = [part for part in devices.unread["cpu"] if part.id not in {zone.key for zone in zones}]
        if unread and access.state == "absent":  # a sensor was found that this user may not read
            devices.missing["cpu"] = "; ".join(f"{part.id}: {part.source}" for part in unread)
        else:
            devices.missing["cpu"] = f"{access.state}: {access.reason}; {access.fix}"
    if _gpu_holds_module(accumulator):
        _leave_to_module(devices)
    else:
        _estimate_cpu(devices, zones, proc, environ)
        _estimate_ram(devices, proc, edac)
    return devices


def _find_gpus(devices: Devices, nvml: Any, environ: Mapping[str, str]) -> None:
    try:
        devices.nvml = open_nvml(nvml)
        devices.gpus, notes = list_gpus(devices.nvml)
    except SensorUnavailable as error:
        devices.missing["gpu"] = f"{error}; {error.fix}"
        return
    listed = [(gpu.uuid, gpu.name) for gpu in devices.gpus]
    devices.gpu_of_mig = mig_parents(devices.nvml, devices.gpus)
    divided = {gpu.uuid for gpu in devices.gpus if has_mig(devices.nvml, gpu)} | set(devices.gpu_of_mig.values())
    visible = visible_gpus(environ, listed, devices.gpu_of_mig, cuda_uuids(), divided)
    devices.notes += [*notes, *visible.notes]
    devices.missing["gpu"] = visible.problem or "; ".join(visible.notes) or "NVML lists no GPU"
    for gpu in devices.gpus:
        if gpu.uuid not in visible.uuids:
            why = visible.problem or "CUDA does not show it to this process"
            devices.not_counted["gpu"].append({"id": gpu.uuid, "name": gpu.name, "why": why})
            continue
        try:
            _add_gpu(devices, gpu)
        except SensorUnavailable as error:
            devices.unread["gpu"].append(DeviceEnergy(gpu.uuid, gpu.name, "unavailable", str(error), "device"))


def _add_gpu(devices: Devices, gpu: Gpu) -> None:
    sensor = open_gpu(devices.nvml, gpu)
    devices.accumulator.add(sensor)
    note = superchip_note(gpu)
    devices.notes += [note] if note and note not in devices.notes else []
    if sensor.method == "counter" and sensor.scope == "device":  # a module's power reading may cover its GPU alone
        try:
            devices.checks[gpu.uuid] = devices.accumulator.add(GpuPowerCheck(devices.nvml, gpu))
        except OSError:
            return  # no second opinion on this GPU


def _find_rapl(devices: Devices, zones: list[Zone], proc: Path) -> None:
    faults = find_unit_faults(zones, proc)
    for zone in zones:
        if not zone.counted:
            devices.not_counted[kind_of(zone)].append({"id": zone.key, "name": zone.name, "why": zone.why})
        if not zone.is_read:
            continue
        try:
            fault = faults.get(zone.key)
            devices.accumulator.add(RaplCounter(zone, fault.factor if fault else 1.0))
            devices.notes += [fault.note] if fault else []
        except (OSError, ValueError) as error:
            if zone.counted:
                unread = DeviceEnergy(zone.key, zone.name, "unavailable", f"not read: {error}", "socket")
                devices.unread[kind_of(zone)].append(unread)


def _find_perf(devices: Devices, events: list[PerfEvent], kind: str, proc: Path) -> None:
    """Read a kind by RAPL's perf events, where powercap is closed and they are not, or hides some of the packages.

    Perf does not say which zone an event belongs to. So it is taken for all packages or for none.
    """
    counters: list[PerfCounter] = []
    refused: list[DeviceEnergy] = []
    for event in events:  # one may be refused and the next not: a package whose CPU went offline
        try:
            counters.append(PerfCounter(event))
        except OSError as error:
            why = f"not read: {error.strerror}"
            refused.append(DeviceEnergy(event.id, event.title, "unavailable", why, "socket"))
    by_powercap = devices.accumulator.of_kind(kind)
    if len(counters) <= len(by_powercap):
        for counter in counters:
            counter.close()
        return  # what powercap said stays the reason
    for device in by_powercap:
        devices.accumulator.remove(device)
        devices.notes = [note for note in devices.notes if not note.startswith(f"{device.source.id}: ")]  # of its unit
    for counter in counters:
        devices.accumulator.add(counter)
    devices.unread[kind] = refused
    doubt = perf_dram_doubt(proc) if kind == "ram" else None
    if doubt:
        devices.notes.append(doubt)
        devices.most |= {counter.id: PERF_FACTOR for counter in counters}


def _find_hwmon(devices: Devices, sensors: list[HwmonSensor], environ: Mapping[str, str]) -> None:
    """Add what hwmon has beyond NVML and RAPL; a machine's own power is a quantity of its own."""
    hidden: dict[str, str] = {}
    for is_amd in (True, False):
        of_maker = [part.id for part in sensors if part.kind == "gpu" and part.id.startswith("amdgpu") == is_amd]
        found, notes = hidden_gpus(of_maker, environ)
        hidden |= found
        devices.notes += notes
    taken = {kind: f"RAPL counts the {kind.upper()}" for kind in ("cpu", "ram") if devices.accumulator.of_kind(kind)}
    if _gpu_holds_module(devices.accumulator):
        taken = dict.fromkeys(("cpu", "ram"), IN_MODULE)
    for sensor in sorted(sensors, key=lambda sensor: not sensor.counts_energy):  # of a machine's meters the best first
        why = sensor.why or hidden.get(sensor.id) or taken.get(sensor.kind, "")
        why = why or (_why_not_machine(devices, sensor) if sensor.kind == MACHINE else "")
        if why:
            kind = sensor.kind or ("gpu" if sensor.driver.startswith(("i915", "xe")) else "cpu")
            record = {"id": sensor.id, "name": sensor.name, "why": why}
            devices.not_counted.setdefault(kind, []).append(record)
            devices.notes += [f"{sensor.id} is not counted: {why}"] if kind == MACHINE or sensor.is_unknown else []
        else:
            _add_hwmon(devices, sensor)


def _why_not_machine(devices: Devices, sensor: HwmonSensor) -> str:
    """Why a meter of the whole machine, or of a module, is not counted beside those already counted; "" if it is."""
    for device in devices.accumulator.of_kind(MACHINE):
        if "node" in (device.source.scope, sensor.scope):  # modules of several sockets are added up
            return f"{device.source.id} measures this machine already"
    return ""


def _add_hwmon(devices: Devices, sensor: HwmonSensor) -> None:
    try:
        devices.accumulator.add(HwmonSource(sensor))
    except OSError as error:
        is_closed = isinstance(error, PermissionError)
        closed = dict.fromkeys([*sensor.closed, *closed_files(sensor.paths)]) if is_closed else {}
        mode = "a+rx" if any(map(is_folder, closed)) else "a+r"
        fix = f"; sudo chmod {mode} {' '.join(map(str, closed))}" if closed else ""
        reason = f"not read: {error.strerror}{fix}"
        if sensor.kind in KINDS:
            unread = DeviceEnergy(sensor.id, sensor.name, "unavailable", reason, sensor.scope)
            devices.unread[sensor.kind].append(unread)
        if sensor.kind != "gpu":  # an estimate may stand for a CPU, and nothing for a machine
            devices.notes.append(f"{sensor.name}: {reason}")
        return
    if sensor.kind in ("cpu", "ram"):
        still = [part for part in devices.unread[sensor.kind] if not part.id.startswith("intel-rapl")]
        devices.unread[sensor.kind] = still


def _gpu_holds_module(accumulator: EnergyAccumulator) -> bool:
    """Whether a GPU's counter includes CPU and RAM; a board's own meter of its module is in no total."""
    return any(device.source.scope == "module" for device in accumulator.of_kind("gpu"))


def _leave_to_module(devices: Devices) -> None:
    """Where a GPU's counter includes CPU and RAM, an estimate would count them twice."""
    for kind in ("cpu", "ram"):
        if not devices.accumulator.of_kind(kind):
            devices.missing[kind] = IN_MODULE
    if not devices.accumulator.of_kind("cpu"):
        devices.unread["cpu"] = []


def _calibrated(found: Calibration, load_j: float, duration_s: float) -> Measurement:
    low_j, high_j = found.range_j(load_j, duration_s)
    estimate = estimate_energy(found.idle_w, found.load_w, found.source, duration_s, load_j)
    return replace(estimate, range_wh=(low_j / JOULES_PER_WH, high_j / JOULES_PER_WH))


def _estimate_cpu(devices: Devices, zones: list[Zone], proc: Path, environ: Mapping[str, str]) -> None:
    """A range for the CPUs where there is no counter at all."""
    if devices.accumulator.of_kind("cpu"):
        return
    threads = os.cpu_count() or 1
    found, note = load_calibration(calibration_file(environ), machine_name(proc))
    if found is not None and devices.accumulator.of_kind("gpu"):
        found, note = None, "the calibration is not used: it contains the GPUs, which are measured here"
    devices.notes += [note] if note else []
    limit = machine_limit(zone.path for zone in zones if zone.counted and zone.role == "package")
    power = PowerRange(found.idle_w, found.load_w, found.source) if found else estimate_cpu(limit, threads)
    try:
        devices.accumulator.add(CpuLoad(power.low_w, power.high_w, power.source, threads, proc))
        devices.ranges["cpu"] = power
        devices.calibration = found
    except OSError as error:
        devices.missing["cpu"] += f"; no estimate either: {error.filename or proc}: {error.strerror}"


def _estimate_ram(devices: Devices, proc: Path, edac: Path) -> None:
    """A range for the RAM where there is no counter at all."""
    if devices.accumulator.of_kind("ram"):
        return
    if devices.calibration is not None:
        devices.missing["ram"] = "inside the CPU's estimate, which is calibrated for the whole machine"
        return
    total = memory_bytes(proc)
    if total is None:
        devices.missing["ram"] = f"no DRAM counter, and {proc}/meminfo does not tell the size"
    else:
        devices.ranges["ram"] = estimate_ram(total, count_dimms(edac))
