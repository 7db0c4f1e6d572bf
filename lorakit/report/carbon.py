"""CO2 and the SCI of ISO 21031, by the user's own factors and of measured energy alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RECORDED = ("co2_g_per_kwh", "embodied_g", "sci_units")  # in a record, in the order of Carbon's arguments


@dataclass(frozen=True)
class Carbon:
    """The user's own factors; there is no default for any.

    Example:
        from lorakit.report.carbon import Carbon

        carbon = Carbon(grams_per_kwh=400.0, embodied_g=20.0, units=1000.0)
        print(carbon.grams(0.2), carbon.sci_g(0.2))  # 80.0 0.1

    Args:
        grams_per_kwh: of the grid, g of CO2 per kWh.
        embodied_g: g of CO2 for the run's share of making the hardware.
        units: of work, the R of ISO 21031.

    Raises:
        ValueError: units without the two factors, or hardware without units.
    """

    grams_per_kwh: float | None = None
    embodied_g: float | None = None
    units: float | None = None

    def __post_init__(self) -> None:
        if self.units is not None and (self.grams_per_kwh is None or self.embodied_g is None or self.units <= 0):
            raise ValueError(
                "units= needs a number above 0 and your own factors: grams_per_kwh=400 (of CO2, of your grid) and "
                "embodied_g=120 (g of CO2 for this run's share of making the hardware)"
            )
        if self.embodied_g is not None and self.units is None:
            raise ValueError("embodied_g= is part of the SCI: add units=N, the number of units of work (ISO 21031's R)")

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Carbon":
        """The factors that a run was given, from its comparison.json or a mode's part of it."""
        return cls(*(record.get(name) for name in RECORDED))

    @property
    def recorded(self) -> dict[str, float]:
        """The same for comparison.json: the factors that are known."""
        values = (self.grams_per_kwh, self.embodied_g, self.units)
        return {name: value for name, value in zip(RECORDED, values, strict=True) if value is not None}

    def grams(self, measured_kwh: float | None) -> float | None:
        """CO2 of the measured energy, g; None without a factor, or if nothing was measured."""
        return None if self.grams_per_kwh is None or measured_kwh is None else measured_kwh * self.grams_per_kwh

    def sci_g(self, measured_kwh: float | None) -> float | None:
        """The SCI for the measured energy, g of CO2 per unit; None as for `grams`, or without units."""
        grams = self.grams(measured_kwh)
        return None if grams is None or self.units is None else (grams + self.embodied_g) / self.units

    def sci_sentence(self, measured_kwh: float) -> str:
        """The SCI and what it is made of."""
        return (
            f"SCI (ISO 21031) of the measured part: {self.sci_g(measured_kwh):.4g} g of CO2 per unit = "
            f"({self.grams(measured_kwh):.4g} g for energy + {self.embodied_g:g} g embodied) / {self.units:g} "
            f"{'unit' if self.units == 1 else 'units'}"
        )

    def to_json(self, measured_kwh: float | None) -> dict[str, Any]:
        """Plain data for JSON: the factors, and what they give."""
        return {
            "co2_g_per_kwh": self.grams_per_kwh,
            "embodied_g": self.embodied_g,
            "sci_units": self.units,
            "co2_g": self.grams(measured_kwh),
            "sci_g_per_unit": self.sci_g(measured_kwh),
        }
