"""How long to warm up, and how long a window must be."""

import random
import statistics

import pytest

from lorakit.power.steadiness import PowerCourse, judge_steadiness
from tests.support.energy_world import FakeGpu, Profile, World


def test_windows_of_the_advised_length_are_within_two_percent():
    """Oracle: the spread of the means of many windows of the advised length."""
    chance = random.Random(0)
    level, watts = 0.0, []
    for _ in range(60_000):
        level = 0.6 * level + chance.gauss(0, 12)  # correlated neighbours
        watts.append(200 + level)
    found = judge_steadiness([(1.0, power) for power in watts[:3000]], edges_j=0.0)
    size = round(found.window_s)
    assert 10 < size < 2000
    means = [statistics.fmean(watts[i : i + size]) for i in range(0, len(watts) - size, size)]
    outside = sum(abs(mean / 200 - 1) > 0.02 for mean in means)
    assert outside / len(means) < 0.10  # two standard errors are exceeded by 5 %


def test_edges_bound_short_windows_and_a_warm_up_is_found(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 80.0), (30, 250.0)))])
    with world.meter() as meter:
        world.run(meter, 200)
    found = meter.steadiness
    assert found.warm_up_s == pytest.approx(30, abs=5)
    assert found.mean_w == pytest.approx(250, abs=3)
    assert found.edges_s == pytest.approx(meter.reading.measured_uncertainty_wh * 3600 / (0.02 * 250), rel=0.02)
    assert "after 30 s of warm-up" in str(found)


def test_too_little_says_nothing(tmp_path):
    assert judge_steadiness([(1.0, 5.0)] * 7, 1.0) is None
    assert judge_steadiness([(1.0, 0.0)] * 9, 1.0) is None
    with World(tmp_path).meter() as meter:
        pass
    assert meter.steadiness is None


def test_a_long_run_keeps_few_points_and_its_energy():
    course = PowerCourse()
    for index in range(10_000):
        course.add(5.0, float(index % 7))
    assert len(course.points) <= 2048
    joules = sum(seconds * watts for seconds, watts in course.points)
    assert joules == pytest.approx(sum(5.0 * (index % 7) for index in range(10_000)), rel=1e-3)
