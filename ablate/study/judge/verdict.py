"""From the runs of a study to a verdict per arm: the content of verdict.json."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from ablate.errors import AblateError, did_you_mean
from ablate.study.judge.notes import counts, notes
from ablate.study.judge.paired import Paired, Verdict, holm, in_words, one_sided, significant
from ablate.study.question import Study
from ablate.study.records import SECONDS, RunRecord, unequal

UNITS = {"train/loss": "nats", "val/loss": "nats", "val/bpb": "bits per byte", "train/tokens_per_s": "tokens/s"}
HELD = {"tokens": "per token", "flops": "per FLOP", "seconds": "per second"}


@dataclass(frozen=True)
class ArmRuns:
    """runs: one a seed. ends: of those that came to an end, the metric, or None where it diverged."""

    name: str
    runs: dict[int, RunRecord]
    ends: dict[int, float | None]

    @property
    def diverged(self) -> int:
        return sum(value is None for value in self.ends.values())

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs.values() if run.finished]

    @property
    def corpora(self) -> Counter[str | None]:
        return Counter(self.runs[seed].corpus for seed in self.ends)


@dataclass(frozen=True)
class Contest:
    """An arm against the baseline. p_holm: corrected for all arms of the study."""

    study: Study
    arm: ArmRuns
    baseline: ArmRuns
    paired: Paired
    p_holm: float | None

    @cached_property
    def held(self) -> str:
        """What a difference is per: what all runs had as much of."""
        hold = self.study.hold
        if hold != SECONDS and unequal([*self.arm.finished, *self.baseline.finished], hold):
            return f"at unequal numbers of {'tokens' if hold == 'tokens' else 'training FLOPs'}"
        return HELD[hold]

    @cached_property
    def alike(self) -> bool:
        """Whether they are one configuration under two names."""
        seeds = self.arm.runs.keys() & self.baseline.runs.keys()
        pairs = [[arm.runs[seed].settings for arm in (self.arm, self.baseline)] for seed in seeds]
        return bool(pairs) and all(config and config == baseline for config, baseline in pairs)

    @property
    def by_values(self) -> Verdict:
        """The verdict of the seeds that are finite in both."""
        found = self.paired.found
        if significant(self.p_holm):
            return "better" if (found.effect > 0) == self.study.rising else "worse"
        return "equivalent" if significant(found.p_equivalent) else "cannot tell"

    @property
    def by_divergence(self) -> bool:
        """Whether who diverged decides."""
        return significant(self.paired.p_diverged) and not self.alike

    @property
    def verdict(self) -> Verdict:
        """Who diverges more is not better or equivalent by its other runs; two names of one thing do not differ."""
        arm, baseline = self.paired.diverged_alone
        if self.by_divergence:
            return "worse" if arm > baseline else "better"
        barred = {"better", "worse"} if self.alike else set()
        if arm != baseline:
            barred |= {"equivalent", "better" if arm > baseline else "worse"}
        return "cannot tell" if self.by_values in barred else self.by_values


def judge(study: Study, records: list[RunRecord], tuning: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of verdict.json: a verdict per arm, and in `notes` all that limits them.

    tuning: what was found of the learning rates, as `ablate.study.plan.rates.choose` gives it.

    Raises:
        AblateError: a metric that no run logged, or a baseline of which no run has come to an end.
    """
    baseline, *others = [_arm(name, records, study.metric) for name in dict.fromkeys((study.baseline, *study.arms))]
    _require(study, baseline, others)
    paired = [Paired(arm.ends, baseline.ends, study.margin) for arm in others]
    tested = sum(len(pairs.values) > 1 for pairs in paired)
    paired = [replace(pairs, arms=max(tested, 1)) for pairs in paired]
    p_holm = holm([pairs.found.p for pairs in paired])
    contests = [Contest(study, arm, baseline, *of_arm) for arm, *of_arm in zip(others, paired, p_holm, strict=True)]
    return {
        "study": study.name,
        "question": study.question,
        "metric": study.metric,
        "rising": study.rising,
        "baseline": study.baseline,
        "corpus": baseline.corpora.most_common(1)[0][0],
        "seeds": list(study.seeds),
        "match": study.match,
        "match_by": study.match_by,
        "hold": study.hold,
        "notes": list(notes(study, records, [baseline, *others], contests, tuning)),
        "arms": {contest.arm.name: _entry(contest) for contest in contests},
        **({} if tuning is None else {"tuning": tuning}),
    }


