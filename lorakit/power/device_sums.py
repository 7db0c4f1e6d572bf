"""From the devices of one kind, or from a model, to one measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.power.reading import JOULES_PER_WH, Measurement


@dataclass(frozen=True)
class DeviceEnergy:
    """One device in a window, before devices of a kind are summed.

    `joules` is None if nothing was measured. `idle` is the idle power and its standard error, W. `power_w` is the
    lowest and highest power sample, W, and `integral_j` the integral of the samples where `joules` is a counter's.
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
        """Share of the wanted time with trustworthy readings, 0 to 1."""
        return min(1.0, self.covered_s / self.wanted_s) if self.wanted_s > 0 else 0.0

    def record(self) -> dict[str, Any]:
        """The device as `Measurement.devices` lists it."""
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


def sum_devices(
    devices: Sequence[DeviceEnergy], duration_s: float, not_counted: Sequence[Mapping[str, Any]] = ()
) -> Measurement:
    """Sum the devices of one kind over a window; a device without any reading lowers `device_coverage`.

    Args:
        devices: at least one.
        duration_s: how long the window was open, s.
        not_counted: records of devices left out: id, name, why.
    """
    known = [device for device in devices if device.joules is not None]
    records = tuple(device.record() for device in devices)
    if not known:
        reason = "; ".join(dict.fromkeys(f"{device.id}: {device.source}" for device in devices))
        return Measurement("unavailable", source=reason, devices=records, not_counted=tuple(not_counted))
    joules = sum(device.joules for device in known)
    kinds = {device.uncertainty_kind for device in known}
    idle = [device.idle for device in known if device.idle is not None]
    with_idle = len(idle) == len(known)
    return Measurement(
        "sampled" if any(device.method == "sampled" for device in known) else "counter",
        wh=joules / JOULES_PER_WH,
        mean_w=sum(device.joules / device.coverage for device in known) / duration_s if duration_s > 0 else None,
        source="; ".join(dict.fromkeys(device.source for device in known)),
        scope=known[0].scope,
        devices=records,
        not_counted=tuple(not_counted),
        coverage=sum(device.coverage for device in known) / len(known),
        device_coverage=len(known) / len(devices),
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


def estimate_energy(
    low_w: float, high_w: float, source: str, duration_s: float, extra_j: float | None = None
) -> Measurement:
    """Estimate the energy of a window from a power range.

    Args:
        low_w: power when idle, W. high_w: power under full load, W.
        source: what the two come from.
        duration_s: how long the window was open, s.
        extra_j: energy above `low_w` that the load accounts for, J; None takes the middle of the range.
    """
    low_j, high_j = low_w * duration_s, high_w * duration_s
    joules = (low_j + high_j) / 2 if extra_j is None else min(low_j + extra_j, high_j)
    return Measurement(
        "estimated",
        wh=joules / JOULES_PER_WH,
        mean_w=joules / duration_s if duration_s > 0 else None,
        source=source,
        scope="node",
        range_wh=(low_j / JOULES_PER_WH, high_j / JOULES_PER_WH),
    )
