"""How far two settings differ, from the sentences and the seeds that their runs were measured on.

F1 varies for two reasons: another test set would have other sentences, and another seed would train another model. All
runs are scored on the same sentences, so sentences are resampled for all runs at once (the paired bootstrap of Efron
and Tibshirani, as in Koehn 2004, aclanthology.org/W04-3250). That gives the spread due to sentences. The spread due to
seeds comes from the seeds themselves. A percentile of resampled seeds would be too narrow for the few seeds that one
can afford: resampling five seeds understates their standard deviation by 11 %, and ignores that it is an estimate. So
the two variances are added, and the interval is Student's, with Satterthwaite's degrees of freedom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 5000
MOST_SEEDS = 200  # more than that count as "no number of seeds"
BETTER, WORSE, EQUAL, CANNOT_TELL = "better", "worse", "equal", "cannot tell"


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; the limits are None where one run alone has no spread."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How far the F1 of side B is above that of side A.

    Attributes:
        value: the difference of the means over seeds.
        low: lower limit of its 95 % interval. With one seed on a side it is about these models, not their settings.
        high: upper limit.
        seeds: runs of A and of B.
        paired: whether both sides have the same seeds, whose differences are then taken one by one.
        sd_sentences: standard deviation of `value` due to the sentences, for these seeds.
        sd_seeds: standard deviation between seeds: of the paired differences, or of the two sides, added as variances;
            None where a side has one seed.
        models: the verdict on these models: "better", "worse", "equal" or "cannot tell".
        verdict: the verdict on the settings; "cannot tell" where a side has one seed.
        more_seeds: seeds to add to each side until the verdict would be another, if the estimates hold; None if the
            verdict is known, or if no number of seeds would do because the test set has too few sentences. With one
            seed on a side it is the least number.
    """

    value: float
    low: float
    high: float
    seeds: tuple[int, int]
    paired: bool
    sd_sentences: float
    sd_seeds: float | None
    models: str
    verdict: str
    more_seeds: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {**asdict(self), "seeds": list(self.seeds)}


@dataclass(frozen=True)
class Scored:
    """F1 of some runs on the same sentences.

    Attributes:
        f1: of each run, shape (runs,).
        resampled: the same on resampled sentences, shape (runs, resamples).
    """

    f1: np.ndarray
    resampled: np.ndarray


