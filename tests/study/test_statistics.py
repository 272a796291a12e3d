"""Law 11: planted effects are recovered, and without an effect the false-positive rate is alpha."""

import json
import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ablate.study.judge.paired import (
    Paired,
    PairedStatistics,
    detectable,
    holm,
    mcnemar,
    one_sided,
    paired_statistics,
    sign_flip,
    significant,
)
from ablate.study.judge.sentence import in_words

MARGIN = 0.01
DRAWS = 2000
SIX = [-0.024, -0.018, -0.021, -0.027, -0.016, -0.020]
STRADDLING = [0.004, -0.003, 0.001, 0.002, -0.001, 0.003]


def draws(seed: int, mean: float, sd: float, pairs: int = 6, count: int = DRAWS) -> list[PairedStatistics]:
    """The statistics of `count` studies with normally distributed differences."""
    return [paired_statistics(row, MARGIN) for row in np.random.default_rng(seed).normal(mean, sd, (count, pairs))]


def within_chance(count: int, expected: float, total: int = DRAWS) -> bool:
    """Whether a count fits a rate; false by chance once in ten thousand times."""
    return stats.binomtest(count, total, expected).pvalue > 1e-4


def rate_at_most(count: int, rate: float, total: int = DRAWS) -> bool:
    return stats.binomtest(count, total, rate, alternative="greater").pvalue > 1e-4


# of two one-sided t-tests (TOST), by statsmodels 0.15: DescrStatsW(values).ttost_mean(-0.01, 0.01)[0]
TOST = [
    (SIX, 0.999453251688),
    (STRADDLING, 0.000190089528157),
    ([0.1, 0.3], 0.84578588555),
    ([1.0, -2.0, 4.0, 0.5], 0.733547191382),
]


@pytest.mark.parametrize(("values", "tost"), TOST)
def test_figures_are_those_of_scipy_and_statsmodels(values, tost):
    found, test = paired_statistics(values, MARGIN), stats.ttest_1samp(values, 0)
    assert found.effect == pytest.approx(np.mean(values))
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.p_equivalent == pytest.approx(tost)
    for side in ("greater", "less"):
        assert one_sided(values, 0.3, side) == pytest.approx(stats.ttest_1samp(values, 0.3, alternative=side).pvalue)


def test_figures_known_by_hand():
    found = paired_statistics([1, 2, 3], 1)
    assert (found.effect, found.sd, found.pairs) == (2, 1, 3)
    half = 4.302653 / math.sqrt(3)  # t of 0.975 with 2 degrees of freedom
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert one_sided([1, 2, 3], 1, "greater") == pytest.approx(stats.t.sf(math.sqrt(3), 2))
    assert one_sided([1, 2, 3], 1, "less") == pytest.approx(stats.t.cdf(math.sqrt(3), 2))


def brute_force(values: list[float]) -> float:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    return sum(total >= abs(sum(values)) - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize("values", [SIX, STRADDLING, [0.1, 0.2, 0.3], [1, 1, 1, 1, 1, -1], [0.1, -0.1, 0.0]])
def test_sign_flips_are_all_of_them(values):
    assert sign_flip(values) == pytest.approx(brute_force(values))
    scipys = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**13)
    assert sign_flip(values) == pytest.approx(scipys.pvalue)


@pytest.mark.parametrize(("pairs", "least"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125), (16, 2**-15)])
def test_the_least_p_of_sign_flips(pairs, least):
    assert sign_flip(np.linspace(1, 2, pairs)) == least


def test_five_pairs_never_reach_significance_by_sign_flips():
    assert min(found.p_sign_flip for found in draws(0, mean=3, sd=1, pairs=5, count=300)) == 0.0625


def test_more_pairs_than_can_be_enumerated_are_resampled_and_always_the_same_way():
    values = np.random.default_rng(1).normal(0.4, 1, 20)
    assert sign_flip(values) == sign_flip(values) == pytest.approx(paired_statistics(values, 1).p, abs=0.02)


@pytest.mark.parametrize(("pairs", "multiple"), [(3, 3.27), (5, 1.69), (6, 1.44), (10, 1.00)])
def test_the_smallest_effect_that_so_many_seeds_can_see(pairs, multiple):
    assert detectable(pairs, 0.05) == pytest.approx(multiple, rel=0.006)
    assert paired_statistics(np.linspace(-1, 1, pairs), 1).mde == pytest.approx(
        detectable(pairs, 0.05) * np.linspace(-1, 1, pairs).std(ddof=1)
    )


