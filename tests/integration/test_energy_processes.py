"""Real processes: forks, kills, ranks."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lorakit.energy import EnergyMeter
from lorakit.power.device_locks import Claims, Job, find_job
from lorakit.power.journal import read_journal
from lorakit.power.reading import Quantity, Reading, add_readings
from tests.support.energy_world import FakeGpu, FakeZone, Profile, World


def start(code, **environ):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# ---- forks


def fork(in_child):
    """Run a function in a forked child; returns the wait status. The child must end by itself within 20 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a dead lock shows as a signal
        try:
            in_child()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child_measures_nothing_and_never_hangs(tmp_path):
    """As a DataLoader worker: it is forked while the sampler holds the lock, and leaves the block by sys.exit."""
    path = tmp_path / "run.jsonl"
    meter = EnergyMeter(tmp_path / "none", out=path, thread=False)
    with meter:
        held, go_on = threading.Event(), threading.Event()

        def hold():
            with meter._books.lock:
                held.set()
                go_on.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(30)

        def child():
            with meter.window("in the child"):
                meter.sample()
            try:
                _ = meter.reading
            except RuntimeError as error:
                if "belongs to process" not in str(error):
                    os._exit(1)
            else:
                os._exit(2)
            meter.__exit__(None, None, None)
            os._exit(0)

        lines = path.read_text()
        assert fork(child) == 0
        assert path.read_text() == lines
        go_on.set()
        holder.join()
    assert list(meter.windows) == []
    (run,) = read_journal(path)
    assert run.complete
    assert run.start["pid"] == os.getpid()


def test_child_that_exits_inside_the_block_writes_nothing(tmp_path):
    path = tmp_path / "run.jsonl"
    code = f"""
        import os, sys
        from lorakit.energy import EnergyMeter
        with EnergyMeter({str(tmp_path)!r}, out={str(path)!r}) as meter:
            child = os.fork()
            if child == 0:
                sys.exit(7)  # runs the block's exit in the child
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, meter.reading.duration_s > 0)
    """
    process = start(code)
    assert process.communicate(timeout=60)[0] == "7 True\n"
    kinds = [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert kinds == ["start", "end"]


def test_data_loader_workers_do_not_disturb_the_meter(tmp_path):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.DataLoader(list(range(8)), num_workers=2, multiprocessing_context="fork")
    with EnergyMeter(tmp_path, out=tmp_path / "run.jsonl") as meter, meter.window("epoch"):
        assert len(list(data)) == 8
    assert meter.windows["epoch"].count == 1
    assert len(read_journal(tmp_path / "run.jsonl")) == 1


def test_spawned_processes_do_not_disturb_the_meter(tmp_path):
    path = tmp_path / "run.jsonl"
    with EnergyMeter(tmp_path, out=path):
        process = multiprocessing.get_context("spawn").Process(target=os.getpid)
        process.start()
        process.join()
    assert process.exitcode == 0
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()] == ["start", "end"]


# ---- kills


@pytest.mark.parametrize("end", ["kill", "os._exit"])
def test_killed_run_keeps_its_energy_to_the_last_reading(tmp_path, end):
    path = tmp_path / "run.jsonl"
    code = f"""
        import os, time
        from lorakit.energy import EnergyMeter
        with EnergyMeter({str(tmp_path / "none")!r}, out={str(path)!r}, out_every_s=0.05, period_s=0.05) as meter:
            time.sleep({60 if end == "kill" else 1})
            os._exit(0)
    """
    process = start(code)
    wait_until(lambda: path.exists() and path.read_text().count('"reading"') >= 3)
    if end == "kill":
        process.kill()
    process.communicate(timeout=60)
    (run,) = read_journal(path)
    assert not run.complete
    assert run.reading["estimated_kwh"] > 0
    assert run.reading["duration_s"] > 0


