"""What `lorakit energy` writes: a report for people, CodeCarbon's CSV columns, and Prometheus text."""

import csv
import io
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lorakit._files import append_text, check_locks, write_text
from lorakit.power.reading import JOULES_PER_WH, KINDS, Reading, describe
from lorakit.report.carbon import Carbon

CODECARBON = (
    "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,"
    "cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,region,cloud_provider,"
    "cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,gpu_model,longitude,latitude,"
    "ram_total_size,tracking_mode,cpu_utilization_percent,gpu_utilization_percent,ram_utilization_percent,ram_used_gb,"
    "on_cloud,pue,wue"
).split(",")  # CodeCarbon 3.3
COLUMNS = [*CODECARBON, "cpu_method", "gpu_method", "ram_method", "measured_energy", "measured_uncertainty"]


def carbon_lines(carbon: Carbon, reading: Reading) -> list[str]:
    """The emissions of the measured part, and the SCI, where the factors are given."""
    if carbon.grams_per_kwh is None:
        return []
    kwh = measured_kwh(reading)
    if kwh is None:
        advice = "`lorakit energy doctor` says how to enable a sensor"
        return [f"CO2: none is given, because nothing was measured; {advice}"]
    found = [f"CO2 of the measured part at {carbon.grams_per_kwh:g} g/kWh: {carbon.grams(kwh) / 1e3:.4g} kg"]
    return found + ([carbon.sci_sentence(kwh)] if carbon.units is not None else [])


def measured_kwh(reading: Reading) -> float | None:
    """What `Carbon` takes."""
    return None if reading.measured_wh is None else reading.measured_wh / 1e3


def report(reading: Reading, carbon: Carbon | None = None) -> str:
    """The reading for people: the three parts, then the measured and the estimated total."""
    asleep = f", without {reading.suspended_s:.0f} s of suspension" if reading.suspended_s >= 0.5 else ""
    lines = [f"energy over {reading.duration_s:.1f} s{asleep}", *(f"  {line}" for line in str(reading).splitlines())]
    lines += [f"  {name}: {describe(part)} (in no measured total)" for name, part in reading.others.items()]
    measured = "nothing" if reading.measured_wh is None else f"{reading.measured_wh:.4g} Wh"
    if reading.measured_uncertainty_wh is not None:
        measured += f" ± {reading.measured_uncertainty_wh:.2g} Wh"
    if reading.above_idle_wh is not None:
        measured += f", {reading.above_idle_wh:.4g} Wh above idle"
    lines.append(f"  measured in total: {measured}")
    if reading.estimated_wh is not None:
        low, high = reading.estimated_range_wh
        lines.append(f"  estimated besides: {reading.estimated_wh:.3g} Wh, plausible from {low:.3g} to {high:.3g} Wh")
    lines += _whose(reading)
    if reading.contention is not None:
        lines.append(f"  meanwhile: {reading.contention.describe()}")
    lines += [f"  {line}" for line in (carbon_lines(carbon, reading) if carbon else ())]
    lines += [f"  note: {note}" for note in reading.notes]
    return "\n".join(lines)


def _whose(reading: Reading) -> list[str]:
    """The command's share of what the machine did, if known; the energies above are the whole machine's."""
    found = reading.contention
    shares = [("machine's CPU time", reading.process_share)]
    if found is not None:
        shares += [("GPUs' busy time", found.gpu_share), ("memory in use", found.memory_share)]
    known = [f"{share:.0%} of the {name}" for name, share in shares if share is not None]
    return [f"  the command's share: {', '.join(known)}"] if known else []


# ---- CodeCarbon's columns