@pytest.mark.parametrize("arms", [1, 2, 8])
@pytest.mark.parametrize("pairs", [2, 3, 6, 30, 100])
def test_an_effect_of_that_size_is_found_four_times_in_five_however_many_arms_there_are(pairs, arms):
    mde = paired_statistics(np.linspace(-1, 1, pairs), 1, arms).mde / np.linspace(-1, 1, pairs).std(ddof=1)
    effect, beyond = mde * math.sqrt(pairs), stats.t.ppf(1 - 0.025 / arms, pairs - 1)
    power = stats.nct.sf(beyond, pairs - 1, effect) + stats.nct.sf(beyond, pairs - 1, -effect)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_planted_effects_are_recovered():
    found = draws(2, mean=-0.05, sd=0.05 / detectable(6, 0.05), count=1000)
    assert within_chance(sum(significant(one.p) for one in found), 0.8, 1000)
    assert np.mean([one.effect for one in found]) == pytest.approx(-0.05, rel=0.02)
    assert within_chance(sum(one.interval[0] <= -0.05 <= one.interval[1] for one in found), 0.95, 1000)
    assert np.mean([one.mde for one in found]) == pytest.approx(0.05, rel=0.06)


@pytest.mark.parametrize("pairs", [3, 6])
def test_no_effect_is_found_with_a_rate_of_alpha(pairs):
    found = draws(3, mean=0, sd=1, pairs=pairs)
    assert within_chance(sum(significant(one.p) for one in found), 0.05)
    assert within_chance(sum(one.interval[0] <= 0 <= one.interval[1] for one in found), 0.95)
    assert rate_at_most(sum(significant(one.p_sign_flip) for one in found), 0.05)


def test_holm_keeps_the_rate_of_alpha_over_all_arms():
    p = stats.ttest_1samp(np.random.default_rng(4).normal(size=(DRAWS, 4, 6)), 0, axis=2).pvalue
    any_found = sum(any(map(significant, holm(list(row)))) for row in p)
    assert rate_at_most(any_found, 0.05)
    assert any_found > 0.03 * DRAWS
    assert sum((row < 0.05).any() for row in p) > 0.15 * DRAWS  # without it


@pytest.mark.parametrize("edge", [MARGIN, -MARGIN])
@pytest.mark.parametrize("sd", [0.002, 0.005, 0.02])
def test_a_difference_at_the_margin_is_called_equivalent_no_more_often_than_alpha(edge, sd):
    assert rate_at_most(sum(significant(one.p_equivalent) for one in draws(5, edge, sd, count=500)), 0.05, 500)


def test_a_small_difference_measured_well_is_equivalent():
    found = draws(6, mean=0.001, sd=0.004, count=300)
    assert sum(significant(one.p_equivalent) for one in found) > 0.9 * 300
    noisy = draws(6, mean=0.001, sd=0.1, count=300)  # not significant, and not equal
    assert not any(significant(one.p_equivalent) for one in noisy)


def test_nothing_differs():
    found = paired_statistics([0.0] * 6, MARGIN)
    assert (found.effect, found.interval, found.sd, found.mde) == (0, (0, 0), 0, 0)
    assert (found.p, found.p_sign_flip, found.p_equivalent) == (1, 1, 0)


@pytest.mark.parametrize(("constant", "equivalent"), [(0.1, 1), (-0.1, 1), (0.001, 0), (-0.001, 0)])
def test_a_difference_without_variance_is_certain(constant, equivalent):
    found = paired_statistics([constant] * 6, MARGIN)
    assert found.interval == pytest.approx((constant, constant))
    assert (found.p, found.p_sign_flip, found.p_equivalent, found.sd, found.mde) == (0, 2**-5, equivalent, 0, 0)


@pytest.mark.filterwarnings("error")
def test_rounding_is_no_variance():
    values = [0.1, 1.1 - 1.0, 4.1 - 4.0]
    assert len(set(values)) == 3
    assert paired_statistics(values, MARGIN).sd == 0


def test_too_few_pairs_give_nothing_rather_than_a_wrong_figure():
    assert paired_statistics([], MARGIN) == PairedStatistics(0, MARGIN)
    assert paired_statistics([0.02], MARGIN) == PairedStatistics(1, MARGIN, effect=0.02)
    assert one_sided([0.02], 0, "greater") is None
    assert not significant(None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values", [[], [1], [0, 0], [1, 1], [1, 1 + 1e-15], [0, 1e-300], [1e-9, 2e-9, -1e-9], [1e30, -1e30]]
)
def test_every_figure_is_json(values):
    found = asdict(paired_statistics(values, MARGIN))
    assert json.loads(json.dumps(found, allow_nan=False))["pairs"] == len(values)


