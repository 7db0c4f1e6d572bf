"""Fair timing: kinds of work in turns, and the best of several calls."""

import time
from collections.abc import Callable, Iterator, Sequence
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
