"""What limits the verdicts of a study, one plain sentence each."""

from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from ablate.overrides import first_difference
from ablate.study.judge.contest import HELD, ArmRuns, Contest
from ablate.study.question import Study
from ablate.study.records import SECONDS, RunRecord
from ablate.words import duration, listed, number, setting, short, tally

ENOUGH = 6  # pairs: with fewer, an exact sign-flip test cannot reach 0.05


def notes(
    study: Study,
    records: list[RunRecord],
    baseline: ArmRuns,
    contests: list[Contest],
    unequal: tuple[float, float] | None,
    tuning: dict[str, Any] | None,
) -> Iterator[str]:
    """What limits the verdicts. records, unequal, tuning: as in `ablate.study.judge.verdict.Verdict`."""
    arms = [baseline, *(contest.arm for contest in contests)]
    for arm, rates in tuning["arms"].items() if tuning else ():
        if rates["edge"]:
            chosen = setting(rates["chosen"])
            yield f"{arm}: its learning rate, {chosen}, is at the grid's edge: a better one may lie beyond."
    for contest in contests:
        if contest.alike:
            yield f"{contest.arm.name} has the same configuration as {study.baseline} (A/A): any difference is noise."
    yield from _mixed(records, arms)
    yield from _spent(study, arms, unequal)
    yield from _decided_later(study, records)
    yield from _at_chance(arms)
    yield from _few_pairs(contests)
    yield from _seeds(study, arms)
    yield from _left_out(study, records, arms)
    yield from _corpora(arms)
    yield from _code_and_machines([arm.runs[seed] for arm in arms for seed in arm.ends])


def _mixed(records: list[RunRecord], arms: list[ArmRuns]) -> Iterator[str]:
    """Runs that were not made to be compared."""
    studies = [run.study.get("name") for run in records]
    if len(set(studies)) > 1:
        yield f"The runs belong to different studies: {tally(name or 'none' for name in studies)}."
    for arm in arms:
        first, *others = [run.settings for run in arm.runs.values() if run.settings] or [{}]
        if unlike := next((config for config in others if config != first), None):
            key, one, other = first_difference("", first, unlike)
            yield f"{arm.name}: its runs have different settings: {key} is {one} in one and {other} in another."


def _spent(study: Study, arms: list[ArmRuns], unequal: tuple[float, float] | None) -> Iterator[str]:
    """Unequal amounts of what the study holds equal: tokens, training FLOPs or seconds."""
    if study.hold == SECONDS:
        means = {arm.name: fmean(s) for arm in arms if (s := [t for run in arm.finished if (t := run.spent(SECONDS))])}
        if means and max(means.values()) > 1.1 * min(means.values()):
            took = ", ".join(f"{arm} {duration(seconds)}" for arm, seconds in means.items())
            yield f"Timings before the runs set the steps; the runs themselves took unequal times: {took} each."
    elif unequal:
        yield f"The runs took unequal numbers of {HELD[study.hold]}, {short(unequal[0])} to {short(unequal[1])}."


def _decided_later(study: Study, records: list[RunRecord]) -> Iterator[str]:
    """A margin, metric or claim that was chosen after the runs."""
    nodes = [(run.arm, run.study) for run in records if run.study]
    margin = setting(study.margin)
    margins = {node["margin"] for _, node in nodes if node.get("metric") == study.metric and "margin" in node}
    if margins - {study.margin}:
        made = listed(map(setting, sorted(margins)))
        yield f"The margin, {margin}, was chosen after the runs, which were made with {made}."
    if others := sorted({node["metric"] for _, node in nodes if node.get("metric", study.metric) != study.metric}):
        yield (
            f"The runs were made to be judged by {listed(others)}, not by {study.metric}: check that the margin, "
            f"{margin}, suits it."
        )
    for arm, claim in study.claims.items():
        before = [(node.get("claims") or {}).get(arm) or {} for name, node in nodes if name == arm]
        if any(made.get("expect") != claim.expect for made in before):
            yield f"{arm}: the claim about it was changed after the runs."