def score_runs(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Scored:
    """The F1 of some runs, and how it varies when sentences are drawn with replacement.

    Args:
        counts: found, predicted and gold entities, shape (runs, sentences, 3); at least two sentences.
        resamples: how often sentences are drawn.
        seed: of the draws.
    """
    runs, sentences, _ = counts.shape
    table = np.concatenate([counts[:, :, 0], counts[:, :, 1] + counts[:, :, 2]]).T.astype(float)

    def f1(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = drawn.reshape(-1, sentences)
        places = drawn + sentences * np.arange(len(drawn))[:, None]
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        sums = (times @ table).T
        return 2 * sums[:runs] / np.maximum(sums[runs:], 1)

    numbers = np.arange(sentences)
    drawn = _stats().bootstrap(
        (numbers,), f1, n_resamples=resamples, batch=256, vectorized=True, method="percentile", rng=seed
    )
    return Scored(f1(numbers)[:, 0], drawn.bootstrap_distribution)


def compare_f1(scored: Scored, a: Mapping[int, int], b: Mapping[int, int], margin: float | None = None) -> Difference:
    """Compare two settings by the F1 of their runs.

    Args:
        scored: all runs.
        a: the place in `scored` of each seed's run of side A.
        b: the same for side B.
        margin: differences below it count as equal, in F1; None for no such verdict.
    """
    paired = a.keys() == b.keys()
    value, resampled = _mean_difference(scored, a, b)
    enough = min(len(a), len(b)) > 1
    spread = _paired_spread(scored, a, b) if paired else _unpaired_spread(scored, a, b)
    plan = Plan(value, float(resampled.var(ddof=1)), spread, margin)
    alone = tuple(float(limit) for limit in np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    low, high = plan.interval() if enough else alone
    verdict = verdict_of(low, high, margin) if enough else CANNOT_TELL
    return Difference(
        value=value,
        low=low,
        high=high,
        seeds=(len(a), len(b)),
        paired=paired and enough,
        sd_sentences=math.sqrt(plan.sentences),
        sd_seeds=math.sqrt(sum(part.between for part in spread)) if enough else None,
        models=verdict_of(*alone, margin),
        verdict=verdict,
        more_seeds=plan.more_seeds() if verdict == CANNOT_TELL else None,
    )


def f1_interval(scored: Scored, side: Mapping[int, int]) -> Interval:
    """The mean F1 of one side's runs; with one run the interval is over sentences alone."""
    places = list(side.values())
    value, resampled = float(scored.f1[places].mean()), scored.resampled[places].mean(0)
    if len(places) == 1:
        low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Interval(value, float(low), float(high))
    plan = Plan(value, float(resampled.var(ddof=1)), (_spread(scored.f1[places], scored.resampled[places]),), None)
    low, high = plan.interval()  # two seeds that differ give a wide one
    return Interval(value, max(0.0, low), min(1.0, high))


def verdict_of(low: float, high: float, margin: float | None) -> str:
    """What an interval of a difference says; equal if it is inside ±margin."""
    if margin is not None and -margin < low and high < margin:
        return EQUAL
    return BETTER if low > 0 else WORSE if high < 0 else CANNOT_TELL


# The spread between seeds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Variances of a number that each seed has.

    Attributes:
        seeds: how many.
        between: variance between the seeds on these sentences, as observed; with one seed, `interaction`.
        interaction: the part of it that comes from the sentences, on which each seed's model errs differently.
    """

    seeds: int
    between: float
    interaction: float

    def of_mean(self, seeds: int) -> float:
        """The variance of the mean over some seeds that the sentences do not explain."""
        return max(0.0, self.between - self.interaction) / seeds


def _spread(values: np.ndarray, resampled: np.ndarray) -> Spread:
    """The spread of `values` (seeds,), which resampling sentences turns into `resampled` (seeds, resamples)."""
    if len(values) == 1:
        own = float(resampled.var(ddof=1))
        return Spread(1, own, own)
    interaction = float((resampled - values[:, None]).var(axis=0, ddof=1).mean())
    return Spread(len(values), float(values.var(ddof=1)), interaction)


def _paired_spread(scored: Scored, a: Mapping[int, int], b: Mapping[int, int]) -> tuple[Spread, ...]:
    first, second = [a[seed] for seed in a], [b[seed] for seed in a]
    return (_spread(scored.f1[second] - scored.f1[first], scored.resampled[second] - scored.resampled[first]),)


def _unpaired_spread(scored: Scored, a: Mapping[int, int], b: Mapping[int, int]) -> tuple[Spread, ...]:
    sides = (list(a.values()), list(b.values()))
    return tuple(_spread(scored.f1[places], scored.resampled[places]) for places in sides)


def _mean_difference(scored: Scored, a: Mapping[int, int], b: Mapping[int, int]) -> tuple[float, np.ndarray]:
    first, second = list(a.values()), list(b.values())
    resampled = scored.resampled[second].mean(0) - scored.resampled[first].mean(0)
    return float(scored.f1[second].mean() - scored.f1[first].mean()), resampled


@dataclass(frozen=True)
class Plan:
    """An estimate with its variances, now and with more seeds.

    Attributes:
        value: the estimate.
        sentences: its variance when sentences are resampled and the seeds stay.
        spread: between seeds, for each side or for the pairs.
        margin: as for `compare_f1`.
    """

    value: float
    sentences: float
    spread: tuple[Spread, ...]
    margin: float | None

    def interval(self, more: int = 0) -> tuple[float, float]:
        """The 95 % interval, now or with so many more seeds on each side."""
        shared = self.sentences - sum(part.interaction / part.seeds for part in self.spread)
        sentences = max(0.0, shared) + sum(part.interaction / (part.seeds + more) for part in self.spread)
        sentences = self.sentences if more == 0 else sentences
        variance = sentences + sum(part.of_mean(part.seeds + more) for part in self.spread)
        # Satterthwaite: each variance between seeds is known as well as its degrees of freedom allow
        doubt = sum((part.between / (part.seeds + more)) ** 2 / (part.seeds + more - 1) for part in self.spread)
        freedom = variance**2 / doubt if doubt else math.inf
        half = float(_stats().t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance) if variance else 0.0
        return self.value - half, self.value + half

    def more_seeds(self) -> int | None:
        """The fewest seeds to add to each side for a verdict, if the estimates hold; None if no number would do."""
        least = max(1, 2 - min(part.seeds for part in self.spread))
        for more in range(least, MOST_SEEDS + 1):
            if verdict_of(*self.interval(more), self.margin) != CANNOT_TELL:
                return more
        return None


# Numbers that each run has one of ------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of one number per run, such as tokens/s, with Student's interval."""
    array = np.asarray(values, float)
    if len(array) == 1 or np.ptp(array) == 0:
        limit = None if len(array) == 1 else float(array[0])
        return Interval(float(array[0]), limit, limit)
    low, high = _stats().t.interval(LEVEL, len(array) - 1, array.mean(), _stats().sem(array))
    return Interval(float(array.mean()), float(low), float(high))


def ratio_interval(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """The ratio B / A of the geometric means of one positive number per seed, with Student's interval of its logarithm.

    Seeds that both sides have are paired; otherwise the interval is Welch's.
    """
    first, second = (np.log([side[seed] for seed in sorted(side)]) for side in (a, b))
    value = math.exp(second.mean() - first.mean())
    if min(len(first), len(second)) == 1:
        return Interval(value, None, None)
    paired = a.keys() == b.keys()
    if paired and np.ptp(second - first) < 1e-12 or np.ptp(first) == np.ptp(second) == 0:
        return Interval(value, value, value)  # no spread, of which scipy would warn
    test = _stats().ttest_rel(second, first) if paired else _stats().ttest_ind(second, first, equal_var=False)
    limits = test.confidence_interval(LEVEL)
    return Interval(value, math.exp(limits.low), math.exp(limits.high))


def _stats() -> Any:
    """scipy.stats, which takes half as long to import as torch: runs that compare nothing do not wait for it."""
    from scipy import stats

    return stats
