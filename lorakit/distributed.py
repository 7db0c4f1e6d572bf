"""Rank, world size and sums over ranks, from torchrun's environment; one process alone is the plain case of size 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others; then it ends with an error that names the collective, instead of hanging."""

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
    """
    if _active() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # torchrun may hand the store of a failed attempt on to the next, with the addresses of dead processes in it; and
    # one process may join a group several times. So each group keeps its keys under a name of its own.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"lorakit/{attempt}/{next(_groups)}", store)
    backend = "nccl" if here.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    try:
        yield
        dist.barrier()  # no rank closes its connections while another still talks
    finally:
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
