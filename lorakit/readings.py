"""Energy as numbers that say how they were obtained.

Unknown is None (null in JSON), never 0. The measured total holds counters and integrated samples only; estimates have a
total of their own, with their range.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

METHODS = ("counter", "sampled", "estimated", "unavailable")
MEASURED = ("counter", "sampled")


@dataclass(frozen=True)
class Quantity:
    """The energy of one kind of device over one window.

    Attributes:
        method: how `wh` was obtained: "counter", "sampled", "estimated" or "unavailable".
        wh: watt-hours over the covered time, None if unavailable.
        mean_w: mean power over the covered time, W.
        source: the sensor or the model; for "unavailable" the reason and the way out.
        scope: what the number includes: "device", "socket", "node", "module" (a GH200's GPU and CPU).
        devices: one record per device: id, name, method, source, scope, kwh, coverage, uncertainty.
        coverage: share of the time for which there are trustworthy readings, 0 to 1.
        gaps: the times without, as records with device, start_s, duration_s, reason.
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
        }


@dataclass(frozen=True)
class Reading:
    """GPU, CPU and RAM over one window (or the whole meter).

    Attributes:
        duration_s: seconds for which the window was open, summed over its repetitions; time asleep is not in it.
        suspended_s: seconds that the machine was suspended meanwhile.
        count: how often the window was entered. errors: how often it was left by an exception.
        others: quantities that contain or repeat the three (psys): reported beside them, never added.
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
    def estimated_wh(self) -> float | None:
        """Sum of the estimates, None if there is none."""
        return _total(quantity.wh for quantity in self._parts if quantity.method == "estimated")

    @property
    def estimated_range_wh(self) -> tuple[float, float] | None:
        """Lowest and highest plausible sum of the estimates."""
        ranges = [quantity.range_wh for quantity in self._parts if quantity.range_wh is not None]
        return (sum(low for low, _ in ranges), sum(high for _, high in ranges)) if ranges else None

    @property
    def above_idle_wh(self) -> float | None:
        """Measured energy above the idle baseline, None unless every measured part has a baseline."""
        parts = [quantity.above_idle_wh for quantity in self._parts if quantity.method in MEASURED]
        return None if None in parts else _total(parts)

    @property
    def _parts(self) -> tuple[Quantity, Quantity, Quantity]:
        return self.gpu, self.cpu, self.ram

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

    def __str__(self) -> str:
        return "\n".join(f"{kind.upper()}: {describe(getattr(self, kind))}" for kind in ("gpu", "cpu", "ram"))


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


def _total(parts: Any) -> float | None:
    known = [wh for wh in parts if wh is not None]
    return sum(known) if known else None


def _kwh(wh: float | None) -> float | None:
    return None if wh is None else wh / 1e3
