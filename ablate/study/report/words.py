"""A verdict in words and numbers."""

import math
from typing import Any

from ablate.metrics import METRICS
from ablate.study.records import SECONDS, TOKENS, unequal
from ablate.study.report.findings import Findings, distinct, figure
from ablate.words import number, short

MATCHED = {"params": "parameters", "flops": "forward FLOPs a token"}
HELD = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training"}
BY = {"ffn": "the FFN's width", "depth": "depth", "dim": "width"}


def with_unit(metric: str) -> str:
    """val/loss, nats a token"""
    unit = METRICS[metric].unit
    return f"{metric}, {unit}" if unit else metric


def signed(value: float, decimals: int | None = None) -> str:
    """-0.0214 -> −0.0214, and 0.0214 -> +0.0214; three digits unless `decimals` are given."""
    text = f"{value:+.3g}" if decimals is None else f"{value:+,.{decimals}f}"
    return text.replace("-", "−")


def level(value: float) -> str:
    """A metric's value: 3.4172, or 24,044."""
    return f"{value:.4f}" if abs(value) < 100 else number(value)


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def effect_and_interval(said: dict[str, Any]) -> tuple[str, str]:
    """Two digits of the interval's half width are shown; empty strings for what is null."""
    effect, interval = said["effect"], said["interval"]
    if effect is None:
        return "", ""
    if interval is None or None in interval:
        return signed(effect), ""
    half = (interval[1] - interval[0]) / 2
    decimals = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 4
    low, high = (signed(bound, decimals) for bound in interval)
    return signed(effect, decimals), f"{low} to {high}"


def claim_in_words(claim: dict[str, Any] | None) -> str:
    """The claim under test, what became of it, and who says so. Empty: the study says nothing of the arm."""
    if not claim:
        return ""
    source = f" ({claim['source']})" if claim.get("source") else ""
    if claim["expect"] == "report":
        return f"Nothing is claimed: it is measured{source}."
    than = "to" if claim["expect"] == "equivalent" else "than"
    return f"Claimed {claim['expect']} {than} the baseline{source}: {claim.get('outcome') or 'open'}."


def conditions(findings: Findings) -> list[str]:
    """What holds of the whole study, each in a few words."""
    study, seeds, records = findings.study, findings.seeds, findings.records
    machines = distinct(_machine(record.summary.get("machine")) for record in records)
    corpora = distinct((record.summary.get("corpus") or {}).get("name") for record in records)
    said = [
        f"study {study.name}",
        with_unit(study.metric),
        "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds",
        f"equal {MATCHED[study.match]}" if study.match in MATCHED else "",
        f"{'unequal' if _unequal(findings) else 'equal'} {HELD[study.hold]}",
        " / ".join(map(str, corpora)),
        " / ".join(machines),
    ]
    return [part for part in said if part]


def _machine(machine: dict[str, Any] | None) -> str:
    if not machine:
        return ""
    threads = machine.get("threads")
    return machine.get("gpu") or ("CPU" if not threads else f"CPU, {threads} thread{'s' if threads > 1 else ''}")


def matched_in_words(findings: Findings) -> str:
    """What was matched, by what, and how far the arms are from it now."""
    study = findings.study
    if study.match not in MATCHED:
        return "nothing: each arm is as large as it comes"
    key = {"params": "budget.total", "flops": "budget.flops_per_token"}[study.match]
    costs = {arm: next((c for run in findings.runs(arm) if (c := figure(run, key))), None) for arm in findings.arms}
    target = costs.get(study.baseline)
    off = {arm: cost / target - 1 for arm, cost in costs.items() if cost and target and arm != study.baseline}
    sentence = f"{MATCHED[study.match]}, within 1%, by {BY[study.match_by]}"
    if not off:
        return sentence
    furthest = max(off, key=lambda arm: abs(off[arm]))
    return f"{sentence}; furthest from the baseline: {furthest}, {signed(100 * off[furthest], 2)}%"


def held_in_words(findings: Findings) -> str:
    """What each run might spend, and what that came to in tokens."""
    spent, hold = _spent(findings), findings.study.hold
    sentence = "nothing" if _unequal(findings) else f"{HELD[hold]}, as many as the baseline"
    if not spent:
        return sentence
    low, high = short(min(spent)), short(max(spent))
    return f"{sentence}; {low if low == high else f'{low} to {high}'} tokens a run"


def _unequal(findings: Findings) -> bool:
    """Whether finished runs spent unequally of what should be held; seconds are held by what a step took when timed."""
    hold = findings.study.hold
    return hold != SECONDS and unequal((run for run in findings.records if run.finished), hold) is not None


def _spent(findings: Findings) -> list[float]:
    """The tokens of each finished run."""
    return [tokens for run in findings.records if run.finished and (tokens := run.spent(TOKENS))]
