"""The sum of readings of one machine that follow one another: the turns of a run, or a run and its restarts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorakit.power.reading import JOULES_PER_WH, KINDS, Measurement, Reading, add_readings

SUMMED = ("kwh", "uncertainty_kwh", "power_integral_kwh", "failed_readings", "wrap_risks")


def add_consecutive(readings: Sequence[Reading]) -> Reading:
    """Sum readings of the same devices over times that follow one another; their durations add up.

    Each device is listed once, and the process's share of the CPU is the mean over time. What passed between the
    readings is in none of them.

    Raises:
        ValueError: there is nothing to add.
    """
    if len(readings) == 1:
        return readings[0]
    total = add_readings(readings)
    duration_s = sum(reading.duration_s for reading in readings)
    shares = [(reading.process_share, reading.duration_s) for reading in readings]
    known = duration_s > 0 and all(share is not None for share, _ in shares)
    return replace(
        total,
        **{kind: _joined(getattr(total, kind), duration_s) for kind in KINDS},
        others={name: _joined(part, duration_s) for name, part in total.others.items()},
        duration_s=duration_s,
        suspended_s=sum(reading.suspended_s for reading in readings),
        process_share=sum(share * seconds for share, seconds in shares) / duration_s if known else None,
    )


def _joined(part: Measurement, duration_s: float) -> Measurement:
    """The same energy with its mean power over this duration, and each device once."""
    covered_s = duration_s * (part.coverage or 1.0)
    mean_w = part.wh * JOULES_PER_WH / covered_s if part.wh is not None and duration_s > 0 else None
    not_counted = {(device.get("id"), device.get("why")): device for device in part.not_counted}
    return replace(part, mean_w=mean_w, devices=_once(part.devices), not_counted=tuple(not_counted.values()))


def _once(records: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """One record per device: its energy summed, its coverage the mean, its extremes those of all."""
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_id.setdefault(record["id"], []).append(record)
    return tuple(_one_device(group) for group in by_id.values())


def _one_device(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(records) == 1:
        return records[0]

    def known(name: str) -> list[float]:
        return [record[name] for record in records if record[name] is not None]

    measured = [record for record in records if record["kwh"] is not None]
    return {
        **(measured or records)[0],
        **{name: sum(known(name)) if known(name) else None for name in SUMMED},
        "coverage": sum(record["coverage"] for record in records) / len(records),
        "min_w": min(known("min_w"), default=None),
        "max_w": max(known("max_w"), default=None),
        "longest_interval_s": max(known("longest_interval_s")),
    }
