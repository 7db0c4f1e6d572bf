"""Machines of public reports that meters got wrong, each with the right value and where it comes from."""

import pytest

from lorakit.power.nvml import SensorUnavailable, open_nvml
from tests.support.energy_world import P100, FakeGpu, FakeNvml, Profile, VirtualClock, World

# ---- MIG (dcgm-exporter #317, slurm-job-exporter #55): no number exists for an instance


def a30s(tmp_path, count=2):
    gpus = []
    for index, watts in enumerate((52.636, 56.121)[:count]):
        gpu = FakeGpu(f"GPU-a30-{index}", Profile((0, watts)), name="NVIDIA A30", limit_w=165.0)
        gpu.mig, gpu.instances = True, [f"MIG-{index}-{slot}" for slot in range(4)]
        gpus.append(gpu)
    return World(tmp_path, gpus)


@pytest.mark.parametrize(
    ("count", "environ"),
    [
        (2, {"CUDA_VISIBLE_DEVICES": "MIG-0-2"}),
        (1, {}),  # a pod, or docker's --gpus "device=0:0"
        (2, {}),
        (2, {"CUDA_VISIBLE_DEVICES": "0"}),
        (2, {"CUDA_VISIBLE_DEVICES": "GPU-a30-0"}),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1"}),
    ],
)
def test_a_process_on_mig_is_billed_one_gpu_and_told_that_it_is_the_whole(tmp_path, count, environ):
    world = a30s(tmp_path, count)
    with world.meter(environ=environ) as meter:
        world.run(meter, 600)
    gpu = meter.reading.gpu
    assert gpu.wh * 3600 == pytest.approx(31_581.6, abs=1e-3 * 600)
    assert [part["id"] for part in gpu.devices] == ["GPU-a30-0"]
    assert [part["id"] for part in gpu.not_counted] == ["GPU-a30-1"][: count - 1]
    assert any("the whole GPU is counted" in note for note in meter.reading.notes)


def test_a_gpu_whose_mig_mode_is_off_is_its_process_s_own(tmp_path):
    world = a30s(tmp_path)
    for gpu in world.nvml.gpus:
        gpu.mig, gpu.instances = False, []
    with world.meter() as meter:
        world.run(meter, 600)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(65_254.2, abs=2)
    assert meter.reading.notes == ()


# ---- WSL2 (ollama #1888, k8s-device-plugin #207) and Jetson: the PCI bus proves nothing


@pytest.mark.parametrize("code", [9, 12])
@pytest.mark.parametrize(("node", "words"), [("dxg", "/usr/lib/wsl/lib/libnvidia-ml.so.1"), ("nvhost-gpu", "Jetson")])
def test_gpus_that_are_not_on_the_pci_bus_get_their_own_advice(tmp_path, code, node, words):
    bridge = tmp_path / "pci" / "0000:00:00.0"
    bridge.mkdir(parents=True)
    (bridge / "vendor").write_text("0x1414\n")
    (bridge / "class").write_text("0x030200\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / node).touch()
    nvml = FakeNvml(VirtualClock(), [])
    nvml.init_fault = code
    with pytest.raises(SensorUnavailable) as caught:
        open_nvml(nvml, tmp_path / "pci", tmp_path / "dev")
    assert words in caught.value.fix
    assert "modprobe" not in caught.value.fix and "there is no NVIDIA GPU" not in caught.value.fix


# ---- samples near zero on a busy GPU (MangoHud #1607): a working GPU draws watts


def test_a_busy_gpu_that_shows_8_mw_is_no_measurement(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 0.008)), counter=False)])
    with world.meter() as meter:
        world.run(meter, 60, every_s=1.0)
    assert (meter.reading.gpu.method, meter.reading.gpu.wh) == ("unavailable", None)
    assert "0.008 W is too little: the device is working" in meter.reading.gpu.source


def test_a_busy_gpu_whose_counter_crawls_is_no_measurement(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 0.008)))])
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.gpu.wh is None


@pytest.mark.parametrize(
    ("watts", "cpus", "is_counted"),
    [
        (0.008, (1.0, 1.0), False),
        (0.2, (2.0, 2.0), False),
        (0.008, (1.0, 0.0), False),  # the interval that did work is not excused by the next one
        (0.2, (0.02, 0.02), True),  # a laptop that sleeps between two readings
        (0.008, (0.0, 0.0), True),
        (3.0, (2.0, 2.0), True),
    ],
)
@pytest.mark.parametrize("zone", ["package-0", "psys"])
def test_a_busy_cpu_whose_counter_crawls_is_no_measurement(tmp_path, zone, watts, cpus, is_counted):
    world = World(tmp_path, zones=[("intel-rapl:0", zone, Profile((0, watts)))])
    with world.meter() as meter:
        for _ in range(6):
            for busy in cpus:
                world.use(5, own=busy)
                meter.sample()
    part = meter.reading.others["psys"] if zone == "psys" else meter.reading.cpu
    if is_counted:
        assert part.wh * 3600 == pytest.approx(watts * 60, abs=0.01)
        assert part.coverage == 1.0
    else:
        assert (part.method, part.wh) == ("unavailable", None)
        assert "W is too little: the device is working" in part.source


