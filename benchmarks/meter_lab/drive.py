"""One meter on one machine, in a process of its own, in real time: python drive.py TOOL SECONDS.

The folder named by METER_CELL belongs to this process: it writes `ready` when it has imported its meter, reads `start`,
the moment at which the machine's power is switched on, and writes `answer.json`. METER_MACHINE names the machine.

Each meter is used as its documentation shows, with its default settings unless a comment says otherwise. The meters
know nothing of all this: they find the machine in /sys, /proc and pynvml.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from machines import NAMED, Machine

J_PER_KWH = 3.6e6
CUDAS_GPUS = {"rapl", "rapl-dram", "nvml", "nvml-power", "nvml-visible"}  # the last: those that CUDA shows the process
CLAIMS = {  # the kinds of sensor that each meter says it reads on Linux
    "lorakit": {*CUDAS_GPUS, "hwmon", "hwmon-grace"},
    "codecarbon": CUDAS_GPUS,  # AMD's GPUs through amdsmi, which is not simulated
    "zeus": CUDAS_GPUS,  # the same
    "pyjoules": {"rapl", "rapl-dram", "nvml"},  # only energy counters, and of all GPUs
    "carbontracker": CUDAS_GPUS,
    "perun": {"rapl", "rapl-dram", "nvml", "nvml-power", "hwmon-grace"},
}


@dataclass
class Answer:
    """A meter's number for one part of the machine, or for several: "cpu+ram".

    Attributes:
        joules: None if it gave none.
        estimate: the meter itself calls it one. low, high: its own bounds, if it states any.
        reason: why there is no number, in its own words. warned: a remark that it made beside the number.
        left_out: (device, from, to) that it says are not in the number.
    """

    joules: float | None
    estimate: bool = False
    low: float | None = None
    high: float | None = None
    reason: str = ""
    warned: str = ""
    left_out: tuple[tuple[str, float, float], ...] = ()


Answers = dict[str, Answer]


def this_machine() -> Machine:
    """The machine of this process."""
    return NAMED[os.environ["METER_MACHINE"]]


_start: float | None = None


def world_time() -> float:
    """Seconds since this machine's power was switched on, 0 before; the same in all processes."""
    global _start
    if _start is None:
        try:
            _start = float((Path(os.environ["METER_CELL"]) / "start").read_text())
        except (OSError, ValueError):
            return 0.0
    return max(0.0, time.monotonic() - _start)


class WarmUp:
    """A short block before the one that counts: what a meter loads or starts at its first use is there afterwards.

    The machine's power is not on yet, so nothing happens to its counters.
    """

    def __init__(self, seconds: float, folder: Path) -> None:
        self.seconds, self.folder = seconds, folder

    def open(self) -> None:
        """Called when the meter is ready to start."""

    def run(self) -> None:
        """The block itself."""
        time.sleep(self.seconds)

    def close(self) -> None:
        """Called when the meter has stopped."""

    def narrow(self, measured_s: float) -> None:
        """Called by a meter that says how long it measured."""


class Block(WarmUp):
    """The block of code that a meter measures: it sleeps.

    `spans` are two spans of time between whose true energies that of the meter's own span lies: from after the call
    that starts it to before the one that stops it, and from before to after.
    """

    def __init__(self, seconds: float, folder: Path) -> None:
        super().__init__(seconds, folder)
        self.outer, self.inner = [0.0, 0.0], [0.0, 0.0]
        self.spans = [self.inner, self.outer]

    def open(self) -> None:
        """Wait for the power."""
        (self.folder / "ready").touch()
        while not (self.folder / "start").exists():
            time.sleep(0.01)
        while world_time() == 0.0:
            time.sleep(0.002)
        self.outer[0] = world_time()

    def run(self) -> None:
        self.inner[0] = world_time()
        time.sleep(max(0.0, self.seconds - world_time()))
        self.inner[1] = world_time()

    def close(self) -> None:
        self.outer[1] = world_time()

    def narrow(self, measured_s: float) -> None:
        start, end = self.inner
        extra_s = measured_s - (end - start)  # below 0 if it started after the block
        self.spans = [(start - extra_s, end), (start, end + extra_s)]


# ---- the meters


def lorakit(block: Block) -> Answers:
    from lorakit.energy import EnergyMeter

    block.open()
    meter = EnergyMeter(period_s=1.0)  # as CodeCarbon's below: the default of 5 s leaves two readings in the block
    with meter:
        started = world_time()
        block.run()
    block.close()
    return answers_of(meter.reading, started)


def answers_of(reading, started: float) -> Answers:
    """A lorakit reading; `started` is when its meter started."""
    found = {}
    beside = {"machine": reading.others["machine"]} if "machine" in reading.others else {}
    for kind, part in {"gpu": reading.gpu, "cpu": reading.cpu, "ram": reading.ram, **beside}.items():
        if part.wh is None:
            found[kind] = Answer(None, reason=part.source)
            continue
        joules, bound = part.wh * 3600, (part.uncertainty_wh or 0.0) * 3600
        low, high = [wh * 3600 for wh in part.range_wh] if part.range_wh else (joules - bound, joules + bound)
        if part.gap_count > len(part.gaps):
            raise RuntimeError(f"only {len(part.gaps)} of {part.gap_count} gaps are listed: use a shorter block")
        spans = [(gap["device"], started + gap["start_s"], gap["duration_s"]) for gap in part.gaps]
        left_out = tuple((device, start, start + seconds) for device, start, seconds in spans)
        warned = "; ".join(reading.notes)
        found[kind] = Answer(joules, part.method == "estimated", low, high, part.source, warned, left_out)
    return found


