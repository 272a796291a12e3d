"""Where the numbers of a report come from."""

import os
from collections.abc import Iterable

from ablate.study.records import RunRecord
from ablate.study.report.findings import Findings, distinct
from ablate.study.report.words import held_in_words, matched_in_words

FEW = 3  # commands: of more, the first are shown


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """What, and its value in words; what no run tells is left out."""
    runs = findings.records
    facts = {
        "commands": _commands(runs),
        "seeds": ", ".join(map(str, findings.seeds)),
        "matched": matched_in_words(findings),
        "held": held_in_words(findings),
        "learning rates": _learning_rates(findings),
        "corpus": "; ".join(distinct(_corpus(run) for run in runs)),
        "precision": ", ".join(distinct(str(run.summary.get("precision") or "") for run in runs)),
        "git": "; ".join(distinct(_git(run) for run in runs)),
        "versions": "; ".join(distinct(_listed(run.summary.get("versions")) for run in runs)),
        "machine": "; ".join(distinct(_listed(run.summary.get("machine")) for run in runs)),
    }
    return [(name, fact) for name, fact in facts.items() if fact]


def run_folders(findings: Findings) -> list[str]:
    """As seen from the report's folder, so that both can be moved together."""
    return [os.path.relpath(run.path, findings.folder) for run in findings.records]


def _commands(runs: Iterable[RunRecord]) -> str:
    commands = distinct(run.summary.get("command") for run in runs)
    more = f"; and {len(commands) - FEW} more, in the runs' summary.json" if len(commands) > FEW else ""
    return "; ".join(commands[:FEW]) + more


def _learning_rates(findings: Findings) -> str:
    if not (tuning := findings.verdict.get("tuning")):
        return ""
    chosen = "; ".join(f"{arm}: {found['chosen']:g}" for arm, found in tuning["arms"].items())
    return f"tuned over {', '.join(f'{rate:g}' for rate in tuning['grid'])}; {chosen}"


def _corpus(run: RunRecord) -> str:
    corpus = run.summary.get("corpus") or {}
    return f"{corpus.get('name') or ''} {corpus.get('fingerprint') or ''}".strip()


def _git(run: RunRecord) -> str:
    git = run.summary.get("git") or {}
    return f"{git['revision']}{', with changes' if git.get('dirty') else ''}" if git.get("revision") else ""


def _listed(facts: dict[str, object] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (facts or {}).items() if value is not None)
