"""A calibrated estimate: its value, its bound, and when it is not used."""

import pytest

from lorakit.power.calibration import calibrate, calibration_file, load_calibration, machine_name, save_calibration
from tests.support.energy_world import P100, FakeGpu, World


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    world = World(tmp_path)
    world.nvml.init_fault = 12
    return world


def calibrated(world, tmp_path, machine=None):
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    found = calibrate([38.0], [92.0], 0.02, machine or machine_name(world.proc))
    save_calibration(calibration_file(environ), found)
    return environ


@pytest.mark.parametrize(("load", "watts", "low", "high"), [(0, 38, 38, 38), (2, 65, 65, 92), (4, 92, 92, 92)])
def test_the_whole_machine_is_estimated_within_the_stated_bound(world, tmp_path, load, watts, low, high):
    environ = calibrated(world, tmp_path)
    with world.meter(environ=environ) as meter:
        world.use(3600, own=load)
    cpu = meter.reading.cpu
    assert (cpu.method, cpu.scope) == ("estimated", "node")
    assert cpu.wh == pytest.approx(watts, rel=1e-3)
    assert cpu.range_wh == pytest.approx((0.98 * low, 1.02 * high), rel=1e-3)
    assert "wall-outlet meter" in cpu.source
    assert meter.reading.ram.method == "unavailable" and "whole machine" in meter.reading.ram.source
    assert meter.reading.measured_wh is None


def test_a_window_shorter_than_the_kernels_ticks_is_within_its_bound():
    found = calibrate([38.0], [92.0], 0.02, "m")
    low_j, high_j = found.range_j(load_j=4 * 0.54, duration_s=0.01)
    assert 0.98 * 0.92 <= low_j <= 0.92 <= high_j == pytest.approx(1.02 * 0.92)


def test_it_is_not_used_where_something_better_or_something_else_is_there(world, tmp_path):
    environ = calibrated(world, tmp_path)
    world.nvml.gpus, world.nvml.init_fault = [FakeGpu("GPU-a", P100)], None
    with world.meter(environ=environ) as meter:
        world.run(meter, 10)
    assert "contains the GPUs" in meter.reading.notes[0]
    assert meter.reading.ram.method == "estimated"
    environ = calibrated(world, tmp_path, "another")
    world.nvml.init_fault = 12
    with world.meter(environ=environ) as meter:
        world.run(meter, 10)
    assert "it is of another machine (another)" in meter.reading.notes[0]
    calibration_file(environ).write_text("{}")
    assert "calibrate` again" in load_calibration(calibration_file(environ), "x")[1]


def test_readings_that_cannot_be_right_are_refused():
    for idle, load in [([90.0], [90.0]), ([0.0], [5.0]), ([40.0, 60.0], [50.0])]:
        with pytest.raises(ValueError, match="must be above each of the idle one|is not what a computer draws"):
            calibrate(idle, load, 0.02, "m")
    assert calibrate([98.0, 102.0], [200.0], 0.02, "m").error == pytest.approx(0.04)


def test_a_file_in_a_closed_home_is_named_and_nothing_raises(tmp_path, monkeypatch):
    path = tmp_path / "power.json"

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("os.stat", "io.open", "pathlib.Path.read_text"):
        monkeypatch.setattr(name, closed)
    found, note = load_calibration(path, "machine")
    assert found is None
    assert note == f"{path} may not be read by this user: a calibration in it is not used"
