"""What others used in each window, in virtual time: every figure is exact."""

import os
import subprocess
import sys
import time

import pytest

import lorakit
from lorakit.power import machine_use
from lorakit.power.memory_use import memory_in_use
from lorakit.power.nvml import Gpu
from lorakit.power.reading import Reading
from tests.support.energy_world import FakeGpu, Profile, World, two_gpus


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_use.os, "cpu_count", lambda: 4)
    return World(tmp_path)


def test_each_window_has_exactly_what_was_used_in_it(world):
    with world.meter() as meter:
        world.use(10, own=2)
        with meter.window("busy"):
            world.use(20, own=1.5, others=1.2, steal=0.1, pressure=0.5)
            meter.sample()
            world.use(10, own=1.5, others=0.3, steal=0.1, pressure=0.25)
        with meter.window("quiet"):
            world.use(5, own=2, others=0.04)
    busy, quiet, whole = (meter.windows["busy"].contention, meter.windows["quiet"].contention, meter.reading.contention)
    assert (busy.duration_s, busy.logical_cpus) == (30, 4)
    assert (busy.own_cpu_s, busy.others_cpu_s) == pytest.approx((45, 27))
    assert (busy.steal_s, busy.pressure_s) == pytest.approx((3, 12.5))
    assert busy.share == pytest.approx(30 / 120)
    assert quiet.share == pytest.approx(0.01) and not quiet.is_contended and quiet.note is None
    assert (whole.own_cpu_s, whole.others_cpu_s, whole.duration_s) == pytest.approx((75, 27.2, 45))
    assert meter.windows["busy"].process_share == pytest.approx(45 / 72)
    assert meter.reading.process_share == pytest.approx(75 / 102.2)


SPINS = """
import time
while time.process_time() < 0.6: pass
print(time.process_time(), flush=True)
"""


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_real_process_is_ours_if_it_is_in_our_tree_and_another_if_not(tmp_path, is_ours):
    """The shell ends at once, so that the process it leaves behind belongs to init."""
    (tmp_path / "spin.py").write_text(SPINS)
    (tmp_path / "spent").touch()  # the shell may end before the process has opened it
    command = f"{sys.executable} -S {tmp_path}/spin.py > {tmp_path}/spent"
    with lorakit.EnergyMeter(tmp_path, thread=False) as meter:
        subprocess.run(["sh", "-c", command if is_ours else f"({command}) &"], check=True)
        end = time.monotonic() + 60
        while not (tmp_path / "spent").read_text():
            time.sleep(0.02)
            assert time.monotonic() < end
        time.sleep(0.1)
    found = meter.reading.contention
    spent_s = float((tmp_path / "spent").read_text())
    assert (found.own_cpu_s >= spent_s - 0.05) is is_ours
    if not is_ours:
        assert found.others_cpu_s >= spent_s - 0.1


def test_windows_that_alternate_share_nothing(world):
    """As two trainings that take turns do: the other job in the middle is charged to whom it hit."""
    with world.meter() as meter:
        for turn in range(6):
            with meter.window("full"):
                world.use(5, own=2, others=2 * (turn >= 3))
            with meter.window("lora"):
                world.use(5, own=2, others=2 * (turn >= 4))
    shares = [meter.windows[name].contention.share for name in ("full", "lora")]
    assert shares == pytest.approx([3 / 6 / 2, 2 / 6 / 2])


def test_an_edge_between_two_readings_gets_its_share_by_time(world):
    with world.meter() as meter:
        world.use(2, others=1)
        with meter.window("step", exact=False):
            world.use(3, others=1)
        world.use(5, others=1)
        meter.sample()
        for _ in range(4):
            with meter.window("step", exact=False):
                world.use(1, others=2)
        meter.sample()
    step = meter.windows["step"].contention
    assert (step.duration_s, step.others_cpu_s) == pytest.approx((7, 11))


def test_a_window_still_open_is_counted_up_to_now(world):
    with world.meter() as meter:
        world.use(4, others=1)
        assert meter.reading.contention.others_cpu_s == pytest.approx(4)
        world.use(4, others=1)
    assert meter.reading.contention.others_cpu_s == pytest.approx(8)


def test_what_the_machine_does_not_tell_is_none_and_never_zero(world):
    (world.proc / "pressure" / "cpu").unlink()
    world.has_pressure = False
    with world.meter() as meter:
        world.use(10, own=1, others=1)
        (world.proc / str(os.getpid()) / "stat").unlink()
        hidden = meter.reading.contention
        world.use(10, own=1, others=1)
    assert hidden.own_cpu_s is hidden.others_cpu_s is hidden.share is None and hidden.steal_s == 0
    assert meter.reading.contention.pressure_s is None
    assert meter.reading.contention.gpu_processes is None  # there is no GPU
    assert meter.reading.contention.others_cpu_s == pytest.approx(20)  # known again at the end
    assert meter.reading.to_json()["contention"]["pressure_s"] is None


def test_a_reading_that_fails_at_an_edge_makes_only_its_windows_unknown(world):
    with world.meter() as meter:
        with meter.window("lost"):
            world.use(5, others=1)
            (world.proc / "stat").write_text("nonsense")
        world.write()
        with meter.window("found"):
            world.use(5, others=1)
    assert meter.windows["lost"].contention.others_cpu_s is meter.windows["lost"].contention.steal_s is None
    assert meter.windows["found"].contention.others_cpu_s == pytest.approx(5)
    assert meter.reading.contention.others_cpu_s == pytest.approx(10)