def test_a_cpus_counter_is_believed_where_the_cpu_time_is_hidden(tmp_path):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", Profile((0, 0.2)))])
    with world.meter() as meter:
        (world.proc / "stat").write_text("hidden\n")
        for _ in range(6):
            world.clock.now += 5
            world.zones["intel-rapl:0"].write(world.time)
            meter.sample()
    assert meter.reading.cpu.wh * 3600 == pytest.approx(6, abs=0.01)


def test_a_sleeping_laptop_gpu_may_draw_nothing(tmp_path):
    gpu = FakeGpu("GPU-a", Profile((0, 0.008)), counter=False)
    gpu.utilization = 0
    world = World(tmp_path, [gpu])
    with world.meter() as meter:
        world.run(meter, 60, every_s=1.0)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(0.48, abs=0.01)


# ---- GB200 and GB300 (zeus #172, #242, k8s-test-infra #676): what their counter holds is documented nowhere


@pytest.mark.parametrize("name", ["NVIDIA GB200", "NVIDIA GB300"])
def test_a_superchip_is_noted_and_checked(tmp_path, name):
    gpus = [FakeGpu(f"GPU-{index}", Profile((0, 900.0)), name=name, limit_w=1400.0) for index in range(4)]
    world = World(tmp_path, gpus)
    with world.meter() as meter:
        world.run(meter, 60)
    reading = meter.reading
    assert reading.gpu.wh * 3600 == pytest.approx(216_000)
    assert reading.gpu.scope == "device"
    assert [note for note in reading.notes if note.startswith(name.removeprefix("NVIDIA "))] == list(reading.notes)
    assert "not documented" in reading.notes[0]
    assert "inside the GPU's counter" not in reading.cpu.source + reading.ram.source
    for gpu in world.nvml.gpus:
        gpu.counter_gain = 2.0  # the counter holds the module: two GPUs
    with world.meter() as meter:
        world.run(meter, 60)
    assert any(
        "the energy counter says 1800 W on average, the power samples say 900 W" in n for n in meter.reading.notes
    )


def test_grace_hopper_still_counts_its_module_once(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 600.0)), name="NVIDIA GH200 480GB")])
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.gpu.scope == "module"
    assert "holds the whole module" in meter.reading.cpu.source


# ---- wraps that nobody saw


def test_a_wrap_that_may_have_passed_unseen_is_a_note(tmp_path):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", P100, {"max_range": 65_532_610_987})])
    with world.meter() as meter:
        world.advance(3600)  # SIGSTOP for an hour: five wraps at 100 W
        meter.sample()
    assert any(
        "intel-rapl:0: its counter may have started again unseen at least once," in note for note in meter.reading.notes
    )
    assert meter.reading.cpu.uncertainty_wh * 3600 > 5 * 65_532


# ---- machines that were right before, and stay so


def test_a_jetson_whose_nvml_supports_nothing_is_unavailable_with_both_reasons(tmp_path):
    """intelligence-per-watt #40."""
    gpu = FakeGpu("GPU-orin", P100, name="Orin (nvgpu)")
    gpu.faults = {"nvmlDeviceGetTotalEnergyConsumption": 3, "nvmlDeviceGetPowerUsage": 3}
    world = World(tmp_path, [gpu])
    with world.meter() as meter:
        world.run(meter, 10)
    found = meter.reading.gpu
    assert (found.method, found.wh) == ("unavailable", None)
    assert "TotalEnergyConsumption" in found.source and "PowerUsage" in found.source


def test_four_sockets_and_four_zones_called_dram_are_exact(tmp_path):
    """siomon #70."""
    zones = []
    for socket, (cpu_w, ram_w) in enumerate([(50.0, 4.0), (60.0, 4.1), (51.2, 4.05), (51.0, 4.05)]):
        zones.append((f"intel-rapl:{socket}", f"package-{socket}", Profile((0, cpu_w))))
        zones.append((f"intel-rapl:{socket}:0", "dram", Profile((0, ram_w)), {"max_range": 65_532_610_987}))
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 1200, every_s=30)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(254_640, abs=0.1)
    assert meter.reading.ram.wh * 3600 == pytest.approx(19_440, abs=0.1)


def test_3700_w_of_garbage_are_refused_from_the_first_sample_on(tmp_path):
    """MangoHud #2144."""
    gpu = FakeGpu("GPU-a", Profile((0, 3700.12), (3, 100.0)), counter=False)
    world = World(tmp_path, [gpu])
    with world.meter() as meter:
        world.run(meter, 13, every_s=1.0)
    found = meter.reading.gpu
    assert found.wh * 3600 == pytest.approx(100 * found.coverage * 13, rel=0.01)
    assert "3700.12 W is outside 0 to 500 W" in found.gaps[0]["reason"]


def test_a_renumbered_card_is_counted_by_its_uuid(tmp_path):
    """slurm-job-exporter #63: a P100 and an A5000, of which the job's cgroup shows one."""
    mixed = [FakeGpu("GPU-p100", P100, name="Tesla P100"), FakeGpu("GPU-a5000", Profile((0, 230.0)), name="RTX A5000")]
    (tmp_path / "in").mkdir()
    inside = World(tmp_path / "in", mixed[1:])
    with inside.meter(environ={"CUDA_VISIBLE_DEVICES": "0"}) as meter:
        inside.run(meter, 10)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(2300, abs=0.1)
    outside = World(tmp_path, mixed)
    with outside.meter(environ={"CUDA_VISIBLE_DEVICES": "0"}) as meter:
        outside.run(meter, 10)
    assert meter.reading.gpu.wh is None
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in meter.reading.gpu.source
