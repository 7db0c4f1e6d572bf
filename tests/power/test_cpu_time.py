"""CPU time of process trees and of the machine."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from lorakit.power.cpu_time import MachineTimes, TreeTime, job_root, process_tree, process_tree_cpu_s, procfs

TICKS = os.sysconf("SC_CLK_TCK")


def test_children_that_lived_shortly_are_counted():
    """Fourteen children of 0.1 s: each is gone before a sampler could see it."""
    before = process_tree_cpu_s(os.getpid())
    busy = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    for _ in range(14):
        os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", busy], os.environ), 0)
    assert process_tree_cpu_s(os.getpid()) - before >= 1.3


def write_process(proc, pid, parent, *ticks, children=None):
    """A process in a fake /proc with its utime, stime, cutime and cstime; `children` as its only thread lists them."""
    (proc / str(pid)).mkdir()
    fields = ["S", str(parent), *["0"] * 9, *map(str, ticks), *["0"] * 30]
    (proc / str(pid) / "stat").write_text(f"{pid} (a) b (c) {' '.join(fields)}\n")
    if children is not None:
        (proc / str(pid) / "task" / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "task" / str(pid) / "children").write_text(" ".join(map(str, children)))


@pytest.mark.parametrize("lists_children", [True, False])
def test_living_grandchildren_and_odd_names_are_counted(tmp_path, lists_children):
    """Both with the kernel's lists of children and without."""
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\nbtime 0\n")
    children = {10: [11], 11: [12], 12: []} if lists_children else {}
    write_process(tmp_path, 10, 1, 100, 50, 25, 25, children=children.get(10))
    write_process(tmp_path, 11, 10, 100, 0, 0, 0, children=children.get(11))
    write_process(tmp_path, 12, 11, 100, 0, 0, 0, children=children.get(12))
    write_process(tmp_path, 13, 1, 999, 0, 0, 0)
    assert process_tree(10, tmp_path) == [10, 11, 12]
    assert process_tree_cpu_s(10, tmp_path) == 400 / TICKS
    assert process_tree_cpu_s(99, tmp_path) is None


def test_only_the_tree_is_read(tmp_path):
    """A server has thousands of other processes: reading this one would raise."""
    write_process(tmp_path, 10, 1, 100, 0, 0, 0, children=[11])
    write_process(tmp_path, 11, 10, 100, 0, 0, 0, children=[])
    (tmp_path / "13").mkdir()
    (tmp_path / "13" / "stat").write_text("unreadable")
    assert process_tree_cpu_s(10, tmp_path) == 200 / TICKS
    with procfs(tmp_path), pytest.raises(Exception, match="unreadable|index"):
        psutil.Process(10).children()  # which does read it


def test_a_real_tree_is_the_one_that_psutil_finds():
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        found = process_tree(os.getpid())
        assert set(found) == {os.getpid(), *(part.pid for part in psutil.Process().children(recursive=True))}
        assert child.pid in found and len(found) >= 3
        assert process_tree_cpu_s(child.pid) is not None
    finally:
        for part in psutil.Process(child.pid).children(recursive=True):
            part.kill()
        child.kill()
        child.communicate()


def test_machine_is_busy_but_for_idling_and_waiting_for_disks_and_steal_is_separate(tmp_path):
    (tmp_path / "stat").write_text("cpu  100 20 30 9000 8000 4 5 600 70 0\n")
    assert MachineTimes(tmp_path).read() == pytest.approx((159 / TICKS, 600 / TICKS))
    (tmp_path / "stat").write_text("cpu  100 20 30 9000 8000 4 5\n")
    assert MachineTimes(tmp_path).read() == (159 / TICKS, None)  # a kernel that does not know steal


@pytest.mark.parametrize("text", ["", "cpu  100 20\n", "cpu  a b c d e f g h i j\n"])
def test_malformed_times_are_an_os_error(tmp_path, text):
    (tmp_path / "stat").write_text(text)
    with pytest.raises(OSError, match="stat does not hold the CPU times"):
        MachineTimes(tmp_path).read()
    with pytest.raises(OSError, match="No such file"):
        MachineTimes(tmp_path / "none").read()


def test_the_machines_times_are_those_of_psutil():
    times = MachineTimes()
    busy_s, steal_s = times.read()
    now = psutil.cpu_times()
    times.close()
    assert busy_s == pytest.approx(now.user + now.nice + now.system + now.irq + now.softirq, abs=1)
    assert steal_s == pytest.approx(now.steal, abs=1)


def test_time_of_a_process_that_left_the_tree_stays_counted_and_rounding_is_not(tmp_path):
    write_process(tmp_path, 10, 1, 0, 0, 0, 0, children=[11])
    write_process(tmp_path, 11, 10, 100, 0, 0, 0, children=[])
    tree = TreeTime(10, tmp_path)
    for second, (ticks, wanted_s) in enumerate([(300, 2.0), (298, 2.0), (300, 2.0), (0, 2.0), (50, 2.5)], start=1):
        fields = ["S", "10", *["0"] * 9, str(ticks), *["0"] * 33]
        (tmp_path / "11" / "stat").write_text(f"11 (b) {' '.join(fields)}\n")
        assert tree.read(float(second)) == pytest.approx(wanted_s)
    (tmp_path / "10" / "stat").unlink()
    assert tree.read(9.0) is None


def test_this_process_is_read_without_and_with_children_to_the_same_total():
    tree, before = TreeTime(os.getpid()), process_tree_cpu_s(os.getpid())
    spin(0.3)
    assert tree.read(1.0) == pytest.approx(process_tree_cpu_s(os.getpid()) - before, abs=0.1)
    code = "import sys\nfor _ in range(3_000_000): pass\nprint('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    with_child = tree.read(2.0)
    assert with_child > 0.3
    child.communicate()
    assert tree.read(3.0) == pytest.approx(process_tree_cpu_s(os.getpid()) - before, abs=0.1)
    assert tree.read(4.0) >= with_child


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_root_of_a_job_is_the_ancestor_that_has_no_rank(tmp_path, monkeypatch):
    """Here a wrapper around this rank, started by the launcher."""
    wrapper = 78
    monkeypatch.setattr(os, "getppid", lambda: wrapper)  # the real parent may be process 1, which ends the search
    write_process(tmp_path, wrapper, 77, 0, 0, 0, 0)
    write_process(tmp_path, 77, 1, 0, 0, 0, 0)
    (tmp_path / str(wrapper) / "environ").write_bytes(b"HOME=/\0LOCAL_RANK=0\0")
    (tmp_path / "77" / "environ").write_bytes(b"HOME=/\0")
    assert job_root("LOCAL_RANK", tmp_path) == 77
    assert job_root("SLURM_LOCALID", tmp_path) == wrapper


@pytest.mark.parametrize("is_host", [True, False])
def test_process_1_is_a_jobs_root_in_a_container_only(tmp_path, monkeypatch, is_host):
    parent = 78
    monkeypatch.setattr(os, "getppid", lambda: parent)
    write_process(tmp_path, parent, 1, 0, 0, 0, 0)
    (tmp_path / str(parent) / "environ").write_bytes(b"LOCAL_RANK=0\0")
    if is_host:
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "comm").write_text("kthreadd\n")
    assert job_root("LOCAL_RANK", tmp_path) == (os.getpid() if is_host else 1)
