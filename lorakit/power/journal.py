"""A run's energy on disk while it runs: JSON lines that are only ever appended, and the sum of several runs.

Each line is written by one call, so that a killed process leaves complete lines except perhaps the last. A run starts
with a `start` line and, if nothing went wrong, finishes with an `end` line. Every line names its run, so that a file
may hold several, one after the other or interleaved.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from lorakit._files import read_json_lines
from lorakit.power.clock import Clock
from lorakit.power.contention import merge_contentions
from lorakit.power.reading import ESTIMATE, JOULES_PER_WH, KINDS, Measurement, Reading, sum_readings

SCHEMA = 1
SUMMED = ("kwh", "uncertainty_kwh", "power_integral_kwh", "failed_readings", "wrap_risks")
log = logging.getLogger("lorakit.energy")


class Journal:
    """Appends lines for one run; a full or read-only disk costs a warning, not the training.

    Args:
        path: the file, which may exist and hold other runs.
        run: an id of this run, unique in the file.
    """

    def __init__(self, path: str | Path, run: str) -> None:
        self.path, self.run = Path(path), run
        self._pid = os.getpid()
        self._warned = False
        self._queue: deque[tuple[str, Mapping[str, Any]]] = deque()

    def queue(self, kind: str, content: Mapping[str, Any]) -> None:
        """Leave a line for the next `write`, so that the calling thread need not wait for the disk."""
        self._queue.append((kind, content))

    def write(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append the queued lines and this one; does nothing in a forked child.

        An "end" line contains every window, so it replaces those still queued.
        """
        if os.getpid() != self._pid:
            return
        if kind == "end":
            self._queue.clear()
        while self._queue:
            self._append(*self._queue.popleft())
        self._append(kind, content)

    def _append(self, kind: str, content: Mapping[str, Any]) -> None:
        line = json.dumps({"type": kind, "schema": SCHEMA, "run": self.run, **content}, allow_nan=False) + "\n"
        try:
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                data = ("\n" if _ends_within_a_line(file) else "").encode() + line.encode()
                written = os.write(file, data)
            finally:
                os.close(file)
        except OSError as error:
            self._warn(str(error))
            return
        if written < len(data):
            self._warn("the disk is full")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning("energy readings cannot be written to %s: %s; the measurement continues", self.path, reason)
            self._warned = True


def _ends_within_a_line(file: int) -> bool:
    """Whether a killed process, or a full disk, left a truncated line, which the next must not continue."""
    length = os.fstat(file).st_size
    return length > 0 and os.pread(file, 1, length - 1) != b"\n"


def times(clock: Clock) -> dict[str, float]:
    """When a line was written, as `Journal` lines hold it."""
    return {"boottime_s": clock.boottime(), "wall_s": clock.wall()}


@dataclass
class Run:
    """One run of a journal.

    Attributes:
        run: its id.
        start: the `start` line: host, boot_id, pid, start times.
        reading: the newest reading as `Reading.to_json` gives it, None if there is none.
        windows: finished windows. complete: the run reached its end.
        error: name of the exception that ended the block, None without one.
        boottime_s, wall_s: time of the newest reading, s.
    """

    run: str
    start: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] | None = None
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False
    error: str | None = None
    boottime_s: float | None = None
    wall_s: float | None = None


NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "start": {"boot_id": str, "host": str, "pid": int, "boottime_s": (int, float), "wall_s": (int, float)},
    "window": {"name": str, "reading": dict},
    "reading": {"reading": dict, "boottime_s": (int, float), "wall_s": (int, float)},
    "end": {
        "reading": dict,
        "boottime_s": (int, float),
        "wall_s": (int, float),
        "windows": dict,
        "error": (str, type(None)),
    },
}