def codecarbon(block: Block) -> Answers:
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA",
        measure_power_secs=1,  # the default of 15 s is longer than the block
        output_methods=[],
        log_level="warning",
    )
    block.open()
    tracker.start()
    block.run()
    tracker.stop()
    block.close()
    data, modes = tracker.final_emissions_data, {type(part).__name__: part for part in tracker._hardware}
    cpu = modes.get("CPU")
    estimated = cpu is not None and cpu._mode in ("cpu_load", "constant")  # its log says so, no column does
    return {
        "gpu": Answer(data.gpu_energy * J_PER_KWH if "GPU" in modes else None),
        "cpu": Answer(data.cpu_energy * J_PER_KWH if cpu else None, estimate=estimated),
        "ram": Answer(data.ram_energy * J_PER_KWH, estimate=True),  # its documentation says so
    }


def zeus(block: Block) -> Answers:
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor()
    block.open()
    monitor.begin_window("block", sync_execution=False)  # there is no GPU to synchronize
    block.run()
    found = monitor.end_window("block", sync_execution=False)
    block.close()
    parts = {"gpu": found.gpu_energy, "cpu": found.cpu_energy, "ram": found.dram_energy}
    return {part: Answer(sum(devices.values()) if devices else None) for part, devices in parts.items()}


def pyjoules(block: Block) -> Answers:
    from pyJoules.device import DeviceFactory
    from pyJoules.energy_meter import EnergyMeter

    devices = DeviceFactory.create_devices()
    if not devices:
        return {}
    meter = EnergyMeter(devices)
    block.open()
    meter.start(tag="block")
    block.run()
    meter.stop()
    block.close()
    trace = meter.get_trace()
    trace.clean_data()  # removes samples with negative energies, as its documentation advises
    if not len(trace):
        return {}
    energies = trace[0].energy
    units_j = {"package": ("cpu", 1e-6), "dram": ("ram", 1e-6), "nvidia": ("gpu", 1e-3)}  # the others are in package
    sums: dict[str, float] = {}
    for domain, counts in energies.items():
        part, unit_j = units_j.get(domain.split("_")[0], (None, 0.0))
        if part:
            sums[part] = sums.get(part, 0.0) + counts * unit_j
    return {part: Answer(joules) for part, joules in sums.items()}


def carbontracker(block: Block) -> Answers:
    from carbontracker.tracker import CarbonTracker

    tracker = CarbonTracker(epochs=2, epochs_before_pred=2, verbose=0)
    block.open()
    tracker.epoch_start()
    block.run()
    tracker.epoch_end()
    block.close()
    thread, found = tracker.tracker, {}
    for component in thread.components:  # before the PUE of 1.58 by which its total is multiplied
        estimated = type(component.handler).__name__ == "GenericCPU"
        with_dram = any(name.startswith("dram") for name in component.devices())
        part = "cpu+ram" if component.name == "cpu" and with_dram else component.name
        found[part] = Answer(float(component.energy_usage(thread.epoch_times)[0]) * J_PER_KWH, estimate=estimated)
    return found


def perun(block: Block) -> Answers:
    from perun import perun as monitored
    from perun import register_callback
    from perun.data_model.data import MetricType
    from perun.data_model.sensor import DeviceType

    found = []

    def keep(node) -> None:
        found.append(node)

    keep.__name__ = f"keep_{id(block)}"  # a callback of a name that is known already is not registered

    @monitored(data_out=str(block.folder / "perun"))
    def application() -> None:
        register_callback(keep)
        block.run()

    block.open()
    application()
    block.close()
    sensors = [node for node in _below(found) if node.type.name == "SENSOR" and MetricType.ENERGY in node.metrics]
    if not sensors:
        return {}
    # its own process starts before or after the block; its own duration says how much it measured
    block.narrow(max(float(node.metrics[MetricType.RUNTIME].value) for node in sensors))
    sums: dict[str, float] = {}
    parts = {DeviceType.CPU: "cpu", DeviceType.RAM: "ram", DeviceType.GPU: "gpu", DeviceType.SOCKET: "socket"}
    for node in sensors:
        if node.deviceType in parts:
            part = parts[node.deviceType]
            sums[part] = sums.get(part, 0.0) + float(node.metrics[MetricType.ENERGY].value)
    if "socket" in sums:  # Grace: the CPU's rail is a part of it
        sums["cpu"] = sums.pop("socket")
    return {part: Answer(joules) for part, joules in sums.items()}


def _below(nodes: Iterable) -> Iterable:
    for node in nodes:
        yield node
        yield from _below(node.nodes.values())


TOOLS: dict[str, Callable[[Block], Answers]] = {
    tool.__name__: tool for tool in (lorakit, codecarbon, zeus, pyjoules, carbontracker, perun)
}
WARM_UP_S = {"zeus": 8.0}  # until its helper processes follow the counters, also on a busy machine


def main() -> None:
    tool, seconds = sys.argv[1], float(sys.argv[2])
    folder = Path(os.environ["METER_CELL"])
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    block, raised, answers = Block(seconds, folder), "", {}
    try:
        TOOLS[tool](WarmUp(WARM_UP_S.get(tool, 1.0), folder))
        answers = TOOLS[tool](block)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    found = {name: asdict(answer) for name, answer in answers.items()}
    result = {"answers": found, "raised": raised, "spans": block.spans}
    (folder / "answer.part").write_text(json.dumps(result))
    (folder / "answer.part").rename(folder / "answer.json")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads and helpers of a meter must not keep the bench waiting


if __name__ == "__main__":
    main()
