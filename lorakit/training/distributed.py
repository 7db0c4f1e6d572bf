"""Processes that train together: torchrun's ranks, sums over them, and models replicated (DDP) or sharded (FSDP2).

One process alone is the plain case of world size 1. DDP keeps the full model on every rank. FSDP2 (`fully_shard`) keeps
a slice of every parameter on each and gathers a layer only while it is used; parameters are then `DTensor`s.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Imported before any group exists: they bind the current group as a default argument, and torch would import them with
# the first optimizer. A group that they hold is never destroyed, see `_wait_for_workers`.
import torch.distributed.fsdp.sharded_grad_scaler
import torch.distributed.nn.functional
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

TIMEOUT_S = 600.0  # a rank that waits longer for another fails with an error; LORAKIT_TIMEOUT_S overrides it
NAMING_S = 5.0  # how long a rank whose exchange failed waits for the others' last words, to say which rank it lost

_groups = count()  # joined by this process
_chosen: list[str] = []  # kinds of device, by `on_device`; the last one counts, in all threads


def rank() -> int:
    """This process's rank, 0 in a single process."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process writes files and prints; exactly one does."""
    return rank() == 0


def device() -> torch.device:
    """The GPU of this process's local rank, or the CPU where there is no GPU or `on_device` asks for it."""
    if _chosen[-1:] != ["cpu"] and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@contextmanager
def on_device(kind: str | None) -> Iterator[None]:
    """While active, `device` is of this kind: "cpu" or "cuda"; None leaves the choice as it is.

    Raises:
        ValueError: "cuda" where torch finds no GPU.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch finds no GPU here; leave device= out, or use device='cpu'")
    if kind is None:
        yield
        return
    _chosen.append(kind)
    try:
        yield
    finally:
        _chosen.pop()


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


def of_main(value: Any) -> Any:
    """The main rank's value, which JSON can hold, on every rank."""
    return json.loads(gather_bytes(json.dumps(value).encode())[0])


def main_writes(write: Callable[[], Any]) -> None:
    """Let the main rank write something, while the others wait.

    Raises:
        OSError: on all ranks, if it cannot be written.
    """
    problem: OSError | None = None
    if is_main():
        try:
            write()
        except OSError as error:
            problem = error
    said = of_main(None if problem is None else str(problem))
    if said is not None:
        raise problem or OSError(f"rank 0 could not write a file: {said}")


def wrap_for_ddp(module: nn.Module) -> nn.Module:
    """DDP around a module, which averages gradients over ranks; the module itself in a single process."""
    if world_size() == 1:
        return module
    trained_mib = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad) / 2**20
    return DistributedDataParallel(
        module,
        forward_sync_buffers=False,  # RoBERTa's two are constants; by default they would be broadcast in every forward
        gradient_as_bucket_view=True,
        # LoRA's gradients are small: one exchange per step costs less than overlapping two
        bucket_cap_mb=math.ceil(trained_mib) if trained_mib < 25 else None,
    )


def shard(model: nn.Module) -> None:
    """Shard a model over the ranks by FSDP2, in place: every layer of an encoder is gathered by itself.

    Raises:
        ValueError: there is only one process.
    """
    check_sharding()
    for module in model.modules():
        if isinstance(module, nn.ModuleList):  # an encoder's layers
            for layer in module:
                fully_shard(layer)
    # by default the outermost group stays gathered after a forward, and would miss weights that are restored later
    fully_shard(model, reshard_after_forward=True)


def sync_if(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Let ranks exchange gradients only in a step's last micro-batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def check_sharding() -> None:
    """Refuse strategy "fsdp" in a single process.

    Raises:
        ValueError: there is only one process.
    """
    if world_size() == 1:
        raise ValueError(
            "strategy 'fsdp' shards over processes, and there is only one; start it with torchrun, or use strategy"
            " 'ddp'"
        )


@contextmanager
def process_group() -> Iterator[None]:
    """Join the group that torchrun describes (nccl on GPUs, gloo on CPUs) and leave it at the end.

    Does nothing in a single process, or when the process is already in a group.

    Raises:
        RuntimeError: an exchange failed or took longer than LORAKIT_TIMEOUT_S; the message names the lost rank.
        ValueError: LORAKIT_TIMEOUT_S is not a positive number of seconds.
    """
    if _active() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    here, timeout = device(), _timeout()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    store, number, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun may pass the store of a failed attempt to the next one, with the addresses of dead processes in it; and
    # one process may join several groups in turn. So each group's keys have their own prefix.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"lorakit/{attempt}/{next(_groups)}", store)
    backend = "nccl" if here.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)
    try:
        yield
        dist.barrier()  # no rank closes its connections while another still uses them
    except Exception as error:
        if not _is_exchange(error):
            _post(store, f"ended with {type(error).__name__}: {error}")
            raise
        _post(store, "lost another rank")
        raise RuntimeError(f"rank {number} of {size} {_lost(store)}; its own exchange failed: {error}") from error
    finally:
        dist.destroy_process_group()
        _wait_for_workers()


def _timeout() -> timedelta:
    text = os.environ.get("LORAKIT_TIMEOUT_S", str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"LORAKIT_TIMEOUT_S is {text!r}; it must be a positive number of seconds")
    return timedelta(seconds=seconds)


def _is_exchange(error: Exception) -> bool:
    """Whether a collective failed; gloo's errors have no class of their own, and are raised by backward() too."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        type(error) is RuntimeError and any(word in str(error) for word in ("gloo", "NCCL"))
    )


def _post(store: dist.Store, word: str) -> None:
    """Leave a last word for the others; the store may have died with the rank that hosted it."""
    try:
        store.set(f"last word/{rank()}", word)
    except RuntimeError:
        pass


def _lost(store: dist.Store) -> str:
    """Say which rank an exchange failed with: one that left no last word, or one whose last word is an error."""
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
        return "lost the process that hosts the store: rank 0, or torchrun itself"
    silent = [f"rank {number}, which died or hangs" for number in others if number not in words]
    ended = [f"rank {number}, which {word}" for number, word in words.items() if word.startswith("ended")]
    return f"lost {' and '.join(ended or silent) or 'the connection to a rank that has lost another'}"


def _wait_for_workers() -> None:
    """Return when no worker thread of gloo still holds a finished exchange.

    A gloo thread first wakes the thread that waits for an exchange and then releases its tensors, for which it needs
    the GIL. If the interpreter is shutting down by then, the process dies of SIGABRT ("terminate called without an
    active exception") although its results are complete. Destroying a group joins its threads, unless a DDP or FSDP
    model still refers to it. Such threads are done when they sleep and have not run while the GIL was free.
    """
    before = None
    for _ in range(1000):
        now = _workers()
        if not now or now == before and all("State:\tS" in lines for lines in now.values()):
            return
        before = now
        time.sleep(0.002)


def _workers() -> dict[str, str]:
    """State and number of context switches of every gloo worker thread; empty where there is no /proc."""
    found = {}
    for path in Path("/proc/self/task").glob("*/status"):
        try:
            text = path.read_text()
        except OSError:  # the thread has ended in the meantime
            continue
        if text.startswith("Name:\tpt_gloo_runloop\n"):
            kept = [line for line in text.splitlines() if line.startswith(("State:", "voluntary", "nonvoluntary"))]
            found[path.parent.name] = "\n".join(kept)
    return found


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
