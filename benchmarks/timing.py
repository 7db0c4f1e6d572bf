"""Fair timing: kinds of work in turns, the best of several calls, the CPU time of one thread."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def in_turns(kinds: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, kind): every kind once per round, backwards in every second one, so that drift favours none of them."""
    for number in range(rounds):
        for kind in kinds if number % 2 == 0 else kinds[::-1]:
            yield number, kind


def best_of(repeats: int, call: Callable[[], Any], warmup: int = 0) -> tuple[float, Any]:
    """The shortest time of several calls (s), and what the last one returned."""
    times = []
    for _ in range(warmup + repeats):
        began = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - began)
    return min(times[warmup:]), answer


def thread_cpu_s(name: str) -> float:
    """CPU time of this process's thread of that name, s (Linux)."""
    ident = next(thread.native_id for thread in threading.enumerate() if thread.name == name)
    on_cpu_ns = Path(f"/proc/self/task/{ident}/schedstat").read_text(encoding="ascii").split()[0]
    return int(on_cpu_ns) / 1e9
