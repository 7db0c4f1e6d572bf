"""The GPUs that a process can use, by CUDA's own rules, as UUIDs.

NVML lists all GPUs of the machine by PCI bus; CUDA shows those that CUDA_VISIBLE_DEVICES names, in its own order. The
rules (CUDA programming guide, "CUDA environment variables"; the same as `torch.cuda._parse_visible_devices`): a
comma-separated list of ordinals, or of UUIDs (`GPU-…`, which may be abbreviated, or `MIG-…`); the first invalid entry
ends the list; a repeated entry empties it; set but empty shows nothing.

CUDA itself is asked only if this process uses it already. It is never started here.
"""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from lorakit._counts import counted

NUMBER = re.compile(r"\s*([+-]?\d+)")


@dataclass(frozen=True)
class Visible:
    """The resolved list.

    Attributes:
        uuids: GPUs to count, each once. notes: remarks for the reader of the numbers.
        problem: why the GPUs cannot be determined, None if they can; with a problem `uuids` is empty.
    """

    uuids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    problem: str | None = None


def visible_gpus(
    environ: Mapping[str, str],
    gpus: Sequence[tuple[str, str]],
    mig_parents: Mapping[str, str] | None = None,
    cuda_uuids: Sequence[str] | None = None,
    mig_gpus: Collection[str] = (),
) -> Visible:
    """Resolve CUDA_VISIBLE_DEVICES.

    Where GPUs are divided by MIG, CUDA gives a process one instance of one GPU, whatever the variable says, and hides
    the undivided GPUs (NVIDIA's MIG user guide, "CUDA device enumeration").

    Args:
        environ: the environment; CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read.
        gpus: (UUID, model name) of every GPU of the machine in NVML's order, which is that of PCI bus ids.
        mig_parents: maps the UUID of a MIG instance to the UUID of its GPU.
        cuda_uuids: the devices that CUDA itself reports, without prefix, if it runs already; they override the rest.
        mig_gpus: UUIDs of the GPUs whose MIG mode is on.

    Returns:
        The GPUs that the process can use.
    """
    parents = mig_parents or {}
    if cuda_uuids is not None:
        return _noted(_by_cuda(cuda_uuids, [uuid for uuid, _ in gpus], parents), mig_gpus)
    visible = _by_variable(environ, gpus, parents)
    divided = [uuid for uuid in visible.uuids if uuid in mig_gpus]
    with_instances = [uuid for uuid in divided if uuid in parents.values()] or divided
    return _noted(replace(visible, uuids=tuple(with_instances[:1])) if divided else visible, mig_gpus)


def _noted(visible: Visible, mig_gpus: Collection[str]) -> Visible:
    """With a note for each counted GPU that is divided: its other instances are counted too."""
    notes = tuple(
        f"{uuid} is divided by MIG: NVML has no power reading for a MIG instance, so the whole GPU is counted, with "
        "what others compute on its other instances"
        for uuid in visible.uuids
        if uuid in mig_gpus
    )
    return replace(visible, notes=(*visible.notes, *notes))


def _by_variable(environ: Mapping[str, str], gpus: Sequence[tuple[str, str]], parents: Mapping[str, str]) -> Visible:
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return Visible(tuple(uuid for uuid, _ in gpus))
    first = value.strip()
    if first.startswith("MIG-"):
        return _by_mig(value, gpus, parents)
    if first.startswith("GPU-"):
        uuids, note = _by_prefix(value, [uuid for uuid, _ in gpus])
        return Visible(tuple(uuids), (note,) if note else ())
    ordinals, note = _ordinals(value, len(gpus))
    chosen = tuple(gpus[ordinal][0] for ordinal in ordinals)
    notes = (note,) if note else ()
    mixed = len({name for _, name in gpus}) > 1
    if mixed and 0 < len(chosen) < len(gpus) and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        problem = (
            f"CUDA_VISIBLE_DEVICES={value} numbers GPUs of several models from the fastest on, an order that NVML does "
            "not know: set CUDA_DEVICE_ORDER=PCI_BUS_ID or name the GPUs by UUID (nvidia-smi -L)"
        )
        return Visible((), notes, problem)
    return Visible(chosen, notes)


def _by_cuda(cuda_uuids: Sequence[str], known: Sequence[str], parents: Mapping[str, str]) -> Visible:
    chosen, unknown = [], []
    for uuid in cuda_uuids:
        gpu = f"GPU-{uuid}" if f"GPU-{uuid}" in known else parents.get(f"MIG-{uuid}")
        (chosen if gpu else unknown).append(gpu or uuid)
    if unknown:
        return Visible((), problem=f"CUDA uses {', '.join(unknown)}, which NVML does not list")
    return Visible(tuple(dict.fromkeys(chosen)))


def _ordinals(value: str, count: int) -> tuple[list[int], str]:
    """Ordinals up to the first invalid one, and a note if the list was cut."""
    if value.strip() in ("", "-1"):
        return [], f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU"
    chosen: list[int] = []
    for entry in value.split(","):
        match = NUMBER.match(entry)  # like C's strtol: digits, then anything
        ordinal = int(match.group(1)) if match else -1
        if ordinal in chosen:
            return [], f"CUDA_VISIBLE_DEVICES={value} names {ordinal} twice: CUDA shows no GPU"
        if ordinal < 0:
            return _existing(chosen, count, f"CUDA_VISIBLE_DEVICES={value} ends at {entry.strip()!r}", value)
        chosen.append(ordinal)
    return _existing(chosen, count, "", value)


