"""The sum over ranks, in real processes."""

import json
import os
import socket

import pytest

from lorakit.power.contention import Contention
from lorakit.power.gather import _claims, _counted_by_others, _of_one_job
from lorakit.power.reading import Measurement, Reading
from tests.support.processes import start

GATHER = """
    import json, os, torch
    from lorakit.training.distributed import process_group
    from lorakit.energy import EnergyMeter
    group = process_group()  # torch by itself sometimes aborts at exit
    group.__enter__()
    with EnergyMeter({root!r}, claims={claims!r}) as meter:
        torch.distributed.barrier()
        total = meter.gather()
    print(json.dumps([meter.reading.estimated_wh is None, total.to_json()]))
    group.__exit__(None, None, None)
"""


def test_gather_gives_every_rank_the_sum(tmp_path):
    pytest.importorskip("torch")
    code = GATHER.format(root=str(tmp_path), claims=str(tmp_path / "c"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(code, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(nothing for nothing, _ in answers) == [False, True]
    assert answers[0][1] == answers[1][1]
    assert answers[0][1]["estimated_kwh"] > 0
    contention = answers[0][1]["contention"]
    assert len(contention["machines"]) == 1 and contention["logical_cpus"] == os.cpu_count()  # one machine, once
    assert contention["duration_s"] == pytest.approx(answers[0][1]["duration_s"], abs=0.5)


def seen(own_cpu_s, others_cpu_s, machine="node 1"):
    return Contention(10.0, 2, own_cpu_s, others_cpu_s, 0.0, gpu_processes=1, machines=(machine,))


def test_a_rank_whose_tree_is_its_own_is_no_stranger_to_the_others_of_its_machine():
    alone = seen(4.0, 6.0, "node 2")
    first, second, third = _of_one_job([seen(4.0, 6.0), seen(5.0, 5.0), alone], [101, 102, 103])
    for part in (first, second):
        assert (part.own_cpu_s, part.others_cpu_s, part.gpu_processes) == (9.0, 1.0, 0)
    assert third == alone
    of_one_tree = [seen(9.0, 1.0), seen(9.0, 1.0), None]
    assert _of_one_job(of_one_tree, [100, 100, 100]) == of_one_tree


def reading_of(node, cpu, **others):
    device = {"id": "intel-rapl:0", "kwh": 0.001}
    measured = Measurement("counter", wh=1.0, mean_w=1.0, devices=(device,))
    parts = {"measured": measured, "estimated": Measurement("estimated", wh=1.0, mean_w=1.0, range_wh=(0.5, 2.0))}
    nothing = Measurement("unavailable", source="none")
    return Reading(nothing, parts[cpu], nothing, 3600.0, contention=seen(1.0, 1.0, node), others=others)


def test_an_estimate_is_left_out_where_another_rank_of_the_machine_measures():
    """Ranks in different containers, of which one may read powercap."""
    ranks = [("node 1", "estimated"), ("node 1", "measured"), ("node 2", "estimated")]
    claims = [_claims(reading_of(node, cpu), 100) for node, cpu in ranks]
    assert [_counted_by_others(claims, own) for own in range(3)] == [{"the CPU (estimate)": 1}, {}, {}]


def test_what_stands_beside_the_parts_is_counted_once_too():
    def beside(name):
        return Measurement("sampled", wh=9.0, mean_w=9.0, devices=({"id": name, "kwh": 0.009},))

    reading = reading_of("node 1", "measured", psys=beside("intel-rapl:1"), machine=beside("acpi PM0"))
    claims = [_claims(reading, 100), _claims(reading, 101)]
    assert _counted_by_others(claims, 0) == {}
    assert _counted_by_others(claims, 1) == {"intel-rapl:0": 0, "intel-rapl:1": 0, "acpi PM0": 0}
