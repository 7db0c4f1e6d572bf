"""Numbers with their method, and their sums."""

import json

import pytest

from lorakit.power.contention import Contention
from lorakit.power.device_sums import estimate_energy
from lorakit.power.reading import Measurement, Reading, add_readings


def test_a_number_needs_a_method_and_an_unavailable_one_has_none():
    with pytest.raises(ValueError, match="'guess' is none of counter, sampled, estimated, unavailable"):
        Measurement("guess", wh=1.0)
    with pytest.raises(ValueError, match="does not fit method 'unavailable'"):
        Measurement("unavailable", wh=0.0)
    with pytest.raises(ValueError, match="does not fit method 'counter'"):
        Measurement("counter")


def test_an_estimate_stays_in_its_range_whatever_the_kernel_says_of_the_load():
    middle = estimate_energy(2.0, 16.0, "two CPUs", 3600.0)
    assert (middle.wh, middle.range_wh) == (9.0, (2.0, 16.0))
    by_load = [estimate_energy(2.0, 16.0, "two CPUs", 3600.0, load_j).wh for load_j in (0.0, 3600.0, 1e6)]
    assert by_load == [2.0, 3.0, 16.0]  # ticks that add up to more CPU time than elapsed


def measured(wh, **options):
    options = {"mean_w": wh * 60, "coverage": 1.0, "uncertainty_wh": 0.1, "uncertainty_kind": "bound"} | options
    return Measurement("counter", wh=wh, source="x", **options)


def test_sum_keeps_measured_and_estimated_apart():
    nothing = Measurement("unavailable", source="no GPU")
    estimate = Measurement("estimated", wh=5.0, mean_w=300.0, source="y", range_wh=(1.0, 9.0))
    first = Reading(measured(2.0), measured(3.0), measured(1.0), 60.0, notes=("a",))
    second = Reading(nothing, estimate, measured(1.5), 60.0, notes=("a", "b"))
    total = add_readings([first, second])
    assert total.gpu.wh == 2.0
    assert (total.cpu.method, total.cpu.wh) == ("counter", 3.0)
    assert total.others["cpu, estimated"].wh == 5.0
    assert total.ram.wh == 2.5
    assert total.measured_wh == 7.5
    assert total.estimated_wh == 5.0
    assert total.estimated_range_wh == (1.0, 9.0)
    assert total.ram.uncertainty_wh == 0.2
    assert total.notes == ("a", "b")
    assert add_readings([total, first]).estimated_wh == 5.0
    assert Reading.from_json(json.loads(json.dumps(total.to_json()))).to_json() == total.to_json()


def test_sum_lists_a_device_that_could_not_be_read_and_keeps_the_conditions():
    record = {"id": "GPU-a", "kwh": 0.002, "coverage": 1.0}
    lost = {"id": "GPU-b", "kwh": None, "coverage": 0.0}
    nothing = Measurement("unavailable", source="none")
    dead = Measurement("unavailable", source="GPU-b: NVML error 4", devices=(lost,))

    def at(start_c, end_c):
        return {"driver": "570", "start": {"GPU-a": start_c}, "end": {"GPU-a": end_c}}

    first = Reading(measured(2.0, devices=(record,)), nothing, nothing, 60.0, conditions=at(40, 60))
    second = Reading(dead, nothing, nothing, 60.0)
    total = add_readings([first, second])
    assert (total.gpu.wh, total.gpu.coverage, total.gpu.device_coverage) == (2.0, 1.0, 0.5)
    assert [part["id"] for part in total.gpu.devices] == ["GPU-a", "GPU-b"]
    assert add_readings(
        [first, Reading(measured(1.0), nothing, nothing, 60.0, conditions=at(55, 70))]
    ).conditions == at(40, 70)


def test_sum_over_ranks_has_their_common_time_and_the_sum_of_their_powers():
    def rank(duration_s, watts):
        measurement = Measurement(
            "counter", wh=watts * duration_s / 3600, mean_w=watts, coverage=1.0, uncertainty_wh=0.0
        )
        nothing = Measurement("unavailable", source="-")
        return Reading(measurement, nothing, nothing, duration_s)

    total = add_readings([rank(100.0, 250.0), rank(100.0, 150.0)])
    assert total.duration_s == 100.0
    assert total.gpu.mean_w == pytest.approx(400.0)
    assert add_readings([rank(100.0, 250.0), rank(80.0, 150.0)]).duration_s == 100.0  # one of them started later


def test_sum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no readings to add"):
        add_readings([])


def test_a_device_of_one_machine_is_added_once_and_equal_names_on_two_machines_are():
    nothing = Measurement("unavailable", source="none")

    def on(machine, device):
        part = measured(2.0, devices=({"id": device, "name": "x", "kwh": 0.002, "coverage": 1.0},))
        return Reading(nothing, part, nothing, 60.0, contention=Contention(60.0, 2, machines=(machine,)))

    with pytest.raises(ValueError, match="package-0 of the machine m1 is in two of the readings: add only one"):
        add_readings([on("m1", "package-0"), on("m1", "package-0")])
    assert add_readings([on("m1", "package-0"), on("m2", "package-0")]).cpu.wh == 4.0
    with pytest.raises(ValueError, match="GPU-a of the machine "):  # a UUID is unique everywhere
        add_readings([on("m1", "GPU-a"), on("m2", "GPU-a")])
