"""Real processes: forks, kills, ranks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lorakit.energy import EnergyMeter
from lorakit.power.device_locks import DeviceLocks, Job
from lorakit.power.journal import read_journal
from lorakit.power.reading import Reading, add_readings
from tests.support.energy_world import FakeGpu, FakeNvml, FakeZone, Profile, VirtualClock, World, slow_reads
from tests.support.processes import start, wait_until

# ---- forks


def fork(in_child):
    """Run a function in a forked child; returns the wait status. The child must end by itself within 20 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a deadlock shows as a signal
        try:
            in_child()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child_measures_nothing_and_never_hangs(tmp_path):
    """Like a DataLoader worker: forked while the sampler holds the lock, it leaves the block by sys.exit."""
    path = tmp_path / "run.jsonl"
    nvml = FakeNvml(VirtualClock(), [FakeGpu("GPU-a", Profile((0, 100.0)))])
    meter = EnergyMeter(tmp_path / "none", nvml, out=path, environ={}, thread=False)
    with meter:
        held, go_on = slow_reads(nvml)
        holder = threading.Thread(target=meter.sample)
        holder.start()
        assert held.wait(30)

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
    import lorakit.power.device_locks
    from lorakit.energy import EnergyMeter
    lorakit.power.device_locks.LEADER_WAIT_S = 600.0  # a busy machine may start the ranks many seconds apart
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
    """The last rank starts first; the package and its DRAM, hence every joule, are counted by one rank."""
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


def test_forked_child_neither_keeps_nor_releases_a_lock(tmp_path):
    locks = DeviceLocks(Job("j", 0), tmp_path)
    world = World(tmp_path)
    environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with world.meter(environ=environ, claims=tmp_path) as meter:
        assert fork(lambda: os._exit(0)) == 0
        code = f"""
            from lorakit.power.device_locks import DeviceLocks, Job
            print(DeviceLocks(Job("j", 1), {str(tmp_path)!r}).acquire("ram-estimate"))
        """
        assert start(code).communicate(timeout=60)[0] == "False\n"
    assert meter.reading.ram.method == "estimated"
    assert start(code).communicate(timeout=60)[0] == "True\n"
    locks.release()


def test_two_meters_of_one_rank_share_its_locks(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with world.meter(environ=environ, claims=tmp_path / "c") as outer:
        with world.meter(environ=environ, claims=tmp_path / "c") as inner:
            world.run(inner, 10)
        world.run(outer, 10)
        assert DeviceLocks(Job("j", 1), tmp_path / "c").leader_is_running()
    assert not DeviceLocks(Job("j", 1), tmp_path / "c").leader_is_running()
    assert inner.reading.gpu.wh * 3600 == pytest.approx(1000, abs=0.01)
    assert outer.reading.gpu.wh * 3600 == pytest.approx(2000, abs=0.01)


def test_two_jobs_whose_launcher_gives_no_name_have_their_own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    world = World(tmp_path)
    for root in (101, 102):
        monkeypatch.setattr("lorakit.energy.job_root", lambda *_, root=root: root)
        with world.meter(environ={"MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}):
            pass
    names = sorted(path.name for path in (tmp_path / "tmp").glob("lorakit-energy-*/*"))
    assert [name.rpartition("-job-")[2] for name in names] == ["101", "102"]


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
            assert DeviceLocks(Job("j", 1), tmp_path / "c").leader_is_running()
            world.run(meter, 5)
    assert meter.reading.ram.method == "estimated"
    with monkeypatch.context() as patch:
        patch.setattr("lorakit.power.device_locks.DeviceLocks.acquire", full)
        with world.meter(environ={"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, claims=tmp_path / "d") as meter:
            world.run(meter, 5)
    assert meter.reading.ram.method == "estimated"
    assert "do not add up their energies" in meter.reading.notes[0]


# ---- sums