def _existing(ordinals: list[int], count: int, note: str, value: str) -> tuple[list[int], str]:
    for place, ordinal in enumerate(ordinals):
        if ordinal >= count:
            note = (
                f"CUDA_VISIBLE_DEVICES={value} ends at {ordinal}: {counted(count, 'GPU is', 'GPUs are')} there, from 0"
            )
            return ordinals[:place], note
    return ordinals, note


def _by_prefix(value: str, known: Sequence[str]) -> tuple[list[str], str]:
    chosen: list[str] = []
    entries = [part.strip() for part in value.split(",")]
    own = list(takewhile(lambda entry: entry.startswith("GPU-"), entries))
    twice = [entry for entry in own if own.count(entry) > 1]
    for entry in entries if not twice else []:
        matches = [uuid for uuid in known if uuid.startswith(entry)] if entry.startswith("GPU-") else []
        if len(matches) != 1:
            why = "matches several GPUs" if matches else "is no GPU here"
            return chosen, f"CUDA_VISIBLE_DEVICES={value} ends at {entry!r}, which {why}"
        if matches[0] in chosen:
            twice = matches
            break
        chosen.append(matches[0])
    if twice:
        return [], f"CUDA_VISIBLE_DEVICES={value} names {twice[0]} twice: CUDA shows no GPU"
    return chosen, ""


def _by_mig(value: str, gpus: Sequence[tuple[str, str]], parents: Mapping[str, str]) -> Visible:
    entry = value.split(",")[0].strip()  # CUDA uses one MIG instance, the first
    old_form = entry.removeprefix("MIG-").split("/")[0]  # MIG-GPU-<uuid>/<instance>/<instance>
    parent = parents.get(entry) or (old_form if old_form in {uuid for uuid, _ in gpus} else None)
    if parent is None:
        return Visible((), problem=f"CUDA_VISIBLE_DEVICES={value}: NVML knows no MIG instance {entry}")
    return Visible((parent,), (f"CUDA_VISIBLE_DEVICES={value}: {entry} is a part of {parent}",))


def cuda_uuids() -> list[str] | None:
    """UUIDs of CUDA's devices, without prefix, if CUDA already runs in this process, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Filter:
    """A variable that narrows a maker's list of GPUs by number, and how its runtime reads it.

    Attributes:
        names: the first that is set counts.
        trims: blanks around a number are allowed.
        empty_hides: set to nothing it hides every GPU; otherwise that is as good as not set.
        repeat_ends: a number that is named again ends the list; otherwise it is skipped.
        unknown_ends: so does a number that is no GPU's.
    """

    names: tuple[str, ...]
    trims: bool = True
    empty_hides: bool = False
    repeat_ends: bool = False
    unknown_ends: bool = True

    def setting(self, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """The variable that counts and its value, None if none is set."""
        names = (name for name in self.names if environ.get(name) or (self.empty_hides and name in environ))
        name = next(names, None)
        return None if name is None else (name, environ[name])

    def choose(self, value: str, gpus: Sequence[str]) -> tuple[list[str], str]:
        """The GPUs that a value names, in its order, and the entry that ended the list, "" if none did."""
        chosen: list[str] = []
        for entry in value.rstrip(",").split(",") if value else ():
            number = (entry.strip() if self.trims else entry).partition(".")[0]  # 0.1 is a tile of Intel's GPU 0
            known = number.isdigit() and int(number) < len(gpus)
            if not known and not self.unknown_ends:
                continue
            if not known or (self.repeat_ends and gpus[int(number)] in chosen):
                return chosen, entry
            if gpus[int(number)] not in chosen:
                chosen.append(gpus[int(number)])
        return chosen, ""


# ROCR-Runtime, amd_filter_device.cpp; then clr, rocdevice.cpp, which numbers what the former left, in its order
AMD_FILTERS = (
    Filter(("ROCR_VISIBLE_DEVICES",), empty_hides=True, repeat_ends=True),
    Filter(("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"), trims=False),
)
INTEL_FILTERS = (Filter(("ZE_AFFINITY_MASK",), unknown_ends=False),)


def hidden_gpus(ids: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """AMD's or Intel's GPUs that this process may not use, with the reason, and notes for the reader of the numbers.

    ROCm and oneAPI number GPUs in the order of their addresses on the bus.

    Args:
        ids: the GPUs in that order, all of one maker.
        environ: the variables of `AMD_FILTERS` or `INTEL_FILTERS` are read from it.
    """
    left, hidden, notes = list(ids), dict[str, str](), list[str]()
    filters = AMD_FILTERS if ids and ids[0].startswith("amdgpu") else INTEL_FILTERS
    for narrowing in filters if ids else ():
        found = narrowing.setting(environ)
        if found is None:
            continue
        name, value = found
        if "GPU-" in value.upper():
            notes.append(f"{name}={value} names GPUs by UUID, so it hides none here; use numbers to leave some out")
            break  # what a later variable numbers cannot be told either
        chosen, ended_at = narrowing.choose(value, left)
        if ended_at:
            notes.append(
                f"{name}={value} ends at {ended_at!r}: it may name {counted(len(left), 'GPU')}, from 0, each once"
            )
        hidden |= {gpu: f"{name}={value} hides it" for gpu in left if gpu not in chosen}
        left = chosen
    return hidden, notes
