"""Power ranges for what has no sensor."""

import pytest

from lorakit.power.estimates import count_dimms, estimate_cpu, estimate_ram, memory_bytes
from lorakit.power.power_limits import MachineLimit
from tests.support.energy_world import deny, write_meminfo


def test_estimates_are_ranges_with_their_source():
    limited = estimate_cpu(MachineLimit(270.0, "constraint_0_max_power_uw"), 80)
    assert (limited.low_w, limited.high_w) == (27.0, 270.0)
    assert "constraint_0_max_power_uw" in limited.source
    assert estimate_cpu(MachineLimit(None, ""), 4).high_w == 32.0
    assert (estimate_ram(512 * 2**30, 16).low_w, estimate_ram(512 * 2**30, 16).high_w) == (32.0, 96.0)
    assert estimate_ram(8 * 2**30, None).high_w == pytest.approx(3.2)


def test_dimms_are_counted_where_the_memory_controllers_list_them(tmp_path, monkeypatch):
    for controller, size in [("mc0/dimm0", "32768"), ("mc0/dimm1", "0"), ("mc1/dimm0", "32768")]:
        (tmp_path / controller).mkdir(parents=True)
        (tmp_path / controller / "size").write_text(size + "\n")
    assert count_dimms(tmp_path) == 2
    assert count_dimms(tmp_path / "none") is None
    deny(monkeypatch, {"*/dimm0/size"})  # part of a list would be too few
    assert count_dimms(tmp_path) is None


def test_memory_is_the_kernels_total_and_unknown_without_one(tmp_path):
    write_meminfo(tmp_path, total_kb=1000)
    assert memory_bytes(tmp_path) == 1_024_000
    assert memory_bytes(tmp_path / "none") is None
