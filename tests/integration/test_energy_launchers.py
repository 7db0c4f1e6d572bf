"""Two ranks of a node under real launchers: the node's energy is in the sum once, whoever started them.

What a launcher does not tell (`torch.multiprocessing.spawn`, fork) `gather` finds out. codecarbon PR #1390 is the same
fault under srun.
"""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager

import pytest

from tests.support.energy_world import FakeZone

pytest.importorskip("torch")
PACKAGE_W, PSYS_W, MACHINE_W = 100.0, 180.0, 350.0

RANK = """
    import json, os, sys, time
    import torch
    from lorakit.energy import EnergyMeter

    def measure(rank, folder, environ=None, name="real"):
        torch.distributed.barrier()
        options = {"hwmon": f"{folder}/hwmon", "events": f"{folder}/events", "environ": environ}
        with EnergyMeter(f"{folder}/powercap", claims=f"{folder}/locks {name}", **options) as meter:
            time.sleep(0.3)
            torch.distributed.barrier()
        torch.distributed.barrier()
        own = meter.reading
        total = meter.gather()
        same_tree = meter._session.tree_root == int(os.environ.get("LAUNCHER", os.getppid()))
        return {"own": own.to_json(), "sum": total.to_json(), "kept": meter.reading == own, "same_tree": same_tree}

    def work(rank, folder, launchers=None):
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
        answers = {}
        for name, environ in (launchers or {"real": None}).items():
            environ = environ and {key: value.replace("RANK", str(rank)) for key, value in environ.items()}
            answers[name] = measure(rank, folder, environ, name)
        with open(f"{folder}/{rank}.json", "w") as file:
            json.dump(answers, file)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    if __name__ == "__main__":
        folder, how = sys.argv[1:]
        if how in ("spawn", "fork"):
            torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method=how)
        elif how.startswith("{"):
            torch.multiprocessing.spawn(work, (folder, json.loads(how)), nprocs=2)
        else:
            work(int(os.environ[how]), folder)
"""

# what the launchers set on a node with two ranks; RANK stands for the rank
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "RANK", "SLURM_LOCALID": "RANK", "SLURM_NTASKS": "2"}
DEEPSPEED = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "2",
    "CROSS_RANK": "0",
    "CROSS_SIZE": "1",
}
DEEPSPEED |= {"RANK": "RANK", "LOCAL_RANK": "RANK", "LOCAL_SIZE": "2", "CROSS_SIZE": "1"}
OTHERS = {
    "Open MPI": {"OMPI_COMM_WORLD_LOCAL_RANK": "RANK", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    "Intel MPI": {"MPI_LOCALRANKID": "RANK", "MPI_LOCALNRANKS": "2"},
    "MVAPICH2": {"MV2_COMM_WORLD_LOCAL_RANK": "RANK", "MV2_COMM_WORLD_LOCAL_SIZE": "2"},
    "srun without a step": SRUN | {"SLURM_STEP_ID": ""},
}


@contextmanager
def node(folder):
    """A node whose counters tick: a package, a psys that contains it, and a power meter of the whole machine."""
    root = folder / "powercap"
    root.mkdir()
    zones = [(FakeZone(root, "intel-rapl:0", "package-0"), PACKAGE_W), (FakeZone(root, "intel-rapl:1", "psys"), PSYS_W)]
    meter = folder / "hwmon" / "hwmon0"
    meter.mkdir(parents=True)
    (meter / "name").write_text("power_meter\n")
    (meter / "power1_average").write_text(f"{int(MACHINE_W * 1e6)}\n")
    stop, begun = threading.Event(), time.monotonic()

    def tick():
        files = [os.open(zone.file, os.O_WRONLY) for zone, _ in zones]
        while not stop.wait(0.005):
            for file, (zone, watts) in zip(files, zones, strict=True):
                counted = zone.start_uj + int((time.monotonic() - begun) * watts * 1e6)
                os.pwrite(file, f"{counted}\n".encode(), 0)
        for file in files:
            os.close(file)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        yield
    finally:
        stop.set()
        ticking.join()


def launch(folder, how, environ=None, launcher=()):
    """Start both ranks and wait for them; returns their answers."""
    script = folder / "ranks.py"
    script.write_text(textwrap.dedent(RANK))
    with node(folder):
        if environ is None:
            started = [subprocess.Popen([sys.executable, *launcher, str(script), str(folder), how])]
        else:  # this test is the launcher
            ranks = [{key: value.replace("RANK", rank) for key, value in environ.items()} for rank in "01"]
            command = [sys.executable, str(script), str(folder), how]
            started = [subprocess.Popen(command, env=os.environ | rank) for rank in ranks]
        try:
            assert [process.wait(timeout=240) for process in started] == [0] * len(started)
        finally:
            for process in started:
                process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def check(answers, told):
    """The sum has each device once; `told` says whether the launcher told the ranks of each other."""
    total = answers[0]["sum"]
    assert total == answers[1]["sum"]
    assert all(answer["kept"] and answer["same_tree"] for answer in answers)  # the other rank is no stranger
    alone = [answer["own"]["cpu"]["kwh"] is not None for answer in answers]
    assert alone == ([True, False] if told else [True, True])
    parts = {"cpu": total["cpu"], **total["others"]}
    for name, ids, watts in (
        ("cpu", ["intel-rapl:0"], PACKAGE_W),
        ("psys", ["intel-rapl:1"], PSYS_W),
        ("machine", ["acpi hwmon0"], MACHINE_W),
    ):
        assert [part["id"] for part in parts[name]["devices"] if part["kwh"] is not None] == ids, name
        # a counter that ticks in another process is late by as much as that process waits for a CPU
        assert 0.5 * watts < parts[name]["kwh"] * 3.6e6 / total["duration_s"] < 1.5 * watts, name
    assert total["measured_kwh"] in [answer["own"]["cpu"]["kwh"] for answer in answers]
    assert total["estimated_kwh"] in [answer["own"]["ram"]["kwh"] for answer in answers]


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_ranks_that_nobody_told_of_each_other_count_the_node_once(tmp_path, how):
    check([rank["real"] for rank in launch(tmp_path, how)], told=False)


def test_ranks_of_torchrun_count_the_node_once(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    check([rank["real"] for rank in launch(tmp_path, "RANK", launcher=torchrun)], told=True)


@pytest.mark.parametrize(("environ", "rank"), [(SRUN, "SLURM_PROCID"), (DEEPSPEED, "RANK")])
def test_ranks_with_the_variables_of_srun_and_deepspeed_count_the_node_once(tmp_path, environ, rank):
    check([answer["real"] for answer in launch(tmp_path, rank, environ)], told=True)


def test_ranks_with_the_variables_of_mpi_count_the_node_once(tmp_path):
    answers = launch(tmp_path, json.dumps(OTHERS))
    for name in OTHERS:
        check([rank[name] for rank in answers], told=True)
