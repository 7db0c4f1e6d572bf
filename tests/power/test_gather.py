"""The sum over ranks, in real processes."""

import json
import os
import socket

import pytest

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
