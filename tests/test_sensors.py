"""GPU sensors and estimates."""

import pytest

from lorakit.sensors import SensorUnavailable, estimate_cpu, estimate_ram, list_gpus, open_gpu, open_nvml
from tests.energy_world import FakeGpu, FakeNvml, Profile, VirtualClock


def fake(**options):
    return FakeNvml(VirtualClock(), [FakeGpu("GPU-a", Profile((0, 250.0)), **options)])


def test_energy_counter_comes_first():
    nvml = fake()
    gpus, _ = list_gpus(open_nvml(nvml))
    sensor = open_gpu(nvml, gpus[0])
    assert (sensor.method, sensor.read()) == ("counter", 5_000_000)


def test_gpu_without_counter_is_sampled():
    nvml = fake(counter=False)
    sensor = open_gpu(nvml, list_gpus(nvml)[0][0])
    assert (sensor.method, sensor.read()) == ("sampled", 250.0)


def test_gpu_without_any_sensor_says_both_reasons():
    nvml = fake()
    nvml.gpus[0].faults = {"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetPowerUsage": 4}
    with pytest.raises(SensorUnavailable, match="TotalEnergyConsumption: NVML error 3; .*PowerUsage: NVML error 4"):
        open_gpu(nvml, list_gpus(nvml)[0][0])


def test_estimates_are_ranges_with_their_source():
    assert (estimate_cpu(270.0, 80).low_w, estimate_cpu(270.0, 80).high_w) == (27.0, 270.0)
    assert "constraint_0_max_power_uw" in estimate_cpu(270.0, 80).source
    assert estimate_cpu(None, 4).high_w == 32.0
    assert (estimate_ram(512 * 2**30, 16).low_w, estimate_ram(512 * 2**30, 16).high_w) == (32.0, 96.0)
    assert estimate_ram(8 * 2**30, None).high_w == pytest.approx(3.2)
