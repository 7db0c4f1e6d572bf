"""A run's energy on disk as it goes: JSON lines that are only ever appended.

Each line is written by one call, so that a killed process leaves whole lines but for the last. A run starts with a
`start` line and, if nothing went wrong, finishes with an `end` line; every line names its run, so that a file may hold
several, one after the other or side by side.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit._files import read_json_lines

SCHEMA = 1
log = logging.getLogger("lorakit.energy")


class Journal:
    """Appends lines for one run; a disk that is full or read-only costs a warning, not the training."""

    def __init__(self, path: str | Path, run: str) -> None:
        self.path, self.run = Path(path), run
        self._pid = os.getpid()
        self._warned = False
        self._partial = False

    def write(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append one line; does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        line = json.dumps({"type": kind, "schema": SCHEMA, "run": self.run, **content}, allow_nan=False) + "\n"
        data = ("\n" if self._partial else "").encode() + line.encode()  # do not continue a line that was cut short
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                written = os.write(file, data)
            finally:
                os.close(file)
        except OSError as error:
            self._warn(str(error))
            return
        self._partial = written < len(data)
        if self._partial:
            self._warn("the disk is full")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning("energy readings cannot be written to %s: %s; the measurement goes on", self.path, reason)
            self._warned = True


@dataclass
class Run:
    """What a journal tells of one run.

    Attributes:
        start: the `start` line: host, boot_id, pid, start times.
        reading: the newest reading as `Reading.to_json` gives it, None if there is none.
        windows: finished windows. complete: the run reached its end.
        error: the exception that ended the block, None without one.
    """

    run: str
    start: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] | None = None
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: bool = False
    error: str | None = None
    boottime_s: float | None = None  # of the newest reading
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
    """Raises ValueError unless a line has what its type needs; lines of unknown types pass and are left alone."""
    for name, kinds in {"run": str, "type": str, **NEEDED.get(str(entry.get("type")), {})}.items():
        if not isinstance(entry.get(name, ...), kinds):
            raise ValueError(f"{place}: {name!r} is {entry.get(name, 'missing')!r}; this is no journal of lorakit's")


def read_journal(path: str | Path) -> list[Run]:
    """The runs of a journal, also of killed processes; lines that were cut short are skipped.

    Raises:
        ValueError: the file is no journal, or a whole line of it lacks what its type needs.
        OSError: it cannot be read.
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
        raise ValueError(f"{path} holds no energy readings (JSON lines of schema {SCHEMA} were expected)")
    return list(runs.values())


def read_course(path: str | Path) -> dict[str, list[tuple[float, dict[str, Any] | None]]]:
    """Every reading of a journal's runs in order: (wall_s, reading so far); a run's first is its start, with None.

    Raises:
        OSError: it cannot be read.
    """
    course: dict[str, list[tuple[float, dict[str, Any] | None]]] = {}
    for _, entry in read_json_lines(Path(path)):
        if entry.get("schema") == SCHEMA and entry.get("type") in ("start", "reading", "end"):
            course.setdefault(entry["run"], []).append((entry["wall_s"], entry.get("reading")))
    return course
