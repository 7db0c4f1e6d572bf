"""RAPL zones: golden trees of real machines, faults of the counter files, and why there may be none."""

import errno
import os
import shlex
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lorakit.cli.energy_doctor import find_fixes
from lorakit.power.perf_rapl import EVENTS, PerfEvent
from lorakit.power.rapl import RaplCounter, find_zones
from lorakit.power.rapl_access import diagnose
from tests.support.energy_world import FakeZone, Profile, World, deny

TREES = {
    # tree: {zone: (name, role, counted)}
    "laptop with psys and the mmio twin": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("core", "core", False),
        "intel-rapl:0:1": ("uncore", "uncore", False),
        "intel-rapl:0:2": ("dram", "dram", True),
        "intel-rapl:1": ("psys", "psys", False),
        "intel-rapl-mmio:0": ("package-0", "package", False),
        "intel-rapl-mmio:0:0": ("dram", "dram", False),
    },
    "2-socket server": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("dram", "dram", True),
        "intel-rapl:1": ("package-1", "package", True),
        "intel-rapl:1:0": ("dram", "dram", True),
    },
    "12 dies, hexadecimal ids": {
        f"intel-rapl:{index:x}": (f"package-{index // 6}-die-{index % 6}", "package", True) for index in range(12)
    },
    "AMD": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("core", "core", False),
    },
    "mmio only": {"intel-rapl-mmio:0": ("package-0", "package", True)},
    "Threadripper, a zone for each die": {
        f"intel-rapl:{index}": (f"package-0-die-{index}", "package", True)
        for index in range(4)  # accumulator.mirrored
    },
    "TPMI: Granite Rapids, two sockets": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("dram", "dram", True),
        "intel-rapl:1": ("psys", "psys", False),
        "intel-rapl:2": ("package-1", "package", True),
        "intel-rapl:2:0": ("dram", "dram", True),
        "intel-rapl:3": ("psys-1", "psys", False),
    },
    "TPMI under a control type of its own, beside the registers'": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("dram", "dram", True),
        "intel-rapl:1": ("psys", "psys", False),
        "intel-rapl-tpmi:0": ("package-0", "package", False),
        "intel-rapl-tpmi:0:0": ("dram", "dram", False),
        "intel-rapl-tpmi:1": ("psys", "psys", False),
    },
    "a package and its dies": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:1": ("package-0-die-0", "package", False),
        "intel-rapl:2": ("package-0-die-1", "package", False),
    },
    "a domain of the future": {
        "intel-rapl:0": ("package-0", "package", True),
        "intel-rapl:0:0": ("hbm", "unknown", False),
    },
}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("tree", TREES, ids=str)
def test_golden_tree(tmp_path, tree, nested):
    for key, (name, _, _) in TREES[tree].items():
        folder = tmp_path
        if nested:  # as under /sys/devices/virtual/powercap
            control, *ids = key.split(":")
            parts = [control] + [":".join([control, *ids[:depth]]) for depth in range(1, len(ids))]
            folder = tmp_path.joinpath(*parts)
        FakeZone(folder, key, name)
    found = {zone.key: (zone.name, zone.role, zone.counted) for zone in find_zones(tmp_path)}
    assert found == TREES[tree]


def test_zones_are_in_the_order_of_their_hexadecimal_ids(tmp_path):
    for index in (16, 15, 9, 10):
        FakeZone(tmp_path, f"intel-rapl:{index:x}", f"package-{index}")
    assert [zone.key for zone in find_zones(tmp_path)] == [f"intel-rapl:{ids}" for ids in ("9", "a", "f", "10")]


def test_class_folder_of_links_is_read_once(tmp_path):
    """/sys/class/powercap holds links to the control type and to every zone."""
    real = tmp_path / "devices" / "intel-rapl"
    FakeZone(real, "intel-rapl:0", "package-0")
    FakeZone(real / "intel-rapl:0", "intel-rapl:0:0", "dram")
    root = tmp_path / "class"
    root.mkdir()
    (root / "intel-rapl").symlink_to(real)
    (root / "intel-rapl:0").symlink_to(real / "intel-rapl:0")
    (root / "intel-rapl:0:0").symlink_to(real / "intel-rapl:0" / "intel-rapl:0:0")
    assert [zone.key for zone in find_zones(root)] == ["intel-rapl:0", "intel-rapl:0:0"]