def csv_row(reading: Reading, name: str, carbon: Carbon) -> dict[str, Any]:
    """The reading in CodeCarbon's columns, energies in kWh, and columns of ours after them.

    As with CodeCarbon, `energy_consumed` adds measured and estimated parts; `…_method` says which is which. Unknown is
    empty. `emissions` are those of the measured part, so they are empty without a sensor or a factor.
    """
    grams = carbon.grams(measured_kwh(reading))
    kg = None if grams is None else grams / 1e3
    parts = {kind: getattr(reading, kind) for kind in KINDS}
    known = [part.wh / 1e3 for part in parts.values() if part.wh is not None]
    row = {
        "timestamp": datetime.now().strftime("%Y-%m-%dT%H:%M:%S"),
        "project_name": name,
        "run_id": str(uuid.uuid4()),
        "duration": reading.duration_s,
        "emissions": kg,
        "emissions_rate": kg / reading.duration_s if kg is not None and reading.duration_s > 0 else None,
        "energy_consumed": sum(known) if known else None,
        "os": platform.platform(),
        "python_version": platform.python_version(),
        "codecarbon_version": f"lorakit {sys.modules['lorakit'].__version__}",
        "cpu_count": os.cpu_count(),
        "cpu_model": platform.processor() or None,
        "gpu_count": len(reading.gpu.devices) or None,
        "gpu_model": ", ".join(dict.fromkeys(part["name"] for part in reading.gpu.devices)) or None,
        "tracking_mode": "machine",
        "pue": 1,
        "measured_energy": measured_kwh(reading),
        "measured_uncertainty": None
        if reading.measured_uncertainty_wh is None
        else reading.measured_uncertainty_wh / 1e3,
    }
    for kind, part in parts.items():
        row[f"{kind}_energy"] = None if part.wh is None else part.wh / 1e3
        row[f"{kind}_power"], row[f"{kind}_method"] = part.mean_w, part.method
    return {column: row.get(column) for column in COLUMNS}


def check_csv(path: Path) -> None:
    """Raises ValueError if rows could not be appended: the file has other columns, or cannot be locked."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            _check_header(path, file.readline().rstrip("\r\n"))
    if path.is_file() or not path.exists():
        try:
            check_locks(path.parent)
        except OSError as error:
            raise ValueError(
                f"--csv {path} cannot be locked against other processes ({error.strerror}); give a file on a local disk"
            ) from error


def _check_header(path: Path, first_line: str) -> None:
    if first_line and next(csv.reader([first_line])) != COLUMNS:
        raise ValueError(f"--csv {path} has other columns than lorakit's; give another file")


def append_csv(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row, with the header first in a new file; other processes may do the same at the same time.

    Raises:
        OSError, ValueError: it cannot be written, or has other columns; the file is as it was.
    """

    def lines(first_line: str) -> str:
        _check_header(path, first_line)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not first_line:
            writer.writeheader()
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
        return text.getvalue()

    append_text(path, lines)


# ---- Prometheus


def prometheus(reading: Reading, carbon: Carbon) -> str:
    """The reading, and its CO2 where factors are given, as Prometheus text for a node exporter's textfile collector."""
    samples: dict[str, tuple[str, list[tuple[str, float]]]] = {}

    def add(name: str, about: str, value: float | None, **labels: str) -> None:
        if value is not None:
            text = ",".join(f'{label}="{_escape(content)}"' for label, content in labels.items())
            samples.setdefault(f"lorakit_{name}", (about, []))[1].append((f"{{{text}}}" if text else "", value))

    parts = {kind: getattr(reading, kind) for kind in KINDS} | dict(reading.others)
    for kind, part in parts.items():
        labels = {"part": kind, "method": part.method}
        add("energy_joules", "Energy of the run.", _joules(part.wh), **labels)
        add("energy_uncertainty_joules", "Bound on its error.", _joules(part.uncertainty_wh), **labels)
        low, high = part.range_wh or (None, None)
        add("energy_low_joules", "Lowest plausible value of an estimate.", _joules(low), **labels)
        add("energy_high_joules", "Highest plausible value of an estimate.", _joules(high), **labels)
        add("power_watts", "Mean power of the run.", part.mean_w, **labels)
    add("measured_energy_joules", "Sum of what was measured.", _joules(reading.measured_wh))
    kwh = measured_kwh(reading)
    add("co2_grams", "CO2 of what was measured.", carbon.grams(kwh))
    add("sci_grams_per_unit", "SCI of ISO 21031 of what was measured.", carbon.sci_g(kwh))
    add("duration_seconds", "Duration of the run.", reading.duration_s)
    add("cpu_time_share", "The run's part of the machine's CPU time.", reading.process_share)
    lines = []
    for name, (about, values) in samples.items():
        lines += [
            f"# HELP {name} {about}",
            f"# TYPE {name} gauge",
            *(f"{name}{label} {value!r}" for label, value in values),
        ]
    return "\n".join(lines) + "\n"


def write_prometheus(path: Path, reading: Reading, carbon: Carbon) -> None:
    """Write the text atomically: the collector may read at any moment."""
    write_text(path, prometheus(reading, carbon))


def _joules(wh: float | None) -> float | None:
    return None if wh is None else wh * JOULES_PER_WH


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
