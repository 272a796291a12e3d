"""From the runs of a study to a verdict on each arm, and the content of verdict.json."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from ablate.errors import AblateError, did_you_mean
from ablate.study.judge.contest import ArmRuns, Conclusion, Contest, Outcome, arm_runs, unequal
from ablate.study.judge.notes import notes
from ablate.study.judge.paired import Paired, PairedStatistics, holm
from ablate.study.judge.sentence import sentence
from ablate.study.question import Expectation, Study
from ablate.study.records import RunRecord
from ablate.words import tally


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim of the study, and whether it holds."""

    expect: Expectation
    source: str | None
    outcome: Outcome


@dataclass(frozen=True)
class ArmVerdict:
    """The verdict on one arm.

    p_holm: the t-test's p, corrected for all arms. p_diverged: McNemar's exact p; None if no seed ended in both arms.
    differences: seed -> arm minus baseline. mean, baseline_mean: of the metric, over the seeds of the differences.
    """

    runs: ArmRuns
    verdict: Conclusion
    sentence: str
    statistics: PairedStatistics
    p_holm: float | None
    p_diverged: float | None
    differences: dict[int, float]
    mean: float | None
    baseline_mean: float | None
    claim: ClaimVerdict | None


@dataclass(frozen=True)
class Verdict:
    """What a study concludes.

    records: every run that was read, also those that were not judged. arms: without the baseline, in the study's order.
    notes: what limits the verdicts, a sentence each. unequal: the least and the most that runs spent of what the study
    holds equal, if these are over 1% apart. tuning: the learning rates, as `ablate.study.plan.rates.choose` gives them.
    """

    study: Study
    records: list[RunRecord]
    baseline: ArmRuns
    arms: dict[str, ArmVerdict]
    notes: list[str]
    unequal: tuple[float, float] | None = None
    tuning: dict[str, Any] | None = None

    @cached_property
    def runs(self) -> dict[str, ArmRuns]:
        """The runs of each arm by its name, the baseline's first."""
        return {arm.name: arm for arm in (self.baseline, *(arm.runs for arm in self.arms.values()))}

    @property
    def corpus(self) -> str | None:
        """The fingerprint of the corpus that most runs of the baseline used."""
        return self.baseline.corpora.most_common(1)[0][0]


def judge(study: Study, records: Iterable[RunRecord], tuning: dict[str, Any] | None = None) -> Verdict:
    """A verdict on each arm, from all runs of the study.

    tuning: the learning rates, as `ablate.study.plan.rates.choose` gives them.

    Raises:
        AblateError: no run logged the metric, or no run of the baseline finished or diverged.
    """
    records = list(records)
    baseline, *others = [arm_runs(name, records, study.metric) for name in dict.fromkeys((study.baseline, *study.arms))]
    _require(study, baseline, others)
    paired = [Paired(arm.ends, baseline.ends, study.margin) for arm in others]
    tested = sum(len(pairs.values) > 1 for pairs in paired)
    paired = [replace(pairs, arms=max(tested, 1)) for pairs in paired]
    p_holm = holm([pairs.statistics.p for pairs in paired])
    contests = [Contest(study, arm, baseline, pairs, p) for arm, pairs, p in zip(others, paired, p_holm, strict=True)]
    apart = unequal((baseline, *others), study.hold)
    return Verdict(
        study=study,
        records=records,
        baseline=baseline,
        arms={contest.arm.name: _arm_verdict(contest) for contest in contests},
        notes=list(notes(study, records, baseline, contests, apart, tuning)),
        unequal=apart,
        tuning=tuning,
    )


def _require(study: Study, baseline: ArmRuns, others: list[ArmRuns]) -> None:
    runs = [run for arm in (baseline, *others) for run in arm.runs.values()]
    logged = {name for run in runs for name in run.metrics}
    if logged and study.metric not in logged:
        raise AblateError(f"metric={study.metric}: no run logged it{did_you_mean(study.metric, logged)}")
    if not baseline.ends:
        there = tally(run.status for run in baseline.runs.values()) or "none"
        able = [arm.name for arm in others if arm.ends]
        raise AblateError(
            f"baseline={study.baseline}: none of its runs finished with {study.metric} (its runs: {there}); "
            f"finish it, or choose another baseline{did_you_mean(study.baseline, able) if able else ''}"
        )


def _arm_verdict(contest: Contest) -> ArmVerdict:
    paired, claim = contest.paired, contest.study.claims.get(contest.arm.name)
    values = paired.values.values()
    return ArmVerdict(
        runs=contest.arm,
        verdict=contest.verdict,
        sentence=sentence(contest),
        statistics=paired.statistics,
        p_holm=contest.p_holm,
        p_diverged=paired.p_diverged,
        differences=paired.differences,
        mean=fmean(value for value, _ in values) if values else None,
        baseline_mean=fmean(value for _, value in values) if values else None,
        claim=claim and ClaimVerdict(claim.expect, claim.source, contest.outcome(claim.expect)),
    )


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The content of verdict.json."""
    study = verdict.study
    return {
        "study": study.name,
        "question": study.question,
        "metric": study.metric,
        "rising": study.rising,
        "baseline": study.baseline,
        "corpus": verdict.corpus,
        "seeds": list(study.seeds),
        "match": study.match,
        "match_by": study.match_by,
        "hold": study.hold,
        "notes": verdict.notes,
        "arms": {name: _arm_as_json(arm, verdict.baseline) for name, arm in verdict.arms.items()},
        **({} if verdict.tuning is None else {"tuning": verdict.tuning}),
    }


def _arm_as_json(arm: ArmVerdict, baseline: ArmRuns) -> dict[str, Any]:
    interval = arm.statistics.interval
    return {
        "verdict": arm.verdict,
        "sentence": arm.sentence,
        **asdict(arm.statistics),
        "interval": interval and list(interval),
        "p_holm": arm.p_holm,
        "p_diverged": arm.p_diverged,
        "seeds": list(arm.differences),
        "differences": list(arm.differences.values()),
        "diverged": arm.runs.diverged,
        "baseline_diverged": baseline.diverged,
        "runs": len(arm.runs.runs),
        "unfinished": len(arm.runs.unfinished),
        "mean": arm.mean,
        "baseline_mean": arm.baseline_mean,
        "claim": arm.claim and asdict(arm.claim),
    }
