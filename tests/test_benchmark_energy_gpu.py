"""benchmarks/energy_gpu.py on the fake NVML, in real time: its methods agree on a constant load."""

import sys
import time
from types import SimpleNamespace

import pytest

from tests.energy_world import FakeGpu, FakeNvml, Profile

from .tiny import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "energy_gpu", raising=False)
    import energy_gpu

    return energy_gpu


class Now(SimpleNamespace):
    """The real time as the fake's clock; that a fake reading takes time is left out."""

    now = property(lambda _self: time.monotonic(), lambda _self, _value: None)


def load(seconds):
    time.sleep(seconds)
    return 10


def test_counter_and_integral_agree_and_the_overhead_is_told(benchmark):
    nvml = FakeNvml(Now(), [FakeGpu("GPU-a", Profile((0, 200.0)))])
    result = benchmark.compare(nvml, load, 0.5, others=False)
    truth_j = 200 * result["seconds"]
    assert result["lorakit_method"] == "counter"
    assert abs(result["lorakit_j"] - truth_j) <= result["lorakit_uncertainty_j"]
    assert result["power_samples"] >= 3
    assert 0 < result["power_at_10_hz_j"] <= truth_j
    cost = benchmark.overhead(nvml, load, 0.05, repeats=1)
    assert len(cost["work_per_s"]["with"]) == len(cost["work_per_s"]["without"]) == len(cost["sampler_cpu_share"]) == 1
    assert nvml.sessions == 0


def test_without_a_gpu_it_says_so(benchmark, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 2
    assert "no CUDA GPU here" in capsys.readouterr().err


def test_foreign_meters_that_are_missing_are_told(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with benchmark.Others(**benchmark.OTHERS) as others:
        pass
    assert set(others.results) == {"zeus", "codecarbon"}
    assert all(text.startswith("not measured: ") for text in others.results.values())


def test_a_foreign_meter_gives_joules_or_why_it_failed(benchmark):
    def failing():
        raise OSError("no answer")

    with benchmark.Others(good=lambda: lambda: 12.5, late=lambda: failing, never=failing) as others:
        assert others.results == {"never": "not measured: no answer"}
    assert others.results == {"never": "not measured: no answer", "late": "not measured: no answer", "good": 12.5}
