"""GPU sensors through NVML."""

import re
import sys
from pathlib import Path

import pytest

import lorakit.power.nvml
from lorakit.power.nvml import (
    SensorUnavailable,
    list_gpus,
    mig_parents,
    open_gpu,
    open_nvml,
)
from tests.support.energy_world import FakeGpu, FakeNvml, Profile, VirtualClock


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
    used = set(re.findall(r"\bnvml[A-Z]\w+", Path(lorakit.power.nvml.__file__).read_text(encoding="utf-8")))
    fields = dict(pynvml.c_nvmlFieldValue_t._fields_)
    assert len(used) > 15
    assert not [name for name in sorted(used) if not hasattr(pynvml, name) and name not in fields]
    assert {"nvmlReturn", "value"} <= set(fields)
    assert pynvml.NVML_FI_DEV_POWER_AVERAGE == lorakit.power.nvml.FIELD_POWER_AVERAGE
    assert pynvml.NVML_ERROR_GPU_IS_LOST == lorakit.power.nvml.GPU_IS_LOST
    assert pynvml.NVML_ERROR_DRIVER_NOT_LOADED == lorakit.power.nvml.DRIVER_NOT_LOADED
    assert pynvml.NVML_ERROR_LIBRARY_NOT_FOUND == lorakit.power.nvml.LIBRARY_NOT_FOUND
    assert pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH == lorakit.power.nvml.LIB_RM_VERSION_MISMATCH
    assert pynvml.NVML_ERROR_UNINITIALIZED == lorakit.power.nvml.UNINITIALIZED
    assert pynvml.NVML_ERROR_NOT_SUPPORTED == lorakit.power.nvml.NOT_SUPPORTED
    assert pynvml.NVML_ERROR_NO_PERMISSION == lorakit.power.nvml.NO_PERMISSION


@pytest.mark.parametrize(
    ("code", "pci", "device", "help"),
    [
        (12, [], False, "install NVIDIA's driver if there is a GPU"),  # no PCI bus to look at
        (
            12,
            [("0x8086", "0x030000"), ("0x10de", "0x020000")],
            False,
            "no NVIDIA GPU on the PCI bus",
        ),  # its network card
        (12, [("0x10de", "0x030200")], False, "install NVIDIA's driver for the GPU on the PCI bus"),
        (12, [("0x10de", "0x030200")], True, "its library libnvidia-ml.so.1 is missing"),
        (9, [], True, "sudo modprobe nvidia"),
        (4, [], True, "nvidiactl (ls -l "),
        (18, [], True, "restart the machine"),
        (999, [], True, "nvidia-smi"),
    ],
)
def test_what_would_help_nvml_fits_the_cause(tmp_path, code, pci, device, help):
    for index, (vendor, kind) in enumerate(pci):
        folder = tmp_path / "pci" / f"0000:{index:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(kind + "\n")
    (tmp_path / "dev").mkdir()
    if device:
        (tmp_path / "dev" / "nvidiactl").touch()
    nvml = fake()
    nvml.init_fault = code
    with pytest.raises(SensorUnavailable, match=f"NVML error {code}") as caught:
        open_nvml(nvml, tmp_path / "pci", tmp_path / "dev")
    assert help in caught.value.fix


@pytest.mark.parametrize(
    ("pci", "node", "fix"),
    [
        ([("0x10de", "0x030200")], "", "pip install nvidia-ml-py"),
        ([], "nvidiactl", "pip install nvidia-ml-py"),
        ([("0x1414", "0x030200")], "dxg", "pip install nvidia-ml-py"),
        ([], "", "pip install nvidia-ml-py if there is a GPU"),
        ([("0x8086", "0x030000")], "", "there is no NVIDIA GPU on the PCI bus"),
        ([("0x10de", "0x020000")], "", "there is no NVIDIA GPU on the PCI bus"),
        ([], "nvgpu", "Jetson: NVML has no power reading"),
    ],
)
def test_pynvml_is_advised_only_where_it_may_help(tmp_path, monkeypatch, pci, node, fix):
    for index, (vendor, kind) in enumerate(pci):
        folder = tmp_path / "pci" / f"0000:{index:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (tmp_path / "dev").mkdir()
    if node:
        (tmp_path / "dev" / node).touch()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SensorUnavailable, match="pynvml cannot be imported") as caught:
        open_nvml(None, tmp_path / "pci", tmp_path / "dev")
    assert caught.value.fix == fix or fix.startswith("Jetson") and caught.value.fix.startswith(fix)


def test_mig_instances_are_found_with_their_gpu():
    nvml = fake()
    nvml.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7

    def instance(gpu, index):
        if index != 2:
            return FakeGpu(f"MIG-{index}", None)
        raise nvml.NVMLError(6)  # not found: there are fewer instances than slots

    nvml.nvmlDeviceGetMigDeviceHandleByIndex = instance
    assert mig_parents(nvml, list_gpus(nvml)[0]) == {"MIG-0": "GPU-a", "MIG-1": "GPU-a"} | {
        f"MIG-{index}": "GPU-a" for index in range(3, 7)
    }


def test_gpu_without_any_sensor_says_both_reasons():
    nvml = fake()
    nvml.gpus[0].faults = {"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetPowerUsage": 4}
    with pytest.raises(SensorUnavailable, match="TotalEnergyConsumption: NVML error 3; .*PowerUsage: NVML error 4"):
        open_gpu(nvml, list_gpus(nvml)[0][0])