def test_killed_run_gives_exactly_the_counters_energy_to_its_last_line(tmp_path):
    path, root = tmp_path / "run.jsonl", tmp_path / "powercap"
    root.mkdir()
    zone = FakeZone(root, "intel-rapl:0", "package-0")
    process = start(f"""
        import time
        from lorakit.energy import EnergyMeter
        with EnergyMeter({str(root)!r}, out={str(path)!r}, out_every_s=0.02, period_s=0.02):
            print("in", flush=True)
            time.sleep(60)
    """)
    try:
        assert process.stdout.readline() == "in\n"
        for joules in (20, 30):
            zone.file.write_text(f"{zone.start_uj + joules * 1_000_000}\n")
            wait_until(lambda joules=joules: (reading := read_journal(path)[0].reading) and cpu_j(reading) == joules)
    finally:
        process.kill()
        process.communicate()
    (run,) = read_journal(path)
    assert not run.complete
    assert cpu_j(run.reading) == 30
    assert run.reading["cpu"]["method"] == "counter"


def cpu_j(reading):
    kwh = reading["cpu"]["kwh"]
    return None if kwh is None else round(kwh * 3.6e6, 3)


# ---- ranks


RANK = """
    import json, os, sys, time
    import lorakit.energy
    from lorakit.energy import EnergyMeter
    lorakit.energy.LEADER_WAIT_S = 600.0  # a busy machine may start the ranks many seconds apart
    with EnergyMeter({root!r}, out={out!r}.replace("RANK", os.environ["LOCAL_RANK"]), claims={claims!r}) as meter:
        print("in", flush=True)
        sys.stdin.readline()
        {more}
    print(json.dumps(meter.reading.to_json()))
"""


def ranks(tmp_path, count, order, more="pass"):
    """Start ranks in this order, let them all be in the block at once, and return each one's reading."""
    code = textwrap.dedent(
        RANK.format(
            root=str(tmp_path / "powercap"), out=str(tmp_path / "RANK.jsonl"), claims=str(tmp_path / "c"), more=more
        )
    )
    processes = {}
    for rank in order:
        environ = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": "29511"}
        processes[rank] = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert processes[rank].stdout.readline() == "in\n"
    for process in processes.values():
        process.stdin.write("go\n")
        process.stdin.flush()
    return [Reading.from_json(json.loads(processes[rank].communicate(timeout=60)[0])) for rank in range(count)]


def test_four_ranks_count_the_node_once(tmp_path):
    """The last rank starts first; the package, its DRAM and so every joule belong to one rank."""
    root = tmp_path / "powercap"
    root.mkdir()
    zones = [FakeZone(root, "intel-rapl:0", "package-0"), FakeZone(root, "intel-rapl:0:0", "dram")]
    stop = threading.Event()

    def machine():
        begun = time.monotonic()
        while not stop.wait(0.005):
            for zone, watts in zip(zones, (100.0, 10.0), strict=True):
                partial = zone.path / "partial"
                partial.write_text(f"{zone.start_uj + int((time.monotonic() - begun) * watts * 1e6)}\n")
                os.pwrite(file := os.open(zone.file, os.O_WRONLY), partial.read_bytes(), 0)
                os.close(file)

    thread = threading.Thread(target=machine)
    thread.start()
    try:
        readings = ranks(tmp_path, 4, order=[3, 1, 0, 2], more="time.sleep(0.5)")
    finally:
        stop.set()
        thread.join()
    counting = [rank for rank, reading in enumerate(readings) if reading.cpu.wh is not None]
    assert counting == [0]
    assert readings[0].cpu.method == "counter"
    assert readings[0].ram.method == "counter"
    assert {readings[rank].cpu.method for rank in (1, 2, 3)} == {"unavailable"}
    assert "counted by process" in readings[3].cpu.source
    assert "(local rank 0)" in readings[3].cpu.source
    total = add_readings(readings)
    assert total.measured_wh == readings[0].measured_wh


