"""What a CPU may draw, on the power limits of real machines."""

import pytest

from lorakit.power.power_limits import machine_limit, package_limit
from tests.support.energy_world import Profile, World, deny


def limits(folder, long_w, short_w, nominal_w):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("constraint_0_power_limit_uw", "constraint_1_power_limit_uw", "constraint_0_max_power_uw")
    for name, watts in zip(names, (long_w, short_w, nominal_w), strict=True):
        if watts is not None:
            (folder / name).write_text(f"{int(watts * 1e6)}\n")
    return folder


MACHINES = {
    # what: (long term, short term, nominal, the right upper end), W
    "i9-13900HX, raplcap #14": (135, 162, 55, 135),
    "i5-1035G4, linux-surface #221": (25, None, 15, 25),
    "a laptop, MangoHud #1776": (200, 37, 17, 37),
    "a laptop, powerstat #15": (200, 30, 55, 55),
    "a laptop, asus-fan-control #151": (15, None, 28, 28),
    "a Xeon, powertelemetry #3": (350, 420, 350, 350),
    "placeholders": (200, 200, 15, 15),
    "no limit in force": (4095, 4095, 125, 125),
    "an unlocked desktop": (253, 253, 125, 253),
    "AMD": (None, None, None, None),
    "nothing but a placeholder": (4095, 4095, None, None),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_upper_end_is_the_limit_in_force(tmp_path, machine):
    *watts, right_w = MACHINES[machine]
    found = package_limit(limits(tmp_path, *watts))
    assert (found and found.watts) == right_w


def test_estimate_reaches_the_limit_in_force_at_full_load(tmp_path, monkeypatch):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", Profile((0, 100.0)))])
    limits(world.root / "intel-rapl:0", 135, 162, 55)
    deny(monkeypatch)
    with world.meter() as meter:
        world.run(meter, 3600, every_s=60)
    cpu = meter.reading.cpu
    assert cpu.method == "estimated"
    assert cpu.range_wh == pytest.approx((13.5, 135.0))
    assert "135 W (the power limit in force)" in cpu.source


def test_a_socket_without_a_limit_leaves_the_machine_without_one(tmp_path):
    one = limits(tmp_path / "0", 135, None, 135)
    two = limits(tmp_path / "1", None, None, None)
    assert machine_limit([one, one]).watts == 270
    assert machine_limit([one, two]).watts is None
    assert machine_limit([]).watts is None
