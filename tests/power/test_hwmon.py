"""Sensors of hwmon, on trees of public reports and of the kernel's documentation. Not yet run on such hardware."""

import pytest

from lorakit.cli.energy_doctor import closed_sensors
from lorakit.power.hwmon import HwmonSource, find_hwmon
from lorakit.power.rapl_access import diagnose
from tests.support.energy_world import P100, ZONE, FakeGpu, Profile, World, deny


def tree(folder, files):
    """hwmon0, hwmon1, … each with its device on the bus; `files` maps names to contents, "device/…" to the device's."""
    for index, (device, content) in enumerate(files):
        target = folder.parent / "devices" / device
        target.mkdir(parents=True, exist_ok=True)
        place = folder / f"hwmon{index}"
        place.mkdir(parents=True)
        (place / "device").symlink_to(target)
        for name, text in content.items():
            (place / name).write_text(f"{text}\n")
    return folder


AMD = {  # a Radeon of Vitals' issue 320: PPT 28.00 W (cap = 291.00 W)
    "name": "amdgpu", "power1_average": 28_000_000, "power1_label": "PPT", "power1_cap": 291_000_000,
    "power1_cap_max": 291_000_000, "in0_input": 825, "in0_label": "vddgfx", "device/gpu_busy_percent": 97,
}  # fmt: skip
AMD_INPUT = {"name": "amdgpu", "power1_input": 30_000_000, "power1_label": "PPT", "in0_label": "vddgfx"}  # Linux 6.6
APU = {  # thermal.rst: in1 is the north bridge's voltage, on APUs only
    "name": "amdgpu", "power1_average": 11_000_000, "power1_label": "slowPPT", "in1_input": 700, "in1_label": "vddnb",
    "device/gpu_busy_percent": 90,
}  # fmt: skip
BATTLEMAGE = {  # btop's pull request 1457: no power file at all, 414 J in 2.01 s
    "name": "xe", "energy1_label": "card", "energy1_input": 5_000_000, "energy2_label": "pkg",
    "energy2_input": 4_000_000, "power1_label": "card", "power1_cap": 275_000_000,
}  # fmt: skip
ARC = {"name": "i915", "energy1_input": 7_000_000, "power1_max": 190_000_000, "in0_input": 600}  # compute-runtime #925
ARC_TILE = {"name": "i915_gt0", "energy1_input": 3_000_000}
JETSON = {  # alumet's issue 212: an AGX Orin's 1-0040
    "name": "ina3221", "in1_label": "VDD_GPU_SOC", "in1_input": 19_136, "curr1_input": 128, "in2_label": "VDD_IN",
    "in2_input": 19_000, "curr2_input": 600,
}  # fmt: skip
ALTRA = {  # drivers/hwmon/smpro-hwmon.c's labels, on a server with one of two groups of memory modules
    "name": "smpro_hwmon", "power1_label": "power1 CORE VRD", "power1_input": 90_000_000, "power2_label": "power2 SoC",
    "power2_input": 30_000_000, "power3_label": "power3 DIMM VRD1", "power3_input": 12_000_000,
    "power4_label": "power4 DIMM VRD2", "power4_input": 0, "power5_label": "power5 RCA VRD", "power5_input": 19_500_000,
}  # fmt: skip
X_GENE = {  # drivers/hwmon/xgene-hwmon.c
    "name": "apm_xgene", "power1_label": "CPU power", "power1_input": 22_000_000, "power2_label": "IO power",
    "power2_input": 9_000_000,
}  # fmt: skip
POWER9 = {  # the output of `sensors` in OpenPOWER's post "Hwmon sensors in P9"; the labels end in a blank there
    "name": "ibmpowernv", "power1_label": "Chip 0 ", "power1_input": 157_000_000, "power2_label": "Chip 0 Vdd",
    "power2_input": 113_000_000, "power4_label": "Chip 8 ", "power4_input": 99_000_000, "power7_label": "System",
    "power7_input": 426_000_000, "power8_label": "APSS 15 ", "power8_input": 426_000_000, "energy1_label": "Chip 0 ",
    "energy1_input": 7_510_000_000_000, "energy2_label": "Chip 0 Vdd", "energy2_input": 2_680_000_000_000,
    "energy4_label": "Chip 8 ", "energy4_input": 5_090_000_000_000, "energy7_label": "System",
    "energy7_input": 21_290_000_000_000, "energy8_label": "APSS 15 ", "energy8_input": 21_290_000_000_000,
}  # fmt: skip
POWER9_MEMORY = {**POWER9, "power9_label": "Chip 0 Memory", "power9_input": 40_000_000}  # PWRMEM, with its own channel
POWER8 = {"name": "ibmpowernv", "power1_input": 400_000_000}  # older firmware gives no label
PEX = {"name": "ibmpex", "device/power1_average": 210_000_000}  # ibmpex.c: on the BMC's device, without a label
PEX_OF_3 = {**PEX, "device/power2_average": 61_000_000, "device/power3_average": 48_000_000}
SCMI = {  # labels of a card's report (Chip_1s_Pwr) and of ARM's own board
    "name": "scmi_sensors", "power1_label": "Chip_1s_Pwr", "power1_input": 16_560_000, "energy1_label": "SYS_ENM",
    "energy1_input": 5, "temp1_input": 48_200,
}  # fmt: skip