def one_a_seed(records: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """Of one arm's runs, one of each seed: the last finished, or else the last diverged, or else the last."""
    rank = {"diverged": 1, "finished": 2}
    ordered = sorted(records, key=lambda record: (rank.get(record.status, 0), _in_order(record)))
    last = {record.seed: record for record in ordered}
    return {seed: last[seed] for seed in sorted(last)}


def _arm(name: str, records: list[RunRecord], metric: str) -> ArmRuns:
    """Of a run that finished without the metric nothing is known; one whose metric is not finite has diverged."""
    runs = one_a_seed(record for record in records if record.arm == name)
    known = {seed: run for seed, run in runs.items() if run.diverged or (run.finished and metric in run.metrics)}
    return ArmRuns(name, runs, {seed: None if run.diverged else run.metric(metric) for seed, run in known.items()})


def _in_order(run: RunRecord) -> list[str | int]:
    """2_b before 10_a."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(run.path))]


def _require(study: Study, baseline: ArmRuns, others: list[ArmRuns]) -> None:
    runs = [run for arm in (baseline, *others) for run in arm.runs.values()]
    logged = {name for run in runs for name in run.metrics}
    if logged and study.metric not in logged:
        raise AblateError(f"metric={study.metric}: no run logged it{did_you_mean(study.metric, logged)}")
    if not baseline.ends:
        there = counts(run.status for run in baseline.runs.values()) or "none"
        able = [arm.name for arm in others if arm.ends]
        raise AblateError(
            f"baseline={study.baseline}: no run of it finished with {study.metric} (there: {there}); "
            f"finish it, or choose another baseline{did_you_mean(study.baseline, able) if able else ''}"
        )


def _entry(contest: Contest) -> dict[str, Any]:
    arm, paired = contest.arm, contest.paired
    found, claim, values = paired.found, contest.study.claims.get(arm.name), paired.values.values()
    return {
        "verdict": contest.verdict,
        "sentence": _sentence(contest),
        **asdict(found),
        "interval": found.interval and list(found.interval),
        "p_holm": contest.p_holm,
        "p_diverged": paired.p_diverged,
        "seeds": list(paired.values),
        "differences": paired.differences,
        "diverged": arm.diverged,
        "baseline_diverged": contest.baseline.diverged,
        "runs": len(arm.runs),
        "unfinished": sum(not (run.finished or run.diverged) for run in arm.runs.values()),
        "mean": fmean(value for value, _ in values) if values else None,
        "baseline_mean": fmean(value for _, value in values) if values else None,
        "claim": claim and {"expect": claim.expect, "source": claim.source, "outcome": _outcome(claim.expect, contest)},
    }


def _outcome(expect: str, contest: Contest) -> str:
    """What becomes of a claim. A difference can be there, and within the margin: then both claims hold."""
    verdict, paired, margin = contest.verdict, contest.paired, contest.study.margin
    arm, baseline = paired.diverged_alone
    if expect == "report":
        return "reported"
    if verdict == expect or (expect == "not worse" and verdict in ("better", "equivalent")):
        return "confirmed"
    if expect in ("better", "worse"):
        return "open" if verdict == "cannot tell" else "refuted"
    if contest.by_divergence:
        return "refuted"
    if expect == "equivalent":
        if significant(paired.found.p_equivalent) and arm == baseline:
            return "confirmed"
        beyond = paired.found.interval and min(abs(end) for end in paired.found.interval) > margin
        return "refuted" if verdict in ("better", "worse") and beyond else "open"
    bound, side = (-margin, "greater") if contest.study.rising else (margin, "less")
    if significant(one_sided(paired.differences, bound, side)) and arm <= baseline:
        return "confirmed"
    return "refuted" if verdict == "worse" else "open"


def _sentence(contest: Contest) -> str:
    """The verdict in words, and who diverged."""
    verdict, arm, baseline, paired = contest.verdict, contest.arm, contest.baseline, contest.paired
    unit = UNITS.get(contest.study.metric, "")
    if contest.alike and verdict == "cannot tell":
        words = in_words(verdict, paired.found, unit)
        return f"{words}, {contest.held}: one configuration under two names, so it is noise"
    finite = f"{in_words(contest.by_values, paired.found, unit)}, {contest.held}"
    if contest.by_values == "cannot tell" and significant(paired.found.p):
        finite += f"; p is {paired.found.p:.2g}, and {contest.p_holm:.2g} as one of {paired.arms} arms (Holm)"
    if contest.by_divergence or verdict != contest.by_values:
        alone, other = paired.diverged_alone
        p = f" (exact McNemar p {paired.p_diverged:.2g})" if contest.by_divergence else ""
        seeds = f"of {len(paired.ended)} seeds, {alone} diverged here only and {other} in the baseline only{p}"
        return f"{verdict}: {seeds}; where both finished, {finite}"
    if arm.diverged or baseline.diverged:
        of_arm, of_baseline = (f"{one.diverged} of {len(one.ends)}" for one in (arm, baseline))
        finite += f"; diverged: {of_arm} runs, of the baseline's {of_baseline}"
    return finite
