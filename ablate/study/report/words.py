"""The sentences of a report on its claims, its conditions, what was matched and what was held equal."""

from typing import Any

from ablate.metrics import METRICS
from ablate.study.judge.contest import HELD
from ablate.study.judge.verdict import ClaimVerdict, Verdict
from ablate.study.records import TOKENS
from ablate.words import counted, percent, short

MATCHED = {"params": "parameters", "flops": "forward FLOPs a token"}
BY = {"ffn": "the FFN's width", "depth": "depth", "dim": "width"}
COSTS = {"params": "budget.total", "flops": "budget.flops_per_token"}  # where summary.json has them


def claim_in_words(claim: ClaimVerdict | None) -> str:
    """The claim, its source and its outcome. Empty if the study makes no claim about the arm."""
    if claim is None:
        return ""
    source = f" ({claim.source})" if claim.source else ""
    if claim.expect == "report":
        return f"No claim: only measured{source}."
    than = "to" if claim.expect == "equivalent" else "than"
    return f"Claimed {claim.expect} {than} the baseline{source}: {claim.outcome}."


def conditions(verdict: Verdict) -> list[str]:
    """The conditions that all runs share, each in a few words."""
    study, runs = verdict.study, verdict.records
    corpora = [str(name) for run in runs if (name := run.recorded("corpus.name"))]
    machines = [_machine(machine) for run in runs if (machine := run.recorded("machine"))]
    shared = [
        f"study {study.name}",
        METRICS[study.metric].titled,
        counted(len(study.seeds), "seed"),
        f"equal {MATCHED[study.match]}" if study.match in MATCHED else "",
        f"{'unequal' if verdict.unequal else 'equal'} {HELD[study.hold]}",
        " / ".join(dict.fromkeys(corpora)),
        " / ".join(dict.fromkeys(machines)),
    ]
    return [condition for condition in shared if condition]


def _machine(machine: dict[str, Any]) -> str:
    threads = machine.get("threads")
    return machine.get("gpu") or ("CPU" if not threads else f"CPU, {counted(threads, 'thread')}")


def matched_in_words(verdict: Verdict) -> str:
    """The budget that was matched, the size that was changed for it, and the arm furthest from the baseline."""
    study = verdict.study
    if study.match not in MATCHED:
        return "nothing: each arm keeps its own size"
    key = COSTS[study.match]
    costs = {
        name: next((cost for run in arm.runs.values() if (cost := run.figure(key))), None)
        for name, arm in verdict.runs.items()
    }
    target = costs.pop(study.baseline)
    off = {name: cost / target - 1 for name, cost in costs.items() if cost and target}
    sentence = f"{MATCHED[study.match]}, within 1%, by {BY[study.match_by]}"
    if not off:
        return sentence
    furthest = max(off, key=lambda name: abs(off[name]))
    return f"{sentence}; furthest from the baseline: {furthest}, {percent(off[furthest], 2, sign=True)}"


def held_in_words(verdict: Verdict) -> str:
    """What was held equal between the runs, and how many tokens a run took."""
    spent = [tokens for arm in verdict.runs.values() for run in arm.finished if (tokens := run.spent(TOKENS))]
    sentence = "nothing" if verdict.unequal else f"{HELD[verdict.study.hold]}, equal in all runs"
    if not spent:
        return sentence
    low, high = short(min(spent)), short(max(spent))
    return f"{sentence}; {low if low == high else f'{low} to {high}'} tokens a run"