def test_processes_on_the_gpus_are_seen_during_the_whole_run(tmp_path):
    world = two_gpus(tmp_path)
    for pid in (4711, 4712, 4713):
        (world.proc / str(pid)).mkdir()
    mine, other = world.nvml.gpus
    mine.processes = [os.getpid()]
    with world.meter() as meter:
        with meter.window("alone"):
            world.run(meter, 10)
        with meter.window("crowded"):
            world.run(meter, 5)
            mine.processes, other.processes = [os.getpid(), 4711], [4711, 4712]
            world.run(meter, 5)
            mine.processes, other.processes = [os.getpid()], [4713]
            world.run(meter, 5)
    counts = {name: window.contention.gpu_processes for name, window in meter.windows.items()}
    assert counts == {"alone": 0, "crowded": 2}
    assert meter.reading.contention.gpu_processes == 2
    assert meter.reading.contention.note.startswith("2 other processes computed on the GPUs during this run")


def test_ids_of_another_namespace_among_which_ours_may_be_tell_nothing(tmp_path):
    """NVML may list a host's ids in a container; and it may refuse."""
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    world.nvml.gpus[0].processes = [99_999]
    with world.meter() as meter:
        world.run(meter, 10)
        world.nvml.gpus[0].processes = [99_999, os.getpid()]
        with meter.window("ours is seen"):
            world.run(meter, 10)
    assert meter.windows["ours is seen"].contention.gpu_processes == 1
    (tmp_path / "again").mkdir()
    world = World(tmp_path / "again", [FakeGpu("GPU-a", Profile((0, 100.0)))])
    world.nvml.nvmlDeviceGetComputeRunningProcesses = refuse
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.contention.gpu_processes is None


def refuse(_gpu: Gpu) -> None:
    raise AttributeError("this pynvml does not know the function")


def test_the_driver_is_asked_by_the_sampler_only_and_not_at_every_reading(tmp_path):
    world = two_gpus(tmp_path)
    asked = []
    real = world.nvml.nvmlDeviceGetComputeRunningProcesses
    world.nvml.nvmlDeviceGetComputeRunningProcesses = lambda gpu: (asked.append(world.time), real(gpu))[1]
    with world.meter() as meter:
        world.run(meter, 10, every_s=0.5)
        for _ in range(50):
            with meter.window("w"):
                world.advance(0.1)
    assert len(asked) == 2 * (1 + 5)  # two GPUs, at the start and every 2 s


# ---- whose energy: GPU time and memory


def shared_gpu(tmp_path, **users):
    """A GPU on which processes compute; `users` maps a process's id to its utilization in %."""
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 200.0)))])
    gpu = world.nvml.gpus[0]
    gpu.processes = [int(pid.removeprefix("p")) for pid in users]
    gpu.utilizations = {int(pid.removeprefix("p")): percent for pid, percent in users.items()}
    for pid in gpu.processes:
        (world.proc / str(pid)).mkdir(exist_ok=True)
    return world, gpu


def test_a_shared_gpu_is_said_in_its_line_with_our_part(tmp_path):
    world, gpu = shared_gpu(tmp_path, **{f"p{os.getpid()}": 60, "p77": 20})
    with world.meter() as meter:
        world.run(meter, 20)
        gpu.utilizations = {os.getpid(): 60}
        gpu.processes = [os.getpid()]
        with meter.window("alone"):
            world.run(meter, 20)
    whole, alone = meter.reading, meter.windows["alone"]
    assert whole.gpu.wh * 3600 == pytest.approx(8000)  # the total stays the machine's
    assert whole.contention.own_gpu_s == pytest.approx(24)
    assert whole.contention.others_gpu_s == pytest.approx(5, abs=1)  # until the next look
    assert whole.contention.gpu_share == pytest.approx(24 / 29, abs=0.03)
    assert str(whole).splitlines()[0].endswith("of the GPUs' busy time was ours")
    assert alone.contention.gpu_share > whole.contention.gpu_share
    assert Reading.from_json(whole.to_json()).contention == whole.contention


def test_gpu_time_is_unknown_where_the_driver_lists_ids_of_another_namespace(tmp_path):
    world, gpu = shared_gpu(tmp_path)
    gpu.processes, gpu.utilizations = [987_654], {987_654: 80}  # no process here
    with world.meter() as meter:
        world.run(meter, 10)
    assert (meter.reading.contention.own_gpu_s, meter.reading.contention.gpu_share) == (None, None)


def test_an_exclusive_gpu_has_a_plain_line(tmp_path):
    world, _ = shared_gpu(tmp_path, **{f"p{os.getpid()}": 90})
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.contention.gpu_share == 1.0
    assert "shared" not in str(meter.reading)


def test_memory_is_split_between_this_tree_and_the_rest(tmp_path):
    world = World(tmp_path)
    page = os.sysconf("SC_PAGE_SIZE")
    (world.proc / str(os.getpid()) / "statm").write_text("9999 2048 100 1 0 1 0\n")
    with world.meter() as meter:
        world.run(meter, 10)
    found = meter.reading.contention
    assert found.own_memory_bytes == pytest.approx(2048 * page)
    assert found.own_memory_bytes + found.others_memory_bytes == pytest.approx(33_554_432 * 1024)
    assert found.memory_share == pytest.approx(2048 * page / (33_554_432 * 1024))


def test_memory_of_this_machine_is_as_psutil_says(tmp_path):
    import psutil

    own, others = memory_in_use([os.getpid()])
    assert own == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert 0 < own + others <= psutil.virtual_memory().total
    assert memory_in_use([2**22 + 1]) is None
