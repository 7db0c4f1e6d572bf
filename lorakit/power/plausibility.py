"""Checks that need two devices: figures that cannot both be right."""

from collections.abc import Iterable

from lorakit._counts import counted
from lorakit.power.accumulator import DeviceAccumulator

DISAGREEMENT = 0.05  # of counter and samples, beyond their uncertainties; two readers of one sensor agree within 1 %
CHECKED = 0.98  # share of a window that both must cover to be compared
HIGH_DRAM_W = 50.0


def disagreements(pairs: Iterable[tuple[DeviceAccumulator, DeviceAccumulator]], window: str, now: float) -> list[str]:
    """GPUs whose energy counter and power samples contradict each other over this window.

    Args:
        pairs: a GPU's energy counter, and its power samples.
    """
    found = []
    for counter, samples in pairs:
        totals = [counter.total(window, now), samples.total(window, now)]
        if any(total.joules is None or total.covered_s < CHECKED * total.wanted_s for total in totals):
            continue  # they cover different times
        watts = [total.joules / total.covered_s for total in totals]
        allowed_w = DISAGREEMENT * max(watts) + sum(total.uncertainty_j / total.covered_s for total in totals)
        if abs(watts[0] - watts[1]) > allowed_w:
            found.append(
                f"{counter.source.id}: the energy counter says {watts[0]:.4g} W on average, the power samples say "
                f"{watts[1]:.4g} W; one of them is wrong"
            )
    return found


def implausible_dram(zones: Iterable[DeviceAccumulator]) -> str | None:
    """A note if two sockets' DRAM counters are far apart.

    New platforms were seen to report 200 W for the DRAM of one idle socket and 6 W for the other's.

    Args:
        zones: the DRAM counters of all sockets.
    """
    watts = {zone.source.id: zone.joules / zone.measured_s for zone in zones if zone.measured_s}
    if watts and max(watts.values()) > HIGH_DRAM_W and max(watts.values()) > 10 * min(watts.values()):
        shown = ", ".join(f"{zone} {power:.3g} W" for zone, power in watts.items())
        return f"implausible DRAM powers, do not trust them: {shown}"
    return None


def unseen_wraps(devices: Iterable[DeviceAccumulator]) -> list[str]:
    """A note for each counter that was not read for so long that it may have started again unseen."""
    return [
        f"{device.source.id}: its counter may have started again unseen at least {_times(device.wrap_risks)}, "
        f"because it was once not read for {device.longest_s:.0f} s; energy may be missing"
        for device in devices
        if device.wrap_risks
    ]


def _times(count: int) -> str:
    """How often, in words; an interval without readings counts once, however often the counter went round in it."""
    return "once" if count == 1 else counted(count, "time")
