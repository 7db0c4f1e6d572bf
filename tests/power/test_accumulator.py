"""The arithmetic of readings: |reported − truth| is within the stated bound, whatever powers, ticks and faults."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorakit.power.accumulator import HOLD_S, DeviceAccumulator, EnergyAccumulator
from tests.support.energy_world import Profile

MAX_W = 500.0
quick = settings(deadline=None, max_examples=150, derandomize=True)


class Device:
    """A counter over a power profile, with a tick in time, a range and faults; or its power, as samples."""

    kind = id = name = source = "gpu"
    scope = "device"
    max_w = MAX_W

    def __init__(self, profile, tick_s=0.0, modulus=None, method="counter", unit_j=1e-6, start=0):
        self.profile, self.tick_s, self.modulus, self.method = profile, tick_s, modulus, method
        self.unit_j, self.start, self.lag_s = unit_j, start, tick_s
        self.now = 0.0
        self.failing = False
        self.working = True

    def read(self):
        if self.failing:
            raise OSError(5, "no value")
        if self.method == "sampled":
            return self.profile.at(self.now)
        shown = self.now if self.tick_s == 0 else int(self.now / self.tick_s + 1e-9) * self.tick_s
        counts = self.start + int(self.profile.joules(shown) / self.unit_j)
        return counts % self.modulus if self.modulus else counts

    def busy(self):
        return self.working

    def close(self):
        pass


class Bench:
    """An accumulator over one device and a clock that the test moves."""

    def __init__(self, device):
        self.device = device
        self.accumulator = EnergyAccumulator(lambda: device.now)
        self.gauge = self.accumulator.add(device)

    def move(self, to):
        self.device.now = to

    def total(self, name):
        return self.gauge.total(name, self.device.now)


steps = st.lists(st.tuples(st.floats(0.01, 30), st.floats(0, MAX_W)), min_size=1, max_size=12)


def profile_of(pairs):
    start, points = 0.0, []
    for width, watts in pairs:
        points.append((start, watts))
        start += width
    return Profile(*points)


@quick
@given(
    pairs=steps,
    tick_s=st.sampled_from([0.0, 0.001, 0.02, 0.1]),
    gaps=st.lists(st.tuples(st.floats(0.001, 15), st.sampled_from(["sample", "edge", "late edge"])), max_size=30),
    modulus=st.sampled_from([None, 65_532_610_987 + 1]),
    start=st.integers(0, 60_000_000_000),
)
def test_windows_are_right_within_the_bound(pairs, tick_s, gaps, modulus, start):
    """Exact and inexact edges at any time, any tick, wraps: the bound holds, and all of the time is covered."""
    bench = Bench(Device(profile_of(pairs), tick_s, modulus, start=start))
    bench.accumulator.collect()
    now, opened, truth, wanted = 0.0, None, 0.0, 0.0
    for wait, what in gaps:
        now += wait
        bench.move(now)
        if what == "sample":
            bench.accumulator.collect()
            continue
        bench.accumulator.mark_edge("w", -1 if opened is not None else +1, exact=what == "edge")
        if opened is not None:
            truth += bench.device.profile.between(opened, now)
            wanted += now - opened
        opened = now if opened is None else None
    bench.move(now + 1)
    if opened is not None:
        bench.accumulator.mark_edge("w", -1)
        truth += bench.device.profile.between(opened, now + 1)
        wanted += now + 1 - opened
    bench.accumulator.collect()
    if tick_s == 0 and bench.gauge.trouble:  # a device at 0 W stands still: reported as not covered, never as 0 J
        return
    total = bench.total("w")
    assert total.wanted_s == pytest.approx(wanted)
    if wanted == 0:
        assert total.joules is None
        return
    if total.gap_count == 0:
        assert total.covered_s == pytest.approx(wanted)
        assert total.joules >= 0
        assert abs(total.joules - truth) <= total.uncertainty_j + 1e-4


@quick
@given(
    pairs=steps,
    fails=st.lists(st.booleans(), min_size=5, max_size=40),
    period_s=st.floats(0.2, 10),
)
def test_failed_readings_lose_no_energy(pairs, fails, period_s):
    """Whatever readings fail in between, the sum is last − first."""
    bench = Bench(Device(profile_of([(width, max(watts, 1.0)) for width, watts in pairs])))
    bench.accumulator.mark_edge("w", +1)
    for index, failing in enumerate(fails):
        bench.device.failing = failing
        bench.move((index + 1) * period_s)
        bench.accumulator.collect()
    bench.device.failing = False
    bench.move((len(fails) + 1) * period_s)
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    assert total.joules == pytest.approx(bench.device.profile.joules(bench.device.now), abs=1e-5)
    assert total.covered_s == total.wanted_s
    assert bench.gauge.failures == sum(fails)


@quick
@given(
    pairs=steps,
    resets=st.dictionaries(st.sampled_from(range(0, 30, 2)), st.integers(0, 2), max_size=5),
    period_s=st.floats(1, 10),
)
def test_resets_are_gaps_and_never_energy(pairs, resets, period_s):
    """A counter that starts again near 0 adds nothing; the rest stays within the bound of its own time."""
    device = Device(profile_of([(width, max(watts, 1.0)) for width, watts in pairs]), modulus=262_143_328_851, start=9)
    bench = Bench(device)
    bench.accumulator.mark_edge("w", +1)
    for index in range(30):
        bench.move((index + 1) * period_s)
        if index in resets:
            device.start = -int(device.profile.joules(device.now) * 1e6) + resets[index]
        bench.accumulator.collect()
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    lost_s = total.wanted_s - total.covered_s
    truth = device.profile.joules(device.now)
    assert total.gap_count == len(resets)
    assert lost_s == pytest.approx(len(resets) * period_s)
    assert truth - MAX_W * lost_s - total.uncertainty_j - 1e-3 <= (total.joules or 0.0) <= truth + 1e-3


def test_one_window_over_many_readings_has_the_error_of_two():
    bench = Bench(Device(Profile((0, 300.0)), tick_s=0.1))
    bench.accumulator.mark_edge("short", +1)
    bench.move(1)
    bench.accumulator.mark_edge("short", -1)
    bench.accumulator.mark_edge("long", +1)
    for second in range(2, 1000):
        bench.move(second)
        bench.accumulator.collect()
    bench.accumulator.mark_edge("long", -1)
    assert bench.total("long").uncertainty_j == bench.total("short").uncertainty_j == MAX_W * 0.1


def test_contiguous_inexact_steps_add_up_to_the_epoch():
    """The step's edges are between readings, but no time lies between the steps: hardly anything is uncertain."""
    device = Device(Profile(*[(0.5 * k, 100.0 + 300 * (k % 2)) for k in range(400)]))
    bench = Bench(device)
    bench.accumulator.mark_edge("epoch", +1)
    for step in range(300):
        bench.accumulator.mark_edge("step", +1, exact=False)
        bench.move(device.now + 0.3)
        bench.accumulator.mark_edge("step", -1, exact=False)
        bench.move(device.now + 1e-5)
        if step % 10 == 9:
            bench.accumulator.collect()
    bench.accumulator.mark_edge("epoch", -1)
    epoch, step = bench.total("epoch"), bench.total("step")
    assert step.joules == pytest.approx(epoch.joules, rel=1e-3)
    assert abs(step.joules - epoch.joules) <= step.uncertainty_j <= 0.01 * epoch.joules


