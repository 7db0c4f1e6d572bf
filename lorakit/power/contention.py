"""What else used the machine while something was measured, and whether that spoils a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

CONTENDED = 0.05
"""Share of the CPUs above which times and energies are called not comparable.

What a machine does by itself stays well below: over 15 minutes the kernel's threads, interrupts, the daemons and steal
took 0.7 % of a virtual machine's two CPUs, and 2.7 % in the busiest 30 s.
"""
LATER = ("own_gpu_s", "others_gpu_s", "own_memory_bytes", "others_memory_bytes")  # older journals lack them
NOT_COMPARABLE = "times and energy are not comparable"
SHORTEST_S = 1.0  # the kernel counts CPU time in ticks of 10 ms, so a shorter time is not judged


@dataclass(frozen=True)
class Contention:
    """What other processes, and other virtual machines on the same hardware, took in a window.

    Example:
        from lorakit.power.contention import Contention

        found = Contention(duration_s=60.0, logical_cpus=2, own_cpu_s=75.0, others_cpu_s=37.2)
        print(round(found.share, 2), found.is_contended)  # 0.31 True
        print(found.note.split(":")[0])  # other processes used 31 % of the CPUs during this run

    Args:
        duration_s: how long the machine was observed, s.
        logical_cpus: logical CPUs; over several runs or machines the mean by time, so that `share` holds.
        own_cpu_s: CPU time of this process tree, s. In a distributed job the tree starts at its launcher, so that the
            other ranks are not taken for strangers.
        others_cpu_s: CPU time of everything else on the machine, kernel threads and interrupts included, s.
        steal_s: CPU time that the hypervisor gave to other virtual machines, s.
        pressure_s: time for which at least one process, ours included, waited for a CPU (the kernel's pressure stall
            information, "some"), s. More of our threads than CPUs raise it as well, so it is recorded and not judged.
        gpu_processes: greatest number of other processes seen computing on the counted GPUs at one time.
        machines: boot ids of the machines observed.
        own_gpu_s: time for which this process tree computed on the counted GPUs, summed over GPUs, s.
        others_gpu_s: the same of all other processes, s.
        own_memory_bytes: mean resident memory of this process tree; pages that its processes share count in each.
        others_memory_bytes: mean of the rest of the memory in use.

    None stands for what this machine does not tell; it is never replaced by 0.
    """

    duration_s: float
    logical_cpus: float
    own_cpu_s: float | None = None
    others_cpu_s: float | None = None
    steal_s: float | None = None
    pressure_s: float | None = None
    gpu_processes: int | None = None
    machines: tuple[str, ...] = ()
    own_gpu_s: float | None = None
    others_gpu_s: float | None = None
    own_memory_bytes: float | None = None
    others_memory_bytes: float | None = None

    @property
    def available_cpu_s(self) -> float:
        """CPU-seconds that the machine could have given."""
        return self.duration_s * self.logical_cpus

    @property
    def share(self) -> float | None:
        """Share of the CPUs that others had, 0 to 1; None if unknown. Unknown steal is left out."""
        if self.others_cpu_s is None or self.available_cpu_s <= 0:
            return None
        return min(1.0, (self.others_cpu_s + (self.steal_s or 0.0)) / self.available_cpu_s)

    @property
    def own_share(self) -> float | None:
        """This process tree's part of the CPU time that the machine spent, 0 to 1; None if unknown."""
        return _own_part(self.own_cpu_s, self.others_cpu_s)

    @property
    def gpu_share(self) -> float | None:
        """This process tree's part of the time for which the counted GPUs computed, 0 to 1; None if unknown or idle."""
        return _own_part(self.own_gpu_s, self.others_gpu_s)

    @property
    def memory_share(self) -> float | None:
        """This process tree's part of the memory in use, 0 to 1; None if unknown."""
        return _own_part(self.own_memory_bytes, self.others_memory_bytes)

    @property
    def is_contended(self) -> bool:
        """Whether others had more than CONTENDED of the CPUs for a second or more, or computed on our GPUs."""
        return bool(self.gpu_processes) or self._cpus_are_contended

    @property
    def _cpus_are_contended(self) -> bool:
        return self.duration_s >= SHORTEST_S and (self.share or 0.0) > CONTENDED

    @property
    def note(self) -> str | None:
        """What a reader of the numbers must know, None if the machine was quiet or does not tell."""
        return f"{self.reasons} during this run: {NOT_COMPARABLE}" if self.reasons else None

    @property
    def reasons(self) -> str | None:
        """Who took how much, None if the machine was quiet or does not tell."""
        reasons = []
        if self._cpus_are_contended:
            others, stolen = self._part(self.others_cpu_s), self._part(self.steal_s or 0.0)
            if others >= min(0.01, stolen):
                reasons.append(f"other processes used {100 * others:.0f} % of the CPUs")
            if stolen >= 0.01:
                reasons.append(f"the hypervisor kept {100 * stolen:.0f} % of the CPU time for other machines")
        if self.gpu_processes:
            reasons.append(f"{_processes(self.gpu_processes)} computed on the GPUs")
        return " and ".join(reasons) or None

    def describe(self) -> str:
        """One line for people: `other processes used 0.4 % of the CPUs, steal 0.0 %, …`."""
        texts = []
        named = (("other processes used {} of the CPUs", self.others_cpu_s), ("steal {}", self.steal_s))
        for text, seconds in named:
            known = seconds is not None and self.available_cpu_s > 0
            texts.append(text.format(f"{100 * self._part(seconds):.1f} %" if known else "an unknown share"))
        if self.pressure_s is not None and self.duration_s > 0:
            texts.append(f"a process waited for a CPU {min(1.0, self.pressure_s / self.duration_s):.0%} of the time")
        if self.gpu_processes is not None:
            texts.append(f"{_processes(self.gpu_processes)} on the GPUs")
        return ", ".join(texts)

    def _part(self, cpu_s: float) -> float:
        """A CPU time as a part of what the machine could have given, at most 1: ticks of 10 ms may count a bit more."""
        return min(1.0, cpu_s / self.available_cpu_s)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, with the share and the note."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        shares = {"gpu_share": self.gpu_share, "memory_share": self.memory_share}
        return data | {"machines": list(self.machines), "share": self.share, **shares, "note": self.note}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Contention":
        """The inverse of `to_json`.

        Raises:
            KeyError: a field is missing.
            TypeError: a field is not a number, or there are no machines.
        """
        found = {entry.name: data[entry.name] for entry in fields(cls) if entry.name not in LATER}
        found |= {name: data.get(name) for name in LATER}
        found["machines"] = tuple(found["machines"])
        for name, value in found.items():
            if name != "machines" and not isinstance(value, int | float | None):
                raise TypeError(f"{name} is {value!r}")
        return cls(**found)


