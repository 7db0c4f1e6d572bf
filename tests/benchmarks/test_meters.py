"""benchmarks/meters.py: lorakit on the forty machines in virtual time, the judge, and the table."""

import errno
import json
import os
import stat
import subprocess
import sys
import time

import pytest

from lorakit.energy import EnergyMeter
from tests.support.tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # these scripts import each other by name

import meters
from drive import CLAIMS, Answer, answers_of
from machines import MACHINES, NAMED, Power
from sensors import FakeNvml, Tree
from verdict import VERDICTS, is_claimed, judge, remarks, worst

SECONDS = 12.0
OPEN = os.open


class Clock:
    """Stands still until the test moves it."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    boottime = monotonic

    def wall(self):
        return 1.7e9 + self.now


def open_as_a_user(path, *arguments, **options):
    """Files without read bits are closed, as they are not to root."""
    if os.path.exists(path) and not os.stat(path).st_mode & stat.S_IRUSR:
        raise PermissionError(errno.EACCES, "Permission denied")
    return OPEN(path, *arguments, **options)


def measure(machine, folder, monkeypatch, seconds=SECONDS, period_s=0.5):
    """What `drive.py` writes, but in virtual time."""
    monkeypatch.setattr(os, "cpu_count", lambda: machine.cpus)
    monkeypatch.setattr(os, "open", open_as_a_user)
    clock, tree = Clock(), Tree(machine, folder)
    meter = EnergyMeter(
        folder / "sys/class/powercap",
        FakeNvml(machine, clock.monotonic),
        clock,
        proc=folder / "proc",
        edac=folder / "none",
        hwmon=folder / "sys/class/hwmon",
        events=folder / "none",
        environ=machine.environ,
        thread=False,
    )
    with meter:
        while clock.now < seconds - 1e-9:
            clock.now += period_s
            tree.write(clock.now)
            meter.sample()
    tree.close()
    answers = {part: vars(answer) for part, answer in answers_of(meter.reading, 0.0).items()}
    return {"answers": answers, "raised": "", "spans": [(0.0, seconds)] * 2, "says": ""}


EXCEPTIONS = {
    "silent": {"fastest-first"},  # NVML does not tell which GPU is CUDA's first: none is counted, with the reason
    "estimate": {"denied", "denied-all", "masked", "limits"},
    "declined": {"still", "eight-milliwatts", "jetson", "no-driver"},  # the sensors allow no right number
}
PARTLY = {"reset", "garbage-power", "frozen-counter"}  # some of the time has no trustworthy reading, and that is said


@pytest.mark.parametrize("name", NAMED)
def test_lorakit_is_inside_its_own_bound(tmp_path, monkeypatch, name):
    machine = NAMED[name]
    verdicts = judge(machine, measure(machine, tmp_path, monkeypatch))
    assert all(found.in_bound in (True, None) for found in verdicts)
    assert [found.part for found in verdicts] == list(machine.judged)
    wanted = next((verdict for verdict, names in EXCEPTIONS.items() if name in names), "right")
    assert {found.verdict for found in verdicts} == {wanted}
    if wanted in ("silent", "declined"):
        assert all(found.says for found in verdicts)
    else:
        assert all(found.in_bound for found in verdicts)
        assert all((found.covered < 0.99) == (name in PARTLY) for found in verdicts)


def test_there_are_forty_machines_of_different_names():
    assert len(MACHINES) == len(NAMED) == 40
    assert {machine.needs for machine in MACHINES} <= set.union(*CLAIMS.values())
    assert all(is_claimed("lorakit", machine) for machine in MACHINES)


def test_a_machine_of_which_everything_is_counted_twice_is_seen(tmp_path, monkeypatch):
    """The judge would notice a lorakit that adds psys to the package, or forgets a wrap."""
    machine = NAMED["psys"]
    result = measure(machine, tmp_path, monkeypatch)
    part = result["answers"]["cpu"]
    for wrong in (part["joules"] * (20 + 38) / 20, part["joules"] - 262_143.3):
        shift = wrong - part["joules"]
        moved = {**part, "joules": wrong, "low": part["low"] + shift, "high": part["high"] + shift}
        (found,) = judge(machine, {**result, "answers": {"cpu": moved}})
        assert (found.verdict, found.in_bound) == ("off", False)


def test_power_is_integrated_piece_by_piece():
    power = Power((0, 100), (6, 220))
    assert [power.at(time) for time in (0, 5.9, 6, 100)] == [100, 100, 220, 220]
    assert [power.joules(until) for until in (0, 3, 6, 12)] == [0, 300, 600, 600 + 6 * 220]


# ---- the judge


def verdict_on(name, answers, raised="", says="", spans=((0.0, 12.0), (0.0, 12.0))):
    plain = {part: vars(answer) for part, answer in answers.items()}
    found = judge(NAMED[name], {"answers": plain, "raised": raised, "says": says, "spans": spans})
    return found[0] if len(found) == 1 else found


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (Answer(336.0), "right", "+0.0 %"),
        (Answer(342.0), "right", "+1.8 %"),
        (Answer(343.0), "off", "**+2.1 %**"),
        (Answer(0.0), "off", "**0 J**"),
        (Answer(300.0, low=290.0, high=340.0), "right", "-10.7 % (±7 %)"),
        (Answer(300.0, low=290.0, high=330.0), "off", "**-10.7 %**"),
        (Answer(300.0, estimate=True), "estimate", "-10.7 %, estimate"),
        (Answer(300.0, estimate=True, low=3.0, high=400.0), "estimate", "-10.7 %, estimate, inside its range"),
        (Answer(None), "silent", "silent, does not say why"),
        (Answer(None, reason="closed"), "silent", "silent"),
        (Answer(168.0, left_out=(("intel-rapl:0", 2.0, 8.0),)), "right", "+0.0 % of the 50 % that it covers"),
        (Answer(168.0, left_out=(("another", 2.0, 8.0),)), "off", "**-50.0 %**"),
    ],
)
def test_a_number_is_compared_with_the_truth(answer, verdict, text):
    found = verdict_on("laptop", {"cpu": answer})  # 28 W for 12 s
    assert (found.verdict, found.text()) == (verdict, text)


def test_what_the_block_was_is_not_held_against_a_meter():
    for joules, verdict in ((280.0, "right"), (336.0, "right"), (350.0, "off"), (270.0, "off")):
        assert verdict_on("laptop", {"cpu": Answer(joules)}, spans=((1.0, 11.0), (0.0, 12.0))).verdict == verdict


def test_a_sum_over_two_parts_is_compared_with_the_sum_of_both():
    cpu, ram = verdict_on("desktop", {"cpu+ram": Answer(12.0 * 71)})
    assert (cpu.verdict, ram.verdict, ram.part) == ("right", "right", "cpu+ram")
    cpu, ram = verdict_on("desktop", {"cpu": Answer(12.0 * 65), "ram": Answer(300.0, estimate=True)})
    assert worst([cpu, ram]) == "estimate"


def test_to_give_no_number_is_right_only_where_there_is_none_and_with_a_reason():
    assert verdict_on("denied", {}, says="WARNING: RAPL - permission denied").verdict == "declined"
    assert verdict_on("denied", {}, raised="PermissionError: energy_uj").verdict == "declined"
    assert verdict_on("denied", {}).verdict == "silent"
    assert verdict_on("laptop", {}, raised="ValueError: b").verdict == "raises"
    assert verdict_on("denied", {"cpu": Answer(0.0)}, says="RAPL: denied").text() == "**0 J**, with a warning"


def test_only_a_remark_about_the_part_counts():
    printed = "FutureWarning: import pynvml\n\x1b[33mNVML Shared Library Not Found\x1b[0m\nRAPL closed\n"
    assert remarks("gpu", printed) == "NVML Shared Library Not Found"
    assert remarks("cpu", printed) == "RAPL closed"
    assert remarks("machine", printed) == ""


# ---- the bench


def test_the_tables_count_every_machine_of_every_meter():
    cells = []
    for machine in MACHINES:
        for tool in CLAIMS:
            if not is_claimed(tool, machine):
                cells.append(meters.cell_of(machine, tool, "unclaimed"))
                continue
            answers = {part: vars(Answer(machine.joules([part], 0, 12))) for part in machine.judged}
            verdicts = judge(machine, {"answers": answers, "raised": "", "spans": [(0, 12)] * 2, "says": ""})
            cells.append(meters.cell_of(machine, tool, worst(verdicts), verdicts))
    summary = json.loads(json.dumps({"cells": cells, "seconds": 12.0, "took_s": 60}))
    lines = meters.report(summary)
    (sums,) = [text for text in lines if text.startswith("| meter")]
    assert "| lorakit " in sums and all(name in sums for name in ("silent (says why)", "rightly no number"))
    row = [cell.strip() for cell in next(line for line in sums.splitlines() if "| lorakit " in line).split("|")[1:-1]]
    assert row == ["lorakit", "40", "40", "0", "0", "0 (0)", "0", "0"]
    (table,) = [text for text in lines if text.startswith("| machine")]
    assert len(table.splitlines()) == 2 + len(MACHINES)
    assert table.count("not claimed") == sum(not is_claimed(tool, m) for tool in CLAIMS for m in MACHINES)
    assert set(VERDICTS) == {"off", "raises", "silent", "estimate", "declined", "right"}


def test_a_cell_is_described_with_both_numbers():
    machine = NAMED["laptop"]
    answers = {"cpu": vars(Answer(400.0, warned="a note"))}
    verdicts = judge(machine, {"answers": answers, "raised": "", "spans": [(0, 12)] * 2, "says": ""})
    text = meters.describe({**meters.cell_of(machine, "zeus", worst(verdicts), verdicts), "raised": ""})
    assert "zeus on laptop" in text and "400.0 J, true 336.0 J: **+19.0 %**" in text and "it says: a note" in text


def test_a_process_that_ends_without_an_answer_is_told(tmp_path):
    found = meters.read_answer(tmp_path / "none", 70, "first\nlast words\n\n", 12.0)
    assert found["raised"] == "the meter ended the process with status 70: last words"
    assert verdict_on("laptop", {}, raised=found["raised"]).verdict == "raises"


def test_cells_that_are_run_again_replace_those_of_an_earlier_run():
    origin = {"command": "python benchmarks/meters.py", "versions": {"lorakit": "abc"}, "took_s": 900}
    old = [meters.cell_of(NAMED["laptop"], tool, "off") for tool in ("lorakit", "zeus")]
    new = [meters.cell_of(NAMED["laptop"], "lorakit", "right")]
    found = meters.updated({**origin, "seconds": 12.0, "cells": old}, {"seconds": 12.0, "took_s": 60, "cells": new})
    assert [cell["verdict"] for cell in found["cells"]] == ["right", "off"]
    assert (found["earlier"], found["took_s"]) == ([origin], 60)
    with pytest.raises(SystemExit, match="use --seconds 20"):
        meters.updated({**origin, "seconds": 20.0, "cells": old}, {"seconds": 12.0, "took_s": 60, "cells": new})


def test_the_published_sums_are_those_of_the_published_cells():
    cells = json.loads((ROOT / "benchmarks/results/meters.json").read_text(encoding="utf-8"))["cells"]
    assert {(cell["machine"], cell["tool"]) for cell in cells} == {(m.name, tool) for m in MACHINES for tool in CLAIMS}
    assert all((cell["verdict"] != "unclaimed") == is_claimed(cell["tool"], NAMED[cell["machine"]]) for cell in cells)
    assert meters.outside(cells) == 0
    sums = meters.sums_table(cells)
    assert sums in (ROOT / "benchmarks/results/meters.md").read_text(encoding="utf-8")
    assert sums in (ROOT / "docs/energy.md").read_text(encoding="utf-8")


def test_a_short_block_is_refused():
    with pytest.raises(SystemExit, match="--seconds 5.0: something happens to some machines after 6 s"):
        meters.parse(["--seconds", "5"])


# ---- what the meters' processes see


def run_python(code, machine="mig-by-uuid", cell="", **environ):
    """Code in a process like a meter's."""
    lab = ROOT / "benchmarks" / "meter_lab"
    given = {"PYTHONPATH": f"{lab / 'shims'}:{lab}", "METER_CELL": cell, "METER_MACHINE": machine, **environ}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_pynvml_answers_for_the_machine_with_nvidias_names_and_exceptions(tmp_path):
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    code = """
import time, pynvml as nvml
nvml.nvmlInit()
gpu = nvml.nvmlDeviceGetHandleByIndex(1)
print(nvml.nvmlDeviceGetCount(), nvml.NVML_DEVICE_ARCH_VOLTA, nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
for call in (lambda: nvml.nvmlDeviceGetHandleByIndex(7), lambda: nvml.nvmlDeviceGetFanSpeed(gpu)):
    try:
        call()
    except nvml.NVMLError as error:
        print(type(error).__name__)
"""
    assert run_python(code, cell=str(tmp_path)) == [
        "2", "5", "5000000", "NVMLError_InvalidArgument", "NVMLError_NotSupported",
    ]  # fmt: skip
    (tmp_path / "start").write_text(repr(time.monotonic() - 10.05))
    energy = int(run_python(code, cell=str(tmp_path))[2])
    assert energy >= 5_000_000 + 156_121 * 10
    code = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(error.value)"
    assert run_python(code, machine="no-driver", cell=str(tmp_path)) == ["9"]


