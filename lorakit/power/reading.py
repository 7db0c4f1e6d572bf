"""Energy as numbers that say how they were obtained.

Unknown is None (null in JSON), never 0. The measured total holds counters and integrated samples only; estimates have a
total of their own, with their range.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

METHODS = ("counter", "sampled", "estimated", "unavailable")
MEASURED = ("counter", "sampled")
JOULES_PER_WH = 3600.0


@dataclass(frozen=True)
class Quantity:
    """The energy of one kind of device over one window.

    Attributes:
        method: how `wh` was obtained: "counter", "sampled", "estimated" or "unavailable".
        wh: watt-hours over the covered time, None if unavailable.
        mean_w: mean power over the covered time, W.
        source: the sensor or the model; for "unavailable" the reason and the way out.
        scope: what the number includes: "device", "socket", "node", "module" (a GH200's GPU and CPU).
        devices: one record per device: id, name, method, source, scope, kwh, coverage, uncertainty; for a GPU that
            tells its power also the lowest and highest sample and, beside a counter, the samples' integral.
        coverage: share of the time for which there are trustworthy readings, 0 to 1.
        gaps: the times without, as records with device, start_s, duration_s, reason.
        not_counted: devices of this kind whose energy is not in here: id, name, why.
        uncertainty_wh: |wh − truth| over the covered time is at most this, sensor gain aside.
        range_wh: lowest and highest plausible value of an estimate.
        above_idle_wh, idle_w, idle_error_w: with an idle baseline: energy above it, its power and standard error.
    """

    method: str
    wh: float | None = None
    mean_w: float | None = None
    source: str = ""
    scope: str | None = None
    devices: tuple[Mapping[str, Any], ...] = ()
    not_counted: tuple[Mapping[str, Any], ...] = ()
    coverage: float | None = None
    gaps: tuple[Mapping[str, Any], ...] = ()
    gap_count: int = 0
    uncertainty_wh: float | None = None
    uncertainty_kind: str | None = None
    range_wh: tuple[float, float] | None = None
    above_idle_wh: float | None = None
    idle_w: float | None = None
    idle_error_w: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is none of {', '.join(METHODS)}")
        if (self.wh is None) != (self.method == "unavailable"):
            raise ValueError(f"wh={self.wh!r} does not fit method {self.method!r}: only 'unavailable' has no number")

    def to_json(self) -> dict[str, Any]:
        """The same with kWh, as `comparison.json` holds it."""
        return {
            "kwh": _kwh(self.wh),
            "mean_w": self.mean_w,
            "method": self.method,
            "source": self.source,
            "scope": self.scope,
            "coverage": self.coverage,
            "gap_count": self.gap_count,
            "gaps": [dict(gap) for gap in self.gaps],
            "uncertainty_kwh": _kwh(self.uncertainty_wh),
            "uncertainty_kind": self.uncertainty_kind,
            "range_kwh": None if self.range_wh is None else [_kwh(wh) for wh in self.range_wh],
            "above_idle_kwh": _kwh(self.above_idle_wh),
            "idle_w": self.idle_w,
            "idle_error_w": self.idle_error_w,
            "devices": [dict(device) for device in self.devices],
            "not_counted": [dict(device) for device in self.not_counted],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Quantity":
        """The inverse of `to_json`."""
        span = data["range_kwh"]
        return cls(
            method=data["method"],
            wh=_wh(data["kwh"]),
            mean_w=data["mean_w"],
            source=data["source"],
            scope=data["scope"],
            devices=tuple(data["devices"]),
            not_counted=tuple(data["not_counted"]),
            coverage=data["coverage"],
            gaps=tuple(data["gaps"]),
            gap_count=data["gap_count"],
            uncertainty_wh=_wh(data["uncertainty_kwh"]),
            uncertainty_kind=data["uncertainty_kind"],
            range_wh=None if span is None else (span[0] * 1e3, span[1] * 1e3),
            above_idle_wh=_wh(data["above_idle_kwh"]),
            idle_w=data["idle_w"],
            idle_error_w=data["idle_error_w"],
        )


@dataclass(frozen=True)
class Reading:
    """GPU, CPU and RAM over one window (or the whole meter).

    Attributes:
        duration_s: seconds for which the window was open, summed over its repetitions; time asleep is not in it.
        suspended_s: seconds that the machine was suspended meanwhile.
        count: how often the window was entered. errors: how often it was left by an exception.
        others: shown beside the three: "psys", which contains CPU and RAM and is in no total; in a sum over nodes also
            the estimates of a kind that was measured elsewhere ("cpu, estimated"), which are in the estimated total.
        process_share: CPU time of this process tree ÷ that of the whole machine; None for inner windows.
        notes: everything else a reader must know.
    """

    gpu: Quantity
    cpu: Quantity
    ram: Quantity
    duration_s: float
    suspended_s: float = 0.0
    count: int = 1
    errors: int = 0
    others: Mapping[str, Quantity] = field(default_factory=dict)
    process_share: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured_wh(self) -> float | None:
        """Sum over what was measured, None if nothing was."""
        return _total(quantity.wh for quantity in self._parts if quantity.method in MEASURED)

    @property
    def measured_uncertainty_wh(self) -> float | None:
        """Sum of the measured parts' uncertainties, None if nothing was measured."""
        return _total(part.uncertainty_wh for part in self._parts if part.method in MEASURED)

    @property
    def estimated_wh(self) -> float | None:
        """Sum of the estimates, None if there is none."""
        return _total(quantity.wh for quantity in self._estimates)

    @property
    def estimated_range_wh(self) -> tuple[float, float] | None:
        """Lowest and highest plausible sum of the estimates."""
        ranges = [quantity.range_wh for quantity in self._estimates if quantity.range_wh is not None]
        return (sum(low for low, _ in ranges), sum(high for _, high in ranges)) if ranges else None

    @property
    def above_idle_wh(self) -> float | None:
        """Measured energy above the idle baseline, None unless every measured part has a baseline."""
        parts = [quantity.above_idle_wh for quantity in self._parts if quantity.method in MEASURED]
        return None if None in parts else _total(parts)

    @property
    def _parts(self) -> tuple[Quantity, Quantity, Quantity]:
        return self.gpu, self.cpu, self.ram

    @property
    def _estimates(self) -> list[Quantity]:
        return [part for part in (*self._parts, *self.others.values()) if part.method == "estimated"]

    def co2_kg(self, grams_per_kwh: float) -> float | None:
        """Emissions of the measured energy with your grid's factor; there is no default factor.

        Raises:
            ValueError: the factor is negative or not finite.
        """
        if not 0 <= grams_per_kwh < float("inf"):
            raise ValueError(f"grams_per_kwh={grams_per_kwh!r} is not a number of grams of CO2 per kWh, 0 or more")
        return None if self.measured_wh is None else self.measured_wh / 1e3 * grams_per_kwh / 1e3

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON: energies in kWh, unknown as null."""
        span = self.estimated_range_wh
        return {
            "gpu": self.gpu.to_json(),
            "cpu": {**self.cpu.to_json(), "process_share": self.process_share},
            "ram": self.ram.to_json(),
            "others": {name: quantity.to_json() for name, quantity in self.others.items()},
            "measured_kwh": _kwh(self.measured_wh),
            "measured_uncertainty_kwh": _kwh(self.measured_uncertainty_wh),
            "estimated_kwh": _kwh(self.estimated_wh),
            "estimated_range_kwh": None if span is None else [_kwh(wh) for wh in span],
            "above_idle_kwh": _kwh(self.above_idle_wh),
            "duration_s": self.duration_s,
            "suspended_s": self.suspended_s,
            "count": self.count,
            "errors": self.errors,
            "conditions": dict(self.conditions),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Reading":
        """The inverse of `to_json`."""
        return cls(
            **{kind: Quantity.from_json(data[kind]) for kind in ("gpu", "cpu", "ram")},
            others={name: Quantity.from_json(part) for name, part in data["others"].items()},
            duration_s=data["duration_s"],
            suspended_s=data["suspended_s"],
            count=data["count"],
            errors=data["errors"],
            process_share=data["cpu"]["process_share"],
            conditions=data["conditions"],
            notes=tuple(data["notes"]),
        )

    def __str__(self) -> str:
        return "\n".join(f"{kind.upper()}: {describe(getattr(self, kind))}" for kind in ("gpu", "cpu", "ram"))


@dataclass(frozen=True)
class DeviceEnergy:
    """One device in a window, before devices of a kind are summed. `joules` is None if nothing was measured.

    `idle` is its idle power and that power's standard error, W. `power_w` is the lowest and highest power sample, and
    `integral_j` what the samples' integral gives where `joules` is a counter's.
    """

    id: str
    name: str
    method: str
    source: str
    scope: str | None
    joules: float | None = None
    covered_s: float = 0.0
    wanted_s: float = 0.0
    uncertainty_j: float = 0.0
    uncertainty_kind: str = "bound"
    gaps: tuple[Mapping[str, Any], ...] = ()
    gap_count: int = 0
    failed_readings: int = 0
    longest_interval_s: float = 0.0
    wrap_risks: int = 0
    idle: tuple[float, float] | None = None
    power_w: tuple[float, float] | None = None
    integral_j: float | None = None

    @property
    def coverage(self) -> float:
        """Share of the wanted time with trustworthy readings."""
        return min(1.0, self.covered_s / self.wanted_s) if self.wanted_s > 0 else 0.0

    def record(self) -> dict[str, Any]:
        """The device as a quantity lists it."""
        known = self.joules is not None
        return {
            "id": self.id,
            "name": self.name,
            "method": self.method if known else "unavailable",
            "source": self.source,
            "scope": self.scope,
            "kwh": self.joules / JOULES_PER_WH / 1e3 if known else None,
            "coverage": self.coverage,
            "uncertainty_kwh": self.uncertainty_j / JOULES_PER_WH / 1e3 if known else None,
            "power_integral_kwh": None if self.integral_j is None else self.integral_j / JOULES_PER_WH / 1e3,
            "min_w": self.power_w[0] if self.power_w else None,
            "max_w": self.power_w[1] if self.power_w else None,
            "failed_readings": self.failed_readings,
            "longest_interval_s": self.longest_interval_s,
            "wrap_risks": self.wrap_risks,
        }


def measured_quantity(
    devices: Sequence[DeviceEnergy], duration_s: float, not_counted: Sequence[Mapping[str, Any]] = ()
) -> Quantity:
    """Sum devices of one kind; those without any reading lower the coverage, not the number's honesty."""
    known = [device for device in devices if device.joules is not None]
    records = tuple(device.record() for device in devices)
    if not known:
        reason = "; ".join(dict.fromkeys(f"{device.id}: {device.source}" for device in devices))
        return Quantity("unavailable", source=reason, devices=records, not_counted=tuple(not_counted))
    joules = sum(device.joules for device in known)
    kinds = {device.uncertainty_kind for device in known}
    idle = [device.idle for device in known if device.idle is not None]
    with_idle = len(idle) == len(known)
    return Quantity(
        "sampled" if any(device.method == "sampled" for device in known) else "counter",
        wh=joules / JOULES_PER_WH,
        mean_w=sum(device.joules / device.coverage for device in known) / duration_s if duration_s > 0 else None,
        source="; ".join(dict.fromkeys(device.source for device in known)),
        scope=known[0].scope,
        devices=records,
        not_counted=tuple(not_counted),
        coverage=sum(device.coverage for device in devices) / len(devices),
        gaps=tuple(gap for device in devices for gap in device.gaps),
        gap_count=sum(device.gap_count for device in devices),
        uncertainty_wh=sum(device.uncertainty_j for device in known) / JOULES_PER_WH,
        uncertainty_kind=kinds.pop() if len(kinds) == 1 else "bound and 3 standard errors",
        above_idle_wh=sum(device.joules - device.idle[0] * device.covered_s for device in known) / JOULES_PER_WH
        if with_idle
        else None,
        idle_w=sum(watts for watts, _ in idle) if with_idle else None,
        idle_error_w=sum(error**2 for _, error in idle) ** 0.5 if with_idle else None,
    )


def estimated_quantity(
    low_w: float, high_w: float, source: str, duration_s: float, extra_j: float | None = None
) -> Quantity:
    """An estimate between `low_w` and `high_w`: the middle, or the low end plus `extra_j` that the load stands for."""
    low_j, high_j = low_w * duration_s, high_w * duration_s
    joules = (low_j + high_j) / 2 if extra_j is None else min(low_j + extra_j, high_j)
    return Quantity(
        "estimated",
        wh=joules / JOULES_PER_WH,
        mean_w=joules / duration_s if duration_s > 0 else None,
        source=source,
        scope="node",
        range_wh=(low_j / JOULES_PER_WH, high_j / JOULES_PER_WH),
    )


def add_readings(readings: Sequence[Reading]) -> Reading:
    """Sum readings of different devices over the same time: ranks of a node, nodes of a job.

    A kind that is measured on one node and estimated on another gives two quantities, never one.

    Raises:
        ValueError: there is nothing to add, or a device is in two readings.
    """
    if not readings:
        raise ValueError("there are no readings to add")
    others: dict[str, Quantity] = {}
    parts: dict[str, Quantity] = {}
    duration_s = max(reading.duration_s for reading in readings)
    for kind in ("gpu", "cpu", "ram"):
        quantities = [getattr(reading, kind) for reading in readings]
        estimates = [part for reading in readings if (part := reading.others.get(f"{kind}, estimated"))]
        measured = [part for part in quantities if part.method in MEASURED]
        if measured:  # devices that no reading could be had of lower the sum's coverage
            measured += [part for part in quantities if part.method == "unavailable" and part.devices]
        estimates += [part for part in quantities if part.method == "estimated"]
        if measured and estimates:
            others[f"{kind}, estimated"] = _add_quantities(estimates, duration_s)
        parts[kind] = _add_quantities(measured or estimates or quantities, duration_s)
    psys = [part for reading in readings if (part := reading.others.get("psys")) and part.wh is not None]
    if psys:
        others["psys"] = _add_quantities(psys, duration_s)
    return Reading(
        **parts,
        others=others,
        duration_s=duration_s,
        suspended_s=max(reading.suspended_s for reading in readings),
        count=max(reading.count for reading in readings),
        errors=sum(reading.errors for reading in readings),
        conditions=_add_conditions([reading.conditions for reading in readings if reading.conditions]),
        notes=tuple(dict.fromkeys(note for reading in readings for note in reading.notes)),
    )


def _add_conditions(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every device's first start and last end; several drivers are listed."""
    if not conditions:
        return {}
    drivers = sorted({part["driver"] for part in conditions if part.get("driver")})
    start: dict[str, Any] = {}
    for part in reversed(conditions):
        start.update(part.get("start", {}))
    end: dict[str, Any] = {}
    for part in conditions:
        end.update(part.get("end", {}))
    return {"driver": ", ".join(drivers) or None, "start": start, "end": end}


def _add_quantities(parts: Sequence[Quantity], duration_s: float) -> Quantity:
    if len(parts) == 1:
        return parts[0]
    devices = [device for part in parts for device in part.devices]
    known = [part for part in parts if part.wh is not None]
    if not known:
        reasons = dict.fromkeys(part.source for part in parts)
        return Quantity("unavailable", source="; ".join(reasons), devices=tuple(devices))
    idle = None not in [part.above_idle_wh for part in known]
    ranged = known[0].range_wh is not None
    methods = {part.method for part in known}
    kinds = {part.uncertainty_kind for part in known}
    return Quantity(
        methods.pop() if len(methods) == 1 else "sampled",
        wh=sum(part.wh for part in known),
        mean_w=sum(part.wh / (part.coverage or 1.0) for part in known) * JOULES_PER_WH / duration_s
        if duration_s > 0
        else None,
        source="; ".join(dict.fromkeys(part.source for part in known)),
        scope=known[0].scope,
        devices=tuple(devices),
        not_counted=tuple(device for part in known for device in part.not_counted),
        coverage=None if ranged else _coverage(parts, known),
        gaps=tuple(gap for part in known for gap in part.gaps),
        gap_count=sum(part.gap_count for part in known),
        uncertainty_wh=None if ranged else sum(part.uncertainty_wh for part in known),
        uncertainty_kind=kinds.pop() if len(kinds) == 1 else "bound and 3 standard errors",
        range_wh=(sum(part.range_wh[0] for part in known), sum(part.range_wh[1] for part in known)) if ranged else None,
        above_idle_wh=sum(part.above_idle_wh for part in known) if idle else None,
        idle_w=sum(part.idle_w for part in known) if idle else None,
        idle_error_w=sum(part.idle_error_w**2 for part in known) ** 0.5 if idle else None,
    )


def _coverage(parts: Sequence[Quantity], known: Sequence[Quantity]) -> float:
    """Mean over the devices, those without a reading too; over the parts where these name no devices."""
    shares = [device["coverage"] for part in parts for device in part.devices]
    shares = shares or [part.coverage for part in known]
    return sum(shares) / len(shares)


def describe(quantity: Quantity) -> str:
    """One line for people: `12.3 Wh, 244 W, counter (NVML total energy)`."""
    if quantity.wh is None:
        return f"unavailable: {quantity.source}"
    text = f"{quantity.wh:.4g} Wh, {quantity.mean_w:.4g} W, {quantity.method} ({quantity.source})"
    if quantity.range_wh is not None:
        text += f", between {quantity.range_wh[0]:.3g} and {quantity.range_wh[1]:.3g} Wh"
    elif quantity.uncertainty_wh is not None:
        text += f", ± {quantity.uncertainty_wh:.2g} Wh"
    if quantity.coverage is not None and quantity.coverage < 1:
        text += f", {quantity.coverage:.1%} of the time covered"
    return text


def _total(parts: Iterable[float | None]) -> float | None:
    known = [wh for wh in parts if wh is not None]
    return sum(known) if known else None


def _kwh(wh: float | None) -> float | None:
    return None if wh is None else wh / 1e3


def _wh(kwh: float | None) -> float | None:
    return None if kwh is None else kwh * 1e3
