"""Compares the runs of an arm, one for each seed, with the baseline's: the verdict, and the outcome of a claim."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ablate.files import natural_order
from ablate.study.judge.paired import Paired, one_sided, significant
from ablate.study.question import Study
from ablate.study.records import FLOPS, SECONDS, TOKENS, RunRecord

Conclusion = Literal["better", "worse", "equivalent", "cannot tell"]
Outcome = Literal["confirmed", "refuted", "open", "reported"]

HELD = {TOKENS: "tokens", FLOPS: "training FLOPs", SECONDS: "seconds of training"}


@dataclass(frozen=True)
class ArmRuns:
    """One arm's runs.

    runs: seed -> its run. ends: seed -> the metric of a run that finished with it, None for a run that diverged.
    """

    name: str
    runs: dict[int, RunRecord]
    ends: dict[int, float | None]

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs.values() if run.finished]

    @property
    def diverged(self) -> int:
        return sum(value is None for value in self.ends.values())

    @property
    def unfinished(self) -> list[RunRecord]:
        return [run for run in self.runs.values() if not (run.finished or run.diverged)]

    @property
    def corpora(self) -> Counter[str | None]:
        return Counter(self.runs[seed].corpus for seed in self.ends)


def arm_runs(name: str, records: Iterable[RunRecord], metric: str) -> ArmRuns:
    """Groups an arm's runs by seed. A finished run whose metric is not finite counts as diverged."""
    runs = _one_a_seed(record for record in records if record.arm == name)
    known = {seed: run for seed, run in runs.items() if run.diverged or (run.finished and metric in run.metrics)}
    return ArmRuns(name, runs, {seed: None if run.diverged else run.metric(metric) for seed, run in known.items()})


def _one_a_seed(records: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """For each seed its last finished run; if none finished, its last diverged run; else its last run."""
    rank = {"diverged": 1, "finished": 2}
    ordered = sorted(records, key=lambda record: (rank.get(record.status, 0), natural_order(record.path)))
    last = {record.seed: record for record in ordered}
    return {seed: last[seed] for seed in sorted(last)}


def unequal(arms: Iterable[ArmRuns], hold: str) -> tuple[float, float] | None:
    """The least and the most that finished runs spent of what the study holds equal, if they are over 1% apart.

    Always None for seconds: timings before the runs set the number of steps.
    """
    spent = [cost for arm in arms for run in arm.finished if (cost := run.spent(hold))]
    if hold == SECONDS or not spent or max(spent) <= 1.01 * min(spent):
        return None
    return min(spent), max(spent)


@dataclass(frozen=True)
class Contest:
    """An arm against the baseline. p_holm: the t-test's p, corrected for all arms of the study."""

    study: Study
    arm: ArmRuns
    baseline: ArmRuns
    paired: Paired
    p_holm: float | None

    @cached_property
    def held(self) -> str:
        """What both spent, and whether equally: `at equal tokens`."""
        apart = unequal((self.arm, self.baseline), self.study.hold)
        return f"at {'unequal' if apart else 'equal'} {HELD[self.study.hold]}"

    @cached_property
    def alike(self) -> bool:
        """Whether arm and baseline are one configuration under two names (A/A)."""
        seeds = self.arm.runs.keys() & self.baseline.runs.keys()
        pairs = [[arm.runs[seed].settings for arm in (self.arm, self.baseline)] for seed in seeds]
        return bool(pairs) and all(config and config == baseline for config, baseline in pairs)

    @property
    def by_values(self) -> Conclusion:
        """The verdict from the seeds in which neither run diverged."""
        statistics = self.paired.statistics
        if significant(self.p_holm):
            return "better" if (statistics.effect > 0) == self.study.rising else "worse"
        return "equivalent" if significant(statistics.p_equivalent) else "cannot tell"

    @property
    def by_divergence(self) -> bool:
        """Whether one of the two diverged significantly more often; this alone then decides the verdict."""
        return significant(self.paired.p_diverged) and not self.alike

    @property
    def verdict(self) -> Conclusion:
        """An arm that diverges more often cannot be called better or equivalent on its other runs; an A/A arm never
        differs."""
        arm, baseline = self.paired.diverged_alone
        if self.by_divergence:
            return "worse" if arm > baseline else "better"
        barred = {"better", "worse"} if self.alike else set()
        if arm != baseline:
            barred |= {"equivalent", "better" if arm > baseline else "worse"}
        return "cannot tell" if self.by_values in barred else self.by_values

    def outcome(self, expect: str) -> Outcome:
        """Whether the claim that the arm is `expect` holds. A difference may exist and still lie within the margin:
        then `worse` and `equivalent` are both confirmed."""
        verdict, statistics = self.verdict, self.paired.statistics
        arm, baseline = self.paired.diverged_alone
        if expect == "report":
            return "reported"
        if verdict == expect or (expect == "not worse" and verdict in ("better", "equivalent")):
            return "confirmed"
        if expect in ("better", "worse"):
            return "open" if verdict == "cannot tell" else "refuted"
        if self.by_divergence:
            return "refuted"
        if expect == "equivalent":
            if significant(statistics.p_equivalent) and arm == baseline:
                return "confirmed"
            beyond = statistics.interval and min(abs(end) for end in statistics.interval) > statistics.margin
            return "refuted" if verdict in ("better", "worse") and beyond else "open"
        bound, side = (-statistics.margin, "greater") if self.study.rising else (statistics.margin, "less")
        if significant(one_sided(list(self.paired.differences.values()), bound, side)) and arm <= baseline:
            return "confirmed"
        return "refuted" if verdict == "worse" else "open"