def grace(kind, watts, socket=0):
    """power_meter-acpi: the files are the device's, and only `name` may be hwmon's."""
    return (
        f"ACPI000D:{kind}{socket}",
        {
            "name": "power_meter",
            "device/power1_average": int(watts * 1e6),
            "device/power1_oem_info": f"{kind} Power Socket {socket}",
            "device/power1_average_interval": 50,
        },
    )


MACHINES = {
    # what: (tree, {id: (kind, counts energy)})
    "Radeon": ([("0000:03:00.0", AMD)], {"amdgpu 0000:03:00.0": ("gpu", False)}),
    "Radeon under Linux 6.6": ([("0000:03:00.0", AMD_INPUT)], {"amdgpu 0000:03:00.0": ("gpu", False)}),
    "Ryzen APU": ([("0000:c4:00.0", APU)], {"amdgpu 0000:c4:00.0": ("cpu", False)}),
    "Battlemage": (
        [("0000:03:00.0", BATTLEMAGE)],
        {"xe 0000:03:00.0": ("gpu", True), "xe 0000:03:00.0 pkg": (None, True)},
    ),
    "Arc under i915": (
        [("0000:03:00.0", ARC), ("0000:03:00.0", ARC_TILE)],
        {"i915 0000:03:00.0": ("gpu", True), "i915_gt0 0000:03:00.0": (None, True)},
    ),
    "Grace Hopper": (
        [grace("Module", 400), grace("Grace", 180), grace("CPU", 90), grace("SysIO", 20)],
        {
            "acpi Module Power Socket 0": ("machine", False),
            "acpi Grace Power Socket 0": ("cpu", False),
            "acpi CPU Power Socket 0": (None, False),
            "acpi SysIO Power Socket 0": (None, False),
        },
    ),
    "Grace with its rail only": ([grace("CPU", 90)], {"acpi CPU Power Socket 0": ("cpu", False)}),
    "a server's ACPI meter": (
        [("ACPI000D:00", {"name": "power_meter", "power1_average": 212_000_000, "power1_average_interval": 1000})],
        {"acpi ACPI000D:00": ("machine", False)},
    ),
    "an IBM server by IPMI": (
        [("aem", {"name": "aem2", "energy1_input": 1_000_000, "power1_average": 200_000_000})],
        {"aem2 energy1_input": ("machine", True)},
    ),
    "an IBM server of PowerExecutive": ([("ipmi_bmc.0", PEX)], {"ibmpex ipmi_bmc.0": ("machine", False)}),
    "one with three powers": ([("ipmi_bmc.0", PEX_OF_3)], {"ibmpex ipmi_bmc.0": (None, False)}),
    "Ampere Altra by SMpro": (
        [("smpro-hwmon.0", ALTRA)],
        {
            "smpro_hwmon smpro-hwmon.0 power1 CORE VRD": ("cpu", False),
            "smpro_hwmon smpro-hwmon.0 power2 SoC": ("cpu", False),
            "smpro_hwmon smpro-hwmon.0 power3 DIMM VRD1": ("ram", False),
            "smpro_hwmon smpro-hwmon.0 power4 DIMM VRD2": (None, False),
            "smpro_hwmon smpro-hwmon.0 power5 RCA VRD": ("cpu", False),
        },
    ),
    "X-Gene": (
        [("APMC0D8A:00", X_GENE)],
        {"apm_xgene APMC0D8A:00 CPU power": ("cpu", False), "apm_xgene APMC0D8A:00 IO power": ("cpu", False)},
    ),
    "POWER9": (
        [("opal-sensor", POWER9_MEMORY)],
        {
            "ibmpowernv opal-sensor Chip 0": ("cpu", True),
            "ibmpowernv opal-sensor Chip 0 Vdd": (None, True),
            "ibmpowernv opal-sensor Chip 8": ("cpu", True),
            "ibmpowernv opal-sensor System": ("machine", True),
            "ibmpowernv opal-sensor APSS 15": (None, True),
            "ibmpowernv opal-sensor Chip 0 Memory": ("ram", False),
        },
    ),
    "POWER8 without labels": ([("opal-sensor", POWER8)], {"ibmpowernv opal-sensor power1_input": (None, False)}),
    "what an ARM board's firmware calls by its own names": (
        [("scmi_dev.5", SCMI)],
        {"scmi_sensors scmi_dev.5": (None, True)},
    ),
    "Jetson AGX Orin": ([("1-0040", JETSON)], {"ina3221 VDD_IN": ("machine", False)}),
    "names that only begin like a driver's": (
        [
            (name, {"name": name, "energy1_input": 1, "power1_average": 1})
            for name in ("xensor", "xe2", "i915_other", "amdgpu2", "power_meters", "aem_other")
        ],
        {},
    ),
    "a board's temperatures": ([("x", {"name": "k10temp", "temp1_input": 40_000, "power1_input": 5})], {}),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_golden_tree(tmp_path, machine):
    files, expected = MACHINES[machine]
    found = find_hwmon(tree(tmp_path / "hwmon", files))
    assert {sensor.id: (sensor.kind, sensor.counts_energy) for sensor in found} == expected


def test_no_folder_is_no_sensor(tmp_path):
    assert find_hwmon(tmp_path / "none") == []


@pytest.mark.parametrize(("files", "watts"), [(AMD, 28.0), (JETSON, 19.0 * 0.6)])
def test_powers_are_watts(tmp_path, files, watts):
    (sensor,) = find_hwmon(tree(tmp_path / "hwmon", [("d", files)]))
    assert HwmonSource(sensor).read() == pytest.approx(watts)


class Hwmon:
    """A World whose hwmon files follow profiles: {file below hwmon/: (profile, unit)}."""

    def __init__(self, tmp_path, files, moving, gpus=(), zones=()):
        self.world = World(tmp_path, gpus, zones)
        if not gpus:
            self.world.nvml.init_fault = 12
        self.folder, self.moving = tree(tmp_path / "hwmon", files), moving
        write = self.world.write
        self.world.write = lambda: (write(), self.move())
        self.move()

    def move(self):
        for name, (profile, counts) in self.moving.items():
            value = profile.joules(self.world.time) if counts else profile.at(self.world.time)
            (self.folder / name).write_text(f"{int(value * 1e6)}\n")

    def run(self, seconds, **options):
        with self.world.meter(**options) as meter:
            self.world.run(meter, seconds, every_s=1.0)
        return meter.reading


def test_an_amd_gpu_is_sampled(tmp_path):
    load = Profile((0, 60.0), (6, 250.0))
    reading = Hwmon(tmp_path, [("0000:03:00.0", AMD)], {"hwmon0/power1_average": (load, False)}).run(12)
    assert reading.gpu.method == "sampled"
    assert reading.gpu.wh * 3600 == pytest.approx(60 * 6 + 250 * 6, rel=0.06)
    assert reading.measured_wh == reading.gpu.wh


def test_an_intel_card_is_counted_once_and_its_package_is_a_part(tmp_path):
    moving = {"hwmon0/energy1_input": (Profile((0, 206.0)), True), "hwmon0/energy2_input": (Profile((0, 150.0)), True)}
    reading = Hwmon(tmp_path, [("0000:03:00.0", BATTLEMAGE)], moving).run(12)
    assert (reading.gpu.method, reading.gpu.scope) == ("counter", "device")
    assert reading.gpu.wh * 3600 == pytest.approx(206 * 12, abs=0.1)
    assert [part["why"] for part in reading.gpu.not_counted] == ["part of the card"]


def test_a_busy_amd_gpu_at_8_mw_is_refused(tmp_path):
    moving = {"hwmon0/power1_average": (Profile((0, 0.008)), False)}
    reading = Hwmon(tmp_path, [("0000:03:00.0", AMD)], moving).run(10)
    assert reading.gpu.wh is None


SILENT = {key: value for key, value in AMD.items() if "busy" not in key}


@pytest.mark.parametrize("watts", [0.0, 0.008, 0.4])
@pytest.mark.parametrize(
    ("files", "path", "kind", "reason"),
    [
        (("0000:c4:00.0", APU), "hwmon0/power1_average", "cpu", "the device is working"),
        (grace("Grace", 0), "hwmon0/device/power1_average", "cpu", "the device is working"),
        (grace("Module", 0), "hwmon0/device/power1_average", "machine", "the device is working"),
        (("0000:03:00.0", SILENT), "hwmon0/power1_average", "gpu", "its driver does not tell"),
    ],
)
def test_power_near_zero_of_what_must_work_or_may_is_refused(tmp_path, files, path, kind, reason, watts):
    """The CPU and the machine run this very code; a GPU whose utilisation is unknown may be computing."""
    reading = Hwmon(tmp_path, [files], {path: (Profile((0, watts)), False)}).run(10)
    part = reading.others[kind] if kind == "machine" else getattr(reading, kind)
    assert (part.method, part.wh) == ("unavailable", None)
    assert f"{watts:.6g} W is too little" in part.source and reason in part.source
    assert reading.measured_wh is None


@pytest.mark.parametrize(
    ("environ", "watts"),
    [
        ({}, 350.0),
        ({"HIP_VISIBLE_DEVICES": "1"}, 100.0),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 100.0),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "2"}, 200.0),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, 150.0),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "0"}, 100.0),  # HIP numbers what ROCR leaves
        ({"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "0"}, 200.0),  # in its order
        ({"ROCR_VISIBLE_DEVICES": "2", "HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "9"}, 200.0),
    ],
)
def test_amd_gpus_that_the_process_may_not_use_are_left_out(tmp_path, environ, watts):
    moving = {f"hwmon{k}/power1_average": (Profile((0, 50.0 * 2**k)), False) for k in range(3)}
    files = [(f"0000:{bus}:00.0", AMD) for bus in ("03", "43", "83")]
    reading = Hwmon(tmp_path, files, moving).run(10, environ=environ)
    assert reading.gpu.wh * 3600 == pytest.approx(watts * 10, rel=0.01)
    assert reading.notes == ()


def test_an_apu_counts_the_cpu_only_where_rapl_does_not(tmp_path, monkeypatch):
    moving = {"hwmon0/power1_average": (Profile((0, 15.0)), False)}
    (tmp_path / "open").mkdir()
    reading = Hwmon(tmp_path / "open", [("0000:c4:00.0", APU)], moving, zones=ZONE).run(10)
    assert reading.cpu.wh * 3600 == pytest.approx(1000, abs=0.1)
    assert {part["id"]: part["why"] for part in reading.cpu.not_counted} == {
        "amdgpu 0000:c4:00.0": "RAPL counts the CPU"
    }
    deny(monkeypatch)
    reading = Hwmon(tmp_path, [("0000:c4:00.0", APU)], moving, zones=ZONE).run(10)
    assert (reading.cpu.method, reading.cpu.device_coverage) == ("sampled", 1.0)
    assert reading.cpu.wh * 3600 == pytest.approx(150, rel=0.01)


def test_a_grace_cpu_is_measured_and_its_module_is_added_to_nothing(tmp_path):
    files = [grace("Module", 0), grace("Grace", 0), grace("CPU", 0), grace("SysIO", 0)]
    watts = (400.0, 180.0, 90.0, 20.0)
    moving = {f"hwmon{k}/device/power1_average": (Profile((0, power)), False) for k, power in enumerate(watts)}
    reading = Hwmon(tmp_path, files, moving).run(12)
    assert (reading.cpu.method, reading.cpu.scope) == ("sampled", "socket")
    assert reading.cpu.wh * 3600 == pytest.approx(180 * 12, rel=0.01)
    assert reading.others["machine"].wh * 3600 == pytest.approx(400 * 12, rel=0.01)
    assert reading.measured_wh == reading.cpu.wh


def test_on_grace_hopper_the_gpus_counter_holds_the_cpu(tmp_path):
    gpu = FakeGpu("GPU-a", Profile((0, 600.0)), name="NVIDIA GH200 480GB")
    moving = {"hwmon0/device/power1_average": (Profile((0, 180.0)), False)}
    reading = Hwmon(tmp_path, [grace("Grace", 180)], moving, gpus=[gpu]).run(12)
    assert reading.measured_wh * 3600 == pytest.approx(600 * 12)
    assert "the whole module" in reading.cpu.not_counted[0]["why"]


@pytest.mark.parametrize("gpus", [(), ("NVIDIA GB200",)])
@pytest.mark.parametrize("kinds", [("Module",), ("Module", "Grace")])
def test_a_meter_of_the_module_hides_neither_cpu_nor_ram(tmp_path, gpus, kinds):
    """It is added to nothing, so what has no sensor of its own is still estimated."""
    fakes = [FakeGpu("GPU-a", Profile((0, 900.0)), name=name, limit_w=1400.0) for name in gpus]
    reading = Hwmon(tmp_path, [grace(kind, 300) for kind in kinds], {}, gpus=fakes).run(12)
    assert reading.others["machine"].wh * 3600 == pytest.approx(300 * 12, rel=0.01)
    assert reading.cpu.method == ("sampled" if "Grace" in kinds else "estimated")
    assert reading.ram.method == "estimated"
    assert not reading.cpu.not_counted


def test_a_servers_own_meter_stands_beside_its_parts(tmp_path):
    meter = {"name": "power_meter", "power1_average": 0, "power1_average_interval": 1000}
    moving = {"hwmon0/power1_average": (Profile((0, 350.0)), False)}
    reading = Hwmon(tmp_path, [("ACPI000D:00", meter)], moving, [FakeGpu("GPU-a", P100)], ZONE).run(12)
    assert reading.measured_wh * 3600 == pytest.approx(200 * 12, abs=1)
    machine = reading.others["machine"]
    assert (machine.method, machine.scope) == ("sampled", "node")
    assert machine.wh * 3600 == pytest.approx(350 * 12, rel=0.01)


METER = ("ACPI000D:00", {"name": "power_meter"})
IPMI = ("aem", {"name": "aem1"})


@pytest.mark.parametrize(
    ("files", "moving", "counted"),
    [
        ([METER, IPMI], {"hwmon0/power1_average": False, "hwmon1/power1_average": False}, "acpi ACPI000D:00"),
        ([METER, IPMI], {"hwmon0/power1_average": False, "hwmon1/energy1_input": True}, "aem1 energy1_input"),
        (
            [METER, ("ACPI000D:01", {"name": "power_meter"})],
            {"hwmon0/power1_average": False, "hwmon1/power1_average": False},
            "acpi ACPI000D:00",
        ),
    ],
)
def test_a_server_with_two_meters_is_counted_once(tmp_path, files, moving, counted):
    """Once by energy, if one meter counts it, and the other is named."""
    profile = Profile((0, 350.0))
    reading = Hwmon(tmp_path, files, {name: (profile, energy) for name, energy in moving.items()}).run(60)
    machine = reading.others["machine"]
    assert machine.wh * 3600 == pytest.approx(350 * 60, rel=0.01)
    assert [part["id"] for part in machine.devices] == [counted]
    assert [part["why"] for part in machine.not_counted] == [f"{counted} measures this machine already"]
    assert reading.notes == (f"{machine.not_counted[0]['id']} is not counted: {counted} measures this machine already",)


def test_the_second_meter_of_a_server_serves_where_the_first_fails(tmp_path):
    files = [("ACPI000D:00", {"name": "power_meter", "power1_average": "broken"}), IPMI]
    reading = Hwmon(tmp_path, files, {"hwmon1/power1_average": (Profile((0, 350.0)), False)}).run(60)
    assert reading.others["machine"].wh * 3600 == pytest.approx(350 * 60, rel=0.01)


def test_the_modules_of_two_sockets_are_added(tmp_path):
    reading = Hwmon(tmp_path, [grace("Module", 400, socket) for socket in (0, 1)], {}).run(12)
    assert reading.others["machine"].wh * 3600 == pytest.approx(2 * 400 * 12, rel=0.01)
    assert reading.notes == ()


def test_a_power9_server_is_measured_by_chip_memory_and_as_a_whole(tmp_path):
    watts = {"energy1_input": 157.0, "energy2_input": 113.0, "energy4_input": 99.0, "energy7_input": 426.0}
    moving = {f"hwmon0/{name}": (Profile((0, power)), True) for name, power in watts.items()}
    moving["hwmon0/power9_input"] = (Profile((0, 40.0)), False)
    reading = Hwmon(tmp_path, [("opal-sensor", POWER9_MEMORY)], moving).run(12)
    assert (reading.cpu.method, reading.cpu.scope) == ("counter", "socket")
    assert reading.cpu.wh * 3600 == pytest.approx((157 + 99) * 12, abs=0.1)
    assert reading.ram.wh * 3600 == pytest.approx(40 * 12, rel=0.01)
    assert reading.others["machine"].wh * 3600 == pytest.approx(426 * 12, abs=0.1)
    assert reading.measured_wh == pytest.approx(reading.cpu.wh + reading.ram.wh)
    assert {part["why"] for part in reading.cpu.not_counted} == {"part of the machine"}
    assert reading.notes == ()


def test_an_altras_regulators_are_its_cpu_and_its_memory(tmp_path):
    reading = Hwmon(tmp_path, [("smpro-hwmon.0", ALTRA)], {}).run(12)
    assert reading.cpu.wh * 3600 == pytest.approx((90 + 30 + 19.5) * 12, rel=0.01)
    assert reading.ram.wh * 3600 == pytest.approx(12 * 12, rel=0.01)
    assert (reading.cpu.device_coverage, reading.ram.device_coverage) == (1.0, 1.0)
    (empty,) = reading.cpu.not_counted
    assert empty["why"] == "draws nothing: no memory module is on it"


@pytest.mark.parametrize(
    ("chips", "counted"),
    [
        ("ampere,mtjade-bmc\0aspeed,ast2500\0", False),
        ("nuvoton,npcm845\0", False),
        ("ampere,altra\0", True),
        (None, True),
    ],
)
def test_on_a_board_controller_the_altra_is_another_machine(tmp_path, chips, counted):
    """As aspeed-bmc-ampere-mtjade.dts names itself; strings of a device tree end in a NUL."""
    if chips is not None:
        (tmp_path / "firmware" / "devicetree" / "base").mkdir(parents=True)
        (tmp_path / "firmware" / "devicetree" / "base" / "compatible").write_text(chips)
    (tmp_path / "class").mkdir()
    found = find_hwmon(tree(tmp_path / "class" / "hwmon", [("smpro-hwmon.0", ALTRA)]))
    if counted:
        assert [sensor.kind for sensor in found] == ["cpu", "cpu", "ram", None, "cpu"]
        return
    (sensor,) = found
    assert (sensor.kind, sensor.is_unknown, len(sensor.paths)) == (None, True, 5)
    assert sensor.why == "it is of the server that this board controller (BMC) controls"


def test_the_memorys_sensor_is_left_out_where_rapl_counts_it(tmp_path):
    dram = ("intel-rapl:0:0", "dram", Profile((0, 15.0)))
    reading = Hwmon(tmp_path, [("smpro-hwmon.0", ALTRA)], {}, zones=[*ZONE, dram]).run(12)
    assert reading.ram.wh * 3600 == pytest.approx(15 * 12, abs=0.1)
    assert [part["why"] for part in reading.ram.not_counted] == ["RAPL counts the RAM"]


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (("scmi_dev.5", SCMI), "what the firmware calls SYS_ENM, Chip_1s_Pwr is documented nowhere"),
        (("ipmi_bmc.0", PEX_OF_3), "ibmpex does not say which of its 3 powers is the machine's"),
        (("opal-sensor", POWER8), "ibmpowernv has no label for it"),
    ],
)
def test_a_sensor_of_nobody_knows_what_is_named_and_not_counted(tmp_path, device, why):
    reading = Hwmon(tmp_path, [device], {}).run(5)
    assert reading.measured_wh is None and not reading.others
    (note,) = reading.notes
    assert note.startswith(f"{device[1]['name']} {device[0]}") and note.endswith(f" is not counted: {why}")


