"""Every fault of RAPL, the machine and the user's code, and how the meter handles it; NVML has its own file."""

import errno
import os
import sys
import threading
import time

import pytest

from lorakit.energy import EnergyMeter
from lorakit.power.rapl import RaplCounter
from tests.support.energy_world import P100, P200, ZONE, FakeGpu, World, slow_reads, two_gpus

# ---- RAPL


def broken(code):
    def pread(*_):
        raise OSError(code, os.strerror(code))

    return pread


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.ENODEV, errno.EACCES])
def test_unreadable_sample_in_the_middle_loses_nothing(tmp_path, monkeypatch, code):
    world = World(tmp_path, zones=ZONE)
    with world.meter() as meter:
        world.run(meter, 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", broken(code))
            world.run(meter, 5)
        world.run(meter, 5)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(1500, abs=0.01)
    assert meter.reading.cpu.coverage == 1.0
    assert meter.reading.cpu.devices[0]["failed_readings"] == 1


def test_zone_whose_folder_is_renamed_away_and_back_loses_nothing(tmp_path, monkeypatch):
    world = World(tmp_path, zones=ZONE)
    zone = world.zones["intel-rapl:0"]
    with world.meter() as meter:
        world.run(meter, 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", broken(errno.EIO))
            world.run(meter, 5)  # a failed reading closes the file; the next one opens it again
        away = zone.path.rename(tmp_path / "away")
        world.clock.now += 5
        meter.sample()
        away.rename(zone.path)
        world.run(meter, 5)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(2000, abs=0.01)
    assert meter.reading.cpu.coverage == 1.0
    assert meter.reading.cpu.devices[0]["failed_readings"] == 2


def test_wrap_between_the_reads_of_two_zones_is_exact(tmp_path, monkeypatch):
    """The second zone wraps while the first one is read."""
    options = {"max_range": 65_532_610_987, "start_uj": 65_532_610_987 - 499_000_000}
    zones = [("intel-rapl:0", "package-0", P100), ("intel-rapl:1", "package-1", P100, options)]
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 4.98)
        real = RaplCounter.read

        def read(counter):
            value = real(counter)
            if counter.id == "intel-rapl:0":
                world.clock.now += 0.02
                world.zones["intel-rapl:1"].write(world.time)
            return value

        monkeypatch.setattr(RaplCounter, "read", read)
        meter.sample()
        monkeypatch.undo()
        world.run(meter, 5)
    assert int(world.zones["intel-rapl:1"].file.read_text()) < 2e9  # it did wrap
    truth = 2 * 100 * world.time
    assert abs(meter.reading.cpu.wh * 3600 - truth) <= meter.reading.cpu.uncertainty_wh * 3600
    assert meter.reading.cpu.gap_count == 0


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EACCES])
def test_zone_that_vanishes_for_good_keeps_its_value(tmp_path, monkeypatch, code):
    world = World(tmp_path, zones=ZONE)
    with world.meter() as meter:
        world.run(meter, 5)
        monkeypatch.setattr(os, "pread", broken(code))
        world.run(meter, 15)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(500, abs=0.01)
    assert meter.reading.cpu.coverage == 0.25
    assert os.strerror(code) in meter.reading.cpu.gaps[-1]["reason"]


def test_wrap_during_the_block_is_exact(tmp_path):
    zone = ("intel-rapl:0", "package-0", P200, {"max_range": 65_532_610_987, "start_uj": 65_000_000_000})
    world = World(tmp_path, zones=[zone])
    with world.meter() as meter:
        world.run(meter, 900)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(180_000, abs=0.01)
    assert meter.reading.cpu.gap_count == 0


def test_stalled_sampler_is_exact_on_counters_and_reported(tmp_path):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", P200, {"max_range": 65_532_610_987})])
    with world.meter() as meter:
        world.run(meter, 5)
        world.advance(100)  # the process was stopped
        world.run(meter, 5)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(22_000, abs=0.01)
    assert meter.reading.cpu.devices[0]["longest_interval_s"] == 105
    assert meter.reading.cpu.devices[0]["wrap_risks"] == 1  # 1 kW could have passed 65.5 kJ


# ---- the user's code


def test_exception_in_the_block_passes_unchanged_and_the_window_knows(tmp_path):
    world = two_gpus(tmp_path)
    boom = KeyError("boom")
    with pytest.raises(KeyError, match="boom") as caught, world.meter() as meter, meter.window("epoch"):
        world.run(meter, 5)
        raise boom
    assert caught.value is boom
    assert meter.windows["epoch"].errors == 1
    assert meter.reading.errors == 1
    assert meter.windows["epoch"].cpu.wh * 3600 == pytest.approx(500, abs=0.01)