def test_what_the_counter_has_not_shown_yet_is_in_the_bound():
    """A step of full power falls between the counter's last tick and the reading."""
    device = Device(Profile((0, 1.0), (0.2, MAX_W)), tick_s=0.1)
    bench = Bench(device)
    bench.accumulator.collect()
    bench.move(0.2)
    bench.accumulator.mark_edge("step", +1, exact=False)
    bench.move(0.2999)
    bench.accumulator.mark_edge("step", -1, exact=False)
    bench.accumulator.collect()
    truth = device.profile.between(0.2, 0.2999)
    assert abs(bench.total("step").joules - truth) <= bench.total("step").uncertainty_j


class SlowDevice(Device):
    """Takes 0.1 s to answer."""

    def read(self):
        self.now += 0.05
        value = super().read()
        self.now += 0.05
        return value


def test_time_that_reading_takes_is_in_the_bound_and_not_in_the_window():
    bench = Bench(SlowDevice(Profile((0, MAX_W))))
    bench.accumulator.mark_edge("w", +1)
    opened = bench.device.now
    bench.move(opened + 2.0)
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    assert bench.accumulator.windows["w"].duration_s(bench.device.now) == pytest.approx(2.0)
    assert abs(total.joules - 1000.0) <= total.uncertainty_j
    assert total.covered_s == total.wanted_s


