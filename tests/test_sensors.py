"""GPU sensors and estimates."""

import re
from pathlib import Path

import pytest

import lorakit.sensors
from lorakit.sensors import SensorUnavailable, estimate_cpu, estimate_ram, list_gpus, mig_parents, open_gpu, open_nvml
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


def test_counter_that_times_out_once_is_still_the_counter():
    nvml = fake()
    real, answers = nvml.nvmlDeviceGetTotalEnergyConsumption, [10]

    def slow(gpu):
        if answers:
            raise nvml.NVMLError(answers.pop())
        return real(gpu)

    nvml.nvmlDeviceGetTotalEnergyConsumption = slow
    assert open_gpu(nvml, list_gpus(nvml)[0][0]).method == "counter"


def test_pynvml_has_what_we_call():
    """The fake cannot prove that the real module has these names."""
    pynvml = pytest.importorskip("pynvml")
    used = set(re.findall(r"\bnvml[A-Z]\w+", Path(lorakit.sensors.__file__).read_text(encoding="utf-8")))
    fields = dict(pynvml.c_nvmlFieldValue_t._fields_)
    assert len(used) > 15
    assert not [name for name in sorted(used) if not hasattr(pynvml, name) and name not in fields]
    assert {"nvmlReturn", "value"} <= set(fields)
    assert pynvml.NVML_FI_DEV_POWER_AVERAGE == lorakit.sensors.FIELD_POWER_AVERAGE
    assert pynvml.NVML_ERROR_GPU_IS_LOST == lorakit.sensors.GPU_IS_LOST
    assert pynvml.NVML_ERROR_UNINITIALIZED == lorakit.sensors.UNINITIALIZED
    assert pynvml.NVML_ERROR_NOT_SUPPORTED == lorakit.sensors.NOT_SUPPORTED
    assert pynvml.NVML_ERROR_NO_PERMISSION == lorakit.sensors.NO_PERMISSION


def test_mig_instances_are_found_with_their_gpu():
    nvml = fake()
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7

    def instance(gpu, index):
        if index != 2:
            return FakeGpu(f"MIG-{index}", None)
        raise nvml.NVMLError(6)  # not found: there are fewer than the most there may be

    nvml.nvmlDeviceGetMigDeviceHandleByIndex = instance
    assert mig_parents(nvml, list_gpus(nvml)[0]) == {"MIG-0": "GPU-a", "MIG-1": "GPU-a"} | {
        f"MIG-{index}": "GPU-a" for index in range(3, 7)
    }


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
