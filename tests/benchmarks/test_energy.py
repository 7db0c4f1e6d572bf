"""benchmarks/energy.py: what its table says of runs that are made up, with and without sensors."""

import json
import sys

import pytest
from matplotlib.figure import Figure

from lorakit.power.device_sums import DeviceEnergy, estimate_energy, sum_devices
from lorakit.power.reading import Measurement, Reading
from tests.support.tiny import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "energy", raising=False)
    import energy

    monkeypatch.delitem(sys.modules, "energy")
    return energy


def summary(runs):
    adapter = {"r": 16, "target_modules": ["query", "value"]}
    settings = {"sentences": 3000, "batch_size": 32, "adapter": adapter}
    return {
        "settings": settings,
        "note": "Before lunch.",
        "runs": runs,
    }


def run(mode, repeat, seconds, reading, tokens=1000):
    return {
        "mode": mode,
        "repeat": repeat,
        "trainable_parameters": {"full": 200, "lora": 10}[mode],
        "tokens": tokens,
        "seconds": seconds,
        "cpu_s": 2 * seconds,
        "energy": reading.to_json(),
    }


def guessed(seconds, load_j):
    cpu = estimate_energy(1.0, 16.0, "0.5 to 8 W for each of 2 logical CPUs, by load", seconds, load_j)
    ram = estimate_energy(2.0, 8.0, "0.1 to 0.4 W for each of 20 GiB", seconds)
    return Reading(Measurement("unavailable", source="NVML: no library"), cpu, ram, seconds)


def measured(seconds, gpu_w, gpu="GPU-a"):
    def part(name, watts, scope):
        joules = watts * seconds
        known = {"joules": joules, "covered_s": seconds, "wanted_s": seconds, "idle": (50.0, 0.1)}
        return sum_devices([DeviceEnergy(name, name, "counter", name, scope, **known)], seconds)

    ram = estimate_energy(2.0, 8.0, "2 to 6 W for each of 2 DIMMs", seconds)
    ends = {end: {gpu: {"temperature_c": degrees}} for end, degrees in (("start", 40), ("end", 60))}
    conditions = {"driver": "570.1", **ends}
    return Reading(part(gpu, gpu_w, "device"), part("package-0", 100.0, "socket"), ram, seconds, conditions=conditions)


def both(reading, *times):
    """Two repeats; LoRA takes half the time."""
    modes = (("full", 1.0), ("lora", 0.5))
    return [run(mode, k, t * part, reading(t * part)) for k, t in enumerate(times) for mode, part in modes]


def cells(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def draw(benchmark, data, path):
    figure = Figure()
    benchmark.draw(data, figure)
    figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_a_sensor_everything_is_called_an_estimate_and_the_ratio_one_of_times(benchmark, tmp_path):
    data = summary(both(lambda s: guessed(s, 7.0 * s), 10.0, 12.0))
    text = "\n".join(benchmark.report(data))
    assert cells(text, "training steps (s)")[1:] == ["11.00 ± 1.41", "5.50 ± 0.71", "0.500"]
    assert cells(text, "CPU, estimated (Wh)")[1] == "0.0244 ± 0.0031"  # 8 W
    assert cells(text, "GPU, unavailable (Wh)")[1:] == ["–", "–", "–"]
    assert cells(text, "measured, gross (Wh)")[1:] == ["–", "–", "–"]
    assert cells(text, "measured, above idle (Wh)")[1:] == ["–", "–", "–"]
    assert cells(text, "estimated (Wh)")[3] == "0.500"
    ranges = [line for line in text.splitlines() if line.startswith("| – lowest to highest")]
    assert len(ranges) == 3
    assert "0.003 to 0.049" in ranges[0]
    assert "**No energy was measured here: this machine has no sensor." in text
    assert "the ratio of two estimates is a ratio of times at that power, not of energies" in text
    assert "\nBefore lunch.\n" in text
    draw(benchmark, data, tmp_path / "energy.png")


def test_with_sensors_gross_and_above_idle_stand_beside_each_other(benchmark, tmp_path):
    data = summary(both(lambda s: measured(s, 250.0), 3600.0, 3600.0))
    text = "\n".join(benchmark.report(data))
    assert cells(text, "GPU, counter (Wh)")[1:] == ["250.0000", "125.0000", "0.500"]
    assert cells(text, "measured, gross (Wh)")[1:3] == ["350.0000", "175.0000"]
    assert cells(text, "measured, above idle (Wh)")[1:3] == ["250.0000", "125.0000"]
    assert cells(text, "GPU temperature, end (°C)")[1] == "60.0"
    assert cells(text, "measured, per million tokens (kWh)")[1] == "350.00000"
    assert "The RAM energy is an estimate and not part of any measured total." in text
    assert "No energy was measured" not in text
    draw(benchmark, data, tmp_path / "energy.png")


def test_ratios_are_taken_within_a_repeat(benchmark):
    """A machine that grows slower with time changes both modes of a repeat, whatever their order."""
    runs = both(lambda s: guessed(s, 0.0), 10.0, 20.0, 40.0)
    text = "\n".join(benchmark.report(summary(runs[::-1])))
    assert cells(text, "training steps (s)")[3] == "0.500"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": 999}, "did not see the same tokens"),
        ({"energy": measured(10.0, 250.0, gpu="GPU-b").to_json()}, "GPU energy is not of the same devices"),
        ({"energy": guessed(10.0, 0.0).to_json()}, "GPU energy is not of the same devices by one method"),
    ],
)
def test_unfair_comparisons_are_refused(benchmark, change, words):
    runs = both(lambda s: measured(s, 250.0), 10.0, 10.0)
    benchmark.check_fair(runs)
    with pytest.raises(SystemExit, match=words):
        benchmark.check_fair([*runs, {**runs[0], **change}])


def test_the_modes_take_turns_and_the_results_are_written(benchmark, tmp_path, monkeypatch, capsys):
    order = []

    def train_once(mode, data, arguments, repeat, idle):
        order.append((mode, repeat, len(data.train)))
        seconds = {"full": 10.0, "lora": 6.0}[mode]
        return run(mode, repeat, seconds, guessed(seconds, 1.0))

    monkeypatch.setattr(benchmark, "train_once", train_once)
    monkeypatch.setattr(benchmark, "measure_idle", lambda seconds: {})
    options = ["--repeats", "3", "--sentences", "250", "--rest", "0", "--output-dir", str(tmp_path)]
    assert benchmark.main(options) == 0
    modes = ["full", "lora", "full", "lora", "lora", "full", "full", "lora"]
    assert [mode for mode, _, _ in order] == modes
    assert [few for _, _, few in order] == [200, 200] + [250] * 6  # the warm-up is shorter, and not counted
    saved = json.loads((tmp_path / "energy.json").read_text())
    assert [entry["mode"] for entry in saved["runs"]] == modes[2:]
    assert "|       0.600 |" in (tmp_path / "energy.md").read_text()
    assert (tmp_path / "energy.png").stat().st_size > 1000
    assert "Energy of LoRA" in capsys.readouterr().out