class Neighbour(Device):
    """Read after the first device, and slow; other threads continue meanwhile."""

    id = name = "neighbour"
    first = meanwhile = None

    def read(self):
        self.first.now += 0.1
        if self.meanwhile:
            self.meanwhile()
        self.first.now += 0.1
        return int(self.first.now * 1e6)


def with_neighbour(profile):
    bench = Bench(Device(profile))
    neighbour = Neighbour(profile)
    neighbour.first = bench.device
    bench.accumulator.add(neighbour)
    return bench, neighbour


def test_a_slow_neighbour_is_in_the_bound():
    bench, _ = with_neighbour(Profile((0, MAX_W)))
    bench.accumulator.mark_edge("w", +1)
    bench.move(bench.device.now + 2.0)
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")  # read 0.2 s before the window began
    assert total.joules == pytest.approx(1100)
    assert total.joules - 1000 <= total.uncertainty_j


def test_edge_that_comes_while_a_neighbour_is_read_belongs_to_the_next_interval():
    profile = Profile((0, 1.0), (1.0, MAX_W), (1.1, 1.0))
    bench, neighbour = with_neighbour(profile)
    bench.accumulator.collect()
    bench.move(1.0)
    neighbour.meanwhile = lambda: bench.accumulator.mark_edge("w", +1, exact=False)
    bench.accumulator.collect()  # the first device was read at 1.0 s, the edge is at 1.1 s
    neighbour.meanwhile = None
    bench.move(3.0)
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    assert total.wanted_s == pytest.approx(1.9)
    assert abs(total.joules - profile.between(1.1, 3.0)) <= total.uncertainty_j


def test_a_single_inexact_step_says_how_little_it_knows():
    device = Device(Profile((0, 100.0), (0.3, 400.0)))
    bench = Bench(device)
    bench.accumulator.mark_edge("whole", +1)
    bench.accumulator.mark_edge("step", +1, exact=False)
    bench.move(0.3)
    bench.accumulator.mark_edge("step", -1, exact=False)
    bench.move(1.0)
    bench.accumulator.mark_edge("whole", -1)
    step = bench.total("step")
    assert step.joules == pytest.approx(0.3 * (0.3 * 100 + 0.7 * 400))  # in proportion to its time
    assert step.uncertainty_j >= step.joules - 30.0  # the truth is 30 J


