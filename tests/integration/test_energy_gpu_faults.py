"""Every fault that NVML and its GPUs can produce, and how the meter handles it; others are in test_energy_faults.py."""

import fcntl
import os

import pytest

from tests.support.energy_world import P100, ZONE, FakeGpu, Profile, World, device, two_gpus


def test_gpu_without_counter_is_sampled_and_labelled_so(tmp_path):
    world = two_gpus(tmp_path, counter=False)
    with world.meter() as meter:
        world.run(meter, 20, every_s=1.0)
    assert meter.reading.gpu.method == "sampled"
    assert device(meter.reading, "GPU-a")["method"] == "sampled"
    assert device(meter.reading, "GPU-b")["method"] == "counter"
    assert meter.reading.gpu.wh * 3600 == pytest.approx(6000, rel=0.01)


def test_average_power_is_preferred_where_the_chip_has_it(tmp_path):
    profile = Profile(*[(k * 0.5, 90.0 if k % 2 else 330.0) for k in range(100)])
    world = World(tmp_path, [FakeGpu("GPU-a", profile, counter=False)])
    world.nvml.has_average = True
    with world.meter() as meter:
        world.run(meter, 40, every_s=1.0)
    assert meter.reading.gpu.source == "NVML power, 1 s average"
    assert meter.reading.gpu.wh * 3600 == pytest.approx(210 * 40, rel=0.02)  # read at one phase of the wave only


def test_average_power_that_fails_once_is_not_mixed_with_the_instant(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", P100, counter=False)])
    world.nvml.has_average = True
    with world.meter() as meter:
        world.run(meter, 5, every_s=1.0)
        world.nvml.has_average = False
        world.run(meter, 2, every_s=1.0)
        world.nvml.has_average = True
        world.run(meter, 5, every_s=1.0)
        asked = [name for name, _ in world.nvml.calls]
    assert "nvmlDeviceGetPowerUsage" not in asked
    assert device(meter.reading, "GPU-a")["failed_readings"] == 2


@pytest.mark.parametrize("code", [10, 999, 1, 3])
def test_failing_nvml_call_is_tried_again_and_nothing_is_lost(tmp_path, code):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].faults["nvmlDeviceGetTotalEnergyConsumption"] = code
        world.run(meter, 10)
        world.nvml.gpus[0].faults.clear()
        world.run(meter, 10)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(9000, abs=0.01)
    assert meter.reading.gpu.coverage == 1.0
    assert device(meter.reading, "GPU-a")["failed_readings"] == 2


def test_nvml_that_another_library_shut_down_is_started_again(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].faults["*"] = 1
        world.nvml.nvmlInit = world.nvml.gpus[0].faults.clear
        world.run(meter, 10)
    assert not world.nvml.gpus[0].faults
    assert meter.reading.gpu.coverage == 1.0


def test_lost_gpu_does_not_stop_the_others(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].faults["*"] = 15
        world.run(meter, 10)
        world.nvml.calls.clear()
        world.run(meter, 20)
        asked = [call for call in world.nvml.calls if call[0] == "nvmlDeviceGetTotalEnergyConsumption"]
    assert len(asked) == 4  # the other GPU's
    assert device(meter.reading, "GPU-a")["kwh"] * 3.6e6 == pytest.approx(1000, abs=0.01)
    assert device(meter.reading, "GPU-a")["coverage"] == 0.25
    assert device(meter.reading, "GPU-b")["kwh"] * 3.6e6 == pytest.approx(8000, abs=0.01)
    assert meter.reading.gpu.coverage == pytest.approx(0.625)
    assert "NVML error 15" in meter.reading.gpu.gaps[0]["reason"]


def test_gpu_counter_that_goes_back_is_a_reset(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].counter_shift_mj = -5_500_000  # driver reload
        world.run(meter, 20)
    part = device(meter.reading, "GPU-a")
    assert part["kwh"] * 3.6e6 == pytest.approx(2500, abs=0.01)
    assert part["coverage"] == pytest.approx(25 / 30)
    assert "counter reset" in meter.reading.gpu.gaps[0]["reason"]


def test_gpu_counter_that_jumps_a_megajoule_is_a_gap(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].counter_shift_mj = 1_000_000_000
        world.run(meter, 10)
    assert device(meter.reading, "GPU-a")["kwh"] * 3.6e6 == pytest.approx(1500, abs=0.01)
    assert "implausible jump" in meter.reading.gpu.gaps[0]["reason"]


def test_lowest_and_highest_power_of_each_window(tmp_path):
    gpu = Profile((0, 60.0), (10, 300.0), (20, 120.0))
    for counter in (True, False):
        (tmp_path / str(counter)).mkdir()
        world = World(tmp_path / str(counter), [FakeGpu("GPU-a", gpu, counter=counter)], ZONE)
        with world.meter() as meter:
            world.run(meter, 12, every_s=1.0)
            with meter.window("late"):
                world.run(meter, 12, every_s=1.0)
        whole, late = (device(reading, "GPU-a") for reading in (meter.reading, meter.windows["late"]))
        assert (whole["min_w"], whole["max_w"]) == (60.0, 300.0)
        assert (late["min_w"], late["max_w"]) == (120.0, 300.0)
        assert meter.reading.cpu.devices[0]["min_w"] is None  # RAPL tells no power
        assert (whole["power_integral_kwh"] is not None) == counter


def test_a_gpu_that_another_rank_counts_is_not_checked_either(tmp_path):
    world = two_gpus(tmp_path)
    world.nvml.gpus[0].counter_gain = 2.0
    (tmp_path / "c").mkdir()
    lock = os.open(tmp_path / "c" / "GPU-a", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # like another process's lock
    with world.meter(environ={"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "c") as meter:
        world.nvml.calls.clear()
        world.run(meter, 300)
        asked = [function for function, _ in world.nvml.calls]
    os.close(lock)
    assert asked.count("nvmlDeviceGetPowerUsage") == asked.count("nvmlDeviceGetTotalEnergyConsumption") == 60
    assert [part["id"] for part in meter.reading.gpu.devices] == ["GPU-b"]
    assert [part["id"] for part in meter.reading.gpu.not_counted] == ["GPU-a"]
    assert meter.reading.notes == ()


def test_frozen_gpu_counter_is_reported_if_the_gpu_works(tmp_path):
    world = two_gpus(tmp_path)
    world.nvml.gpus[0].frozen_at = 0
    with world.meter() as meter:
        world.run(meter, 20)
    assert device(meter.reading, "GPU-a")["kwh"] is None
    assert "stands still" in meter.reading.gpu.gaps[0]["reason"]
    assert (meter.reading.gpu.coverage, meter.reading.gpu.device_coverage) == (1.0, 0.5)


def test_sleeping_gpu_is_zero_not_unknown(tmp_path):
    world = two_gpus(tmp_path)
    world.nvml.gpus[0].frozen_at = 0
    world.nvml.gpus[0].utilization = 0
    with world.meter() as meter:
        world.run(meter, 20)
    assert device(meter.reading, "GPU-a")["kwh"] == 0.0
    assert meter.reading.gpu.coverage == 1.0


def test_nvml_session_stays_open_for_the_block_and_is_closed(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        assert world.nvml.sessions == 1
        with world.meter():  # two meters do not disturb each other
            world.advance(5)
        assert world.nvml.sessions == 1
        world.run(meter, 5)
    assert world.nvml.sessions == 0
    assert meter.reading.gpu.wh * 3600 == pytest.approx(3000, abs=0.01)