def _check(entry: Mapping[str, Any], place: str) -> None:
    """Raises ValueError unless a line has what its type needs; lines of unknown types are accepted and ignored."""
    for name, kinds in {"run": str, "type": str, **NEEDED.get(str(entry.get("type")), {})}.items():
        if not isinstance(entry.get(name, ...), kinds):
            raise ValueError(f"{place}: {name!r} is {entry.get(name, 'missing')!r}; this is not a journal of lorakit's")


def read_journal(path: str | Path) -> list[Run]:
    """Read the runs of a journal, including those of killed processes; truncated lines are skipped.

    Raises:
        ValueError: the file is not a journal, or a complete line of it lacks what its type needs.
        OSError: the file cannot be read.
    """
    runs: dict[str, Run] = {}
    for number, entry in read_json_lines(Path(path)):
        if "run" not in entry or entry.get("schema") != SCHEMA:
            continue
        _check(entry, f"{path}, line {number}")
        run = runs.setdefault(entry["run"], Run(entry["run"]))
        kind = entry["type"]
        if kind == "start":
            run.start = entry
        elif kind == "window":
            run.windows[entry["name"]] = entry["reading"]
        elif kind in ("reading", "end"):
            run.reading, run.boottime_s, run.wall_s = entry["reading"], entry["boottime_s"], entry["wall_s"]
            if kind == "end":
                run.windows, run.complete, run.error = entry["windows"], True, entry["error"]
    if not runs:
        raise ValueError(
            f"{path} holds no energy readings (JSON lines of schema {SCHEMA} were expected); give a file that "
            "`lorakit energy run --out` or EnergyMeter(out=...) wrote"
        )
    return list(runs.values())


def read_course(path: str | Path) -> dict[str, list[tuple[float, dict[str, Any] | None]]]:
    """Read how the energy of each run grew: pairs of wall_s and the reading so far, the first of them (start, None).

    Returns:
        Maps a run's id to its pairs, in order.

    Raises:
        OSError: the file cannot be read.
    """
    course: dict[str, list[tuple[float, dict[str, Any] | None]]] = {}
    for _, entry in read_json_lines(Path(path)):
        if entry.get("schema") == SCHEMA and entry.get("type") in ("start", "reading", "end"):
            course.setdefault(entry["run"], []).append((entry["wall_s"], entry.get("reading")))
    return course


def merge_runs(runs: Sequence[tuple[Path, Run]]) -> Reading:
    """Sum runs of any nodes and times, for example a run and its restarts, or one run per node.

    The duration is the time in which at least one of the runs was active, and mean powers refer to it.

    Example:
        from tempfile import TemporaryDirectory

        import lorakit
        from lorakit.power.journal import merge_runs, read_journal

        with TemporaryDirectory() as folder:
            for _ in range(2):  # two runs after another, in one file
                with lorakit.EnergyMeter(out=f"{folder}/energy.jsonl"):
                    sum(range(1000))
            runs = read_journal(f"{folder}/energy.jsonl")
            total = merge_runs([(f"{folder}/energy.jsonl", run) for run in runs])
        print(len(runs), total.errors)  # 2 0

    Args:
        runs: pairs of a file, named in errors, and a run from it.

    Returns:
        The sum; a device that several runs counted one after the other is listed once per boot of its machine.

    Raises:
        ValueError: there is no run, a run has no reading, or two runs counted a device over the same time.
    """
    seen: dict[tuple[str, str], list[tuple[float, float, Path]]] = {}
    by_boot: dict[str, list[tuple[Run, Reading]]] = {}
    for path, run in runs:
        reading, counted = _parse(path, run)
        by_boot.setdefault(run.start["boot_id"], []).append((run, reading))
        begin, end = run.start["boottime_s"], run.boottime_s
        for device in counted:
            others = seen.setdefault((run.start["boot_id"], device), [])
            for other_begin, other_end, other in others:
                if begin < other_end and other_begin < end:
                    raise ValueError(
                        f"{device} of {run.start['host']} is counted in {other} and in {path} over the same "
                        f"{min(end, other_end) - max(begin, other_begin):.1f} s: merge only one of them"
                    )
            others.append((begin, end, path))
    total = sum_readings([_one_machine(group) for group in by_boot.values()])
    duration_s = _union_s(_spans(by_boot.values()))
    parts = {kind: _spread(getattr(total, kind), duration_s) for kind in KINDS}
    others = {name: _spread(part, duration_s) for name, part in total.others.items()}
    parsed = [pair for group in by_boot.values() for pair in group]
    used = [(run.start["boottime_s"], run.boottime_s, reading.contention) for run, reading in parsed]
    return replace(total, **parts, others=others, duration_s=duration_s, contention=merge_contentions(used))