def test_a_process_on_a_machine_sees_its_files_and_only_those_it_may_read(tmp_path):
    tree = Tree(NAMED["denied"], tmp_path / "machine")
    code = """
import os
zone = "/sys/class/powercap/intel-rapl:0"
print(open(zone + "/name").read().strip(), open(zone + "/constraint_0_power_limit_uw").read().strip())
print(sorted(os.listdir("/sys/class")), open("/proc/cpuinfo").read().count("i7-8700"))
try:
    open(zone + "/energy_uj")
except PermissionError:
    print("denied")
"""
    command = [sys.executable, ROOT / "benchmarks/meter_lab/enter.py", tree.root, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    tree.close()
    if "unshare" in done.stderr or "mount" in done.stderr or "uid_map" in done.stderr:
        pytest.skip(f"this user may not have namespaces here: {done.stderr.splitlines()[-1]}")
    assert done.stdout.splitlines() == ["package-0 15000000", "['powercap'] 4", "denied"]


def test_a_tree_is_laid_as_the_kernel_lays_it(tmp_path):
    tree = Tree(NAMED["wrap-65kj"], tmp_path)
    links = tmp_path / "sys/class/powercap"
    zone = (links / "intel-rapl:1").resolve()
    assert zone == (tmp_path / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:1").resolve()
    assert (links / "intel-rapl/subsystem").resolve() == links.resolve()
    seen = []
    for time_s in (0.0, 8.0, 9.0):
        tree.write(time_s)
        seen.append(int((zone / "energy_uj").read_text()))
    tree.close()
    assert seen[1] - seen[0] == 260 * 8_000_000
    assert seen[2] == seen[1] + 260_000_000 - (NAMED["wrap-65kj"].devices[1].range_uj + 1)
