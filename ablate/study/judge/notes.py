"""What limits the verdicts of a study, in plain sentences."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ablate.overrides import first_difference
from ablate.study.question import Study
from ablate.study.records import SECONDS, RunRecord, reading, unequal
from ablate.words import short

if TYPE_CHECKING:
    from ablate.study.judge.verdict import ArmRuns, Contest

ENOUGH = 6  # pairs: of fewer, an exact sign-flip test cannot reach 0.05


def notes(
    study: Study,
    records: list[RunRecord],
    arms: "list[ArmRuns]",
    contests: "list[Contest]",
    tuning: dict[str, Any] | None,
) -> Iterator[str]:
    """What limits the verdicts, a plain sentence each."""
    for arm, found in tuning["arms"].items() if tuning else ():
        if found["edge"]:
            yield f"{arm}: its learning rate, {found['chosen']:g}, is at the grid's edge: a better one may lie beyond."
    for contest in contests:
        if contest.alike:
            yield f"{contest.arm.name} is {study.baseline} under another name (A/A): a difference is noise."
    yield from _mixed(study, records, arms)
    yield from _spent(study, arms)
    yield from _decided_later(study, records)
    yield from _at_chance(study, arms)
    yield from _few_pairs(contests)
    yield from _seeds(study, arms)
    yield from _left_out(study, records, arms)
    ended = [arm.runs[seed] for arm in arms for seed in arm.ends]
    majority = arms[0].corpora.most_common(1)[0][0]
    for arm in arms:
        if others := [f"{corpus or 'unknown'} ({n} runs)" for corpus, n in arm.corpora.items() if corpus != majority]:
            yield f"{arm.name}: not comparable: on corpus {_listed(others)}, where {study.baseline} is on {majority}."
    yield from _differing("git revisions", [reading(run.summary, "git.revision") for run in ended])
    yield from _differing("versions of torch", [reading(run.summary, "versions.torch") for run in ended])
    yield from _differing("machines", [_machine(run) for run in ended])
    if dirty := sum(reading(run.summary, "git.dirty") is True for run in ended):
        yield f"{dirty} of {len(ended)} runs: their code had uncommitted changes, which the git revision does not tell."


def _mixed(study: Study, records: list[RunRecord], arms: "list[ArmRuns]") -> Iterator[str]:
    """Runs that were not made to be compared."""
    studies = [reading(run.config, "study.name") for run in records]
    if len(set(studies)) > 1:
        yield f"The runs are of different studies: {counts(name or 'none' for name in studies)}."
    for arm in arms:
        first, *others = [run.settings for run in arm.runs.values() if run.settings] or [{}]
        if unlike := next((config for config in others if config != first), None):
            key, one, other = first_difference("", first, unlike)
            yield f"{arm.name}: its runs are not all alike: {key.lstrip('.')} is {one} in one and {other} in another."


def _spent(study: Study, arms: "list[ArmRuns]") -> Iterator[str]:
    """What of the study's budget was not equal after all."""
    if study.hold == SECONDS:
        means = {arm.name: fmean(s) for arm in arms if (s := [t for run in arm.finished if (t := run.spent(SECONDS))])}
        if means and max(means.values()) > 1.1 * min(means.values()):
            took = ", ".join(f"{arm} {seconds:.3g} s" for arm, seconds in means.items())
            yield f"Steps follow from timings before the study; the runs themselves took unequal seconds: {took} each."
    elif apart := unequal([run for arm in arms for run in arm.finished], study.hold):
        what = {"tokens": "trained on unequal numbers of tokens", "flops": "of unequal training FLOPs"}[study.hold]
        yield f"The runs were {what}, {short(apart[0])} to {short(apart[1])}."


