"""What paired differences say, in figures and in words: their mean, how sure it is, what they could not have shown.

A difference is arm minus baseline of one seed. What cannot be had of so few is None, never NaN: it goes to JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor, log10, sqrt
from typing import Literal

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

ALPHA = 0.05
POWER = 0.8
EXACT = 16  # pairs: up to here all 2^pairs sign flips are tried, 65,536 of them
RESAMPLES = 9999  # beyond
CONSTANT = 1e-12  # of the largest difference: a smaller spread is rounding

Verdict = Literal["better", "worse", "equivalent", "cannot tell"]


@dataclass(frozen=True)
class Comparison:
    """Paired differences, summed up.

    effect: their mean. interval: its 95% interval, by Student's t. p: two-sided paired t-test. p_sign_flip: two-sided,
    exact up to 16 pairs. p_equivalent: TOST, of a mean that lies within the margin. sd: of the differences.
    mde: the smallest true mean that as many pairs of that sd find four times in five; as the only one among the means
    of `arms` arms, for Holm's correction then asks it for p < 0.05 / arms.
    All but effect want two pairs.
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
    """An arm beside the baseline, by seed: of each run that came to an end the metric, or None where it diverged."""

    arm: dict[int, float | None]
    baseline: dict[int, float | None]
    margin: float
    arms: int = 1  # of the study that can be tested against the baseline

    @cached_property
    def ended(self) -> list[int]:
        """Seeds in which both came to an end, finite or not."""
        return sorted(self.arm.keys() & self.baseline.keys())

    @cached_property
    def values(self) -> dict[int, tuple[float, float]]:
        """Of each seed that is finite in both: the arm's value and the baseline's."""
        values = {seed: (self.arm[seed], self.baseline[seed]) for seed in self.ended}
        return {seed: both for seed, both in values.items() if None not in both}

    @cached_property
    def differences(self) -> list[float]:
        return [value - baseline for value, baseline in self.values.values()]

    @cached_property
    def found(self) -> Comparison:
        return compare(self.differences, self.margin, self.arms)

    @cached_property
    def diverged_alone(self) -> tuple[int, int]:
        """Of the seeds in which both ended: in how many the arm alone diverged, and in how many the baseline alone."""
        diverged = [(self.arm[seed] is None, self.baseline[seed] is None) for seed in self.ended]
        return diverged.count((True, False)), diverged.count((False, True))

    @property
    def p_diverged(self) -> float | None:
        return mcnemar(*self.diverged_alone) if self.ended else None


def compare(differences: Sequence[float], margin: float, arms: int = 1) -> Comparison:
    """All that is known of differences, which are finite; margin: of equivalence, in their unit. arms: those tested."""
    values = np.asarray(differences, dtype=float)
    pairs = len(values)
    if pairs < 2:
        return Comparison(pairs, margin, effect=float(values[0]) if pairs else None)
    effect = float(values.mean())
    if _constant(values):
        sd, interval, p = 0.0, (effect, effect), float(effect == 0)
    else:
        summary = DescrStatsW(values)
        low, high = summary.tconfint_mean(ALPHA)
        sd, interval, p = float(values.std(ddof=1)), (float(low), float(high)), float(summary.ttest_mean(0)[1])
    above, below = one_sided(values, -margin, "greater"), one_sided(values, margin, "less")
    return Comparison(
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
    """p of a mean that lies on that side of the bound, by Student's t; None of fewer than two differences."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    if _constant(values):
        mean = values.mean()
        return 0.0 if (mean > bound if side == "greater" else mean < bound) else 1.0
    return float(DescrStatsW(values).ttest_mean(bound, alternative="larger" if side == "greater" else "smaller")[1])


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of a mean so far from zero, were the sign of each difference a coin's."""
    values = np.asarray(differences, dtype=float)
    pairs = len(values)
    if pairs > EXACT:
        test = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=0
        )
        return float(test.pvalue)
    # scipy would take half a second for 16 pairs. With all signs flipped |sum| is the same: the last one stays.
    signs = 1.0 - 2.0 * ((np.arange(2 ** max(pairs - 1, 0))[:, None] >> np.arange(pairs)) & 1)
    sums = np.abs(signs @ values)
    return float(np.mean(sums >= abs(values.sum()) - CONSTANT * np.abs(values).sum()))


@lru_cache
def detectable(pairs: int, alpha: float) -> float:
    """The smallest true effect, in sd of the differences, that a two-sided t-test at `alpha` finds at 80% power."""
    degrees = pairs - 1
    beyond = stats.t.isf(alpha / 2, degrees)

    def short_of_power(noncentrality: float) -> float:
        return POWER - stats.nct.sf(beyond, degrees, noncentrality)  # the other tail is below 1e-4 there

    high = 1.0
    while short_of_power(high) > 0:  # statsmodels' own search ends at an effect of 10, which three pairs can ask for
        high *= 2
    return float(optimize.brentq(short_of_power, 0, high)) / sqrt(pairs)


def significant(p: float | None) -> bool:
    return p is not None and p < ALPHA


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for how many of them there are; None, where nothing was tested, stays and does not count."""
    tested = [p for p in values if p is not None]
    corrected = iter(multipletests(tested, method="holm")[1] if tested else [])
    return [None if p is None else float(next(corrected)) for p in values]


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of what befell so many pairs in their first only, so many in their second only."""
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def _constant(values: np.ndarray) -> bool:
    return bool(values.std() <= CONSTANT * np.abs(values).max())


def in_words(verdict: Verdict, found: Comparison, unit: str) -> str:
    """A verdict as a phrase: `better by 0.021 nats (95% interval 0.015 to 0.027; 6 pairs)`. unit: "" for none."""
    if found.pairs == 0:
        return "cannot tell (no pair of finished runs)"
    unit = unit and f" {unit}"
    margin = f"{found.margin:g}{unit}"
    if verdict in ("better", "worse"):
        low, high = sorted(abs(end) for end in found.interval)
        by, low, high = (_figure(value, found) for value in (abs(found.effect), low, high))
        small = f"; equivalent within {margin}" if significant(found.p_equivalent) else ""
        return f"{verdict} by {by}{unit} (95% interval {low} to {high}; {found.pairs} pairs{small})"
    difference = f"difference {_figure(found.effect, found)}"
    if verdict == "equivalent":
        return f"equivalent within {margin} ({difference}, {_interval(found)}; {found.pairs} pairs)"
    difference += unit
    if found.pairs == 1:
        return f"cannot tell ({difference} of a single pair)"
    smallest = f"smallest effect that {found.pairs} seeds could see: {_rounded(found.mde, found.mde)}"
    return f"cannot tell ({difference}, {_interval(found)}; {smallest})"


def _interval(found: Comparison) -> str:
    low, high = (_figure(end, found) for end in found.interval)
    return f"95% interval {low} to {high}"


def _figure(value: float, found: Comparison) -> str:
    """A value to the digit that the interval's half width makes sense of."""
    half = (found.interval[1] - found.interval[0]) / 2 if found.interval else 0.0
    return _rounded(value, half or abs(value))


def _rounded(value: float, scale: float) -> str:
    """To one digit of the scale, or two where that is below 3: 0.0213 is 0.021 on the scale of 0.006."""
    decimals = min(max(-floor(log10(scale / 3)), 0), 12) if scale else 0
    return f"{round(value, decimals) + 0.0:,.{decimals}f}"