def _own_part(own: float | None, others: float | None) -> float | None:
    return None if own is None or others is None or own + others <= 0 else own / (own + others)


def _processes(count: int) -> str:
    return f"{count} other process{'' if count == 1 else 'es'}"


def add_contentions(parts: Sequence[Contention | None]) -> Contention | None:
    """Sum over processes that ran at the same time, such as a job's ranks; None if none of them knows anything.

    A machine is counted once, as the process saw it that observed it longest.
    """
    machines: dict[tuple[str, ...], list[Contention]] = {}
    for part in parts:
        if part is not None:
            machines.setdefault(part.machines, []).append(part)
    if not machines:
        return None
    once = []
    for seen in machines.values():
        known = [part.gpu_processes for part in seen if part.gpu_processes is not None]
        once.append(replace(max(seen, key=lambda part: part.duration_s), gpu_processes=max(known, default=None)))
    return _sum(once, max(part.duration_s for part in once), _total([part.gpu_processes for part in once]))


def merge_contentions(parts: Sequence[tuple[float, float, Contention | None]]) -> Contention | None:
    """Sum over runs of any machines and times, such as a run and its restarts.

    Args:
        parts: begin and end of each run, s on its machine's boot-time clock, and what it observed.
    """
    machines: dict[tuple[str, ...], list[tuple[float, float, Contention]]] = {}
    for begin, end, part in parts:
        if part is not None:
            machines.setdefault(part.machines, []).append((begin, end, part))
    return add_contentions([_one_after_another(runs) for runs in machines.values()])


def _one_after_another(runs: Sequence[tuple[float, float, Contention]]) -> Contention:
    """Sum over runs on one machine, of which those that overlap count as one."""
    groups: list[list[Contention]] = []
    reached = float("-inf")
    for begin, end, part in sorted(runs, key=lambda run: run[:2]):
        if begin < reached:
            groups[-1].append(part)
        else:
            groups.append([part])
        reached = max(reached, end)
    once = [add_contentions(group) for group in groups]
    known = [part.gpu_processes for part in once if part.gpu_processes is not None]
    return _sum(once, sum(part.duration_s for part in once), max(known, default=None))


def _sum(parts: Sequence[Contention], duration_s: float, gpu_processes: int | None) -> Contention:
    if len(parts) == 1:
        return parts[0]
    available_cpu_s = sum(part.available_cpu_s for part in parts)
    return Contention(
        duration_s=duration_s,
        logical_cpus=available_cpu_s / duration_s if duration_s > 0 else parts[0].logical_cpus,
        own_cpu_s=_total([part.own_cpu_s for part in parts]),
        others_cpu_s=_total([part.others_cpu_s for part in parts]),
        steal_s=_total([part.steal_s for part in parts]),
        pressure_s=_total([part.pressure_s for part in parts]),
        gpu_processes=gpu_processes,
        machines=tuple(dict.fromkeys(machine for part in parts for machine in part.machines)),
        own_gpu_s=_total([part.own_gpu_s for part in parts]),
        others_gpu_s=_total([part.others_gpu_s for part in parts]),
        own_memory_bytes=_mean([(part.own_memory_bytes, part.duration_s) for part in parts], duration_s),
        others_memory_bytes=_mean([(part.others_memory_bytes, part.duration_s) for part in parts], duration_s),
    )


def _mean(values: Sequence[tuple[float | None, float]], duration_s: float) -> float | None:
    """The mean over this duration, to which every value contributes for its own."""
    if any(value is None for value, _ in values) or duration_s <= 0:
        return None
    return sum(value * seconds for value, seconds in values) / duration_s


def _total(values: Sequence[Any]) -> Any:
    """The sum, None if a part is unknown."""
    return None if None in values else sum(values)
