"""The idle baseline."""

import os

import pytest

from tests.support.energy_world import FakeGpu, Profile, World, two_gpus


def test_idle_baseline_gives_energy_above_idle(tmp_path):
    gpu = Profile((0, 50.0), (30, 250.0))
    world = World(tmp_path, [FakeGpu("GPU-a", gpu)], [("intel-rapl:0", "package-0", Profile((0, 20.0), (30, 80.0)))])
    world.clock.wait = lambda _event, seconds: world.advance(seconds)
    with world.meter(idle_s=30) as meter:
        world.run(meter, 60)
    reading = meter.reading
    assert reading.duration_s == 60
    assert reading.gpu.idle_w == pytest.approx(50, rel=0.01)
    assert reading.gpu.idle_error_w < 1
    assert reading.above_idle_wh * 3600 == pytest.approx((200 + 60) * 60, rel=0.01)
    assert reading.measured_wh * 3600 == pytest.approx((250 + 80) * 60, rel=0.01)
    assert list(meter.windows) == []
    with world.meter(idle=meter.idle) as again:
        world.run(again, 10)
    assert again.reading.above_idle_wh * 3600 == pytest.approx(2600, rel=0.02)


def test_energy_above_idle_needs_a_baseline_of_every_measured_part_and_their_errors_add_as_squares(tmp_path):
    world = two_gpus(tmp_path)
    partly = {"GPU-a": (30.0, 3.0), "GPU-b": (40.0, 4.0)}
    with world.meter(idle=partly) as meter:
        world.run(meter, 10)
    assert (meter.reading.gpu.idle_w, meter.reading.gpu.idle_error_w) == (70.0, 5.0)
    assert meter.reading.gpu.above_idle_wh * 3600 == pytest.approx(3000 - 700)
    assert meter.reading.cpu.above_idle_wh is None
    assert meter.reading.above_idle_wh is None  # the GPUs' alone could be mistaken for the whole
    (tmp_path / "again").mkdir()
    with two_gpus(tmp_path / "again").meter(idle={"GPU-a": (30.0, 3.0)}) as meter:
        pass
    assert meter.reading.gpu.above_idle_wh is None


def test_without_baseline_above_idle_is_unknown(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 5)
    assert meter.reading.above_idle_wh is None


def test_busy_baseline_is_noted(tmp_path):
    world = two_gpus(tmp_path)
    world.clock.wait = lambda _event, seconds: world.advance(seconds)
    world.nvml.gpus[1].processes = [4711, os.getpid()]
    with world.meter(idle_s=3) as meter:
        world.advance(1)
    assert meter.reading.notes == ("not idle during the baseline: processes [4711] compute on the GPUs",)
