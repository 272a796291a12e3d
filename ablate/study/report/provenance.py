"""The origin of a report's numbers: commands, budgets, corpus, code and machine."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablate.page.provenance import facts, revision
from ablate.study.judge.verdict import Verdict
from ablate.study.records import RunRecord
from ablate.study.report.words import held_in_words, matched_in_words
from ablate.words import listed, setting

FEW = 3  # commands that are shown; the others are only counted


def provenance(verdict: Verdict) -> list[tuple[str, str]]:
    """(name, value in words) of each fact that any run recorded."""
    runs = verdict.records
    known = {
        "commands": _commands(runs),
        "seeds": listed(verdict.study.seeds),
        "matched": matched_in_words(verdict),
        "held": held_in_words(verdict),
        "learning rates": _learning_rates(verdict.tuning),
        "corpus": "; ".join(_distinct(_corpus(run) for run in runs)),
        "precision": ", ".join(_distinct(str(run.summary.get("precision") or "") for run in runs)),
        "git": "; ".join(_distinct(revision(run.summary.get("git")) for run in runs)),
        "versions": "; ".join(_distinct(facts(run.summary.get("versions")) for run in runs)),
        "machine": "; ".join(_distinct(facts(run.summary.get("machine")) for run in runs)),
    }
    return [(name, words) for name, words in known.items() if words]


def run_folders(verdict: Verdict, folder: Path) -> list[str]:
    """The paths of all runs, relative to the report's folder, so that both can be moved together."""
    return [os.path.relpath(run.path, folder) for run in verdict.records]


def _commands(runs: Iterable[RunRecord]) -> str:
    commands = _distinct(run.summary.get("command") for run in runs)
    more = f"; and {len(commands) - FEW} more, in the runs' summary.json" if len(commands) > FEW else ""
    return "; ".join(commands[:FEW]) + more


def _learning_rates(tuning: dict[str, Any] | None) -> str:
    if not tuning:
        return ""
    chosen = "; ".join(f"{arm}: {setting(rates['chosen'])}" for arm, rates in tuning["arms"].items())
    return f"tuned over {listed(map(setting, tuning['grid']))}; {chosen}"


def _corpus(run: RunRecord) -> str:
    return " ".join(part for key in ("name", "fingerprint") if (part := run.recorded(f"corpus.{key}")))


def _distinct(texts: Iterable[str | None]) -> list[str]:
    """Each text once, in order; empty ones are left out."""
    return list(dict.fromkeys(text for text in texts if text))