def _decided_later(study: Study, records: list[RunRecord]) -> Iterator[str]:
    """What was asked or claimed after the runs had been made."""
    nodes = [(run.arm, node) for run in records if isinstance(node := run.config.get("study"), dict)]
    margins = {node["margin"] for _, node in nodes if node.get("metric") == study.metric and "margin" in node}
    if margins - {study.margin}:
        made = _listed(f"{margin:g}" for margin in sorted(margins))
        yield f"The margin, {study.margin:g}, was chosen after runs had been made, with {made}."
    if others := sorted({node["metric"] for _, node in nodes if node.get("metric", study.metric) != study.metric}):
        yield (
            f"The runs were made to be judged by {_listed(others)}, not by {study.metric}: is the margin, "
            f"{study.margin:g}, one for it?"
        )
    for arm, claim in study.claims.items():
        before = [(node.get("claims") or {}).get(arm) or {} for name, node in nodes if name == arm]
        if any(made.get("expect") != claim.expect for made in before):
            yield f"{arm}: what is claimed of it was changed after runs had been made."


def _at_chance(study: Study, arms: "list[ArmRuns]") -> Iterator[str]:
    """Of tasks whose answers can be guessed."""
    runs = [run for arm in arms for run in arm.finished]
    chance = next((c for run in runs if (c := reading(run.summary, "corpus.chance"))), None)
    reached = [value for run in runs if (value := run.metric("val/accuracy")) is not None]
    if chance and reached and max(reached) < 2 * chance:
        yield f"No run is far above chance, an accuracy of {chance:.3g}: none has learnt the task."


def _few_pairs(contests: "list[Contest]") -> Iterator[str]:
    by_count = defaultdict(list)
    for contest in contests:
        by_count[contest.paired.found.pairs].append(contest.arm.name)
    for count, names in sorted(by_count.items()):
        if count < 2:
            yield f"{_listed(names)}: fewer than two pairs, so nothing can be tested."
        elif count < ENOUGH:
            least = f"an exact sign-flip test of them cannot go below p = {0.5 ** (count - 1):g}"
            yield f"{_listed(names)}: screening, by {count} pairs: {least}."


def _seeds(study: Study, arms: "list[ArmRuns]") -> Iterator[str]:
    baseline, ended = arms[0], {seed for arm in arms for seed in arm.ends}
    for arm in arms[1:]:
        for one, other in ((arm, baseline), (baseline, arm)):
            if alone := sorted(one.ends.keys() - other.ends.keys()):
                yield f"{arm.name}: unequal seeds: left out, as only {one.name} has them: {_listed(alone)}."
    if missing := sorted(set(study.seeds) - ended):
        yield f"Seeds of which no run came to an end: {_listed(missing)}."
    if further := sorted(ended - set(study.seeds)):
        yield f"Seeds that are not the study's, and counted: {_listed(further)}."


def _left_out(study: Study, records: list[RunRecord], arms: "list[ArmRuns]") -> Iterator[str]:
    for arm in arms:
        if unfinished := counts(run.status for run in arm.runs.values() if not (run.finished or run.diverged)):
            yield f"{arm.name}: unfinished, and left out: {unfinished}."
        if silent := [s for s, run in arm.runs.items() if run.finished and s not in arm.ends]:
            yield f"{arm.name}: finished without {study.metric}, and left out: seed {_listed(silent)}."
        for seed, run in arm.runs.items():
            there = [record.status for record in records if (record.arm, record.seed) == (arm.name, seed)]
            if len(there) > 1:
                used = f"used is the last {run.status}, {run.path}"
                yield f"{arm.name}, seed {seed}: {len(there)} runs ({counts(there)}); {used}."
    if strangers := counts(record.arm for record in records if record.arm not in {arm.name for arm in arms}):
        yield f"Runs of no arm of the study, left out: {strangers}."


def _machine(run: RunRecord) -> str | None:
    place = reading(run.summary, "machine.gpu") or reading(run.summary, "machine.platform")
    return place and f"{place} with {reading(run.summary, 'machine.threads')} threads"


def _differing(what: str, values: list[Any]) -> Iterator[str]:
    if len(set(values)) > 1:
        yield f"The runs are of different {what}: {counts(str(value or 'unknown') for value in values)}."


def counts(values: Iterable[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())


def _listed(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    return ("; " if any("," in text for text in texts) else ", ").join(texts)