def test_holm_corrects_for_the_tests_that_were_made():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([None]) == [None]
    assert holm([]) == []


# by statsmodels 0.15: multipletests(values, method="holm")[1]
HOLM = [
    ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
    ([0.001, 0.002, 0.003, 0.9], [0.004, 0.006, 0.006, 0.9]),
    ([0.05, 0.05, 0.05], [0.15, 0.15, 0.15]),
    ([0.2, 0.01, 0.6, 0.012, 0.04], [0.4, 0.05, 0.6, 0.05, 0.12]),
    ([0.0, 1.0], [0.0, 1.0]),
]


@pytest.mark.parametrize(("values", "corrected"), HOLM)
def test_holm_corrects_as_statsmodels_does(values, corrected):
    assert holm(values) == pytest.approx(corrected)


def test_differences_too_far_apart_for_a_float_give_no_figures():
    assert paired_statistics([1e200, -1e200], MARGIN) == PairedStatistics(2, MARGIN, effect=0)
    assert paired_statistics([1.7e308, 1.7e308], MARGIN) == PairedStatistics(2, MARGIN)
    assert Paired({0: 1.7e308}, {0: -1.7e308}, MARGIN).values == {}


@pytest.mark.parametrize(
    ("arm", "baseline", "p"), [(0, 0, 1), (1, 0, 1), (5, 0, 0.0625), (6, 0, 2**-5), (1, 7, 0.0703125)]
)
def test_mcnemar_is_exact(arm, baseline, p):
    assert mcnemar(arm, baseline) == mcnemar(baseline, arm) == pytest.approx(p)


def test_pairs_are_the_seeds_that_are_finite_in_both():
    paired = Paired({3: 3.1, 0: 3.0, 1: None, 2: 3.3, 9: 1.0}, {0: 3.5, 1: 3.5, 2: None, 3: 3.5, 4: 3.5}, MARGIN)
    assert paired.ended == [0, 1, 2, 3]
    assert paired.values == {0: (3.0, 3.5), 3: (3.1, 3.5)}
    assert paired.differences == pytest.approx({0: -0.5, 3: -0.4})
    assert paired.diverged_alone == (1, 1)
    assert paired.p_diverged == 1
    assert Paired({0: 1.0}, {1: 1.0}, MARGIN).p_diverged is None


def made(
    effect: float, low: float, high: float, p_equivalent: float = 1, pairs: int = 6, mde: float = 0.008
) -> PairedStatistics:
    return PairedStatistics(pairs, MARGIN, effect, (low, high), p_equivalent=p_equivalent, mde=mde)


@pytest.mark.parametrize(
    ("verdict", "found", "unit", "words"),
    [
        (
            "better",
            made(-0.0213, -0.0272, -0.0151),
            "nats",
            "better by 0.021 nats (95% interval 0.015 to 0.027; 6 pairs)",
        ),
        ("worse", made(0.0213, 0.0151, 0.0272), "", "worse by 0.021 (95% interval 0.015 to 0.027; 6 pairs)"),
        (
            "worse",
            made(0.0024, 0.0011, 0.0037, 0.001),
            "nats",
            "worse by 0.0024 nats (95% interval 0.0011 to 0.0037; 6 pairs; equivalent within 0.01 nats)",
        ),
        (
            "equivalent",
            made(0.001, -0.002, 0.004),
            "nats",
            "equivalent within 0.01 nats (difference +0.001, 95% interval −0.002 to +0.004; 6 pairs)",
        ),
        (
            "cannot tell",
            made(-0.004, -0.014, 0.006),
            "bits per byte",
            "cannot tell (difference −0.004 bits per byte, 95% interval −0.014 to +0.006; "
            "smallest effect that 6 seeds could see: 0.008)",
        ),
        (
            "better",
            made(1234.5, 800, 1669),
            "tokens/s",
            "better by 1,234 tokens/s (95% interval 800 to 1,669; 6 pairs)",
        ),
        (
            "equivalent",
            paired_statistics([0, 0], MARGIN),
            "nats",
            "equivalent within 0.01 nats (difference 0, 95% interval 0 to 0; 2 pairs)",
        ),
        (
            "cannot tell",
            paired_statistics([0.0123], MARGIN),
            "nats",
            "cannot tell (difference +0.012 nats from a single pair)",
        ),
        ("cannot tell", paired_statistics([], MARGIN), "nats", "cannot tell (no pair of finished runs)"),
    ],
)
def test_a_verdict_in_words(verdict, found, unit, words):
    assert in_words(verdict, found, unit) == words
