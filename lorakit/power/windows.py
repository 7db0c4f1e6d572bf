"""Named windows: how nested ones are called, and what an exact edge waits for."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

WHOLE, IDLE = "", "/idle"  # the windows of the whole block and of the baseline; users' names are not like these
log = logging.getLogger("lorakit.energy")


class WindowPaths:
    """The open windows of each thread and asyncio task, which give a nested window its path "outer/inner".

    A task is inside the windows that were open where it was made. A generator has no windows of its own: one that it
    holds open while it is suspended is around what its caller opens, as with `contextlib.contextmanager`.
    """

    def __init__(self) -> None:
        self._open: ContextVar[tuple[list[str], ...]] = ContextVar("open", default=())

    @contextmanager
    def entered(self, name: str) -> Iterator[str]:
        """The path of a window of this name, which is open while active.

        Windows may overlap: leaving an outer one first does not change the path of what is open inside it.
        """
        mine = [name]  # a new object, so that of two windows with one name each removes its own entry
        self._open.set((*self._open.get(), mine))
        try:
            yield "/".join(entry[0] for entry in self._open.get())
        finally:
            self._open.set(tuple(entry for entry in self._open.get() if entry is not mine))


def check_window_name(name: str) -> None:
    """Raises ValueError for a name that could not be told from a path."""
    if not name or "/" in name:
        raise ValueError(f"a window's name must not be empty or contain a '/', got {name!r}")


def finish_cuda_work() -> None:
    """Wait for the work queued on the current CUDA device, if this process uses CUDA; never start CUDA.

    Other devices are not waited for: that would create a context on those that have none.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # a broken CUDA is for the caller to see, not for the meter to raise
            log.warning("CUDA could not be synchronised at a window's edge: %s", error)
