"""The record of what else used the machine: its share, its words, and its sum over runs and machines."""

import json

import pytest

from lorakit.power.contention import CONTENDED, Contention, add_contentions, merge_contentions
from lorakit.power.journal import merge_runs, read_journal
from lorakit.power.reading import Measurement, Reading, add_readings
from tests.support.energy_world import World


def observed(duration_s=100.0, cpus=2, others=62.0, machine="a", **values):
    known = {"own_cpu_s": 50.0, "steal_s": 0.0, "pressure_s": 10.0, "gpu_processes": None} | values
    return Contention(duration_s, cpus, others_cpu_s=others, machines=(machine,), **known)


def test_the_note_says_who_took_how_much():
    assert observed().note == (
        "other processes used 31 % of the CPUs during this run: times and energy are not comparable"
    )
    both = observed(others=20.0, steal_s=24.0, gpu_processes=1)
    assert both.note.startswith(
        "other processes used 10 % of the CPUs and the hypervisor kept 12 % of the CPU time for other machines and "
        "1 other process computed on the GPUs during this run"
    )
    assert observed(others=0.0, steal_s=24.0).note.startswith("the hypervisor kept 12 %")


@pytest.mark.parametrize(("share", "says"), [(CONTENDED - 1e-6, False), (CONTENDED + 1e-6, True)])
def test_the_threshold_is_the_only_border(share, says):
    found = observed(others=share * 200)
    assert found.is_contended is (found.note is not None) is says
    assert not observed(duration_s=0.5, others=0.9).is_contended  # ticks of 10 ms: too short to be judged


def test_ticks_that_count_more_than_all_are_all():
    found = Contention(duration_s=10.0, logical_cpus=2, own_cpu_s=0.1, others_cpu_s=20.2, steal_s=0.0)
    assert found.describe() == "other processes used 100.0 % of the CPUs, steal 0.0 %"
    assert found.note.startswith("other processes used 100 % of the CPUs during this run") and found.share == 1.0


def test_unknown_is_no_share_and_no_note():
    nothing = Contention(10.0, 2)
    assert nothing.share is nothing.note is nothing.own_share is None
    assert nothing.describe() == "other processes used an unknown share of the CPUs, steal an unknown share"
    assert observed(steal_s=None).share == 0.31


def test_json_and_back_and_a_reading_without_the_record():
    found = observed(gpu_processes=2)
    text = json.dumps(found.to_json())
    assert Contention.from_json(json.loads(text)) == found
    assert json.loads(text)["note"] == found.note and json.loads(text)["share"] == found.share
    with pytest.raises(TypeError, match="steal_s is 'x'"):
        Contention.from_json(found.to_json() | {"steal_s": "x"})
    reading = reading_with(found)
    assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    assert str(reading).splitlines()[-1] == f"note: {found.note}"
    older = {name: value for name, value in reading.to_json().items() if name != "contention"}
    assert Reading.from_json(older).contention is None


def reading_with(contention):
    none = Measurement("unavailable", source="none")
    return Reading(none, none, none, duration_s=100.0, contention=contention)


def test_ranks_of_one_machine_count_once_and_machines_add_up():
    ranks = [observed(), observed(duration_s=99.0, others=61.0, gpu_processes=3), observed(cpus=6, machine="b"), None]
    total = add_readings([reading_with(rank) for rank in ranks]).contention
    assert (total.others_cpu_s, total.duration_s, total.logical_cpus) == (124.0, 100.0, 8)
    assert total.share == 124 / 800
    assert (total.gpu_processes, total.machines) == (None, ("a", "b"))  # b does not tell
    assert add_contentions([None, None]) is None
    assert add_contentions(ranks[:2]).gpu_processes == 3


def test_an_unknown_part_makes_the_sum_unknown():
    total = add_contentions([observed(), observed(machine="b", others=None, pressure_s=None)])
    assert total.others_cpu_s is total.pressure_s is total.share is None
    assert total.own_cpu_s == 100.0


def test_restarts_follow_each_other_and_parallel_runs_of_a_machine_count_once():
    runs = [(0, 100, observed()), (50, 90, observed(duration_s=40.0, others=39.0)), (200, 300, observed(others=0.0))]
    total = merge_contentions(runs)
    assert (total.duration_s, total.logical_cpus, total.others_cpu_s) == (200.0, 2, 62.0)
    assert total.share == 62 / 400


def test_a_journal_keeps_it_and_a_resumed_run_adds_it_up(tmp_path):
    world, path = World(tmp_path), tmp_path / "run.jsonl"
    for others in (0.5, 0.0):
        world.advance(1)
        with world.meter(out=path) as meter, meter.window("w"):
            world.use(10, own=1, others=others)
    first, second = read_journal(path)
    assert first.reading["contention"]["others_cpu_s"] == first.windows["w"]["contention"]["others_cpu_s"] == 5.0
    assert second.reading["contention"]["others_cpu_s"] == 0.0
    total = merge_runs([(path, first), (path, second)]).contention
    assert (total.others_cpu_s, total.own_cpu_s, total.duration_s) == pytest.approx((5, 20, 20))
