"""RAPL by perf events: the kernel's tree of events, and counters in virtual time. Not yet run on such hardware."""

import errno
import os
import struct
import subprocess
import sys

import pytest

from lorakit.power import perf_rapl
from lorakit.power.perf_rapl import PerfCounter, find_perf_events, open_event
from tests.support.energy_world import Profile, World, deny

SCALE = "2.3283064365386962890625e-10"


def power_unit(root, cpumask="0,18", events=("energy-cores", "energy-gpu", "energy-pkg", "energy-psys", "energy-ram")):
    """As arch/x86/events/rapl.c shows it on a two-socket server."""
    codes = {"energy-cores": 1, "energy-pkg": 2, "energy-ram": 3, "energy-gpu": 4, "energy-psys": 5}
    folder = root / "power" / "events"
    folder.mkdir(parents=True)
    (root / "power" / "type").write_text("32\n")
    (root / "power" / "cpumask").write_text(f"{cpumask}\n")
    for name in events:
        (folder / name).write_text(f"event=0x{codes[name]:02x}\n")
        (folder / f"{name}.scale").write_text(f"{SCALE}\n")
        (folder / f"{name}.unit").write_text("Joules\n")
    return root


def test_packages_and_dram_of_both_sockets_are_found(tmp_path):
    events = find_perf_events(power_unit(tmp_path))
    assert [(event.name, event.kind, event.cpu, event.config) for event in events] == [
        ("energy-pkg", "cpu", 0, 2),
        ("energy-pkg", "cpu", 18, 2),
        ("energy-ram", "ram", 0, 3),
        ("energy-ram", "ram", 18, 3),
    ]
    assert {event.scale_j for event in events} == {2.0**-32}
    assert {event.type for event in events} == {32}
    assert find_perf_events(tmp_path / "none") == []
    assert [event.cpu for event in find_perf_events(power_unit(tmp_path / "4", "0-1,4", ["energy-pkg"]))] == [0, 1, 4]


def counts(world, watts, pipes, refused=()):
    """An `open_event` whose descriptors show the energy of these watts; `refused` are names or CPUs of events."""

    def opened(event):
        if watts is None:
            raise OSError(errno.EACCES, "perf_event_open: Permission denied")
        if event.name in refused or event.cpu in refused:
            raise OSError(errno.ENODEV, "perf_event_open: No such device")
        path = world.root.parent / f"{event.name}-{event.cpu}"
        pipes[path] = watts[event.name]
        show(world, pipes)
        return os.open(path, os.O_RDONLY)

    return opened


def show(world, pipes):
    for path, watts in pipes.items():
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(file, struct.pack("=Q", int(watts * world.time * 2**32)), 0)
        os.close(file)


def measure(tmp_path, monkeypatch, watts, refused=(), model=None, release=""):
    """A minute of two packages whose powercap is denied."""
    zones = [(f"intel-rapl:{k}", f"package-{k}", Profile((0, 120.0))) for k in (0, 1)]
    world, pipes = World(tmp_path, zones=zones), {}
    power_unit(tmp_path / "events")
    if model is not None:
        (world.proc / "cpuinfo").write_text(f"cpu family\t: 6\nmodel\t\t: {model}\n")
        (world.proc / "sys/kernel").mkdir(parents=True)
        (world.proc / "sys/kernel/osrelease").write_text(f"{release}\n")
    deny(monkeypatch)
    monkeypatch.setattr(perf_rapl.PerfCounter.__init__, "__defaults__", (counts(world, watts, pipes, refused),))
    monkeypatch.setattr(perf_rapl.PerfCounter, "read", lambda self: struct.unpack("=Q", os.pread(self._file, 8, 0))[0])
    write = world.write
    world.write = lambda: (write(), show(world, pipes))
    with world.meter() as meter:
        world.run(meter, 60)
    return meter.reading


@pytest.mark.parametrize("watts", [{"energy-pkg": 120.0, "energy-ram": 15.0}, None])
def test_perf_is_read_where_powercap_is_denied_and_it_is_not(tmp_path, monkeypatch, watts):
    reading = measure(tmp_path, monkeypatch, watts)
    cpu, ram = reading.cpu, reading.ram
    if watts is None:
        assert (cpu.method, ram.method) == ("estimated", "estimated")
        return
    assert (cpu.method, cpu.device_coverage) == ("counter", 1.0)
    assert cpu.wh * 3600 == pytest.approx(2 * 120 * 60, abs=0.01)
    assert ram.wh * 3600 == pytest.approx(2 * 15 * 60, abs=0.01)
    assert "RAPL by perf (energy-pkg)" in cpu.source