def _one_machine(runs: Sequence[tuple[Run, Reading]]) -> Reading:
    """The sum of one machine's runs: restarts and turns follow one another, ranks run at the same time."""
    readings = [reading for _, reading in runs]
    spans = sorted((run.start["boottime_s"], run.boottime_s) for run, _ in runs)
    follow = all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    return add_consecutive(readings) if follow else sum_readings(readings)


def _parse(path: Path, run: Run) -> tuple[Reading, list[str]]:
    """A run's reading, and what it counted."""
    if run.reading is None or not run.start:
        raise ValueError(f"{path}: the run {run.run} ended before its first reading; leave it out")
    try:
        reading = Reading.from_json(run.reading)
        sum_readings([reading, reading])  # fails here, where the file is known, on anything that cannot be added up
        return reading, list(_counted(run.reading))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: the reading of run {run.run} is not lorakit's: {error!r}") from error


def _counted(reading: Mapping[str, Any]) -> Iterator[str]:
    for kind in KINDS:
        if reading[kind]["method"] == "estimated":
            yield ESTIMATE.format(kind.upper())
        yield from (part["id"] for part in reading[kind]["devices"] if part["kwh"] is not None)


def _spread(part: Measurement, duration_s: float) -> Measurement:
    """The same energy, with its mean power over this duration."""
    mean_w = part.wh * JOULES_PER_WH / duration_s if part.wh is not None and duration_s > 0 else None
    return replace(part, mean_w=mean_w)


def _spans(machines: Iterable[Sequence[tuple[Run, Reading]]]) -> Iterator[tuple[float, float]]:
    """When each run was active, s since 1970; those of one boot by its clock, which nobody can set in between."""
    for group in machines:
        first = min((run.start for run, _ in group), key=lambda start: start["boottime_s"])
        boot_at = first["wall_s"] - first["boottime_s"]
        yield from ((boot_at + run.start["boottime_s"], boot_at + run.boottime_s) for run, _ in group)


def _union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals, s."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


# Readings of one machine that follow one another: a run and its restarts, or the turns of a run ----------------------


def add_consecutive(readings: Sequence[Reading]) -> Reading:
    """Sum readings of the same devices over times that follow one another; their durations add up.

    Each device is listed once, and the process's share of the CPU is the mean over time. What passed between the
    readings is in none of them.

    Raises:
        ValueError: there is nothing to add.
    """
    if len(readings) == 1:
        return readings[0]
    total = sum_readings(readings)
    duration_s = sum(reading.duration_s for reading in readings)
    shares = [(reading.process_share, reading.duration_s) for reading in readings]
    known = duration_s > 0 and all(share is not None for share, _ in shares)
    edges = [0.0, *accumulate(reading.duration_s for reading in readings)]
    used = [(*span, reading.contention) for span, reading in zip(pairwise(edges), readings, strict=True)]
    return replace(
        total,
        **{kind: _joined(getattr(total, kind), duration_s) for kind in KINDS},
        others={name: _joined(part, duration_s) for name, part in total.others.items()},
        duration_s=duration_s,
        suspended_s=sum(reading.suspended_s for reading in readings),
        contention=merge_contentions(used),
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
