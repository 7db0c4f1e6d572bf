"""Energy as numbers that say how they were obtained.

Unknown is None (null in JSON), never 0. The measured total holds counters and integrated samples only; estimates have a
total of their own, with their range.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lorakit._counts import counted
from lorakit.power.contention import Contention, add_contentions

METHODS = ("counter", "sampled", "estimated", "unavailable")
MEASURED = ("counter", "sampled")
KINDS = ("gpu", "cpu", "ram")
BESIDE = {"psys": "platform", "machine": "machine"}  # `others` that contain the parts -> the kind of their devices
JOULES_PER_WH = 3600.0
ESTIMATE = "the {} (estimate)"  # stands for a part without a device of its own
LATER = ("device_coverage",)  # fields that journals of an older version lack


@dataclass(frozen=True)
class Measurement:
    """The energy of one kind of device over one window.

    Example:
        from lorakit.power.reading import Measurement

        cpu = Measurement("estimated", wh=5.0, mean_w=60.0, source="10 to 100 % of 95 W", range_wh=(0.8, 7.9))
        print(cpu.method, cpu.wh)  # estimated 5.0

    Args:
        method: how `wh` was obtained: "counter", "sampled", "estimated" or "unavailable".
        wh: energy over the covered time, Wh; None if unavailable.
        mean_w: mean power over the covered time, W.
        source: the sensor or the model; for "unavailable" the reason and the fix.
        scope: what the number includes: "device", "socket", "node" or "module" (a GH200's GPU and CPU).
        coverage: share of the time with trustworthy readings, 0 to 1; the mean over the devices that gave one.
        gap_count: number of times without.
        gaps: the first of those, as records with device, start_s, duration_s and reason.
        uncertainty_wh: bound on |wh − truth| over the covered time, Wh, leaving aside the sensor's gain error.
        uncertainty_kind: "bound", or "3 standard errors" where samples were integrated.
        range_wh: lowest and highest plausible value of an estimate, Wh.
        above_idle_wh: energy above the idle baseline, Wh, if there is one.
        idle_w: the baseline's power, W.
        idle_error_w: its standard error, W.
        devices: one record per device with id, name, method, source, scope, kwh, coverage, uncertainty_kwh. For a GPU
            that tells its power also the lowest and highest sample and, beside a counter, the samples' integral.
        not_counted: devices of this kind whose energy is not included: id, name, why.
        device_coverage: share of the devices that gave a trustworthy reading, 0 to 1; None for an estimate.

    Raises:
        ValueError: `method` is unknown, or "unavailable" has a number, or another method has none.
    """

    method: str
    wh: float | None = None
    mean_w: float | None = None
    source: str = ""
    scope: str | None = None
    coverage: float | None = None
    gap_count: int = 0
    gaps: tuple[Mapping[str, Any], ...] = ()
    uncertainty_wh: float | None = None
    uncertainty_kind: str | None = None
    range_wh: tuple[float, float] | None = None
    above_idle_wh: float | None = None
    idle_w: float | None = None
    idle_error_w: float | None = None
    devices: tuple[Mapping[str, Any], ...] = ()
    not_counted: tuple[Mapping[str, Any], ...] = ()
    device_coverage: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is none of {', '.join(METHODS)}")
        if (self.wh is None) != (self.method == "unavailable"):
            raise ValueError(f"wh={self.wh!r} does not fit method {self.method!r}: only 'unavailable' has no number")

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, with energies in kWh, as `comparison.json` holds it."""
        return _to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Measurement":
        """The inverse of `to_json`."""
        return cls(**_from_json(cls, data))


@dataclass(frozen=True)
class Reading:
    """Energy of GPU, CPU and RAM over one window, or over the whole meter.

    Printed, it gives one line per part, and one that says so if others used the machine meanwhile.

    Example:
        from lorakit.power.reading import Measurement, Reading

        gpu = Measurement("counter", wh=20.0, mean_w=240.0, source="NVML total energy", uncertainty_wh=0.1)
        cpu = Measurement("estimated", wh=5.0, mean_w=60.0, source="10 to 100 % of 95 W", range_wh=(0.8, 7.9))
        ram = Measurement("unavailable", source="no DRAM counter")
        reading = Reading(gpu, cpu, ram, duration_s=300.0)
        print(reading.measured_wh, reading.estimated_wh)  # 20.0 5.0
        print(reading.co2_kg(400.0))  # 0.008

    Args:
        gpu: the energy of all GPUs.
        cpu: that of all CPUs.
        ram: that of the memory.
        duration_s: seconds for which the window was open, summed over its repetitions, without suspended time.
        suspended_s: seconds for which the machine was suspended meanwhile.
        count: how often the window was entered.
        errors: how often an exception ended it.
        others: shown beside the three: "psys", which contains CPU and RAM, and "machine", which a server's own meter
            gives and which contains everything; neither enters a total. In a sum over nodes also
            the estimates of a kind that was measured elsewhere ("cpu, estimated"), which enter the estimated total.
        process_share: CPU time of this process tree ÷ CPU time that the whole machine spent, 0 to 1.
        contention: what else used the machine meanwhile, and whether that spoils a comparison.
        conditions: the GPUs' driver, and their temperatures, limits and clocks at both ends.
        notes: remarks for the reader of the numbers.
    """

    gpu: Measurement
    cpu: Measurement
    ram: Measurement
    duration_s: float
    suspended_s: float = 0.0
    count: int = 1
    errors: int = 0
    others: Mapping[str, Measurement] = field(default_factory=dict)
    process_share: float | None = None
    contention: Contention | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def measured_wh(self) -> float | None:
        """Sum of the measured parts, Wh; None if nothing was measured."""
        return _total(part.wh for part in self._parts if part.method in MEASURED)

    @property
    def measured_uncertainty_wh(self) -> float | None:
        """Sum of the measured parts' uncertainties, Wh; None if nothing was measured."""
        return _total(part.uncertainty_wh for part in self._parts if part.method in MEASURED)

    @property
    def estimated_wh(self) -> float | None:
        """Sum of the estimates, Wh; None if there is none."""
        return _total(part.wh for part in self._estimates)

    @property
    def estimated_range_wh(self) -> tuple[float, float] | None:
        """Lowest and highest plausible sum of the estimates, Wh."""
        ranges = [part.range_wh for part in self._estimates if part.range_wh is not None]
        return (sum(low for low, _ in ranges), sum(high for _, high in ranges)) if ranges else None

    @property
    def above_idle_wh(self) -> float | None:
        """Measured energy above the idle baseline, Wh; None unless every measured part has a baseline."""
        parts = [part.above_idle_wh for part in self._parts if part.method in MEASURED]
        return None if None in parts else _total(parts)

    @property
    def _parts(self) -> tuple[Measurement, Measurement, Measurement]:
        return self.gpu, self.cpu, self.ram

    @property
    def _estimates(self) -> list[Measurement]:
        return [part for part in (*self._parts, *self.others.values()) if part.method == "estimated"]

    def co2_kg(self, grams_per_kwh: float) -> float | None:
        """Emissions of the measured energy, kg of CO2.

        Args:
            grams_per_kwh: your grid's factor, g/kWh, 0 or more; there is no default.

        Returns:
            None if nothing was measured.

        Raises:
            ValueError: the factor is negative or not finite.
        """
        if not 0 <= grams_per_kwh < float("inf"):
            raise ValueError(f"grams_per_kwh={grams_per_kwh!r} is not a number of grams of CO2 per kWh, 0 or more")
        return None if self.measured_wh is None else self.measured_wh / 1e3 * grams_per_kwh / 1e3

    @property
    def _shared_gpu(self) -> str:
        """What the GPUs' line adds if others computed on them: the number is of all of them."""
        found = self.contention
        if found is None or self.gpu.wh is None or not (found.gpu_processes or (found.others_gpu_s or 0.0) > 0):
            return ""
        if found.gpu_share is None:
            return ", shared with other processes"
        return f", shared: {found.gpu_share:.0%} of the GPUs' busy time was ours"

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON: energies in kWh, unknown as null, and the totals besides the fields."""
        data = _to_json(self)
        data["cpu"]["process_share"] = data.pop("process_share")
        totals = ("measured_wh", "measured_uncertainty_wh", "estimated_wh", "estimated_range_wh", "above_idle_wh")
        return data | dict(_with_kwh(name, getattr(self, name)) for name in totals)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Reading":
        """The inverse of `to_json`."""
        contention = data.get("contention")  # not in a journal of an older version
        found = _from_json(cls, {**data, "process_share": data["cpu"]["process_share"], "contention": None})
        found["contention"] = None if contention is None else Contention.from_json(contention)
        found.update({kind: Measurement.from_json(data[kind]) for kind in KINDS})
        found["others"] = {name: Measurement.from_json(part) for name, part in data["others"].items()}
        return cls(**found)

    def __str__(self) -> str:
        lines = [f"{kind.upper()}: {describe(getattr(self, kind))}" for kind in KINDS]
        lines[0] += self._shared_gpu
        note = self.contention and self.contention.note
        return "\n".join([*lines, f"note: {note}"] if note else lines)


# ---- records as JSON: the same names, but energies in kWh, and lists for tuples


def _to_json(record: Measurement | Reading) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Measurement | Contention):
            return value.to_json()
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items()}
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    return dict(_with_kwh(entry.name, plain(getattr(record, entry.name))) for entry in fields(record))


def _from_json(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make a record of this kind.

    Raises:
        KeyError: a field is missing.
        TypeError: an energy is not a number.
    """
    found = {}
    for entry in fields(kind):
        if entry.name in LATER and entry.name not in data:
            continue
        value = data[_json_name(entry.name)]
        if value is not None and entry.name != _json_name(entry.name):
            value = [kwh * 1e3 for kwh in value] if isinstance(value, list) else value * 1e3
        found[entry.name] = tuple(value) if isinstance(value, list) else value
    return found


def _json_name(name: str) -> str:
    return name.removesuffix("wh") + "kwh" if name == "wh" or name.endswith("_wh") else name


def _with_kwh(name: str, value: Any) -> tuple[str, Any]:
    """A field's name and value in JSON."""
    if value is not None and name != _json_name(name):
        value = [wh / 1e3 for wh in value] if isinstance(value, tuple | list) else value / 1e3
    return _json_name(name), value


def add_readings(readings: Sequence[Reading]) -> Reading:
    """Sum readings of different devices over the same time: the ranks of a node, the nodes of a job.

    A kind that is measured on one node and estimated on another gives two measurements, never one.

    Example:
        import lorakit
        from lorakit.power.reading import add_readings

        with lorakit.EnergyMeter() as meter:
            sum(range(1000))
        try:
            add_readings([meter.reading, meter.reading])  # as if each process of a job had counted the node
        except ValueError as error:
            print("in two of the readings" in str(error))  # True

    Args:
        readings: at least one. Devices are told apart by machine (its boot id) and id.

    Returns:
        The sum.

    Raises:
        ValueError: there is nothing to add, or a device is in two readings of one machine.
    """
    seen: set[tuple[str, str]] = set()
    for reading in readings:
        for machine, device in counted_devices(reading):
            if (machine, device) in seen:
                raise ValueError(
                    f"{device} of the machine {machine or '(any)'} is in two of the readings: add only one of them, or "
                    "let EnergyMeter.gather add up the processes of a job"
                )
            seen.add((machine, device))
    return sum_readings(readings)


def counted_devices(reading: Reading) -> Iterator[tuple[str, str]]:
    """The machine's boot id and the device's id, for everything whose energy is in a reading, or beside it.

    The UUID of a GPU is unique everywhere, so its machine is "". Of a sum over machines, and of a reading that does not
    name its machine, only the GPUs are given.
    """
    machines = reading.contention.machines if reading.contention is not None else ()
    for kind in KINDS:
        if getattr(reading, kind).method == "estimated" and len(machines) == 1:
            yield machines[0], ESTIMATE.format(kind.upper())
    beside = [part for name, part in reading.others.items() if name in BESIDE]
    for part in (*(getattr(reading, kind) for kind in KINDS), *beside):
        for device in part.devices:
            if device["kwh"] is not None and device["id"].startswith("GPU-"):
                yield "", device["id"]
            elif device["kwh"] is not None and len(machines) == 1:
                yield machines[0], device["id"]


def sum_readings(readings: Sequence[Reading]) -> Reading:
    """As `add_readings`, for readings that are known to share no device over the same time.

    Raises:
        ValueError: there is nothing to add.
    """
    if not readings:
        raise ValueError("there are no readings to add")
    others: dict[str, Measurement] = {}
    parts: dict[str, Measurement] = {}
    duration_s = max(reading.duration_s for reading in readings)
    for kind in KINDS:
        measurements = [getattr(reading, kind) for reading in readings]
        estimates = [part for reading in readings if (part := reading.others.get(f"{kind}, estimated"))]
        measured = [part for part in measurements if part.method in MEASURED]
        if measured:  # devices that could not be read lower the sum's coverage
            measured += [part for part in measurements if part.method == "unavailable" and part.devices]
        estimates += [part for part in measurements if part.method == "estimated"]
        if measured and estimates:
            others[f"{kind}, estimated"] = _add_measurements(estimates, duration_s)
        parts[kind] = _add_measurements(measured or estimates or measurements, duration_s)
    for name in BESIDE:
        beside = [part for reading in readings if (part := reading.others.get(name)) and part.wh is not None]
        if beside:
            others[name] = _add_measurements(beside, duration_s)
    return Reading(
        **parts,
        others=others,
        duration_s=duration_s,
        suspended_s=max(reading.suspended_s for reading in readings),
        count=max(reading.count for reading in readings),
        errors=sum(reading.errors for reading in readings),
        contention=add_contentions([reading.contention for reading in readings]),
        conditions=_add_conditions([reading.conditions for reading in readings if reading.conditions]),
        notes=tuple(dict.fromkeys(note for reading in readings for note in reading.notes)),
    )


def _add_conditions(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each device's first start and last end; all drivers, if there are several."""
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


def _add_measurements(parts: Sequence[Measurement], duration_s: float) -> Measurement:
    if len(parts) == 1:
        return parts[0]
    devices = [device for part in parts for device in part.devices]
    known = [part for part in parts if part.wh is not None]
    if not known:
        reasons = dict.fromkeys(part.source for part in parts)
        return Measurement("unavailable", source="; ".join(reasons), devices=tuple(devices))
    idle = None not in [part.above_idle_wh for part in known]
    ranged = known[0].range_wh is not None
    methods = {part.method for part in known}
    kinds = {part.uncertainty_kind for part in known}
    return Measurement(
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
        device_coverage=_device_coverage(devices),
        gaps=tuple(gap for part in known for gap in part.gaps),
        gap_count=sum(part.gap_count for part in known),
        uncertainty_wh=None if ranged else sum(part.uncertainty_wh for part in known),
        uncertainty_kind=kinds.pop() if len(kinds) == 1 else "bound and 3 standard errors",
        range_wh=(sum(part.range_wh[0] for part in known), sum(part.range_wh[1] for part in known)) if ranged else None,
        above_idle_wh=sum(part.above_idle_wh for part in known) if idle else None,
        idle_w=sum(part.idle_w for part in known) if idle else None,
        idle_error_w=sum(part.idle_error_w**2 for part in known) ** 0.5 if idle else None,
    )


def _coverage(parts: Sequence[Measurement], known: Sequence[Measurement]) -> float:
    """Mean over all devices that gave a reading; over the parts where they name no devices."""
    shares = [device["coverage"] for part in parts for device in part.devices if device["kwh"] is not None]
    shares = shares or [part.coverage for part in known]
    return sum(shares) / len(shares)


def _device_coverage(devices: Sequence[Mapping[str, Any]]) -> float | None:
    read = [device["kwh"] is not None for device in devices]
    return sum(read) / len(read) if read else None


def describe(measurement: Measurement) -> str:
    """One line for people: `12.3 Wh, 244 W, counter (NVML total energy)`."""
    if measurement.wh is None:
        return f"unavailable: {measurement.source}"
    watts = "" if measurement.mean_w is None else f"{measurement.mean_w:.4g} W, "  # no power before any time has passed
    text = f"{measurement.wh:.4g} Wh, {watts}{measurement.method} ({measurement.source})"
    if measurement.range_wh is not None:
        text += f", between {measurement.range_wh[0]:.3g} and {measurement.range_wh[1]:.3g} Wh"
    elif measurement.uncertainty_wh is not None:
        text += f", ± {measurement.uncertainty_wh:.2g} Wh"
    if measurement.coverage is not None and measurement.coverage < 1:
        text += f", {measurement.coverage:.1%} of the time covered"
    if measurement.device_coverage is not None and measurement.device_coverage < 1:
        read = sum(device["kwh"] is not None for device in measurement.devices)
        text += f", {read} of {counted(len(measurement.devices), 'device')} read"
    return text


def _total(parts: Iterable[float | None]) -> float | None:
    known = [wh for wh in parts if wh is not None]
    return sum(known) if known else None
