"""benchmarks/energy_overhead.py on the fake NVML, in real time: its methods agree on a constant load."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from tests.support.energy_world import FakeGpu, FakeNvml, Profile
from tests.support.tiny import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "energy_overhead", raising=False)
    import energy_overhead

    return energy_overhead


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


def test_without_a_gpu_the_meter_costs_something_and_is_compared_with_none(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "EDGES", 20)
    monkeypatch.setattr(benchmark, "SAMPLES", 20)
    assert benchmark.main(["--seconds", "0.2", "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "energy_overhead.json").read_text())
    assert "comparison" not in found and "overhead" not in found
    server = found["results"]["server with 8 GPUs, simulated"]
    assert server["methods"] == {"gpu": "counter", "cpu": "counter", "ram": "counter"}
    assert 0 < server["memory_bytes"] < 4 << 20
    assert server["wall_s"] >= 0.2 and server["exact_edge_us"] > 0 and server["inexact_edge_us"] > 0
    text = (tmp_path / "energy_overhead.md").read_text()
    assert "Memory is what Python has allocated" in text
    assert "| this machine " in text and "On one GPU load" not in text


def test_the_threads_readings_are_counted(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "EDGES", 20)
    monkeypatch.setattr(benchmark, "SAMPLES", 2)
    found = benchmark.measure(lambda **options: benchmark.EnergyMeter(period_s=0.01, **options), 0.5)
    assert found["readings"] >= 2


def test_with_a_gpu_the_comparison_is_in_the_result(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark.torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(benchmark, "EDGES", 20)
    monkeypatch.setattr(benchmark, "SAMPLES", 20)
    for name in ("compare", "overhead"):
        monkeypatch.setattr(benchmark, name, lambda nvml, load, seconds: {"seconds": seconds})
    monkeypatch.setattr(benchmark, "matmuls", load)
    monkeypatch.setattr(benchmark, "measure", lambda make, seconds: {**MEASURED, "wall_s": seconds})
    assert benchmark.main(["--seconds", "0.3", "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "energy_overhead.json").read_text())
    assert found["comparison"] == {"seconds": 0.3} and found["overhead"] == {"seconds": pytest.approx(0.1)}
    assert "On one GPU load" in (tmp_path / "energy_overhead.md").read_text()


MEASURED = {"methods": {}, "sampler_cpu_s": 0.1, "sampler_share": 0.1, "readings": 1}
MEASURED |= {"exact_edge_us": 1.0, "inexact_edge_us": 1.0, "memory_bytes": 1024, "memory_share": 1e-6}


def test_foreign_meters_that_are_missing_are_told(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    stops, missing = benchmark.attempt(benchmark.OTHERS)
    assert stops == {} and set(missing) == {"zeus", "codecarbon"}
    assert all(text.startswith("not measured: ") for text in missing.values())


def test_a_foreign_meter_gives_joules_or_why_it_failed(benchmark, monkeypatch):
    def failing():
        raise OSError("no answer")

    others = {"good": lambda: lambda: 12.5, "late": lambda: failing, "never": failing}
    monkeypatch.setattr(benchmark, "OTHERS", others)
    nvml = FakeNvml(Now(), [FakeGpu("GPU-a", Profile((0, 200.0)))])
    result = benchmark.compare(nvml, load, 0.1)
    assert result["good_j"] == 12.5
    assert result["late_j"] == result["never_j"] == "not measured: no answer"