SWAPPED = {**BATTLEMAGE, "energy1_label": "pkg", "energy2_label": "card"}


@pytest.mark.parametrize(
    ("device", "closed", "kind"),
    [
        (("0000:03:00.0", AMD), "power1_average", "gpu"),
        (("0000:03:00.0", AMD), "*_label", "gpu"),  # whether it is a GPU or a CPU's chip
        (("0000:03:00.0", SWAPPED), "energy*_label", "gpu"),  # which channel is the card
        (grace("Grace", 180), "power1_average", "cpu"),
        (grace("Grace", 180), "power1_oem_info", "machine"),  # whether it is a socket or a server
        (("ACPI000D:00", {"name": "power_meter", "power1_average": 350_000_000}), "power1_average", "machine"),
        (("ACPI000D:00", {"name": "power_meter", "power1_average": 350_000_000}), "name", "machine"),
        (("1-0040", JETSON), "*_label", "machine"),
        (("1-0040", JETSON), "curr2_input", "machine"),
        (("smpro-hwmon.0", ALTRA), "power*_label", "machine"),
        (("opal-sensor", POWER9), "power*_label", "machine"),
    ],
)
def test_what_may_not_be_read_is_said_and_the_advice_works(tmp_path, monkeypatch, device, closed, kind):
    """Nothing is measured that may be something else; with the files that the advice names open, it is measured."""
    moving = {"hwmon0/energy2_input": (Profile((0, 50.0)), True)} if "energy2_input" in device[1] else {}
    world = Hwmon(tmp_path, [device], moving)
    paths = [str(path) for path in (tmp_path / "hwmon" / "hwmon0").rglob(closed)]
    paths += [str(path) for path in (tmp_path / "hwmon" / "hwmon0" / "device").glob(closed)]
    with monkeypatch.context() as patch:
        deny(patch, set(paths))
        reading = world.run(5)
    assert reading.measured_wh is None and not reading.others
    said = reading.gpu.source if kind == "gpu" else "; ".join(reading.notes)
    reason, _, fix = said.partition("; sudo chmod a+r ")
    assert "may not be read by this user" in reason
    assert set(fix.split()) == set(paths)
    if closed == "power1_average" and kind == "cpu":
        assert reading.cpu.method == "estimated"
    (tmp_path / "again").mkdir()
    opened = Hwmon(tmp_path / "again", [device], moving).run(5)
    assert opened.others or opened.measured_wh is not None