def test_lower_counter_is_a_wrap_only_at_plausible_power():
    gauge = DeviceAccumulator(Device(Profile((0, 0.0)), modulus=262_143_328_851), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    gauge.sample(0.0, 200_100_000_000)
    gauge.sample(10.0, 50_000_000)  # a wrap would be 62 093 J in 10 s
    assert gauge.joules == 0.0
    assert "counter reset: 200100000000 to 50000000 in 10 s" in gauge.total("w", 10.0).gaps[0].reason
    gauge.sample(20.0, 1_050_000_000)
    assert gauge.total("w", 20.0).joules == 1000.0
    assert gauge.total("w", 20.0).covered_s == 10.0


def test_wrap_between_two_readings_is_exact():
    modulus = 65_532_610_988
    gauge = DeviceAccumulator(Device(Profile((0, 0.0)), modulus=modulus), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    for second, count in enumerate([modulus - 400_000_000, modulus - 100_000_000, 200_000_000, 500_000_000]):
        gauge.sample(float(second), count)
    assert gauge.total("w", 3.0).joules == pytest.approx(900.0)
    assert gauge.total("w", 3.0).gap_count == 0


def test_a_double_wrap_is_possible_only_after_a_stall_and_then_reported():
    modulus = 65_532_610_988
    gauge = DeviceAccumulator(Device(Profile((0, 0.0)), modulus=modulus), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    gauge.sample(0.0, 0)
    gauge.sample(60.0, 20_000_000_000)
    assert gauge.wrap_risks == 0
    gauge.sample(60.0 + 300, 25_000_000_000)  # 500 W for 300 s could have wrapped twice
    assert gauge.wrap_risks == 1
    total = gauge.total("w", 360.0)
    assert total.joules == 25_000.0
    assert total.uncertainty_j >= 2 * modulus * 1e-6
    assert gauge.longest_s == 300


def test_jump_beyond_the_power_limit_is_a_gap():
    gauge = DeviceAccumulator(Device(Profile((0, 0.0)), tick_s=0.1), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    gauge.sample(0.0, 0)
    gauge.sample(5.0, 1_000_000_000_000)  # 1 MJ in 5 s
    gauge.sample(10.0, 1_000_500_000_000)
    assert gauge.total("w", 10.0).joules == 500.0
    assert "implausible jump" in gauge.total("w", 10.0).gaps[0].reason


@quick
@given(stop_s=st.floats(0.3, 25), every_s=st.sampled_from([0.5, 1.0, 5.0, 7.5]), opened_s=st.floats(0, 12))
@example(stop_s=6.0, every_s=5.0, opened_s=0.0)
def test_a_counter_that_stops_is_within_the_bound_over_the_time_that_is_covered(stop_s, every_s, opened_s):
    """Nobody saw when: in the interval before the first reading that found it standing still."""

    class Stopping(Device):
        def read(self):
            moved = self.now
            self.now = min(moved, stop_s)
            try:
                return super().read()
            finally:
                self.now = moved

    bench = Bench(Stopping(Profile((0, 200.0)), tick_s=0.1))
    bench.accumulator.collect()
    opened = False
    while bench.device.now < stop_s + 3 * every_s + 1:
        before = bench.device.now
        if not opened and before <= opened_s < before + every_s:
            bench.move(opened_s)
            bench.accumulator.mark_edge("w", +1, exact=False)
            opened = True
        bench.move(before + every_s)
        bench.accumulator.collect()
    if not opened:
        return
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    assert total.covered_s < total.wanted_s
    if total.joules is not None:
        assert abs(total.joules - 200 * total.covered_s) <= total.uncertainty_j + 1e-3


def test_frozen_counter_is_not_zero_joules():
    device = Device(Profile((0, 200.0)), tick_s=0.1)
    gauge = DeviceAccumulator(device, 0.0)
    gauge.mark_edge("w", +1, 0.0)
    for second in range(10):
        gauge.sample(float(second), 7_000)
    total = gauge.total("w", 9.0)
    assert total.joules is None
    assert (total.covered_s, total.wanted_s) == (0, 9)
    assert "stands still at 7000" in total.gaps[0].reason
    gauge.sample(10.0, 2_000_007_000)  # it kept counting, unseen
    assert gauge.total("w", 10.0).joules == 2000.0
    assert gauge.total("w", 10.0).covered_s == 10.0


def test_frozen_counter_is_seen_however_often_it_is_read():
    gauge = DeviceAccumulator(Device(Profile((0, 200.0)), tick_s=0.1), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    for tenth in range(100):
        gauge.sample(tenth / 10, 7_000)
    assert gauge.total("w", 10.0).covered_s <= 0.2 + 1e-9


def test_standing_still_is_zero_joules_for_an_idle_device():
    device = Device(Profile((0, 0.0)), tick_s=0.1)
    device.working = False
    gauge = DeviceAccumulator(device, 0.0)
    gauge.mark_edge("w", +1, 0.0)
    for second in range(10):
        gauge.sample(float(second), 7_000)
    assert gauge.total("w", 9.0).joules == 0.0
    assert gauge.total("w", 9.0).covered_s == 9.0


def test_lost_device_keeps_its_last_value():
    device = Device(Profile((0, 200.0)))
    bench = Bench(device)
    bench.accumulator.mark_edge("w", +1)
    bench.move(5)
    bench.accumulator.collect()
    device.read = lambda: (_ for _ in ()).throw(OSError(19, "fell off the bus"))
    bench.move(10)
    bench.accumulator.collect()
    device.read = lambda: 1 / 0  # must not be read again
    bench.move(20)
    bench.accumulator.mark_edge("w", -1)
    total = bench.total("w")
    assert total.joules == 1000.0
    assert total.covered_s / total.wanted_s == 0.25
    assert total.gaps[-1].reason == "fell off the bus"


def test_interruption_is_a_gap():
    gauge = DeviceAccumulator(Device(Profile((0, 0.0))), 0.0)
    gauge.mark_edge("w", +1, 0.0)
    gauge.sample(0.0, 0)
    gauge.sample(5.0, 500_000_000)
    gauge.interrupt("the machine was suspended for 3600 s")
    gauge.sample(10.0, 900_000_000)
    gauge.sample(15.0, 1_000_000_000)
    total = gauge.total("w", 15.0)
    assert total.joules == 600.0
    assert total.gaps[0].reason == "the machine was suspended for 3600 s"


def sampled(profile, seconds, period_s, seed):
    """Integrate jittered samples; returns the total."""
    generator = random.Random(seed)
    bench = Bench(Device(profile, method="sampled"))
    bench.accumulator.mark_edge("w", +1)
    while bench.device.now < seconds:
        bench.move(min(seconds, bench.device.now + period_s * generator.uniform(0.5, 1.5)))
        bench.accumulator.collect()
    bench.accumulator.mark_edge("w", -1)
    return bench.total("w")


@pytest.mark.parametrize("seconds", [0.5, 3, 100])
def test_constant_power_is_integrated_exactly(seconds):
    total = sampled(Profile((0, 300.0)), seconds, 1.0, seed=0)
    assert total.joules == pytest.approx(300 * seconds)


def test_step_in_the_middle_is_seen_and_edges_count():
    total = sampled(Profile((0, 100.0), (50, 300.0)), 100, 1.0, seed=1)
    assert total.joules == pytest.approx(20_000, abs=150)
    assert abs(total.joules - 20_000) <= total.uncertainty_j


@pytest.mark.parametrize("period_s", [0.1, 0.2, 1.0, 7.0])
def test_jittered_samples_do_not_beat_with_the_step(period_s):
    """A square wave whose period divides the sampler's: 57 % off with a fixed period, within 3 standard errors here."""
    wave = Profile(*[(k * period_s / 2, 90.0 if k % 2 else 330.0) for k in range(int(2 * 300 / period_s))])
    inside = 0
    for seed in range(30):
        total = sampled(wave, 240, 1.0, seed)
        truth = wave.joules(240)
        assert total.uncertainty_kind == "3 standard errors"
        assert total.uncertainty_j < 0.15 * truth
        inside += abs(total.joules - truth) <= total.uncertainty_j
    assert inside >= 29


@quick
@given(pairs=steps, seed=st.integers(0, 10), seconds=st.floats(0.1, 6))
@example(pairs=[(0.5, 0.0), (0.5, 500.0), (1.0, 0.0)], seed=0, seconds=2.0)
def test_few_samples_claim_only_what_the_power_limit_allows(pairs, seed, seconds):
    pairs = [(width, max(watts, 1.0)) for width, watts in pairs]  # less is refused: the device is busy
    total = sampled(profile_of(pairs), seconds, 1.0, seed)
    assert total.uncertainty_kind == "bound"
    assert abs(total.joules - profile_of(pairs).joules(seconds)) <= total.uncertainty_j + 1e-6


def test_lowest_and_highest_sample_are_those_of_the_windows_intervals():
    device = Device(Profile((0, 50.0), (1, 300.0), (2, 100.0), (3, 20.0)), method="sampled")
    bench = Bench(device)
    for second in range(5):
        bench.move(second)
        if second in (1, 2):
            bench.accumulator.mark_edge("falling", +1 if second == 1 else -1)
        else:
            bench.accumulator.collect()
        if second == 3:
            bench.accumulator.mark_edge("open", +1, exact=False)
    assert bench.total("falling").power_w == (100.0, 300.0)
    assert bench.total("open").power_w == (20.0, 20.0)
    assert bench.total("never").power_w is None


def test_power_sample_after_a_long_silence_is_a_gap():
    bench = Bench(Device(Profile((0, 100.0)), method="sampled"))
    bench.accumulator.mark_edge("w", +1)
    bench.move(HOLD_S + 1)
    bench.accumulator.mark_edge("w", -1)
    assert bench.total("w").joules is None
    assert "no power sample for 11 s" in bench.total("w").gaps[0].reason


def test_windows_of_two_threads_with_one_name_both_count():
    bench = Bench(Device(Profile((0, 100.0))))
    bench.accumulator.mark_edge("w", +1)
    bench.move(1)
    bench.accumulator.mark_edge("w", +1)
    bench.move(3)
    bench.accumulator.mark_edge("w", -1)
    bench.move(4)
    bench.accumulator.mark_edge("w", -1)
    assert bench.total("w").joules == pytest.approx(600)
    assert bench.accumulator.windows["w"].duration_s(4) == 6
