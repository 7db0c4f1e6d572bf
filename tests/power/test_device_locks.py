"""Which rank counts which device, by lock files; whole jobs are in tests/integration/test_energy_processes.py."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lorakit.power.device_locks import DeviceLocks, Job, find_job
from tests.support.processes import start, wait_until


def test_devices_of_a_killed_rank_are_free_again(tmp_path):
    job = Job("j", 0)
    code = f"""
        import sys
        from lorakit.power.device_locks import DeviceLocks, Job
        locks = DeviceLocks(Job("j", 1), {str(tmp_path)!r})
        print(locks.acquire("GPU-a"), locks.acquire("leader"), flush=True)
        sys.stdin.readline()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True True\n"
    locks = DeviceLocks(job, tmp_path)
    assert locks.leader_is_running()
    assert not locks.acquire("GPU-a")
    assert locks.holder("GPU-a") == f"process {process.pid} (local rank 1)"
    process.kill()
    process.communicate()
    assert not locks.leader_is_running()
    assert locks.acquire("GPU-a")
    locks.release()


def test_locks_of_a_killed_rank_do_not_live_on_in_its_children(tmp_path):
    code = f"""
        import os, time
        from lorakit.power.device_locks import DeviceLocks, Job
        assert DeviceLocks(Job("j", 1), {str(tmp_path)!r}).acquire("GPU-a")
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(60)
    """
    process = start(code)
    worker = int(process.stdout.readline())
    try:
        time.sleep(0.2)  # the worker closes its descriptors at once, but nothing tells us when
        process.kill()
        process.wait()
        locks = DeviceLocks(Job("j", 0), tmp_path)
        wait_until(lambda: locks.acquire("GPU-a"), seconds=5)
        locks.release()
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "MASTER_PORT": "1"}, Job("1", 3)),
        ({"SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77"}, Job("77", 1, "SLURM_LOCALID")),
        (
            {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Job("job", 1, "OMPI_COMM_WORLD_LOCAL_RANK", is_named=False),
        ),
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, Job("job", 1, "MPI_LOCALRANKID", is_named=False)),
        (
            {"MV2_COMM_WORLD_LOCAL_RANK": "0", "MV2_COMM_WORLD_LOCAL_SIZE": "2"},
            Job("job", 0, "MV2_COMM_WORLD_LOCAL_RANK", is_named=False),
        ),
        ({"LOCAL_RANK": "1", "LOCAL_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "5"}, Job("5", 1)),  # DeepSpeed
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1"}, Job("n1", 1)),
        ({"LOCAL_RANK": "0"}, None),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a/b c"}, Job("a_b_c", 0)),
    ],
)
def test_job_is_found_in_the_environment(environ, expected):
    assert find_job(environ) == expected


def test_a_rank_that_decides_late_does_not_count_what_was_counted_in_its_time(tmp_path):
    first, late = DeviceLocks(Job("job", 0), tmp_path), DeviceLocks(Job("job", 1), tmp_path)
    assert first.acquire("package-0")
    first.release()
    assert not late.acquire("package-0")
    assert "(local rank 0)" in late.holder("package-0")
    assert DeviceLocks(Job("job", 1), tmp_path).acquire("package-0")


def test_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path):
    """Other ranks may look between the moment a lock is taken and the moment its holder's name is written."""
    asking = DeviceLocks(Job("job", 1), tmp_path)
    (tmp_path / "package-0").touch()
    writer = threading.Timer(0.05, (tmp_path / "package-0").write_text, ["17 0\n"])
    writer.start()
    assert asking.holder("package-0") == "process 17 (local rank 0)"
    writer.join()
    assert asking.holder("dram") == "another process of the job"  # nobody ever writes


@pytest.mark.parametrize("part", ["base", "job"])
@pytest.mark.parametrize("fault", ["others can write", "another owner", "a link"])
def test_a_folder_that_is_not_this_users_alone_is_refused(tmp_path, part, fault):
    base = tmp_path / "lorakit-energy"
    folder = base / "boot-job"
    theirs = base if part == "base" else folder
    theirs.mkdir(parents=True, mode=0o700)
    if fault == "others can write":
        theirs.chmod(0o777)
    elif fault == "another owner":
        if os.getuid():
            pytest.skip("only root can give a folder to somebody else")
        os.chown(theirs, 65534, 65534)
    else:
        theirs.rmdir()
        (tmp_path / "elsewhere").mkdir()
        theirs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="belongs to another user, or others can write to it|not a folder"):
        DeviceLocks(Job("job", 0), folder)
    assert not (tmp_path / "elsewhere").exists() or list((tmp_path / "elsewhere").iterdir()) == []
