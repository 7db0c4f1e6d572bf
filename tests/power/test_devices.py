"""What is counted on a machine, and how what is not is listed."""

import os
import sys
import types

import pytest

from lorakit.energy import EnergyMeter
from lorakit.power.devices import _strangers
from tests.support.energy_world import FakeGpu, FakeTorch, Profile, World, device, two_gpus


def test_gpu_that_cannot_be_read_lowers_the_coverage_and_is_named(tmp_path):
    world = two_gpus(tmp_path)
    world.nvml.gpus[0].faults = {"nvmlDeviceGetTotalEnergyConsumption": 4, "nvmlDeviceGetPowerUsage": 4}
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(2000, abs=0.01)
    assert (meter.reading.gpu.coverage, meter.reading.gpu.device_coverage) == (1.0, 0.5)
    assert str(meter.reading).splitlines()[0].endswith(", 1 of 2 devices read")
    assert "NVML error 4" in device(meter.reading, "GPU-a")["source"]
    assert device(meter.reading, "GPU-a")["method"] == "unavailable"


def test_grace_hopper_module_counter_holds_the_cpu(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 500.0)), name="NVIDIA GH200 480GB")])
    world.nvml.gpus[0].counter_gain = 1.8  # the power is the GPU's, the counter the module's
    with world.meter() as meter:
        world.run(meter, 300)
    assert meter.reading.notes == ()
    assert meter.reading.gpu.scope == "module"
    assert meter.reading.cpu.wh is None
    assert "inside the GPU's counter" in meter.reading.cpu.source
    assert "inside the GPU's counter" in meter.reading.ram.source
    assert meter.reading.estimated_wh is None


def test_only_visible_gpus_count_and_the_others_are_listed(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter(environ={"CUDA_VISIBLE_DEVICES": "GPU-b"}) as meter:
        world.run(meter, 10)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(2000, abs=0.01)
    assert [part["id"] for part in meter.reading.gpu.devices] == ["GPU-b"]
    assert [part["id"] for part in meter.reading.gpu.not_counted] == ["GPU-a"]


def test_no_visible_gpu_is_unavailable_with_its_reason(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter(environ={"CUDA_VISIBLE_DEVICES": "-1"}) as meter:
        world.run(meter, 10)
    assert (meter.reading.gpu.method, meter.reading.gpu.wh) == ("unavailable", None)
    assert "hides every GPU" in meter.reading.gpu.source


def module(**names):
    fake = types.ModuleType("pynvml")
    vars(fake).update(names)
    return fake


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "pynvml cannot be imported"),  # sys.modules[...] = None makes the import fail
        (module(), "the module pynvml has no nvmlInit: it is not NVIDIA's; pip uninstall pynvml && pip install"),
    ],
)
def test_missing_or_foreign_pynvml_is_named(tmp_path, monkeypatch, found, reason):
    monkeypatch.setitem(sys.modules, "pynvml", found)
    with EnergyMeter(tmp_path, thread=False) as meter:
        pass
    assert reason in meter.reading.gpu.source
    assert meter.reading.gpu.wh is None


@pytest.mark.parametrize("code", [9, 12, 18])  # no driver, no library, versions that differ
def test_nvml_that_does_not_start_is_named(tmp_path, code):
    world = two_gpus(tmp_path)
    world.nvml.init_fault = code
    with world.meter() as meter:
        world.run(meter, 10)
    reason, fix = meter.reading.gpu.source.split("; ", 1)
    assert reason == f"NVML: NVML error {code}"
    assert fix
    assert meter.reading.cpu.method == "counter"


def test_mig_instance_in_use_is_not_called_uncounted(tmp_path, monkeypatch):
    world = two_gpus(tmp_path)
    monkeypatch.setattr("lorakit.power.devices.mig_parents", lambda *_: {"MIG-1": "GPU-a"})
    for uuid, expected in [("1", ()), ("c", ("CUDA used GPUs that are not counted: GPU-c",))]:
        torch = FakeTorch(False)
        monkeypatch.setitem(sys.modules, "torch", torch)
        with world.meter() as meter:  # CUDA starts inside the block
            torch.cuda.is_initialized, torch.cuda.device_count = (lambda: True), (lambda: 1)
            torch.cuda.get_device_properties = lambda _index, uuid=uuid: types.SimpleNamespace(uuid=uuid)
        assert tuple(note for note in meter.reading.notes if "divided by MIG" not in note) == expected


def test_gpus_that_cuda_uses_and_nvml_does_not_list_are_no_zero(tmp_path, monkeypatch):
    world = two_gpus(tmp_path)
    torch = FakeTorch(True)
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_properties = lambda _index: types.SimpleNamespace(uuid="elsewhere")
    monkeypatch.setitem(sys.modules, "torch", torch)
    with world.meter() as meter:
        world.run(meter, 5)
    assert (meter.reading.gpu.method, meter.reading.gpu.wh) == ("unavailable", None)
    assert meter.reading.gpu.source == "CUDA uses elsewhere, which NVML does not list"
    assert "CUDA used GPUs that are not counted: GPU-elsewhere" in meter.reading.notes


def test_every_source_removed_leaves_no_number(tmp_path):
    world = World(tmp_path)
    world.nvml.init_fault = 12
    (world.proc / "stat").unlink()
    (world.proc / "meminfo").unlink()
    with world.meter() as meter:
        world.advance(10)
    data = meter.reading.to_json()
    assert {data[kind]["method"] for kind in ("gpu", "cpu", "ram")} == {"unavailable"}
    assert [data[kind]["kwh"] for kind in ("gpu", "cpu", "ram")] == [None] * 3
    assert (data["measured_kwh"], data["estimated_kwh"]) == (None, None)
    assert all(data[kind]["source"] for kind in ("gpu", "cpu", "ram"))


def test_conditions_of_both_ends_are_recorded(tmp_path):
    world = two_gpus(tmp_path)
    with world.meter() as meter:
        world.run(meter, 100)
    conditions = meter.reading.conditions
    assert conditions["driver"] == "570.1"
    assert conditions["start"]["GPU-a"] == {
        "name": "Tesla V100",
        "temperature_c": 40,
        "power_limit_w": 400.0,
        "sm_clock_mhz": 1530,
        "memory_clock_mhz": 877,
        "persistence": True,
    }
    assert conditions["end"]["GPU-a"]["temperature_c"] == 50


def test_a_process_that_may_not_be_looked_at_is_one_of_this_machine(tmp_path, monkeypatch):
    """NVML lists 7 and 8, neither of them ours: both exist, so both are strangers; a missing one may be ours."""
    (tmp_path / "8").mkdir()
    real = os.stat

    def hides_7(path, **options):
        if str(path) == str(tmp_path / "7"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr("os.stat", hides_7)
    assert _strangers([7, 8], [1], tmp_path) == {7, 8}
    assert _strangers([7, 9], [1], tmp_path) is None