@pytest.mark.parametrize(
    ("refused", "cpu_j", "ram_j", "cpu_coverage"),
    [
        (("energy-pkg",), None, 1800, None),  # the search for DRAM continues
        ((0,), 7200, 900, 0.5),
        ((18,), 7200, 900, 0.5),  # and a package that is not read is named, not dropped
        (("energy-ram",), 14_400, None, 1.0),
    ],
)
def test_a_refused_event_neither_ends_the_search_nor_goes_unsaid(
    tmp_path, monkeypatch, refused, cpu_j, ram_j, cpu_coverage
):
    reading = measure(tmp_path, monkeypatch, {"energy-pkg": 120.0, "energy-ram": 15.0}, refused)
    for part, joules in ((reading.cpu, cpu_j), (reading.ram, ram_j)):
        if joules is None:
            assert part.method == "estimated"
        else:
            assert part.wh * 3600 == pytest.approx(joules, abs=0.01)
    assert reading.cpu.device_coverage == cpu_coverage
    if cpu_coverage == 0.5:
        (unread,) = [part for part in reading.cpu.devices if part["kwh"] is None]
        assert unread["id"] == f"perf energy-pkg cpu{refused[0]}"
        assert unread["source"] == "not read: perf_event_open: No such device"


@pytest.mark.parametrize(
    ("model", "release", "in_doubt"),
    [
        (143, "5.15.0-60-generic", True),
        (207, "6.0.9", True),
        (143, "", True),  # the release is hidden
        (143, "6.1.0-13-amd64", False),
        (207, "6.10.2", False),
        (106, "5.15.0-60-generic", False),  # Ice Lake-X
    ],
)
@pytest.mark.parametrize("shown_w", [10.0, 40.0])
def test_the_bound_of_sapphire_rapids_dram_holds_both_units(tmp_path, monkeypatch, model, release, in_doubt, shown_w):
    """An old kernel shows 40 W as 10 W, a mended one as 40 W, and the events do not tell them apart."""
    watts = {"energy-pkg": 120.0, "energy-ram": shown_w}
    reading = measure(tmp_path, monkeypatch, watts, model=model, release=release)
    ram, cpu = reading.ram, reading.cpu
    assert ram.wh * 3600 == pytest.approx(2 * shown_w * 60, abs=0.01)
    assert (abs(ram.wh - 4 * 2 * shown_w * 60 / 3600) <= ram.uncertainty_wh) == in_doubt
    assert ram.uncertainty_wh <= (3.2 if in_doubt else 0.2) * ram.wh
    assert cpu.uncertainty_wh < 0.1 * cpu.wh
    assert [note for note in reading.notes if "80275ca9e525" in note] == list(reading.notes)
    assert len(reading.notes) == in_doubt


@pytest.mark.parametrize(
    ("name", "text"),
    [("type", "power"), ("cpumask", "all"), ("events/energy-pkg", "event=x"), ("events/energy-pkg.scale", "0")],
)
def test_an_event_whose_files_hold_something_else_is_left_out(tmp_path, name, text):
    root = power_unit(tmp_path, events=["energy-pkg"])
    assert len(find_perf_events(root)) == 2
    (root / "power" / name).write_text(f"{text}\n")
    assert find_perf_events(root) == []


def test_a_count_is_eight_bytes_in_the_machines_order():
    reads, writes = os.pipe()
    os.write(writes, struct.pack("=QQ", 5, 7) + b"1234")
    os.close(writes)
    counter = PerfCounter(perf_rapl.PerfEvent("energy-pkg", "cpu", 0, 32, 2, 2.0**-32), lambda _: reads)  # reads the 5
    assert counter.read() == 7
    with pytest.raises(OSError, match="4 bytes instead of 8"):
        counter.read()
    counter.close()


def test_the_system_call_is_made_as_the_kernel_expects(tmp_path):
    """A software event, which needs no hardware: type 1, config 0 is the CPU clock, in nanoseconds."""
    event = perf_rapl.PerfEvent("cpu-clock", "cpu", 0, 1, 0, 1e-9)
    try:
        counter = PerfCounter(event)
    except OSError as error:
        assert error.errno in (errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOENT)
        pytest.skip(f"perf is not allowed here: {error.strerror}")
    first = counter.read()
    subprocess.run([sys.executable, "-c", "sum(range(10**6))"], check=True)
    assert counter.read() > first
    counter.close()
    with pytest.raises(OSError, match="is closed"):
        counter.read()


def test_an_event_that_does_not_exist_is_an_error():
    with pytest.raises(OSError, match="perf_event_open: |on x86-64 only"):
        open_event(perf_rapl.PerfEvent("nothing", "cpu", 0, 999_999, 0, 1.0))
