"""The sum of all ranks' readings, where torch.distributed runs.

Launchers do not all tell a process that it has siblings: `torch.multiprocessing.spawn` sets no variable at all. So each
rank first says what it counts. A device that several ranks of one machine count is kept by one of them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from lorakit.power.contention import Contention
from lorakit.power.reading import ESTIMATE, KINDS, MEASURED, Reading, add_readings, counted_devices


class Rank(Protocol):
    """One process's measurement, such as `lorakit.energy.Session`."""

    def reading(self, path: str, without: Mapping[str, str] = ...) -> Reading:
        """The reading of a window, without some devices; `without` maps their ids to the reason."""
        ...

    @property
    def tree_root(self) -> int:
        """The process whose tree the reading calls "ours"."""
        ...


def gather_readings(rank: Rank, path: str) -> Reading:
    """The sum over all ranks, which every rank gets; every rank must call it. Alone, the reading itself.

    Args:
        path: the window.
    """
    reading = rank.reading(path)
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return reading
    ranks = _all_gather(torch, _claims(reading, rank.tree_root))
    own = torch.distributed.get_rank()
    without = {device: f"counted by rank {other}" for device, other in _counted_by_others(ranks, own).items()}
    if without:
        reading = rank.reading(path, without)
    readings = [Reading.from_json(data) for data in _all_gather(torch, reading.to_json())]
    contentions = _of_one_job([part.contention for part in readings], [part["root"] for part in ranks])
    return add_readings([replace(part, contention=found) for part, found in zip(readings, contentions, strict=True)])


def _claims(reading: Reading, tree_root: int) -> dict[str, Any]:
    """What a rank tells the others: the devices it counts, and the estimates that a measurement makes superfluous."""
    machines = reading.contention.machines if reading.contention is not None else ()
    measured = [kind for kind in KINDS if getattr(reading, kind).method in MEASURED]
    return {
        "counted": list(counted_devices(reading)),
        "superfluous": [(machine, ESTIMATE.format(kind.upper())) for machine in machines for kind in measured],
        "duration_s": reading.duration_s,
        "root": tree_root,
    }


def _counted_by_others(ranks: Sequence[Mapping[str, Any]], own: int) -> dict[str, int]:
    """Devices that this rank is to leave out, and which rank counts them: the one that measured longest, or the first.

    An estimate is left out if a rank of the same machine measured what it stands for.
    """
    order = sorted(range(len(ranks)), key=lambda index: (-ranks[index]["duration_s"], index))
    counting: dict[tuple[str, str], int] = {}
    for what in ("superfluous", "counted"):
        for index in order:
            for machine, device in ranks[index][what]:
                counting.setdefault((machine, device), index)
    mine = [(machine, device) for machine, device in ranks[own]["counted"]]
    return {entry[1]: counting[entry] for entry in mine if counting[entry] != own}


def _of_one_job(parts: Sequence[Contention | None], roots: Sequence[int]) -> list[Contention | None]:
    """What each rank saw, with the other ranks of its machine as ours and not as strangers.

    Where a launcher is known, all ranks have its tree and this changes nothing.
    """
    machines: dict[tuple[str, ...], dict[int, float]] = {}
    for part, root in zip(parts, roots, strict=True):
        if part is not None and part.own_cpu_s is not None:
            machines.setdefault(part.machines, {}).setdefault(root, part.own_cpu_s)
    found: list[Contention | None] = []
    for part in parts:
        trees = {} if part is None else machines.get(part.machines, {})
        if len(trees) > 1 and part.own_cpu_s is not None and part.others_cpu_s is not None:
            ours_s = sum(trees.values())
            part = replace(
                part,
                own_cpu_s=ours_s,
                others_cpu_s=max(0.0, part.own_cpu_s + part.others_cpu_s - ours_s),
                gpu_processes=part.gpu_processes and max(0, part.gpu_processes - len(trees) + 1),
            )
        found.append(part)
    return found


def _all_gather(torch: Any, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's JSON, as bytes in tensors: torch's own object collectives would unpickle."""
    on_gpu = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    text = json.dumps(data).encode()
    size = torch.tensor([len(text)], device=device)
    sizes = [torch.zeros_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    longest = int(max(sizes))
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return [json.loads(part.cpu().numpy().tobytes()) for part in parts]
