"""The devices of one machine as a meter reads them: which there are, which are counted, and why others are not.

Opening finds every GPU that the process can use, every RAPL zone, and the estimates for what has no sensor; each gets a
ledger. From the ledgers come the quantities of a window. What is not counted, cannot be read or is missing is kept with
its reason, so that no number is silent about what it leaves out.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.power.accumulator import Books, Ledger, mirrored
from lorakit.power.cuda import cuda_uuids
from lorakit.power.nvml import (
    CpuLoad,
    Gpu,
    GpuPowerCheck,
    PowerRange,
    SensorUnavailable,
    close_nvml,
    compute_processes,
    count_dimms,
    driver_version,
    estimate_cpu,
    estimate_ram,
    gpu_conditions,
    list_gpus,
    memory_bytes,
    mig_parents,
    open_gpu,
    open_nvml,
)
from lorakit.power.rapl import RaplCounter, diagnose, find_zones, tdp_uw
from lorakit.power.reading import DeviceEnergy, Quantity, estimated_quantity, measured_quantity
from lorakit.power.visible_gpus import visible_gpus

KINDS = ("gpu", "cpu", "ram")
DISAGREEMENT = 0.05  # of counter and samples, their uncertainties aside; meters of one sensor were seen within 1 %
CHECKED = 0.98  # share of a window that both must cover to be compared


class Instruments:
    """What a meter reads.

    Args:
        books: get a ledger for each device.
        powercap, proc, edac: the kernel's folders. nvml: pynvml's functions, None imports pynvml.
        environ: names the visible GPUs.

    Attributes:
        notes: what a reader of the numbers must know.
    """

    def __init__(
        self, books: Books, powercap: Path, proc: Path, edac: Path, nvml: Any, environ: Mapping[str, str]
    ) -> None:
        self.notes: list[str] = []
        self._books = books
        self._nvml: Any = None
        self._gpus: list[Gpu] = []
        self._mig_parents: dict[str, str] = {}
        self._unread: dict[str, list[DeviceEnergy]] = {kind: [] for kind in KINDS}  # ought to count, cannot be read
        self._not_counted: dict[str, list[dict[str, str]]] = {kind: [] for kind in KINDS}
        self._missing: dict[str, str] = {}  # kind -> why it has no number
        self._ranges: dict[str, PowerRange] = {}
        self._checks: dict[str, Ledger] = {}  # GPU -> integral of its power, beside its counter
        self._open_gpus(nvml, environ)
        self._zones = find_zones(powercap)
        self._open_rapl(powercap, proc)
        self._open_estimates(proc, edac)

    def _open_gpus(self, nvml: Any, environ: Mapping[str, str]) -> None:
        try:
            self._nvml = open_nvml(nvml)
            self._gpus, notes = list_gpus(self._nvml)
        except SensorUnavailable as error:
            self._missing["gpu"] = f"{error}; {error.fix}"
            return
        listed = [(gpu.uuid, gpu.name) for gpu in self._gpus]
        self._mig_parents = mig_parents(self._nvml, self._gpus)
        visible = visible_gpus(environ, listed, self._mig_parents, cuda_uuids())
        self.notes += [*notes, *visible.notes]
        self._missing["gpu"] = visible.problem or "; ".join(visible.notes) or "NVML lists no GPU"
        for gpu in self._gpus:
            if gpu.uuid not in visible.uuids:
                why = visible.problem or "CUDA does not show it to this process"
                self._not_counted["gpu"].append({"id": gpu.uuid, "name": gpu.name, "why": why})
                continue
            try:
                self._open_gpu(gpu)
            except SensorUnavailable as error:
                self._unread["gpu"].append(DeviceEnergy(gpu.uuid, gpu.name, "unavailable", str(error), "device"))

    def _open_gpu(self, gpu: Gpu) -> None:
        sensor = open_gpu(self._nvml, gpu)
        self._books.add(sensor)
        if sensor.method == "counter" and sensor.scope == "device":  # a module's power may be asked of its GPU alone
            try:
                self._books.add(GpuPowerCheck(self._nvml, gpu))
            except OSError:
                return  # no second opinion on this GPU
            self._checks[gpu.uuid] = self._books.ledgers[-1]

    def _open_rapl(self, powercap: Path, proc: Path) -> None:
        for zone in self._zones:
            kind = zone.kind if zone.kind in KINDS else "cpu"
            if not zone.counted:
                self._not_counted[kind].append({"id": zone.key, "name": zone.name, "why": zone.why})
            if zone.is_read:
                try:
                    self._books.add(RaplCounter(zone))
                except (OSError, ValueError) as error:
                    if zone.counted:
                        reason = f"not read: {error}"
                        self._unread[kind].append(DeviceEnergy(zone.key, zone.name, "unavailable", reason, "socket"))
        if not self._books.of("cpu"):
            access = diagnose(powercap, proc)
            self._missing["cpu"] = f"{access.state}: {access.reason}; {access.fix}"

    def _open_estimates(self, proc: Path, edac: Path) -> None:
        """Ranges for CPU and RAM where there is no counter at all."""
        threads = os.cpu_count() or 1
        module = any(ledger.source.scope == "module" for ledger in self._books.ledgers)
        if not self._books.of("cpu"):
            if module:
                self._missing["cpu"] = "inside the GPU's counter, which holds the whole module"
                self._unread["cpu"] = []
            else:
                limits = [tdp_uw(zone) for zone in self._zones if zone.counted and zone.role == "package"]
                known = bool(limits) and None not in limits
                power = estimate_cpu(sum(limits) / 1e6 if known else None, threads)
                try:
                    self._books.add(CpuLoad(power, threads, proc))
                    self._ranges["cpu"] = power
                except (OSError, ValueError) as error:
                    self._missing["cpu"] += f"; no estimate either: {error}"
        if not self._books.of("ram"):
            total = memory_bytes(proc)
            if module:
                self._missing["ram"] = "inside the GPU's counter, which holds the whole module"
            elif total is None:
                self._missing["ram"] = f"no DRAM counter, and {proc}/meminfo does not tell the size"
            else:
                self._ranges["ram"] = estimate_ram(total, count_dimms(edac))

    def close(self) -> None:
        """Let go of descriptors and of the NVML session."""
        for ledger in self._books.ledgers:
            ledger.source.close()
        if self._nvml is not None:
            close_nvml(self._nvml)

    # ---- who counts what

    def claimable(self) -> list[str]:
        """Ids of everything that one process of a job should count: devices, and estimates without a device."""
        devices = [ledger.source.id for ledger in self._books.ledgers if ledger.source.kind != "check"]
        return devices + ["ram-estimate"] * ("ram" in self._ranges)

    def give_up(self, device: str, holder: str) -> None:
        """Stop counting a device that another process counts; `holder` tells which."""
        if device == "ram-estimate":
            self._ranges.pop("ram")
            self._missing["ram"] = holder
            return
        (ledger,) = (ledger for ledger in self._books.ledgers if ledger.source.id == device)
        self._books.ledgers.remove(ledger)
        if device in self._checks:
            self._books.ledgers.remove(self._checks.pop(device))
        source = ledger.source
        source.close()
        kind = source.kind if source.kind in KINDS else "cpu"
        self._not_counted[kind].append({"id": source.id, "name": source.name, "why": holder})
        self._missing[kind] = holder
        if source.method == "estimated":
            self._ranges.pop(kind)

    # ---- what the ledgers say

    def measuring(self) -> list[Ledger]:
        """The ledgers whose energies make up the measured total."""
        repeated = mirrored(self._books.ledgers)
        counted = [ledger for ledger in self._books.ledgers if ledger.source.kind in KINDS and ledger not in repeated]
        return [ledger for ledger in counted if ledger.source.method != "estimated"]

    def quantity(
        self, kind: str, path: str, duration_s: float, now: float, idle: Mapping[str, tuple[float, float]]
    ) -> Quantity:
        """One kind's energy in a window; `idle` is the idle power and its error by device, W."""
        ledgers = self._books.of(kind)
        if kind in self._ranges:
            power = self._ranges[kind]
            load_j = sum(ledger.total(path, now).joules or 0.0 for ledger in ledgers) if ledgers else None
            return estimated_quantity(power.low_w, power.high_w, power.source, duration_s, load_j)
        mirrors = mirrored(ledgers)
        devices = [self._device(ledger, path, now, idle) for ledger in ledgers if ledger not in mirrors]
        devices += self._unread.get(kind, [])
        not_counted = self._not_counted.get(kind, []) + [
            {"id": ledger.source.id, "name": ledger.source.name, "why": "repeats another die's counter"}
            for ledger in mirrors
        ]
        if not devices:
            reason = self._missing.get(kind, "there is no sensor")
            return Quantity("unavailable", source=reason, not_counted=tuple(not_counted))
        return measured_quantity(devices, duration_s, not_counted)

    def _device(self, ledger: Ledger, path: str, now: float, idle: Mapping[str, tuple[float, float]]) -> DeviceEnergy:
        source, total = ledger.source, ledger.total(path, now)
        samples = self._checks[source.id].total(path, now) if source.id in self._checks else None
        return DeviceEnergy(
            id=source.id,
            name=source.name,
            method=source.method,
            source=source.source if total.joules is not None else ledger.trouble or "not read yet",
            scope=source.scope,
            joules=total.joules,
            covered_s=total.covered_s,
            wanted_s=total.wanted_s,
            uncertainty_j=total.uncertainty_j,
            uncertainty_kind=total.uncertainty_kind,
            gaps=tuple(vars(gap) for gap in total.gaps),
            gap_count=total.gap_count,
            failed_readings=ledger.failures,
            longest_interval_s=ledger.longest_s,
            wrap_risks=ledger.wrap_risks,
            idle=idle.get(source.id),
            power_w=(samples or total).power_w,
            integral_j=samples.joules if samples else None,
        )

    # ---- what makes runs comparable, and what makes a number doubtful

    def driver(self) -> str | None:
        """NVIDIA's driver, None without one."""
        return driver_version(self._nvml) if self._nvml else None

    def conditions(self) -> dict[str, Any]:
        """Temperature, limits and clocks of the counted GPUs, now."""
        counted = [ledger.source.id for ledger in self._books.ledgers]
        return {gpu.uuid: gpu_conditions(self._nvml, gpu) for gpu in self._gpus if gpu.uuid in counted}

    def busy_elsewhere(self) -> list[int]:
        """Ids of other processes that compute on the GPUs."""
        return sorted({pid for gpu in self._gpus for pid in compute_processes(self._nvml, gpu)} - {os.getpid()})

    def uncounted_cuda_gpus(self) -> list[str]:
        """GPUs that CUDA uses in this process but that are not counted, by UUID."""
        counted = {ledger.source.id for ledger in self._books.ledgers}
        used = [self._mig_parents.get(f"MIG-{uuid}", f"GPU-{uuid}") for uuid in cuda_uuids() or ()]
        return [uuid for uuid in dict.fromkeys(used) if uuid not in counted] if self._nvml is not None else []

    def disagreements(self, path: str, now: float) -> list[str]:
        """GPUs whose energy counter and power samples cannot both be right over this window."""
        found = []
        for ledger in self._books.of("gpu"):
            if ledger.source.id not in self._checks:
                continue
            totals = [ledger.total(path, now), self._checks[ledger.source.id].total(path, now)]
            if any(total.joules is None or total.covered_s < CHECKED * total.wanted_s for total in totals):
                continue  # of different times
            watts = [total.joules / total.covered_s for total in totals]
            allowed_w = DISAGREEMENT * max(watts) + sum(total.uncertainty_j / total.covered_s for total in totals)
            if abs(watts[0] - watts[1]) > allowed_w:
                found.append(
                    f"{ledger.source.id}: the energy counter says {watts[0]:.4g} W on average, the power samples say "
                    f"{watts[1]:.4g} W; one of them is wrong"
                )
        return found

    def implausible_dram(self) -> str | None:
        """New platforms were seen to report 200 W for one idle socket's DRAM and 6 W for the other's."""
        zones = [ledger for ledger in self._books.of("ram") if ledger.source.method == "counter" and ledger.measured_s]
        watts = {ledger.source.id: ledger.joules / ledger.measured_s for ledger in zones}
        if watts and max(watts.values()) > 50 and max(watts.values()) > 10 * min(watts.values()):
            shown = ", ".join(f"{zone} {power:.3g} W" for zone, power in watts.items())
            return f"implausible DRAM powers, do not trust them: {shown}"
        return None
