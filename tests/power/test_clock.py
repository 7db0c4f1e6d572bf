"""Time: three clocks, suspension, and what identifies a boot."""

import platform
import threading
import time

import pytest

from lorakit.power.clock import SystemClock, boot_id
from tests.support.energy_world import ZONE, World, two_gpus


def test_the_machines_clocks_advance_and_a_wait_ends_with_its_event():
    clock, event = SystemClock(), threading.Event()
    assert clock.boottime() >= 0
    assert clock.wall() > 1.6e9  # 2020
    before = clock.monotonic()
    assert not clock.wait(event, 0.01)
    assert clock.monotonic() >= before + 0.009
    event.set()
    assert clock.wait(event, 60)


def test_boot_id_is_the_kernels_or_the_hosts_name(tmp_path):
    assert boot_id(tmp_path) == platform.node()
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("1234-abcd\n")
    assert boot_id(tmp_path) == "1234-abcd"


def test_wall_clock_jumps_change_nothing(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 5)
        world.clock.wall_s -= 3600
        world.run(meter, 5)
        world.clock.wall_s += 7200
    assert meter.reading.duration_s == 10
    assert meter.reading.gpu.wh * 3600 == pytest.approx(3000, abs=0.01)


def test_suspension_is_a_gap_and_both_times_are_reported(tmp_path):
    world = World(tmp_path, zones=ZONE)
    with world.meter() as meter:
        world.run(meter, 10)
        world.clock.asleep_s += 3600
        world.run(meter, 10)
    assert meter.reading.duration_s == 20
    assert meter.reading.suspended_s == 3600
    assert meter.reading.cpu.gaps[0]["reason"] == "the machine was suspended for 3.6e+03 s"
    assert meter.reading.cpu.coverage == 0.75
    assert meter.reading.cpu.mean_w == pytest.approx(100, abs=0.01)


def test_suspension_noticed_at_the_last_edge_is_a_gap_too(tmp_path):
    world = World(tmp_path, zones=ZONE)
    with world.meter() as meter:
        world.run(meter, 10)
        world.clock.asleep_s += 60
        world.advance(1)
    assert meter.reading.cpu.gap_count == 1


def test_setting_the_wall_clock_does_not_move_the_times_of_a_meter(monkeypatch):
    clock = SystemClock()
    before = clock.wall()
    assert before == pytest.approx(time.time(), abs=5)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert 0 <= clock.wall() - before < 60
