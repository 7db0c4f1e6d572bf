"""`lorakit energy doctor`: what this machine can measure, how well, and what would improve it."""

import argparse
import threading
from collections.abc import Mapping

from lorakit._counts import counted
from lorakit.cli.json_output import write_json
from lorakit.energy import EnergyMeter
from lorakit.power.calibration import WALL_METER
from lorakit.power.devices import IN_MODULE
from lorakit.power.nvml import IF_THERE_IS, NO_GPU, SensorUnavailable, close_nvml, open_nvml
from lorakit.power.rapl_access import DRIVER_LOG, NO_DRAM, Access, diagnose
from lorakit.power.reading import JOULES_PER_WH, KINDS, MEASURED, Measurement, Reading, describe
from lorakit.power.steadiness import GOOD, window_for_edges_s

BESIDE_NAMES = {"machine": "the whole machine by its own power meter", "psys": "the whole platform (psys)"}
WITH_CPU = "enable: what enables the CPU, whose RAPL counts DRAM too on most servers"
CALIBRATE = "lorakit energy calibrate --idle W --load W"  # with what a wall-outlet meter shows


def doctor(arguments: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    if not arguments.proc.is_dir():
        raise ValueError(f"--proc {arguments.proc} is not a folder; give the kernel's /proc, or a host's mounted here")
    meter = EnergyMeter(arguments.powercap, thread=False, proc=arguments.proc)
    with meter:
        threading.Event().wait(arguments.seconds)
    reading, access = meter.reading, diagnose(arguments.powercap, arguments.proc)
    fixes = find_fixes(reading, access, diagnose(arguments.powercap, arguments.proc, "dram"))
    lines = []
    for kind in KINDS:
        part = getattr(reading, kind)
        lines += [f"{kind.upper()}  {_state(part)}", *(f"     {line}" for line in fixes[kind])]
    for kind in KINDS:
        part = getattr(reading, kind)
        lines += [f"     counted: {one['id']} {one['name']}" for one in part.devices if one["kwh"] is not None]
        lines += [f"     not counted: {one['id']} {one['name']}: {one['why']}" for one in part.not_counted]
    lines += [f"{name}  {_state(part)}" for name, part in reading.others.items()]
    lines += [f"note {note}" for note in reading.notes]
    closing = summarize(reading, fixes)
    record = {**reading.to_json(), "advice": fixes, "summary": closing}
    write_json(record, arguments.json, "".join(f"{line}\n" for line in [*lines, closing]))
    return 0 if reading.measured_wh is not None else 1


def _state(part: Measurement) -> str:
    return ("measured: " if part.method in MEASURED else "") + describe(part)


def find_fixes(reading: Reading, access: Access, dram: Access) -> dict[str, list[str]]:
    """For each part that was not measured, or not in full, lines that say why and what would enable it."""
    fixes = {kind: _unread_fixes(getattr(reading, kind)) for kind in KINDS}
    if not fixes["gpu"] and reading.gpu.method == "unavailable" and not reading.gpu.not_counted:
        # without a GPU the state has said so, and there is nothing to enable
        fixes["gpu"] = [f"enable: {fix}" for fix in _gpu_fix() if not fix.startswith((NO_GPU, "Jetson: "))]
    if reading.cpu.method not in MEASURED:
        fixes["cpu"] = closed_sensors(reading, access) or _cpu_fix(reading.cpu, access)
    elif access.fix and not fixes["cpu"] and not _is_all_by_perf(reading.cpu):
        fixes["cpu"] = [f"{access.state}: {access.reason}", f"enable: {access.fix}"]
    if reading.ram.method not in MEASURED and not is_calibrated(reading):
        fixes["ram"] = _ram_fix(reading.ram, dram)
    elif dram.fix and reading.ram.device_coverage not in (None, 1) and not fixes["ram"]:
        fixes["ram"] = [f"{dram.state}: {dram.reason}", f"enable: {dram.fix}"]
    return fixes


def _is_all_by_perf(part: Measurement) -> bool:
    """Whether perf counts every package, so that what powercap hides is missing nowhere."""
    return part.device_coverage == 1 and all(device["id"].startswith("perf ") for device in part.devices)


def _ram_fix(ram: Measurement, dram: Access) -> list[str]:
    so = ", so RAM stays an estimate" if ram.method == "estimated" else ""
    if dram == NO_DRAM:
        return [f"{dram.reason}{so}"]
    if dram.state == "denied":
        return [f"denied: {dram.reason}{so}", f"enable: {dram.fix}"]
    if dram.state == "measured":  # the files can be read, but what they hold is no measurement
        return [f"broken: {ram.source}{so}"]
    if dram.fix == DRIVER_LOG:
        return [f"broken: {dram.reason}{so}; {dram.fix} shows what the driver says"]
    return [WITH_CPU]


def _unread_fixes(part: Measurement) -> list[str]:
    """A line for each device that should count and is not read, if its reason names a command."""
    found = [device["source"].partition("; ") for device in part.devices if device["kwh"] is None]
    return list(dict.fromkeys(f"enable: {fix}" for _, _, fix in found if fix.startswith("sudo ")))


def closed_sensors(reading: Reading, access: Access) -> list[str]:
    """Where only hwmon could hold the CPU's sensor: what it hides from this user, and the commands that open it."""
    if "hwmon" not in access.reason:
        return []
    found = [note.partition("; ") for note in reading.notes if "/hwmon" in note and "; sudo chmod" in note]
    return [line for reason, _, fix in found for line in (f"denied: {reason}", f"enable: {fix}")]


def is_calibrated(reading: Reading) -> bool:
    """Whether the CPU's estimate is that of the whole machine, by the user's wall-outlet meter."""
    return reading.cpu.method == "estimated" and WALL_METER in reading.cpu.source


def _cpu_fix(cpu: Measurement, access: Access) -> list[str]:
    if access.fix:
        return [f"{access.state}: {access.reason}", f"enable: {access.fix}"]
    # the files can be read, but what they hold is no measurement
    reason = cpu.source if cpu.method == "unavailable" else "the counters can be read, but gave no energy"
    return [f"broken: {reason}", f"enable: measure for longer (--seconds 10); if it stays so, {CALIBRATE}"]


def _gpu_fix() -> list[str]:
    """How to make GPUs visible, if NVML does not start."""
    try:
        close_nvml(open_nvml())
    except SensorUnavailable as error:
        return [error.fix]
    return []


# ---- the closing sentence


def summarize(reading: Reading, fixes: Mapping[str, list[str]]) -> str:
    """One sentence: what this machine can measure, how well, and the one command that improves it most."""
    measured = [kind for kind in KINDS if getattr(reading, kind).method in MEASURED]
    if measured:
        what = f"This machine measures {_listed([_with_method(reading, kind) for kind in measured])}"
        seconds = _good_after_s(reading)
        what += "" if seconds is None else f", to ±{GOOD:.0%} in windows of {seconds:.3g} s or more"
    else:
        what = "This machine measures no energy"
    beside = [name for name, part in reading.others.items() if part.method in MEASURED]
    if beside:
        what += " of its parts" if not measured else ""
        what += f", {'and' if measured else 'but'} {_listed([BESIDE_NAMES.get(name, name) for name in beside])}"
    estimated = [kind for kind in KINDS if getattr(reading, kind).method == "estimated"]
    if estimated and reading.duration_s > 0:
        low, high = (wh * JOULES_PER_WH / reading.duration_s for wh in reading.estimated_range_wh)
        which = "itself, as calibrated," if is_calibrated(reading) else _listed([kind.upper() for kind in estimated])
        what += f" and estimates {which} between {low:.3g} and {high:.3g} W"
    best = best_fix(reading, fixes)
    return f"{what}; " + (f"what improves it most: {best}" if best else "nothing needs to be enabled")


def _with_method(reading: Reading, kind: str) -> str:
    part = getattr(reading, kind)
    words = "counter" if part.method == "counter" else "power samples"
    if part.device_coverage is not None and part.device_coverage < 1:
        words += f", {sum(one['kwh'] is not None for one in part.devices)} of {counted(len(part.devices), 'device')}"
    return f"{kind.upper()} ({words})"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _good_after_s(reading: Reading) -> float | None:
    """How long a window must be for its edges to matter less than GOOD, s; None without measured power."""
    if not reading.measured_wh or reading.duration_s <= 0:
        return None
    mean_w = reading.measured_wh * JOULES_PER_WH / reading.duration_s
    return window_for_edges_s(reading.measured_uncertainty_wh * JOULES_PER_WH, mean_w)


def best_fix(reading: Reading, fixes: Mapping[str, list[str]]) -> str | None:
    """The command that turns most unknown watts into measured ones: GPUs draw most, then CPUs, whose fix serves RAM."""
    for kind in KINDS:
        lines = [line for line in fixes[kind] if line != WITH_CPU and IF_THERE_IS not in line]
        commands = [line.removeprefix("enable: ") for line in lines if line.startswith("enable: ")]
        if commands and not commands[0].startswith("measure on"):
            return commands[0]
    if reading.cpu.method in MEASURED or is_calibrated(reading) or reading.cpu.source == IN_MODULE:
        return None
    on_host = next((line.removeprefix("enable: ") for line in fixes["cpu"] if line.startswith("enable: ")), "")
    return f"{on_host}, or, if this machine has its host to itself, {CALIBRATE}" if on_host else CALIBRATE