@pytest.mark.parametrize("closed", ["hwmon", "hwmon/hwmon0"])
def test_a_closed_folder_is_named_and_the_advice_opens_it(tmp_path, monkeypatch, closed):
    world = Hwmon(tmp_path, [grace("Grace", 180)], {})
    with monkeypatch.context() as patch:
        deny(patch, {str(tmp_path / closed), f"{tmp_path / closed}/*"})
        reading = world.run(5)
    assert reading.cpu.method == "estimated"
    (note,) = reading.notes
    assert note == (
        f"sensors in {tmp_path / closed}: not read: {tmp_path / closed} may not be read by this user; "
        f"sudo chmod a+rx {tmp_path / closed}"
    )
    (tmp_path / "again").mkdir()
    assert Hwmon(tmp_path / "again", [grace("Grace", 180)], {}).run(5).cpu.method == "sampled"


def test_a_closed_folder_without_power_is_not_mentioned(tmp_path, monkeypatch):
    world = Hwmon(tmp_path, [("x", {"name": "k10temp", "temp1_input": 40_000})], {})
    deny(monkeypatch, {"*/name"})
    assert world.run(5).notes == ()


def test_labels_that_are_closed_change_nothing_where_the_card_is_known(tmp_path, monkeypatch):
    moving = {"hwmon0/energy1_input": (Profile((0, 206.0)), True)}
    world = Hwmon(tmp_path, [("0000:03:00.0", BATTLEMAGE)], moving)
    deny(monkeypatch, {"*/energy2_label", "*/power1_label"})
    assert world.run(12).gpu.wh * 3600 == pytest.approx(206 * 12, abs=0.1)


def test_doctor_does_not_say_that_a_closed_sensor_of_an_arm_server_is_absent(tmp_path, monkeypatch):
    world = Hwmon(tmp_path, [grace("Grace", 180)], {})
    proc = tmp_path / "arm"
    proc.mkdir()
    (proc / "cpuinfo").write_text("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n")
    access = diagnose(tmp_path / "none", proc)
    assert closed_sensors(world.run(5), access) == []
    deny(monkeypatch, {"*/power1_average"})
    said, advice = closed_sensors(world.run(5), access)
    assert said.startswith("denied: Grace Power Socket 0: not read: ") and "power1_average" in said
    assert advice.startswith("enable: sudo chmod a+r /") and advice.endswith("/power1_average")