def test_server_counts_both_packages_and_their_dram(tmp_path):
    world = World(
        tmp_path,
        zones=[
            ("intel-rapl:0", "package-0", Profile((0, 100.0))),
            ("intel-rapl:0:0", "dram", Profile((0, 20.0)), {"max_range": 65_532_610_987}),
            ("intel-rapl:1", "package-1", Profile((0, 80.0))),
            ("intel-rapl:1:0", "dram", Profile((0, 10.0)), {"max_range": 65_532_610_987}),
        ],
    )
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(1800, abs=0.01)
    assert meter.reading.ram.wh * 3600 == pytest.approx(300, abs=0.01)


def test_amd_counts_its_package_without_the_cores_and_its_ram_stays_an_estimate(tmp_path):
    zones = [
        ("intel-rapl:0", "package-0", Profile((0, 180.0)), {"max_range": 65_532_610_987}),
        ("intel-rapl:0:0", "core", Profile((0, 900.0)), {"max_range": 65_532_610_987}),  # EPYC's are aberrant
    ]
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 600)  # wraps once
    reading = meter.reading
    assert reading.cpu.wh * 3600 == pytest.approx(108_000, abs=0.01)
    assert (reading.cpu.method, reading.ram.method) == ("counter", "estimated")
    assert reading.measured_wh == reading.cpu.wh
    assert reading.estimated_wh == reading.ram.wh


def test_container_with_masked_zones_has_none_and_says_so(tmp_path):
    """The class folder's links lead into a folder over which the runtime has mounted an empty one."""
    world = World(tmp_path)
    (tmp_path / "devices").mkdir()
    for key in ("intel-rapl", "intel-rapl:0", "intel-rapl:0:0"):
        (world.root / key).symlink_to(tmp_path / "devices" / "intel-rapl" / key)
    assert find_zones(world.root) == []
    assert diagnose(world.root, world.proc).state == "masked"
    with world.meter() as meter:
        world.run(meter, 10)
    assert (meter.reading.cpu.method, meter.reading.measured_wh) == ("estimated", None)


def test_laptop_counts_the_package_once_and_shows_psys_separately(tmp_path):
    package = Profile((0, 4.0))
    world = World(
        tmp_path,
        zones=[
            ("intel-rapl:0", "package-0", package),
            ("intel-rapl:0:0", "core", Profile((0, 3.0))),
            ("intel-rapl:1", "psys", Profile((0, 9.0))),
            ("intel-rapl-mmio:0", "package-0", package),
            ("intel-rapl-mmio:1", "psys", Profile((0, 9.0))),
        ],
    )
    with world.meter() as meter:
        world.run(meter, 100)
    reading = meter.reading
    assert reading.cpu.wh * 3600 == pytest.approx(400, abs=0.01)
    assert reading.others["psys"].wh * 3600 == pytest.approx(900, abs=0.01)
    assert reading.measured_wh == reading.cpu.wh
    assert meter.power_w() == pytest.approx(4.0, abs=0.01)
    why = {zone["id"]: zone["why"] for zone in reading.cpu.not_counted}
    assert why["intel-rapl-mmio:0"] == "repeats intel-rapl:0"
    assert why["intel-rapl:0:0"] == "part of package-0"
    assert "contains the packages" in why["intel-rapl:1"]
    assert why["intel-rapl-mmio:1"] == "repeats intel-rapl:1"


