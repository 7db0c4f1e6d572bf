"""A machine without sensors, calibrated by what a wall-outlet meter showed when it was idle and under full load.

The calibrated power is that of the whole machine, so it stands for CPU and RAM together. Between the two readings it is
taken to grow with the CPU's load. A partly loaded CPU draws more than that, because few busy cores run faster: up to
four times its share is taken as possible, and never more than full load.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lorakit._files import write_text
from lorakit.power.kernel_files import is_missing, read_if_allowed

TURBO = 4.0
WALL_METER = "by a wall-outlet meter"  # in the source of a calibrated estimate
LEAST_W, MOST_W = 0.5, 20_000.0  # no computer draws less or more; readings beyond are of another unit


@dataclass(frozen=True)
class Calibration:
    """What a wall-outlet meter showed.

    Example:
        from lorakit.power.calibration import calibrate

        found = calibrate(idle_w=[38.0, 38.4], load_w=[92.0], meter_error=0.02, machine="laptop")
        print(found.idle_w, found.load_w, round(found.error, 3))  # 38.2 92.0 0.025

    Args:
        idle_w: power of the idle machine, W.
        load_w: power with all CPUs busy, W.
        error: relative error of both, 0 to 1.
        machine: what the machine is, see `machine_name`.
    """

    idle_w: float
    load_w: float
    error: float
    machine: str

    def range_j(self, load_j: float, duration_s: float) -> tuple[float, float]:
        """Lowest and highest plausible energy, J.

        Args:
            load_j: estimated energy above idle, J.
            duration_s: duration of the window, s.
        """
        idle_j, full_j = self.idle_w * duration_s, (self.load_w - self.idle_w) * duration_s
        least_j, most_j = min(load_j, full_j), min(TURBO * load_j, full_j)  # the kernel's ticks may add up to more
        return (idle_j + least_j) * (1 - self.error), (idle_j + most_j) * (1 + self.error)

    @property
    def source(self) -> str:
        """For people."""
        return f"{self.idle_w:g} to {self.load_w:g} W for the whole machine {WALL_METER}, by load"


def calibrate(idle_w: Sequence[float], load_w: Sequence[float], meter_error: float, machine: str) -> Calibration:
    """The mean of the readings; their spread adds to the meter's own error.

    Raises:
        ValueError: a reading is not that of a computer in W, the loaded machine draws no more than the idle one, or the
            meter's error and the spread of the readings leave nothing to be said.
    """
    shown = f"idle_w={_listed(idle_w)} and load_w={_listed(load_w)}"
    wrong = [watts for watts in (*idle_w, *load_w) if not LEAST_W <= watts <= MOST_W]
    if wrong:
        raise ValueError(
            f"{shown}: {wrong[0]:g} W is not what a computer draws; give W, from {LEAST_W:g} to {MOST_W:g} (1 kW is "
            "1000 W)"
        )
    if max(idle_w) >= min(load_w):
        raise ValueError(f"{shown}: each reading of the loaded machine must be above each of the idle one, in W")
    means = [sum(values) / len(values) for values in (idle_w, load_w)]
    pairs = [(value, mean) for values, mean in zip((idle_w, load_w), means, strict=True) for value in values]
    spread = max(abs(value / mean - 1) for value, mean in pairs)
    if meter_error + spread >= 1:
        raise ValueError(
            f"the meter's error of {meter_error:.0%} and the readings' spread of {spread:.0%} make 100 % or more; give "
            "the meter's own error (meter_error=) and readings of one load each"
        )
    return Calibration(means[0], means[1], meter_error + spread, machine)


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def machine_name(proc: Path = Path("/proc")) -> str:
    """What a calibration belongs to: the CPU's model, the number of logical CPUs, the size of the memory in GiB."""
    cpuinfo = read_if_allowed(proc / "cpuinfo").splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "unknown CPU")
    memory = read_if_allowed(proc / "meminfo").partition("MemTotal:")[2].split()
    gib = round(int(memory[0]) / 2**20) if memory and memory[0].isdigit() else 0
    return f"{model}, {os.cpu_count()} CPUs, {gib} GiB"


def calibration_file(environ: Mapping[str, str]) -> Path | None:
    """Where a user's calibration is kept, None without a home."""
    if environ.get("XDG_CONFIG_HOME"):
        return Path(environ["XDG_CONFIG_HOME"]) / "lorakit" / "power.json"
    return Path(environ["HOME"]) / ".config" / "lorakit" / "power.json" if environ.get("HOME") else None


def save_calibration(path: Path, found: Calibration) -> None:
    """Write it, replacing an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(found), indent=2) + "\n")


def load_calibration(path: Path | None, machine: str) -> tuple[Calibration | None, str]:
    """The calibration in a file, None without a usable one, and a note on why a file is not used."""
    if path is None or is_missing(path):
        return None, ""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(*(float(data[name]) for name in ("idle_w", "load_w", "error")), str(data["machine"]))
        if not 0 < found.idle_w < found.load_w or not 0 <= found.error < 1:
            raise ValueError("its powers are impossible")
    except PermissionError:  # as for a service whose HOME is another user's
        return None, f"{path} may not be read by this user: a calibration in it is not used"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return None, f"{path} is not used: {error}; run `lorakit energy calibrate` again"
    if found.machine != machine:
        fix = "run `lorakit energy calibrate` here to replace it"
        return None, f"{path} is not used: it is of another machine ({found.machine}); {fix}"
    return found, ""
