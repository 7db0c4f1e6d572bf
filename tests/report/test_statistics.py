"""Intervals and verdicts: scipy agrees, equals are rarely told apart, and what is not known is not invented."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from lorakit.report.statistics import (
    BETTER,
    CANNOT_TELL,
    EQUAL,
    WORSE,
    Plan,
    Spread,
    compare_f1,
    f1_interval,
    mean_interval,
    ratio_interval,
    score_runs,
    verdict_of,
)
from lorakit.training.metrics import entity_scores
from tests.support.sentence_runs import draw_counts


def runs_of(*shares, sentences=400, first=0):
    return np.stack([draw_counts(share, first + number, sentences) for number, share in enumerate(shares)])


def test_f1_is_that_of_the_sums():
    counts = runs_of(0.7, 0.5)
    expected = [entity_scores(*run.sum(0).tolist()).f1 for run in counts]
    assert score_runs(counts, 10).f1 == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_two_models_is_scipys_paired_bootstrap():
    counts = runs_of(0.7, 0.66)
    ours = compare_f1(score_runs(counts, 2000, seed=3), {0: 0}, {0: 1})

    def difference(*columns, axis):
        a_found, a_both, b_found, b_both = (column.sum(axis) for column in columns)
        return 2 * b_found / b_both - 2 * a_found / a_both

    columns = [column for run in counts for column in (run[:, 0], run[:, 1] + run[:, 2])]
    options = {"paired": True, "n_resamples": 2000, "method": "percentile", "vectorized": True}
    theirs = stats.bootstrap(columns, difference, rng=3, batch=256, **options).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_same_model_twice_differs_by_exactly_nothing():
    counts = runs_of(0.7)
    scored = score_runs(np.concatenate([counts, counts]), 200)
    found = compare_f1(scored, {0: 0}, {0: 1}, margin=0.001)
    assert (found.value, found.low, found.high, found.models) == (0.0, 0.0, 0.0, EQUAL)


def test_one_seed_on_a_side_never_gives_a_verdict_on_settings():
    scored = score_runs(runs_of(0.8, 0.5, 0.51))
    for a, b in (({0: 0}, {0: 1}), ({0: 0}, {0: 1, 1: 2})):
        found = compare_f1(scored, a, b)
        assert (found.models, found.verdict, found.sd_seeds) == (WORSE, CANNOT_TELL, None)
        assert found.more_seeds >= 1 and found.high < 0


@pytest.mark.parametrize("b_seeds", [range(5), range(5, 10)], ids=["paired", "unpaired"])
def test_far_settings_are_told_apart_in_both_directions(b_seeds):
    scored = score_runs(runs_of(*[0.6] * 5, *[0.75] * 5))
    a, b = {i: i for i in range(5)}, {seed: 5 + i for i, seed in enumerate(b_seeds)}
    assert (compare_f1(scored, a, b).verdict, compare_f1(scored, b, a).verdict) == (BETTER, WORSE)
    assert compare_f1(scored, a, b).paired == (b_seeds == range(5))
    assert compare_f1(scored, a, b).more_seeds is None


def test_the_order_of_seeds_does_not_matter():
    scored = score_runs(runs_of(0.6, 0.62, 0.64, 0.61, 0.63, 0.65))
    a, b = {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5}
    assert compare_f1(scored, a, b) == compare_f1(scored, dict(reversed(a.items())), dict(reversed(b.items())))


def test_paired_seeds_cancel_what_both_sides_of_a_seed_share():
    seeds = [0.60, 0.70, 0.80]
    counts = np.stack([draw_counts(share, i) for i, share in enumerate(seeds)])
    worse = counts.copy()
    worse[:, :12, 0] = 0  # of a few sentences nothing is found
    scored = score_runs(np.concatenate([counts, worse]))
    a, b = {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5}
    paired, unpaired = compare_f1(scored, a, b), compare_f1(scored, a, {7: 3, 8: 4, 9: 5})
    assert paired.value == unpaired.value
    assert paired.sd_seeds < unpaired.sd_seeds / 5
    assert (paired.verdict, unpaired.verdict) == (WORSE, CANNOT_TELL)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.001, 0.004, None, BETTER),
        (-0.004, -0.001, None, WORSE),
        (-0.001, 0.004, None, CANNOT_TELL),
        (0.001, 0.004, 0.005, EQUAL),
        (-0.004, 0.004, 0.005, EQUAL),
        (-0.006, 0.004, 0.005, CANNOT_TELL),
        (0.001, 0.006, 0.005, BETTER),
        (-0.005, 0.004, 0.005, CANNOT_TELL),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, margin, verdict):
    assert verdict_of(low, high, margin) == verdict


@pytest.mark.parametrize(
    ("value", "margin", "verdict"), [(0.006, None, BETTER), (-0.006, None, WORSE), (0.0, 0.004, EQUAL)]
)
@pytest.mark.parametrize("sides", [1, 2])
def test_more_seeds_are_the_fewest_that_tell(value, margin, verdict, sides):
    plan = Plan(value, 4e-6, (Spread(3, 2e-5, 5e-6),) * sides, margin)
    more = plan.more_seeds()
    assert more > 1
    assert verdict_of(*plan.interval(more), margin) == verdict
    assert verdict_of(*plan.interval(more - 1), margin) == CANNOT_TELL


def test_no_number_of_seeds_makes_up_for_too_few_sentences():
    counts = runs_of(0.70, 0.70, sentences=12)
    scored = score_runs(np.concatenate([counts[:1]] * 3 + [counts[1:]] * 3))
    found = compare_f1(scored, {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5})
    assert (found.verdict, found.more_seeds) == (CANNOT_TELL, None)


def test_equals_are_told_apart_in_at_most_five_of_a_hundred_comparisons():
    """The full law, on real counts, is in benchmarks/compare_simulation.py; here its quick version."""
    draw, wrong = np.random.default_rng(0), {"paired": 0, "unpaired": 0}
    for number in range(200):
        gold = draw.poisson(2.0, 400)
        found = draw.binomial(gold, 0.7 + draw.normal(0, 0.005, (10, 1)))
        scored = score_runs(np.stack([found, gold - (gold - found) // 2, gold + 0 * found], axis=2), 200, seed=number)
        a, b = {i: i for i in range(5)}, {i: 5 + i for i in range(5)}
        others = {50 + seed: place for seed, place in b.items()}
        wrong["paired"] += compare_f1(scored, a, b).verdict in (BETTER, WORSE)
        wrong["unpaired"] += compare_f1(scored, a, others).verdict in (BETTER, WORSE)
    assert max(wrong.values()) <= 10, wrong


def test_an_f1s_interval_holds_its_value_and_widens_with_the_seeds_spread():
    near, far = (score_runs(runs_of(*shares)) for shares in ((0.69, 0.7, 0.71), (0.6, 0.7, 0.8)))
    places = {0: 0, 1: 1, 2: 2}
    for scored in (near, far):
        found = f1_interval(scored, places)
        assert found.low < found.value < found.high
    assert f1_interval(far, places).high > f1_interval(near, places).high
    two = f1_interval(score_runs(runs_of(0.1, 0.9)), {0: 0, 1: 1})
    assert (two.low, two.high) == (0.0, 1.0)  # and not −12
    alone = f1_interval(near, {0: 0})
    assert alone.low < alone.value < alone.high


def test_costs_have_students_interval_and_one_run_has_none():
    found = mean_interval([10.0, 11.0, 12.0])
    half = stats.t.ppf(0.975, 2) * stats.sem([10.0, 11.0, 12.0])
    assert (found.value, found.low, found.high) == pytest.approx((11.0, 11.0 - half, 11.0 + half))
    assert (mean_interval([5.0]).low, mean_interval([5.0, 5.0]).high) == (None, 5.0)


def test_a_ratio_is_of_pairs_where_both_sides_have_the_seeds():
    a, b = {0: 10.0, 1: 20.0, 2: 40.0}, {2: 44.1, 1: 22.0, 0: 10.9}
    found = ratio_interval(a, b)
    logs = [math.log(b[seed] / a[seed]) for seed in a]
    low, high = stats.t.interval(0.95, 2, np.mean(logs), stats.sem(logs))
    assert (found.low, found.value, found.high) == pytest.approx([math.exp(x) for x in (low, np.mean(logs), high)])
    welch = ratio_interval(a, {seed + 5: value for seed, value in b.items()})
    assert welch.value == pytest.approx(found.value) and welch.high > 3 * found.high
    assert ratio_interval({0: 1.0}, {0: 2.0}).low is None
    assert ratio_interval({0: 1.0, 1: 3.0}, {0: 2.0, 1: 6.0}).low == pytest.approx(2.0)


def test_a_run_that_compares_nothing_does_not_load_scipy():
    code = "import sys; from lorakit.report import statistics as s; print('scipy' in sys.modules)\n"
    code += "s.mean_interval([1.0, 2.0]); print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
