"""Figures that cannot both be right."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.energy_world import P100, P200, ZONE, FakeGpu, Profile, World, device, two_gpus


def test_implausible_dram_is_noted(tmp_path):
    zones = [
        ("intel-rapl:0", "package-0", P100),
        ("intel-rapl:0:0", "dram", Profile((0, 200.0))),
        ("intel-rapl:1", "package-1", P200),
        ("intel-rapl:1:0", "dram", Profile((0, 6.0))),
    ]
    world = World(tmp_path, zones=zones)
    with world.meter() as meter:
        world.run(meter, 10)
    assert meter.reading.notes == (
        "implausible DRAM powers, do not trust them: intel-rapl:0:0 200 W, intel-rapl:1:0 6 W",
    )


def test_counter_that_disagrees_with_the_power_samples_is_noted(tmp_path):
    """As seen on a user's idle GPU: one says 187 J, the other 327 J."""
    world = World(tmp_path, [FakeGpu("GPU-a", P100), FakeGpu("GPU-b", P200)], ZONE)
    world.nvml.gpus[0].counter_gain = 187 / 327
    with world.meter() as meter:
        world.run(meter, 600)
    assert meter.reading.notes == (
        "GPU-a: the energy counter says 57.19 W on average, the power samples say 100 W; one of them is wrong",
    )
    assert device(meter.reading, "GPU-a")["power_integral_kwh"] * 3.6e6 == pytest.approx(60_000)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(187 / 327 * 60_000 + 120_000)  # the integral is in no total


@pytest.mark.parametrize("what", ["too short to tell", "a gap in one of the two", "no power", "within five per cent"])
def test_no_disagreement_is_claimed_where_there_may_be_none(tmp_path, what):
    world = two_gpus(tmp_path)
    gpu = world.nvml.gpus[0]
    gpu.counter_gain = 1.04 if what == "within five per cent" else 2.0
    if what == "no power":
        gpu.faults = {"nvmlDeviceGetPowerUsage": 3}
    with world.meter() as meter:
        world.run(meter, 5 if what == "too short to tell" else 300)
        if what.startswith("a gap"):
            gpu.faults = {"nvmlDeviceGetPowerUsage": 999}
            world.run(meter, 60)
            gpu.faults = {}
            world.run(meter, 10)
    assert meter.reading.notes == ()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.floats(0.05, 30), st.floats(20, 390)), min_size=2, max_size=30),
    seed=st.integers(0, 1000),
)
def test_a_right_counter_is_never_said_to_disagree(tmp_path_factory, steps, seed):
    """Whatever the load does between jittered samples."""
    starts = [sum(width for width, _ in steps[:index]) for index in range(len(steps))]
    profile = Profile(*[(start, watts) for start, (_, watts) in zip(starts, steps, strict=True)])
    world = World(tmp_path_factory.mktemp("world"), [FakeGpu("GPU-a", profile)])
    jitter = random.Random(seed)
    with world.meter() as meter:
        for _ in range(60):
            world.advance(jitter.uniform(2.5, 7.5))
            meter.sample()
    assert meter.reading.notes == ()