def test_estimates_are_once_per_node_too(tmp_path):
    readings = ranks(tmp_path, 2, order=[1, 0])
    assert [reading.cpu.method for reading in readings] == ["estimated", "unavailable"]
    assert [reading.ram.method for reading in readings] == ["estimated", "unavailable"]


def test_devices_of_a_killed_rank_are_free_again(tmp_path):
    job = Job("j", 0)
    code = f"""
        import sys
        from lorakit.power.device_locks import Claims, Job
        claims = Claims(Job("j", 1), {str(tmp_path)!r})
        print(claims.take("GPU-a"), claims.take("leader"), flush=True)
        sys.stdin.readline()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True True\n"
    claims = Claims(job, tmp_path)
    assert claims.leader_is_there()
    assert not claims.take("GPU-a")
    assert claims.holder("GPU-a") == f"process {process.pid} (local rank 1)"
    process.kill()
    process.communicate()
    assert not claims.leader_is_there()
    assert claims.take("GPU-a")
    claims.release()


def test_forked_child_neither_keeps_nor_frees_a_claim(tmp_path):
    claims = Claims(Job("j", 0), tmp_path)
    world = World(tmp_path)
    environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with world.meter(environ=environ, claims=tmp_path) as meter:
        assert fork(lambda: os._exit(0)) == 0
        code = f"""
            from lorakit.power.device_locks import Claims, Job
            print(Claims(Job("j", 1), {str(tmp_path)!r}).take("ram-estimate"))
        """
        assert start(code).communicate(timeout=60)[0] == "False\n"
    assert meter.reading.ram.method == "estimated"
    assert start(code).communicate(timeout=60)[0] == "True\n"
    claims.release()


def test_claims_of_a_killed_rank_do_not_live_on_in_its_children(tmp_path):
    code = f"""
        import os, time
        from lorakit.power.device_locks import Claims, Job
        assert Claims(Job("j", 1), {str(tmp_path)!r}).take("GPU-a")
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(60)
    """
    process = start(code)
    worker = int(process.stdout.readline())
    try:
        time.sleep(0.2)  # the worker lets go at once, but nothing tells us when
        process.kill()
        process.wait()
        claims = Claims(Job("j", 0), tmp_path)
        wait_until(lambda: claims.take("GPU-a"), seconds=5)
        claims.release()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_two_meters_of_one_rank_share_its_claims(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with world.meter(environ=environ, claims=tmp_path / "c") as outer:
        with world.meter(environ=environ, claims=tmp_path / "c") as inner:
            world.run(inner, 10)
        world.run(outer, 10)
        assert Claims(Job("j", 1), tmp_path / "c").leader_is_there()
    assert not Claims(Job("j", 1), tmp_path / "c").leader_is_there()
    assert inner.reading.gpu.wh * 3600 == pytest.approx(1000, abs=0.01)
    assert outer.reading.gpu.wh * 3600 == pytest.approx(2000, abs=0.01)


def test_late_decision_loses_no_energy(tmp_path):
    """A rank that waited in vain for the first one counts from its own start."""
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    with world.meter(environ={"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "c") as meter:
        world.run(meter, 30)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(3000, abs=0.01)


def test_folder_that_cannot_be_written_is_noted(tmp_path):
    (tmp_path / "c").write_text("a file")
    world = World(tmp_path)
    with world.meter(environ={"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "c") as meter:
        pass
    assert "do not add up their energies" in meter.reading.notes[0]


def test_full_disk_costs_the_ranks_neither_training_nor_counting_once(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    world = World(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with world.meter(environ={"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "c") as meter:
            assert Claims(Job("j", 1), tmp_path / "c").leader_is_there()
            world.run(meter, 5)
    assert meter.reading.ram.method == "estimated"
    with monkeypatch.context() as patch:
        patch.setattr("lorakit.power.device_locks.Claims.take", full)
        with world.meter(environ={"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "d") as meter:
            world.run(meter, 5)
    assert meter.reading.ram.method == "estimated"
    assert "do not add up their energies" in meter.reading.notes[0]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "MASTER_PORT": "1"}, Job("1", 3)),
        ({"SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}, Job("77", 1)),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Job("job", 1)),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a/b c"}, Job("a_b_c", 0)),
    ],
)
def test_job_is_found_in_the_environment(environ, expected):
    assert find_job(environ) == expected


GATHER = """
    import json, os, torch
    from lorakit.training.distributed import process_group
    from lorakit.energy import EnergyMeter
    group = process_group()  # torch alone now and then aborts at the end
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