def test_exception_in_an_inexact_window_is_counted(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        with pytest.raises(KeyError, match="boom"), meter.window("step", exact=False):
            world.run(meter, 5)
            raise KeyError("boom")
        with meter.window("step", exact=False):
            world.run(meter, 5)
    step = meter.windows["step"]
    assert (step.count, step.errors, step.duration_s) == (2, 1, 10)


def test_window_that_outlives_the_block_reads_nothing_afterwards(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        window = meter.window("late")
        window.__enter__()
        world.run(meter, 5)
    calls = len(world.nvml.calls)
    window.__exit__(None, None, None)
    assert len(world.nvml.calls) == calls
    assert meter.windows["late"].cpu.wh * 3600 == pytest.approx(500, abs=0.01)


# ---- what the meter itself costs


def test_inexact_window_does_not_wait_for_the_sampler(tmp_path):
    """The sampler holds the lock while NVML takes its time."""
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        held, go_on = slow_reads(world.nvml)
        sampler = threading.Thread(target=meter.sample)
        sampler.start()
        assert held.wait(30)
        with meter.window("step", exact=False):
            pass
        go_on.set()
        sampler.join()
    assert meter.windows["step"].count == 1


def test_inexact_windows_call_no_sensor(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.nvml.calls.clear()
        for _ in range(100):
            with meter.window("step", exact=False):
                world.advance(0.01)
        assert world.nvml.calls == []
    assert meter.windows["step"].count == 100


def test_an_hour_of_sampling_costs_less_than_a_thousandth(tmp_path):
    world = World(tmp_path, [FakeGpu(f"GPU-{k}", P100) for k in range(8)], ZONE)
    with world.meter() as meter:
        before = time.thread_time()
        for _ in range(720):  # one reading every 5 s
            world.clock.now += 5
            meter.sample()
        assert time.thread_time() - before < 3.6


class Calls:
    """How many Python functions are entered: the cost of code, whatever the machine's load."""

    def __init__(self):
        self.count = 0

    def note(self, _frame, event, _argument):
        self.count += event in ("call", "c_call")


def python_calls(function):
    calls = Calls()
    sys.setprofile(calls.note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls.count


def test_an_hour_of_the_sampler_is_few_readings_of_few_calls(tmp_path):
    """The thread itself in virtual time: 8 GPUs, some 720 readings, each two NVML calls per GPU (energy, power)."""
    world = World(tmp_path, [FakeGpu(f"GPU-{k}", P100) for k in range(8)], ZONE)
    waits, over, calls = [], threading.Event(), Calls()

    def wait(_event, seconds):
        waits.append(seconds)
        world.advance(seconds)
        if world.time > 3600:
            over.set()
        return over.is_set()

    world.clock.wait = wait
    threading.setprofile(calls.note)  # of threads that start from here on
    try:
        with world.meter(out=tmp_path / "j", seed=3, thread=True):
            threading.setprofile(None)
            assert over.wait(60)
    finally:
        threading.setprofile(None)
    assert 600 <= len(waits) <= 850
    assert len([call for call in world.nvml.calls if call[1] != threading.get_ident()]) <= 2 * 8 * (len(waits) + 5)
    assert calls.count / len(waits) < 3000  # at a microsecond each 0.06 % of 5 s


def test_finished_windows_cost_the_sampler_nothing(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:

        def reading():
            world.advance(1)
            return python_calls(meter.sample)

        reading()
        before = reading()
        for step in range(300):
            with meter.window(f"step {step}", exact=False):
                world.advance(0.1)
        reading()
        reading()
        assert reading() <= before + 5
    assert len(meter.windows) == 300


# ---- share of the CPU, emissions


def test_process_share_is_a_figure_of_its_own(tmp_path):
    with EnergyMeter(tmp_path) as meter:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert 0 < meter.reading.process_share <= 1
    assert meter.reading.to_json()["cpu"]["process_share"] == meter.reading.process_share


def test_co2_needs_the_users_factor(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 3600, every_s=60)
    assert meter.reading.measured_wh == pytest.approx(400, abs=0.01)
    assert meter.reading.co2_kg(250.0) == pytest.approx(0.1, abs=1e-5)
    with pytest.raises(ValueError, match="grams_per_kwh=-1 is not"):
        meter.reading.co2_kg(-1)
    with pytest.raises(TypeError, match="grams_per_kwh"):
        meter.reading.co2_kg()
