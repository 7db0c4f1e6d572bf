"""Paths of windows, and CUDA at their edges."""

import asyncio
import sys
import threading

import pytest

from lorakit.energy import EnergyMeter
from lorakit.power.windows import WindowPaths, check_window_name
from tests.support.energy_world import FakeTorch


def test_each_thread_has_windows_of_its_own():
    paths, found = WindowPaths(), []

    def other():
        with paths.entered("b") as path:
            found.append(path)

    with paths.entered("a"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with paths.entered("c") as path:
            found.append(path)
    assert found == ["b", "a/c"]


def test_of_two_windows_with_one_name_each_leaves_its_own_entry():
    paths = WindowPaths()
    outer, inner = paths.entered("a"), paths.entered("a")
    assert (outer.__enter__(), inner.__enter__()) == ("a", "a/a")
    outer.__exit__(None, None, None)
    with paths.entered("b") as path:
        assert path == "a/b"  # the inner one is still open
    inner.__exit__(None, None, None)
    with paths.entered("b") as path:
        assert path == "b"


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(ValueError, match="must not be empty or contain a '/'"):
        check_window_name(name)


def test_meter_never_starts_cuda(tmp_path):
    torch = pytest.importorskip("torch")
    with EnergyMeter(tmp_path) as meter, meter.window("w"):
        pass
    assert not torch.cuda.is_initialized()


def test_cuda_is_waited_for_at_exact_edges_only_and_only_if_it_runs(tmp_path, monkeypatch):
    for running, expected in [(True, 4), (False, 0)]:
        torch = FakeTorch(running)
        monkeypatch.setitem(sys.modules, "torch", torch)
        with EnergyMeter(tmp_path, thread=False) as meter:
            with meter.window("exact"):
                pass
            with meter.window("step", exact=False):
                pass
        assert torch.synchronized == expected


def test_a_failing_block_does_not_wait_for_cuda(tmp_path, monkeypatch):
    torch = FakeTorch(True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(KeyboardInterrupt), EnergyMeter(tmp_path, thread=False) as meter, meter.window("hung"):
        raise KeyboardInterrupt
    assert torch.synchronized == 2  # both entries


def test_broken_cuda_at_an_edge_is_logged_and_not_raised(tmp_path, monkeypatch, caplog):
    torch = FakeTorch(True)
    torch.cuda.synchronize = lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: device-side assert"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with EnergyMeter(tmp_path, thread=False):
        pass
    assert "could not be synchronised" in caplog.text


def test_tasks_that_run_at_the_same_time_do_not_nest_in_each_other():
    paths, found = WindowPaths(), []

    async def task(name):
        with paths.entered(name):
            await asyncio.sleep(0)
            with paths.entered("inner") as path:
                await asyncio.sleep(0)
                found.append(path)

    async def both():
        with paths.entered("all"):
            await asyncio.gather(task("a"), task("b"))

    asyncio.run(both())
    assert sorted(found) == ["all/a/inner", "all/b/inner"]
