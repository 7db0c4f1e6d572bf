"""The power limits of a CPU package, which bound an estimate where the energy itself cannot be read.

What the CPU may draw for long is the smaller of the limits in force. `constraint_0_max_power_uw` is the nominal TDP
(`get_max_power` in intel_rapl_common.c): laptops and unlocked desktops run above it, and a limit below it may be raised
again, so the larger of the two is taken. Firmware that means "no limit" writes placeholders, such as 200 W on a 15 W
laptop, or 4095 W: then the nominal power is all that is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorakit.power.kernel_files import read_count

PLACEHOLDER_W = 200.0  # from here on a limit is believed only if it fits the nominal power
PLACEHOLDER_RATIO = 3.0  # desktops with 125 W run at 253 W; a limit beyond this ratio is a placeholder
HIGHEST_W = 1000.0  # no package draws more


@dataclass(frozen=True)
class PowerLimit:
    """What a package can draw for long, W, and the file that says so."""

    watts: float
    source: str


def package_limit(folder: Path) -> PowerLimit | None:
    """The long-term limit of a package, None if its zone's folder tells none.

    Raises:
        PermissionError: this user may not read the limits.
    """
    nominal_w = _watts(folder / "constraint_0_max_power_uw")
    in_force = [_watts(folder / f"constraint_{index}_power_limit_uw") for index in (0, 1)]
    limit_w = min((watts for watts in in_force if watts), default=None)
    if limit_w is not None and _is_believable(limit_w, nominal_w) and limit_w > (nominal_w or 0.0):
        return PowerLimit(limit_w, "the power limit in force")
    if nominal_w and nominal_w < HIGHEST_W:
        return PowerLimit(nominal_w, "constraint_0_max_power_uw")
    return None


def _is_believable(limit_w: float, nominal_w: float | None) -> bool:
    if limit_w < PLACEHOLDER_W:
        return True
    return limit_w < HIGHEST_W and (not nominal_w or limit_w <= PLACEHOLDER_RATIO * nominal_w)


def _watts(path: Path) -> float | None:
    """A limit in W, None where the kernel has none or the driver fails."""
    try:
        count = read_count(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    return count / 1e6 if count else None


@dataclass(frozen=True)
class MachineLimit:
    """The limit of all packages together, W, None if unknown, and where it comes from or why there is none."""

    watts: float | None
    source: str


def machine_limit(folders: Iterable[Path]) -> MachineLimit:
    """The sum of the packages' limits, if every package tells one."""
    found: list[PowerLimit] = []
    for folder in folders:
        try:
            limit = package_limit(folder)
        except PermissionError as error:
            return MachineLimit(None, f"the packages' power limits are not known: {error.strerror}")
        if limit is None:
            return MachineLimit(None, "")
        found.append(limit)
    if not found:
        return MachineLimit(None, "")
    return MachineLimit(sum(limit.watts for limit in found), ", ".join(dict.fromkeys(limit.source for limit in found)))
