"""Units that kernels have wrong, on trees of real machines."""

import pytest

from lorakit.power.rapl import find_zones
from lorakit.power.unit_faults import cpu_model, find_unit_faults
from tests.support.energy_world import FakeZone, Profile, World

QUIRK, FIXED, JOULES = 65_712_999_613, 262_143_328_850, 4_294_967_295_000_000
TRUE_J = 2 * 40.0 * 600  # two DRAM domains of 40 W each


def sapphire_rapids(tmp_path, dram_range, psys_range=JOULES, model=143):
    """intel/powertelemetry, issue 3; the quirk shows the register times 15.3 µJ, where it ticks 2**-14 J."""
    shown_w = 40.0 * (15.3 / 61.03515625 if dram_range == QUIRK else 1.0)
    zones = []
    for package, key in ((0, "intel-rapl:0"), (1, "intel-rapl:2")):
        zones.append((key, f"package-{package}", Profile((0, 200.0))))
        zones.append((f"{key}:0", "dram", Profile((0, shown_w)), {"max_range": dram_range}))
    zones.append(
        ("intel-rapl:1", "psys", Profile((0, 600.0)), {"max_range": psys_range, "start_uj": 60_293_987_000_000})
    )
    world = World(tmp_path, zones=zones)
    (world.proc / "cpuinfo").write_text(f"processor\t: 0\ncpu family\t: 6\nmodel\t\t: {model}\nmodel name\t: x\n")
    return world


@pytest.mark.parametrize(
    ("dram_range", "psys_range", "model", "corrected"),
    [
        (QUIRK, JOULES, 143, True),
        (QUIRK, JOULES, 0, True),  # the model is hidden: psys alone tells
        (QUIRK, FIXED, 207, True),  # the model alone tells
        (FIXED, JOULES, 143, False),
    ],
)
def test_sapphire_rapids_dram_is_not_a_quarter(tmp_path, dram_range, psys_range, model, corrected):
    world = sapphire_rapids(tmp_path, dram_range, psys_range, model)
    with world.meter() as meter:
        world.run(meter, 600)
    ram = meter.reading.ram
    assert ram.method == "counter"
    assert ram.wh * 3600 == pytest.approx(TRUE_J, abs=ram.uncertainty_wh * 3600)
    assert any("4c081324df56" in note for note in meter.reading.notes) == corrected


def test_wraps_of_a_corrected_counter_are_followed(tmp_path):
    zones = [("intel-rapl:0", "package-0", Profile((0, 200.0)))]
    register = Profile((0, 400.0 * 15.3 / 61.03515625))
    zones.append(("intel-rapl:0:0", "dram", register, {"max_range": QUIRK, "start_uj": QUIRK - 1_000_000}))
    world = World(tmp_path, zones=zones)
    (world.proc / "cpuinfo").write_text("cpu family\t: 6\nmodel\t\t: 143\n")
    with world.meter() as meter:
        world.run(meter, 60)
    assert meter.reading.ram.wh * 3600 == pytest.approx(24_000, abs=1)


def test_a_server_with_the_fixed_unit_and_a_cpu_elsewhere_are_left_alone(tmp_path):
    FakeZone(tmp_path, "intel-rapl:0", "package-0")
    FakeZone(tmp_path, "intel-rapl:0:0", "dram", max_range=QUIRK)
    zones = find_zones(tmp_path)
    (tmp_path / "cpuinfo").write_text("cpu family\t: 6\nmodel\t\t: 106\n")  # Ice Lake-X, whose unit is 15.3 µJ
    assert find_unit_faults(zones, tmp_path) == {}
    (tmp_path / "cpuinfo").write_text("CPU implementer : 0x41\n")
    assert (cpu_model(tmp_path), find_unit_faults(zones, tmp_path)) == (None, {})


def test_a_kernel_that_lacks_the_fixed_unit_is_corrected_downwards(tmp_path):
    """HPCPerfStats' issue 9: a Haswell-EP counts its DRAM in 15.3 µJ, whatever the units register says."""
    FakeZone(tmp_path, "intel-rapl:0", "package-0")
    FakeZone(tmp_path, "intel-rapl:0:0", "dram", max_range=FIXED)
    (tmp_path / "cpuinfo").write_text("cpu family\t: 6\nmodel\t\t: 63\n")
    (fault,) = find_unit_faults(find_zones(tmp_path), tmp_path).values()
    assert fault.factor == pytest.approx(15.3 / 61.035, rel=1e-4)


def test_an_impossible_range_of_an_atom_is_noted(tmp_path):
    """raplcap's issue 13: 281,474,976 J of range where 65,536 J are right."""
    FakeZone(tmp_path, "intel-rapl:0", "package-0", max_range=281_474_976_710_655)
    (tmp_path / "cpuinfo").write_text("cpu family\t: 6\nmodel\t\t: 77\n")
    (fault,) = find_unit_faults(find_zones(tmp_path), tmp_path).values()
    assert fault.factor == 1.0 and "do not trust it" in fault.note
