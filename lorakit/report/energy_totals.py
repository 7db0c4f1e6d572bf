"""A run's energy in one sentence: Wh with what each total is known to, and CO2 by the user's own factor."""

from collections.abc import Mapping
from typing import Any

from lorakit.report.carbon import Carbon

NO_CO2 = "no CO2, because nothing was measured (`lorakit energy doctor` says how to enable a sensor)"


def energy_sentence(energy: Mapping[str, Any], carbon: Carbon | None = None) -> str:
    """Say what was measured and estimated, with bounds, and the CO2 and the SCI of the measured part.

    Example:
        from lorakit.report.carbon import Carbon
        from lorakit.report.energy_totals import energy_sentence

        energy = {"measured_kwh": 0.2, "measured_uncertainty_kwh": 0.0005, "estimated_kwh": None}
        print(energy_sentence(energy, Carbon(400.0)))  # measured 200 Wh ± 0.5 Wh; CO2 at 400 g/kWh 80 g ± 0.2 g

    Args:
        energy: a reading as `Reading.to_json` gives it.
        carbon: the user's factors; None leaves CO2 out.

    Returns:
        The sentence; "nothing measured" where there is no sensor, and no CO2 of an estimate.
    """
    measured, bound = energy.get("measured_kwh"), energy.get("measured_uncertainty_kwh")
    parts = ["nothing measured" if measured is None else f"measured {_with_bound(measured, bound, 1e3, 'Wh')}"]
    estimated, span = energy.get("estimated_kwh"), energy.get("estimated_range_kwh")
    if estimated is not None:
        plausible = f", plausible from {1e3 * span[0]:.3g} to {1e3 * span[1]:.3g} Wh" if span else ""
        parts.append(f"estimated {1e3 * estimated:.3g} Wh{plausible}")
    factor = None if carbon is None else carbon.grams_per_kwh
    if factor is not None and measured is None:
        parts.append(NO_CO2)
    elif factor is not None:
        parts.append(f"CO2 at {factor:g} g/kWh {_with_bound(measured, bound, factor, 'g')}")
        parts += [carbon.sci_sentence(measured)] if carbon.units is not None else []
    return "; ".join(parts)


def _with_bound(kwh: float, bound_kwh: float | None, factor: float, unit: str) -> str:
    bound = "" if bound_kwh is None else f" ± {factor * bound_kwh:.2g} {unit}"
    return f"{factor * kwh:.4g} {unit}{bound}"