# ---- sums


def measured(wh, **options):
    options = {"mean_w": wh * 60, "coverage": 1.0, "uncertainty_wh": 0.1, "uncertainty_kind": "bound"} | options
    return Quantity("counter", wh=wh, source="x", **options)


def test_sum_keeps_measured_and_estimated_apart():
    nothing = Quantity("unavailable", source="no GPU")
    estimate = Quantity("estimated", wh=5.0, mean_w=300.0, source="y", range_wh=(1.0, 9.0))
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


def test_sum_tells_a_device_that_could_not_be_read_and_keeps_the_conditions():
    record = {"id": "GPU-a", "kwh": 0.002, "coverage": 1.0}
    lost = {"id": "GPU-b", "kwh": None, "coverage": 0.0}
    nothing = Quantity("unavailable", source="none")
    dead = Quantity("unavailable", source="GPU-b: NVML error 4", devices=(lost,))

    def at(start_c, end_c):
        return {"driver": "570", "start": {"GPU-a": start_c}, "end": {"GPU-a": end_c}}

    first = Reading(measured(2.0, devices=(record,)), nothing, nothing, 60.0, conditions=at(40, 60))
    second = Reading(dead, nothing, nothing, 60.0)
    total = add_readings([first, second])
    assert (total.gpu.wh, total.gpu.coverage) == (2.0, 0.5)
    assert [part["id"] for part in total.gpu.devices] == ["GPU-a", "GPU-b"]
    assert add_readings(
        [first, Reading(measured(1.0), nothing, nothing, 60.0, conditions=at(55, 70))]
    ).conditions == at(40, 70)


def test_sum_over_ranks_has_their_common_time_and_the_sum_of_their_powers():
    def rank(duration_s, watts):
        quantity = Quantity("counter", wh=watts * duration_s / 3600, mean_w=watts, coverage=1.0, uncertainty_wh=0.0)
        return Reading(quantity, Quantity("unavailable", source="-"), Quantity("unavailable", source="-"), duration_s)

    total = add_readings([rank(100.0, 250.0), rank(100.0, 150.0)])
    assert total.duration_s == 100.0
    assert total.gpu.mean_w == pytest.approx(400.0)
    assert add_readings([rank(100.0, 250.0), rank(80.0, 150.0)]).duration_s == 100.0  # one of them began later


def test_sum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no readings to add"):
        add_readings([])


def test_a_rank_that_decides_late_does_not_count_what_was_counted_in_its_time(tmp_path):
    first, late = Claims(Job("job", 0), tmp_path), Claims(Job("job", 1), tmp_path)
    assert first.take("package-0")
    first.release()
    assert not late.take("package-0")
    assert "(local rank 0)" in late.holder("package-0")
    assert Claims(Job("job", 1), tmp_path).take("package-0")


def test_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path):
    """Between taking a lock and writing who holds it lies a moment in which other ranks look."""
    asking = Claims(Job("job", 1), tmp_path)
    (tmp_path / "package-0").touch()
    writer = threading.Timer(0.05, (tmp_path / "package-0").write_text, ["17 0\n"])
    writer.start()
    assert asking.holder("package-0") == "process 17 (local rank 0)"
    writer.join()
    assert asking.holder("dram") == "another process of the job"  # nobody ever writes
