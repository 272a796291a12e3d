"""A verdict as one sentence, such as `better by 0.021 nats per token (95% interval 0.015 to 0.027; 6 pairs), at equal
tokens`."""

from ablate.metrics import METRICS
from ablate.study.judge.contest import Conclusion, Contest
from ablate.study.judge.paired import PairedStatistics, significant
from ablate.words import estimate, p_value, rounded, setting


def sentence(contest: Contest) -> str:
    """The verdict with its figures, what was held equal, and which runs diverged."""
    verdict, arm, baseline, paired = contest.verdict, contest.arm, contest.baseline, contest.paired
    unit = METRICS[contest.study.metric].unit
    if contest.alike and verdict == "cannot tell":
        words = in_words(verdict, paired.statistics, unit)
        return f"{words}, {contest.held}: both arms have one configuration, so any difference is noise"
    finite = f"{in_words(contest.by_values, paired.statistics, unit)}, {contest.held}"
    if contest.by_values == "cannot tell" and significant(paired.statistics.p):
        corrected = f"{p_value(contest.p_holm)} after correction for {paired.arms} arms (Holm)"
        finite += f"; p is {p_value(paired.statistics.p)}, but {corrected}"
    if contest.by_divergence or verdict != contest.by_values:
        only_arm, only_baseline = paired.diverged_alone
        p = f" (exact McNemar p {p_value(paired.p_diverged)})" if contest.by_divergence else ""
        counts = f"{only_arm} diverged only in this arm and {only_baseline} only in the baseline"
        return f"{verdict}: of {len(paired.ended)} seeds, {counts}{p}; where both finished, {finite}"
    if arm.diverged or baseline.diverged:
        of_arm, of_baseline = (f"{one.diverged} of {len(one.ends)}" for one in (arm, baseline))
        finite += f"; diverged: {of_arm} runs, and {of_baseline} of the baseline"
    return finite


def in_words(verdict: Conclusion, statistics: PairedStatistics, unit: str) -> str:
    """The verdict with effect, interval and number of pairs. unit: "" for none."""
    unit = unit and f" {unit}"
    effect, interval, pairs = statistics.effect, statistics.interval, statistics.pairs
    margin = f"{setting(statistics.margin)}{unit}"
    if effect is None:
        return f"cannot tell ({'the values are too large to compare' if pairs else 'no pair of finished runs'})"
    if verdict in ("better", "worse"):
        by, reach = estimate(abs(effect), sorted(map(abs, interval)), sign=False)
        small = f"; equivalent within {margin}" if significant(statistics.p_equivalent) else ""
        return f"{verdict} by {by}{unit} (95% interval {reach}; {pairs} pairs{small})"
    difference, reach = estimate(effect, interval)
    if verdict == "equivalent":
        return f"equivalent within {margin} (difference {difference}, 95% interval {reach}; {pairs} pairs)"
    if interval is None:
        few = "a single pair" if pairs == 1 else f"{pairs} pairs, too far apart for an interval"
        return f"cannot tell (difference {difference}{unit} from {few})"
    smallest = f"smallest effect that {pairs} seeds could see: {rounded(statistics.mde, statistics.mde)}"
    return f"cannot tell (difference {difference}{unit}, 95% interval {reach}; {smallest})"
