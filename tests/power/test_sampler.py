"""The thread that takes the readings."""

import signal
import threading
import time
from pathlib import Path

from lorakit.power.clock import SystemClock
from lorakit.power.sampler import Sampler


def test_sampler_thread_sleeps_between_its_readings():
    reads = []
    sampler = Sampler(lambda: reads.append(threading.current_thread()), SystemClock(), period_s=0.05, seed=1)
    begun = time.monotonic()
    sampler.start()
    while len(reads) < 5 and time.monotonic() < begun + 30:
        time.sleep(0.01)
    sampler.stop()
    assert 5 <= len(reads) <= (time.monotonic() - begun) / 0.025 + 1  # half the period is the shortest sleep
    assert {thread.name for thread in reads} == {"lorakit-energy"}
    assert all(thread.daemon for thread in reads)
    assert not any(thread.name == "lorakit-energy" for thread in threading.enumerate())


def test_sampler_thread_takes_no_signal_of_the_main_thread():
    threads = []
    sampler = Sampler(lambda: threads.append(threading.get_native_id()), SystemClock(), period_s=0.01)
    sampler.start()
    while not threads:
        time.sleep(0.01)
    status = Path(f"/proc/self/task/{threads[0]}/status").read_text()
    mine = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    sampler.stop()
    blocked = int(status.split("SigBlk:\t")[1].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        assert blocked & 1 << (number - 1)
        assert number not in mine


def test_a_failing_reading_is_logged_once_and_the_thread_continues(caplog):
    calls = []

    def take():
        calls.append(None)
        raise ValueError("no value")

    sampler = Sampler(take, SystemClock(), period_s=0.01)
    sampler.start()
    end = time.monotonic() + 30
    while len(calls) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    sampler.stop()
    assert len(calls) >= 3
    assert caplog.text.count("could not take a reading; it keeps trying") == 1
