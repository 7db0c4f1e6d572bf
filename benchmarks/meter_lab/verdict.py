"""What a meter's number is worth on a machine whose joules are known."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drive import CLAIMS, Answer
from machines import Machine

CLOSE = 0.02  # of the truth
VERDICTS = {  # from bad to good; of a machine with two parts the worse counts
    "off": "a number that is neither within 2 % nor within the meter's own bound, and is not called an estimate",
    "raises": "an exception in the user's program instead of a number that the sensors allow",
    "silent": "no number",
    "estimate": "a number that the meter or its documentation calls an estimate",
    "declined": "no number where the sensors allow no right one, and the meter says why",
    "right": "within 2 % of the truth, or of the meter's own bound",
}
WORDS = {
    "cpu": re.compile(r"rapl|powercap|energy_uj|\bcpu|max_energy_range", re.IGNORECASE),
    "ram": re.compile(r"rapl|powercap|energy_uj|\bdram", re.IGNORECASE),
    "gpu": re.compile(r"\bgpu|nvml|nvidia|cuda|\bmig\b", re.IGNORECASE),
    "machine": re.compile(r"power_meter|hwmon", re.IGNORECASE),
}
NOISE = re.compile(  # about other things; the last is Zeus' of the block before the one that counts
    r"import pynvml|pynvml package is deprecated|DeprecationWarning|api key|amdsmi|Detected CPU|will monitor only"
    r"|energy consumption of one or more GPUs was measured as zero",
    re.IGNORECASE,
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Verdict:
    """One part of one machine by one meter.

    `deviation` is how far the number is outside what is true for the block, as a share; `in_bound` says whether the
    truth is inside the meter's own bound, None if it states none; `says` is its own remark or reason.
    """

    part: str
    verdict: str
    joules: float | None = None
    true_j: float = 0.0
    deviation: float | None = None
    bound: float | None = None  # half of its bound's width, as a share of the truth
    in_bound: bool | None = None
    covered: float = 1.0  # share of the energy that it says its number covers
    says: str = ""

    def text(self) -> str:
        """The cell of a table."""
        if self.verdict in ("silent", "raises"):
            return self.verdict + ("" if self.says else ", does not say why") * (self.verdict == "silent")
        if self.verdict == "declined":
            return "none, says why"
        text = "0 J" if self.joules == 0 else f"{100 * self.deviation:+.1f} %"
        if self.bound is not None and self.verdict == "right" and self.bound > CLOSE:
            text += f" (±{100 * self.bound:.0f} %)"
        if self.verdict == "estimate":
            text += {None: ", estimate", True: ", estimate, inside its range", False: ", estimate, outside its range"}[
                self.in_bound
            ]
        if self.covered < 0.995:
            text += f" of the {100 * self.covered:.0f} % that it covers"
        return ("**" + text + "**" if self.verdict == "off" else text) + (
            ", with a warning" if self.verdict == "off" and self.says else ""
        )


def judge(machine: Machine, result: Mapping[str, Any]) -> list[Verdict]:
    """One verdict for each part that is judged on a machine.

    Args:
        machine: what was measured.
        result: what `drive.py` wrote, and `says`: what the meter printed.
    """
    return [_judge_part(machine, part, result) for part in machine.judged]


def is_claimed(tool: str, machine: Machine) -> bool:
    """Whether the meter says that it reads such sensors."""
    return machine.needs in CLAIMS[tool]


def worst(verdicts: Iterable[Verdict]) -> str:
    """The verdict on the machine."""
    return min((verdict.verdict for verdict in verdicts), key=list(VERDICTS).index)


def _judge_part(machine: Machine, part: str, result: Mapping[str, Any]) -> Verdict:
    key = next((key for key in result["answers"] if part in key.split("+")), part)
    answer = Answer(**result["answers"].get(key, {"joules": None}))
    parts = key.split("+")
    least, most = sorted(machine.joules(parts, *span) for span in result["spans"])
    printed = remarks(part, result.get("says", ""))
    if answer.joules is None:
        says = answer.reason or result.get("raised", "") or printed
        if says and not machine.measurable:
            return Verdict(key, "declined", true_j=least, says=says)
        raises = bool(result.get("raised")) and machine.measurable
        return Verdict(key, "raises" if raises else "silent", true_j=least, says=says)
    missing = sum(
        device.power.joules(end) - device.power.joules(start)
        for name, start, end in answer.left_out
        for device in machine.devices
        if device.id == name and device.part in parts
    )
    covered = 1 - missing / most
    low, high = least - missing, most - missing
    deviation = answer.joules / high - 1 if answer.joules > high else min(0.0, answer.joules / low - 1)
    in_bound = None if answer.low is None else answer.low <= high and answer.high >= low
    bound = None if answer.low is None else (answer.high - answer.low) / 2 / low
    verdict = "right" if abs(deviation) <= CLOSE or in_bound else "off"
    found = (answer.joules, low, deviation, bound, in_bound, covered)
    return Verdict(key, "estimate" if answer.estimate else verdict, *found, says=answer.warned or printed)


def remarks(part: str, printed: str) -> str:
    """The first line of what a meter printed that is about a part of the machine, "" if there is none."""
    for line in COLOUR.sub("", printed).splitlines():
        if WORDS[part].search(line) and not NOISE.search(line) and not line.startswith("  "):
            return line.strip()[:300]
    return ""
