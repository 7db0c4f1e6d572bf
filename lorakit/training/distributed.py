"""Rank, world size and sums over ranks, from torchrun's environment; one process alone is the plain case of size 1."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist

# Before any group exists: these bind the group of the moment they are imported in as default arguments, and torch
# imports them with the first optimiser. A group that they hold is never destroyed, see `_let_workers_rest`.
import torch.distributed.fsdp.sharded_grad_scaler
import torch.distributed.nn.functional

TIMEOUT_S = 600.0  # a rank that waits longer for another ends with an error; LORAKIT_TIMEOUT_S sets another time
NAMING_S = 5.0  # how long a rank whose exchange has failed waits for word from the others, to say whom it lost

_groups = count()  # that this process has joined


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def device() -> torch.device:
    """The GPU with this process's local rank, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def gather_bytes(mine: bytes) -> list[bytes]:
    """Every rank's bytes, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [mine]
    here = device()
    lengths = torch.zeros(world_size(), dtype=torch.long, device=here)
    lengths[rank()] = len(mine)
    all_sum(lengths)
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    parts = [torch.zeros_like(padded, device=here) for _ in range(world_size())]
    dist.all_gather(parts, padded.to(here))
    return [bytes(part[:length].tolist()) for part, length in zip(parts, lengths.tolist(), strict=True)]


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun describes (nccl on GPUs, gloo on CPUs) and leave it at the end.

    Does nothing when the process is alone or already in a group.

    Raises:
        RuntimeError: an exchange failed or took longer than LORAKIT_TIMEOUT_S; the message names the rank that is lost.
        ValueError: LORAKIT_TIMEOUT_S is not a time.
    """
    if _active() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    here, timeout = device(), _timeout()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    store, number, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun may hand the store of a failed attempt on to the next, with the addresses of dead processes in it; and
    # one process may join a group several times. So each group keeps its keys under a name of its own.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"lorakit/{attempt}/{next(_groups)}", store)
    backend = "nccl" if here.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    try:
        yield
        dist.barrier()  # no rank closes its connections while another still talks
    except Exception as error:
        if not _is_exchange(error):
            _post(store, f"ended with {type(error).__name__}: {error}")
            raise
        _post(store, "lost another rank")
        raise RuntimeError(f"rank {number} of {size} {_lost(store)}; its own exchange failed: {error}") from error
    finally:
        dist.destroy_process_group()
        _let_workers_rest()


def _timeout() -> timedelta:
    text = os.environ.get("LORAKIT_TIMEOUT_S", str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"LORAKIT_TIMEOUT_S is {text!r}; it must be a number of seconds above 0")
    return timedelta(seconds=seconds)


def _is_exchange(error: Exception) -> bool:
    """Whether a collective failed; gloo's errors have no class of their own, and come out of backward() too."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "NCCL"))
    )


def _post(store: dist.Store, word: str) -> None:
    """Leave a last word for the others; the store may be gone with the rank that kept it."""
    try:
        store.set(f"last word/{rank()}", word)
    except RuntimeError:
        pass


def _lost(store: dist.Store) -> str:
    """Whom an exchange failed with: a rank that went without a word, or what its last word was."""
    others = [number for number in range(world_size()) if number != rank()]
    deadline = time.monotonic() + NAMING_S
    words: dict[int, str] = {}
    try:
        while len(words) < len(others) and time.monotonic() < deadline:
            for number in others:
                if number not in words and store.check([f"last word/{number}"]):
                    words[number] = store.get(f"last word/{number}").decode()
            time.sleep(0.05)
    except RuntimeError:
        return "lost the rank that keeps the store, rank 0 where torchrun does not keep it"
    silent = [f"rank {number}, which died or hangs" for number in others if number not in words]
    ended = [f"rank {number}, which {word}" for number, word in words.items() if word.startswith("ended")]
    return f"lost {' and '.join(ended or silent) or 'the connection to a rank that has lost another'}"


def _let_workers_rest() -> None:
    """Return when no worker thread of gloo still holds a finished exchange.

    A thread of gloo's wakes the one that waits for an exchange and only then lets go of its tensors, for which it needs
    Python's lock. If the interpreter is ending by then, the process dies of SIGABRT ("terminate called without an
    active exception"), its results long since right. A group that is really destroyed has joined its threads; one that
    a DDP or FSDP model still refers to has not. Its threads rest when they sleep and, over a moment in which Python's
    lock is free, have not run.
    """
    before = None
    for _ in range(1000):
        now = _workers()
        if not now or now == before and all("State:\tS" in lines for lines in now.values()):
            return
        before = now
        time.sleep(0.002)


def _workers() -> dict[str, str]:
    """State and number of context switches of every worker thread of gloo; none where there is no /proc."""
    found = {}
    for path in Path("/proc/self/task").glob("*/status"):
        try:
            text = path.read_text()
        except OSError:  # the thread has ended since
            continue
        if text.startswith("Name:\tpt_gloo_runloop\n"):
            kept = [line for line in text.splitlines() if line.startswith(("State:", "voluntary", "nonvoluntary"))]
            found[path.parent.name] = "\n".join(kept)
    return found


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
