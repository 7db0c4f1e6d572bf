"""Processes of a benchmark's own: an object that lives in one, the memory of one, the addresses of several ranks."""

import ctypes
import gc
import multiprocessing
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

# imported before a worker starts, so that they are not part of any system's memory or start-up time
PRELOADED = ("transformers.models.roberta.modeling_roberta", "transformers.trainer", "accelerate", "peft")


class Worker:
    """An object in a process of its own, forked from one that has imported the libraries and done nothing else.

    With a GPU the process is started afresh: CUDA may not be touched before a fork, and an import may do so.

    Args:
        name: what error messages call it.
        make: makes the object there from the arguments.
    """

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
        context.set_forkserver_preload(["__main__", *PRELOADED])
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, *arguments))
        self.process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call one of the object's methods.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self.pipe.send((method, arguments))
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
        status = self.process.exitcode
        why = "killed, by the kernel if memory ran out" if status == -signal.SIGKILL else "its error is above"
        raise RuntimeError(f"the process of {self.name} ended at {method!r} with status {status}: {why}")

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Any, make: Callable[..., Any], *arguments: Any) -> None:
    sys.stdout = sys.stderr  # standard output is the report's
    for module in PRELOADED:
        with suppress(ImportError):
            import_module(module)
    served = make(*arguments)
    with suppress(EOFError):  # the parent closed the pipe
        while True:
            method, given = pipe.recv()
            pipe.send(getattr(served, method)(*given))
            release_memory()


def rendezvous(ranks: int) -> list[dict[str, str]]:
    """The environment variables of each rank of a new process group on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    return [{**place, "RANK": str(rank)} for rank in range(ranks)]


def release_memory() -> None:
    """Free what a run has used: a worker that idles while another one trains would hold gigabytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
