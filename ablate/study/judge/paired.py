"""Statistics of paired differences: their mean, how sure it is, and how large an effect the pairs could have detected.

A difference is arm minus baseline with one seed. With too few pairs a figure is None, not NaN, which JSON cannot hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
EXACT = 16  # pairs: up to here all 2^pairs sign flips are tried, 65,536 of them
RESAMPLES = 9999  # random sign flips with more pairs
CONSTANT = 1e-12  # relative to the largest difference: a smaller spread is rounding


@dataclass(frozen=True)
class PairedStatistics:
    """The statistics of one arm's differences.

    margin: of equivalence. effect: the mean difference. interval: its 95% interval, by Student's t. p: two-sided paired
    t-test. p_sign_flip: two-sided sign-flip test, exact up to 16 pairs. p_equivalent: two one-sided t-tests (TOST) that
    the mean lies within the margin. sd: standard deviation of the differences. mde: minimum detectable effect, the true
    mean that this many pairs with this sd detect with 80% power at p < 0.05 / arms (Holm's first step).

    All but effect are None with fewer than two pairs, or if the squares of the differences overflow a float.
    """

    pairs: int
    margin: float
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_sign_flip: float | None = None
    p_equivalent: float | None = None
    sd: float | None = None
    mde: float | None = None


@dataclass(frozen=True)
class Paired:
    """The runs of an arm and of the baseline, paired by seed.

    arm, baseline: seed -> the metric at the end of the run, None where the run diverged.
    arms: how many arms of the study can be tested against the baseline.
    """

    arm: dict[int, float | None]
    baseline: dict[int, float | None]
    margin: float
    arms: int = 1

    @cached_property
    def ended(self) -> list[int]:
        """The seeds whose two runs both finished or diverged."""
        return sorted(self.arm.keys() & self.baseline.keys())

    @cached_property
    def values(self) -> dict[int, tuple[float, float]]:
        """Seed -> the arm's value and the baseline's, where neither run diverged and their difference is finite."""
        both = {seed: (self.arm[seed], self.baseline[seed]) for seed in self.ended}
        return {seed: pair for seed, pair in both.items() if None not in pair and math.isfinite(pair[0] - pair[1])}

    @cached_property
    def differences(self) -> dict[int, float]:
        """Seed -> arm minus baseline."""
        return {seed: value - baseline for seed, (value, baseline) in self.values.items()}

    @cached_property
    def statistics(self) -> PairedStatistics:
        return paired_statistics(list(self.differences.values()), self.margin, self.arms)

    @cached_property
    def diverged_alone(self) -> tuple[int, int]:
        """The number of ended seeds in which only the arm diverged, and in which only the baseline did."""
        diverged = [(self.arm[seed] is None, self.baseline[seed] is None) for seed in self.ended]
        return diverged.count((True, False)), diverged.count((False, True))

    @property
    def p_diverged(self) -> float | None:
        return mcnemar(*self.diverged_alone) if self.ended else None


def paired_statistics(differences: Sequence[float], margin: float, arms: int = 1) -> PairedStatistics:
    """The statistics of finite differences. margin: of equivalence, in their unit. arms: how many are tested."""
    values = np.asarray(differences, dtype=float)
    pairs = len(values)
    if pairs < 2:
        return PairedStatistics(pairs, margin, effect=float(values[0]) if pairs else None)
    with np.errstate(over="ignore", invalid="ignore"):
        effect, sd = float(values.mean()), float(values.std(ddof=1))
    if not math.isfinite(sd):
        return PairedStatistics(pairs, margin, effect=effect if math.isfinite(effect) else None)
    if _constant(values):
        sd, interval, p = 0.0, (effect, effect), float(effect == 0)
    else:
        half = float(stats.t.isf(ALPHA / 2, pairs - 1)) * sd / math.sqrt(pairs)
        interval, p = (effect - half, effect + half), 2 * _t_tail(abs(effect), sd, pairs)
    above, below = one_sided(values, -margin, "greater"), one_sided(values, margin, "less")
    return PairedStatistics(
        pairs=pairs,
        margin=margin,
        effect=effect,
        interval=interval,
        p=p,
        p_sign_flip=sign_flip(values),
        p_equivalent=max(above, below),
        sd=sd,
        mde=sd * detectable(pairs, ALPHA / arms),
    )


def one_sided(differences: Sequence[float], bound: float, side: Literal["greater", "less"]) -> float | None:
    """p of the t-test that the mean is on that side of the bound; None with fewer than two differences."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    beyond = float(values.mean() - bound) * (1 if side == "greater" else -1)
    if _constant(values):
        return 0.0 if beyond > 0 else 1.0
    return _t_tail(beyond, float(values.std(ddof=1)), len(values))


def _t_tail(mean: float, sd: float, pairs: int) -> float:
    """p of a mean at least this large, by Student's t, if the true mean is zero.

    stats.ttest_1samp takes ten times as long, and the tests draw tens of thousands of studies.
    """
    return float(stats.t.sf(mean / (sd / math.sqrt(pairs)), pairs - 1))


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of a mean this far from zero, if each difference were equally likely to have the opposite sign."""
    values = np.asarray(differences, dtype=float)
    pairs = len(values)
    if pairs > EXACT:
        test = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=0
        )
        return float(test.pvalue)
    # scipy would take half a second for 16 pairs. Flipping all signs leaves |sum| as it is, so the last sign is fixed.
    signs = 1.0 - 2.0 * ((np.arange(2 ** max(pairs - 1, 0))[:, None] >> np.arange(pairs)) & 1)
    sums = np.abs(signs @ values)
    return float(np.mean(sums >= abs(values.sum()) - CONSTANT * np.abs(values).sum()))


@lru_cache
def detectable(pairs: int, alpha: float) -> float:
    """The smallest true effect, in sd of the differences, that a two-sided t-test at `alpha` detects with 80% power."""
    degrees = pairs - 1
    beyond = stats.t.isf(alpha / 2, degrees)

    def missing_power(noncentrality: float) -> float:
        return POWER - stats.nct.sf(beyond, degrees, noncentrality)  # the other tail is below 1e-4 there

    high = 1.0
    while missing_power(high) > 0:
        high *= 2
    return float(optimize.brentq(missing_power, 0, high)) / math.sqrt(pairs)


def significant(p: float | None) -> bool:
    return p is not None and p < ALPHA


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values, corrected for their number (Holm 1979). None means not tested: it stays None and is not counted."""
    tested = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min((len(tested) - rank) * p, 1.0))
        corrected[place] = largest
    return corrected


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test.

    first_only, second_only: the number of pairs in which an event hit only the first, and only the second.
    """
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def _constant(values: np.ndarray) -> bool:
    return bool(values.std() <= CONSTANT * np.abs(values).max())