def test_tpmi_server_counts_packages_and_dram_and_shows_both_psys_separately(tmp_path):
    watts = {"package-0": 200.0, "dram": 30.0, "psys": 260.0, "package-1": 150.0, "psys-1": 180.0}
    keys = [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram"), ("intel-rapl:1", "psys")]
    keys += [("intel-rapl:2", "package-1"), ("intel-rapl:2:0", "dram"), ("intel-rapl:3", "psys-1")]
    world = World(tmp_path, zones=[(key, name, Profile((0, watts[name]))) for key, name in keys])
    with world.meter() as meter:
        world.run(meter, 100)
    joules = {"cpu": meter.reading.cpu, "ram": meter.reading.ram, "psys": meter.reading.others["psys"]}
    assert {name: round(part.wh * 3600, 2) for name, part in joules.items()} == {"cpu": 35e3, "ram": 6e3, "psys": 44e3}
    assert meter.reading.measured_wh * 3600 == pytest.approx(41e3)


def test_mirrored_dies_count_once(tmp_path):
    """Threadripper: each die's zone shows the register of the whole package."""
    package = Profile((0, 68.5))
    zones = [(f"intel-rapl:{index}", f"package-0-die-{index}", package) for index in range(4)]
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(68.5 * 60, abs=0.01)
    assert meter.power_w() == pytest.approx(68.5)
    assert [zone["why"] for zone in meter.reading.cpu.not_counted] == ["repeats another die's counter"] * 3


def test_real_dies_that_start_alike_all_count(tmp_path):
    zones = [(f"intel-rapl:{i:x}", f"package-0-die-{i:x}", Profile((0, 10.0 + i / 100))) for i in range(12)]
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(sum(10 + i / 100 for i in range(12)) * 60, abs=0.01)


def test_counter_that_never_moves_is_no_measurement(tmp_path):
    world = World(tmp_path, zones=[("intel-rapl-mmio:0", "package-0", None)])
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.cpu.wh is None
    assert "stands still" in meter.reading.cpu.source
    assert meter.reading.measured_wh is None


def zone_of(tmp_path, **options):
    fake = FakeZone(tmp_path, "intel-rapl:0", "package-0", **options)
    return fake, find_zones(tmp_path)[0]


@pytest.mark.parametrize("content", ["", "123\n456", "12.5", "-3", "nonsense", "1e6"])
def test_text_that_is_not_a_count_is_no_reading(tmp_path, content):
    fake, zone = zone_of(tmp_path)
    counter = RaplCounter(zone)
    fake.file.write_text(content)
    with pytest.raises(OSError, match="not one integer"):
        counter.read()
    fake.file.write_text("77\n")
    assert counter.read() == 77


def test_kept_descriptor_survives_a_lost_permission(tmp_path, monkeypatch):
    fake, zone = zone_of(tmp_path)
    counter = RaplCounter(zone)
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    fake.file.write_text("88\n")
    assert counter.read() == 88
    with pytest.raises(PermissionError, match="max_energy_range_uj may not be read by this user"):
        RaplCounter(zone)


def test_zone_that_comes_back_as_another_file_is_read_again(tmp_path, monkeypatch):
    fake, zone = zone_of(tmp_path)
    counter = RaplCounter(zone)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(errno.ENODEV, "No such device")))
        with pytest.raises(OSError, match="No such device") as caught:
            counter.read()
    assert caught.value.errno == errno.EIO  # not "gone for good"
    fake.file.unlink()
    with pytest.raises(FileNotFoundError, match="intel-rapl:0"):
        counter.read()
    fake.file.write_text("99\n")
    assert counter.read() == 99


def test_modulus_is_the_range_and_one(tmp_path):
    _, zone = zone_of(tmp_path, max_range=65_532_610_987)
    assert RaplCounter(zone).modulus == 65_532_610_988


def test_zone_without_a_range_is_refused(tmp_path):
    fake, zone = zone_of(tmp_path)
    (fake.path / "max_energy_range_uj").write_text("0\n")
    with pytest.raises(ValueError, match="max_energy_range_uj holds '0', not a count of microjoules"):
        RaplCounter(zone)


def test_denied_zones_give_a_range_up_to_their_tdp(tmp_path, monkeypatch):
    world = World(
        tmp_path,
        zones=[(f"intel-rapl:{i}", f"package-{i}", Profile((0, 50.0)), {"tdp_w": 135.0}) for i in (0, 1)],
    )
    deny(monkeypatch)
    with world.meter() as meter:
        world.run(meter, 3600, every_s=60)
    cpu = meter.reading.cpu
    assert cpu.method == "estimated"
    assert cpu.range_wh == pytest.approx((27.0, 270.0))
    assert "270 W" in cpu.source
    assert meter.reading.measured_wh is None