def _at_chance(arms: list[ArmRuns]) -> Iterator[str]:
    """A task with answers that can be guessed, and that no run has learnt."""
    runs = [run for arm in arms for run in arm.finished]
    chance = next((share for run in runs if (share := run.recorded("corpus.chance"))), None)
    reached = [value for run in runs if (value := run.metric("val/accuracy")) is not None]
    if chance and reached and max(reached) < 2 * chance:
        yield f"No run's accuracy is far above chance, {number(chance)}: none has learnt the task."


def _few_pairs(contests: list[Contest]) -> Iterator[str]:
    by_count = defaultdict(list)
    for contest in contests:
        by_count[contest.paired.statistics.pairs].append(contest.arm.name)
    for count, names in sorted(by_count.items()):
        if count < 2:
            yield f"{listed(names)}: fewer than two pairs, so nothing can be tested."
        elif count < ENOUGH:
            least = f"an exact sign-flip test cannot give p below {setting(0.5 ** (count - 1))}"
            yield f"{listed(names)}: only a screening, with {count} pairs: {least}."


def _seeds(study: Study, arms: list[ArmRuns]) -> Iterator[str]:
    baseline, ended = arms[0], {seed for arm in arms for seed in arm.ends}
    for arm in arms[1:]:
        for one, other in ((arm, baseline), (baseline, arm)):
            if unpaired := sorted(one.ends.keys() - other.ends.keys()):
                yield f"{arm.name}: seeds left out because only {one.name} has them: {listed(unpaired)}."
    if missing := sorted(set(study.seeds) - ended):
        yield f"Seeds without a run that finished or diverged: {listed(missing)}."
    if further := sorted(ended - set(study.seeds)):
        yield f"Seeds that the study does not list, but that are counted: {listed(further)}."


def _left_out(study: Study, records: list[RunRecord], arms: list[ArmRuns]) -> Iterator[str]:
    for arm in arms:
        if unfinished := tally(run.status for run in arm.unfinished):
            yield f"{arm.name}: runs left out because they did not finish: {unfinished}."
        if silent := [seed for seed, run in arm.runs.items() if run.finished and seed not in arm.ends]:
            yield f"{arm.name}: runs left out because they finished without {study.metric}: seed {listed(silent)}."
        for seed, run in arm.runs.items():
            there = [record.status for record in records if (record.arm, record.seed) == (arm.name, seed)]
            if len(there) > 1:
                used = f"the last {run.status} one is used: {run.path}"
                yield f"{arm.name}, seed {seed}: {len(there)} runs ({tally(there)}); {used}."
    names = {arm.name for arm in arms}
    if strangers := tally(record.arm for record in records if record.arm not in names):
        yield f"Runs left out because their arm is not in the study: {strangers}."


def _corpora(arms: list[ArmRuns]) -> Iterator[str]:
    baseline = arms[0]
    majority = baseline.corpora.most_common(1)[0][0]
    for arm in arms:
        if others := [f"{corpus or 'unknown'} ({n} runs)" for corpus, n in arm.corpora.items() if corpus != majority]:
            yield f"{arm.name}: not comparable: its corpus is {listed(others)}, but {baseline.name} has {majority}."


def _code_and_machines(runs: list[RunRecord]) -> Iterator[str]:
    yield from _differing("git revisions", [run.recorded("git.revision") for run in runs])
    yield from _differing("versions of torch", [run.recorded("versions.torch") for run in runs])
    yield from _differing("machines", [_machine(run) for run in runs])
    if dirty := sum(run.recorded("git.dirty") is True for run in runs):
        yield f"{dirty} of {len(runs)} runs used code with uncommitted changes, which the git revision does not show."


def _machine(run: RunRecord) -> str | None:
    name = run.recorded("machine.gpu") or run.recorded("machine.platform")
    return name and f"{name} with {run.recorded('machine.threads')} threads"


def _differing(what: str, values: list[Any]) -> Iterator[str]:
    if len(set(values)) > 1:
        yield f"The runs have different {what}: {tally(str(value or 'unknown') for value in values)}."
