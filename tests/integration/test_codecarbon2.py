"""examples/codecarbon2.py: the study's numbers, as CodeCarbon 2.x made them."""

import sys
from types import SimpleNamespace

import pytest

from examples import bionlp, codecarbon2
from examples.codecarbon2 import codecarbon_v2_model
from tests.support.energy_world import FakeGpu, Profile, World

STUDY_BYTES = 540_903_927_808
# duration by the CPU column, time that 8 GPU readings took, GPU kWh; then the study's RAM, CPU, GPU and total
ROWS = {
    "without LoRA": (11_399.38, 8.91 / 759, 1.585529, ("0.597710", "0.134576", "1.585529", "2.317815")),
    "with LoRA": (13_109.57, 10.83 / 873, 1.8745757, ("0.687351", "0.154766", "1.874576", "2.716692")),
}


def test_constants_to_the_last_digit():
    assumed = codecarbon_v2_model(3600.0, STUDY_BYTES)
    assert repr(assumed.ram_w) == "188.9085144996643"
    assert assumed.cpu_w == 42.5


@pytest.mark.parametrize("row", ROWS)
def test_row_of_the_study_to_six_decimals(tmp_path, row):
    """Eight V100s that draw the study's mean, through the meter; RAM and CPU from the duration."""
    duration_s, gpu_read_s, gpu_kwh, expected = ROWS[row]
    watts = gpu_kwh * 3.6e6 / duration_s / 8
    gpus = [FakeGpu(f"GPU-{index}", Profile((0, watts)), tick_s=0.0) for index in range(8)]
    world = World(tmp_path, gpus)
    with world.meter() as meter:
        world.run(meter, duration_s, every_s=600.0)
    assert meter.reading.gpu.method == "counter"
    assumed = codecarbon_v2_model(
        meter.reading.duration_s, STUDY_BYTES, gpu_kwh=meter.reading.gpu.wh / 1e3, gpu_read_s=gpu_read_s
    )
    found = (assumed.ram_kwh, assumed.cpu_kwh, assumed.gpu_kwh, assumed.total_kwh)
    assert tuple(f"{kwh:.6f}" for kwh in found) == expected


def test_the_text_says_what_is_assumed(capsys):
    codecarbon2.main(["--duration-s", "60", "--memory-bytes", str(8 * 2**30)])
    text = capsys.readouterr().out
    assert "RAM and CPU assumed, not measured" in text
    assert "GPUs unknown" in text


def test_the_example_prints_it_for_each_mode_of_the_study(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "codecarbon2", codecarbon2)  # a script finds its neighbours, a test does not
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=STUDY_BYTES))
    energy = {"duration_s": 11_399.38, "gpu": {"kwh": 1.585529}}
    bionlp.show_codecarbon({"full": {"energy": energy}})
    line = capsys.readouterr().out
    assert line.startswith("full: CodeCarbon 2.x would have said (RAM and CPU assumed, not measured): RAM 0.598")
    assert "CPU 0.134576 kWh (42.5 W), GPUs 1.585529 kWh" in line


def test_negative_times_are_refused():
    with pytest.raises(ValueError, match=r"duration_s=-1 and mem_total_bytes=0 must be 0 or more"):
        codecarbon_v2_model(-1, 0)