def test_a_tree_of_which_only_the_name_may_be_read_is_denied_and_the_advice_works(tmp_path, monkeypatch):
    """pyJoules' issue 13: energy_uj, max_energy_range_uj and constraint_* are all -r--------."""
    zones = [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")]
    world = World(tmp_path, zones=[(key, name, Profile((0, 40.0)), {"tdp_w": 95.0}) for key, name in zones])
    closed = {"*/energy_uj", "*/max_energy_range_uj", "*/constraint_*"}
    deny(monkeypatch, closed)
    access = diagnose(world.root, world.proc)
    assert access.state == "denied"
    assert "intel-rapl:0/energy_uj" in access.reason and "intel-rapl:0/max_energy_range_uj" in access.reason
    with world.meter() as meter:
        world.run(meter, 10)
    assert "the packages' power limits are not known" in meter.reading.cpu.source
    assert "constraint_0_max_power_uw may not be read by this user" in meter.reading.cpu.source

    command = shlex.split(access.fix)
    assert command[:3] == ["sudo", "chmod", "a+r"]
    opened = {f"*/{name.rpartition('/')[2]}" for name in command[3:]}
    assert all(fnmatch(f"{world.root}/intel-rapl:0", glob.rpartition("/")[0]) for glob in command[3:])
    deny(monkeypatch, closed - opened)
    assert diagnose(world.root, world.proc).state == "measured"
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(400, abs=0.01)


@pytest.mark.parametrize("closed", ["*/name", "*/powercap"])
def test_zones_whose_names_or_folder_are_closed_are_denied_not_absent(tmp_path, monkeypatch, closed):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", Profile((0, 40.0)))])
    deny(monkeypatch, {closed})
    access = diagnose(world.root, world.proc)
    assert access.state == "denied"
    assert access.fix.startswith("sudo chmod a+r")


def test_zones_hidden_by_a_mount_are_masked_not_absent(tmp_path):
    """containerd under cgroup v2 leaves neither /.dockerenv nor a telling cgroup, only the mount."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "cpuinfo").write_text("flags : fpu sse2\n")
    mount = "31 23 0:27 / {} ro,relatime - tmpfs tmpfs ro\n"
    for place, state in [("/sys/devices/virtual/powercap", "masked"), ("/sys/firmware", "absent")]:
        (proc / "self" / "mountinfo").write_text(mount.format(place))
        assert diagnose(tmp_path / "none", proc).state == state


def test_absent_denied_masked_and_virtual_are_different_answers(tmp_path, monkeypatch):
    root, proc, dockerenv = tmp_path / "powercap", tmp_path / "proc", tmp_path / ".dockerenv"
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags : fpu sse2\n")

    def answer():
        access = diagnose(root, proc)
        return access.state, access.fix

    assert answer() == ("absent", "sudo modprobe intel_rapl_msr")
    (proc / "cpuinfo").write_text("Features : fp asimd\nCPU implementer : 0x41\n")
    state, fix = answer()
    assert state == "absent"
    assert fix.startswith("lorakit energy calibrate")
    (proc / "cpuinfo").write_text("flags : fpu sse2 hypervisor\n")
    dockerenv.touch()
    assert answer() == ("vm", "measure on the host")
    (proc / "cpuinfo").write_text("flags : fpu sse2\n")
    root.mkdir()
    (root / "intel-rapl:0").symlink_to(tmp_path / "devices" / "hidden")  # dangling: the runtime masks its target
    assert answer()[0] == "masked"
    assert "systempaths=unconfined" in answer()[1]
    (root / "intel-rapl:0").unlink()
    FakeZone(root, "intel-rapl:0", "package-0")
    assert answer() == ("measured", "")
    deny(monkeypatch)
    assert answer() == ("denied", f"sudo chmod a+r {root}/intel-rapl*/energy_uj")


class PerfCount:
    """Stands for a perf event that this user may open: 15 J for each second."""

    def __init__(self, event):
        self.kind, self.id, self.name, self.source = event.kind, event.id, event.title, "RAPL by perf"
        self.method, self.scope, self.modulus, self.unit_j, self.lag_s, self.max_w = (
            "counter",
            "socket",
            None,
            1,
            0,
            1e3,
        )

    def read(self):
        return int(15 * self.world.time)

    def busy(self):
        return None

    def close(self):
        pass


@pytest.mark.parametrize(
    ("closed", "cpu_j", "ram_j"),
    [
        ("*rapl:0:0/energy_uj", 4000, 1500),
        ("*rapl:0/energy_uj", 1500, 700),
        ("*/energy_uj", 1500, 1500),
        ("", 4000, 700),
    ],
)
def test_perf_stands_in_for_each_kind_that_powercap_denies_and_for_no_other(
    tmp_path, monkeypatch, closed, cpu_j, ram_j
):
    zones = [("intel-rapl:0", "package-0", Profile((0, 40.0))), ("intel-rapl:0:0", "dram", Profile((0, 7.0)))]
    world = World(tmp_path, zones=zones)
    events = [PerfEvent(name, kind, 0, 32, 2, 1.0) for name, kind in EVENTS.items()]
    monkeypatch.setattr("lorakit.power.devices.find_perf_events", lambda _: events)
    monkeypatch.setattr("lorakit.power.devices.PerfCounter", PerfCount)
    monkeypatch.setattr(PerfCount, "world", world, raising=False)
    deny(monkeypatch, [closed])
    with world.meter() as meter:
        world.run(meter, 100)
    reading = meter.reading
    assert (reading.cpu.method, reading.ram.method) == ("counter", "counter")
    assert reading.cpu.wh * 3600 == pytest.approx(cpu_j, abs=0.01)
    assert reading.ram.wh * 3600 == pytest.approx(ram_j, abs=0.01)


@pytest.mark.parametrize(
    ("closed", "cpus", "cpu_j", "coverage"),
    [
        (["*rapl:1/energy_uj"], (0, 18), 3000, 1.0),  # perf for both packages, since it does not say which is which
        (["*rapl:1/name"], (0, 18), 3000, 1.0),
        (["*rapl:1/energy_uj"], (0,), 4000, 0.5),  # perf has no more than powercap
        ([], (0, 18), 8000, 1.0),
    ],
)
def test_perf_stands_in_where_powercap_hides_one_package_of_two(tmp_path, monkeypatch, closed, cpus, cpu_j, coverage):
    zones = [(f"intel-rapl:{k}", f"package-{k}", Profile((0, 40.0))) for k in (0, 1)]
    world = World(tmp_path, zones=zones)
    events = [PerfEvent("energy-pkg", "cpu", cpu, 32, 2, 1.0) for cpu in cpus]
    monkeypatch.setattr("lorakit.power.devices.find_perf_events", lambda _: events)
    monkeypatch.setattr("lorakit.power.devices.PerfCounter", PerfCount)
    monkeypatch.setattr(PerfCount, "world", world, raising=False)
    deny(monkeypatch, closed)
    with world.meter() as meter:
        world.run(meter, 100)
    cpu = meter.reading.cpu
    assert (cpu.method, cpu.device_coverage) == ("counter", coverage)
    assert cpu.wh * 3600 == pytest.approx(cpu_j, abs=0.01)
    access = diagnose(world.root, world.proc)
    advice = find_fixes(meter.reading, access, access)["cpu"]
    assert bool(advice) == (cpu_j == 4000)


def test_a_note_on_the_unit_of_a_zone_goes_with_the_zone(tmp_path, monkeypatch):
    """Sapphire Rapids' DRAM of one socket, corrected; with the other one closed, perf counts both."""
    old = {"max_range": 65_712_999_613}
    zones = [(f"intel-rapl:{k}", f"package-{k}", Profile((0, 40.0))) for k in (0, 1)]
    zones += [(f"intel-rapl:{k}:0", "dram", Profile((0, 10.0)), old) for k in (0, 1)]
    world = World(tmp_path, zones=zones)
    (world.proc / "cpuinfo").write_text("cpu family\t: 6\nmodel\t\t: 143\n")
    events = [PerfEvent("energy-ram", "ram", cpu, 32, 3, 1.0) for cpu in (0, 18)]
    monkeypatch.setattr("lorakit.power.devices.find_perf_events", lambda _: events)
    monkeypatch.setattr("lorakit.power.devices.PerfCounter", PerfCount)
    monkeypatch.setattr(PerfCount, "world", world, raising=False)
    deny(monkeypatch, ["*rapl:1:0/energy_uj"])
    with world.meter() as meter:
        world.run(meter, 100)
    assert meter.reading.ram.wh * 3600 == pytest.approx(3000, abs=0.01)
    (note,) = meter.reading.notes
    assert note.startswith("perf energy-ram: this kernel may show a quarter")


@pytest.fixture
def open_place():
    """A folder that every user may search, which pytest's own are not, and the rights of a user who owns nothing."""
    with tempfile.TemporaryDirectory() as name:
        place, user = Path(name), os.geteuid()
        place.chmod(0o755)
        try:
            if user == 0:
                os.seteuid(65534)
            if not os.access(place, os.X_OK, effective_ids=True):
                pytest.skip(f"{place} lies in a folder that other users may not search")
            os.seteuid(user)
            yield place
        finally:
            os.seteuid(user)


def without_rights(closed: Path):
    """Close a folder, and stop being root where the tests run as root."""
    closed.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("links", [False, True], ids=["folders", "links as in sysfs"])
def test_a_zone_whose_folder_may_not_be_searched_is_denied_and_all_else_is_read(open_place, links):
    world = World(open_place, zones=[("intel-rapl:1", "package-1", Profile((0, 30.0)))])
    real = open_place / "devices" if links else world.root
    FakeZone(real, "intel-rapl:0", "package-0")
    FakeZone(real / "intel-rapl:0", "intel-rapl:0:2", "dram")
    if links:
        (world.root / "intel-rapl:0").symlink_to(real / "intel-rapl:0")
        (world.root / "intel-rapl:0:2").symlink_to(real / "intel-rapl:0" / "intel-rapl:0:2")
    user, closed = os.geteuid(), real / "intel-rapl:0"
    without_rights(closed)
    try:
        zones = {zone.key: (zone.role, zone.counted, zone.why) for zone in find_zones(world.root)}
        access = diagnose(world.root, world.proc)
        meter = world.meter()
        meter.__enter__()
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
    with world.meter() as opened:
        world.run(opened, 10)
    meter.sample()
    meter.__exit__(None, None, None)
    assert zones["intel-rapl:1"][:2] == ("package", True)
    closed_zones = {"intel-rapl:0", "intel-rapl:0:2"} if links else {"intel-rapl:0"}
    assert zones.keys() == {"intel-rapl:1", *closed_zones}
    assert all(zones[key] == ("unknown", False, f"{closed} may not be searched by this user") for key in closed_zones)
    assert access.state == "measured" and f"{closed} is not known" in access.reason
    assert access.fix == f"sudo chmod a+rx {closed}"
    assert meter.reading.cpu.wh * 3600 == pytest.approx(300, abs=0.01)
    assert {part["id"] for part in meter.reading.cpu.not_counted} == closed_zones


@pytest.mark.parametrize("level", ["zone", "control type", "above the links"])
def test_the_folder_that_hides_the_only_package_is_named_and_opening_it_helps(open_place, level):
    control = open_place / "devices" / "intel-rapl"
    FakeZone(control, "intel-rapl:0", "package-0")
    root, proc = open_place / "class", open_place / "proc"
    root.mkdir()
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags : fpu sse2\n")
    (root / "intel-rapl").symlink_to(control)
    closed = {"zone": control / "intel-rapl:0", "control type": control, "above the links": control.parent}[level]
    if level != "control type":
        (root / "intel-rapl:0").symlink_to(control / "intel-rapl:0")
    user = os.geteuid()
    without_rights(closed)
    try:
        access = diagnose(root, proc)
    finally:
        os.seteuid(user)
    assert (access.state, access.fix) == ("denied", f"sudo chmod a+rx {closed}")
    closed.chmod(0o755)
    assert diagnose(root, proc).state == "measured"
