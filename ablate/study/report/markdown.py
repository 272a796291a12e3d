"""The report as Markdown, for a terminal or a Git host."""

import re
from pathlib import Path

from ablate.page.table import Cell
from ablate.study.judge.verdict import ArmVerdict, Verdict
from ablate.study.report.provenance import provenance, run_folders
from ablate.study.report.tables import TESTS, arms_table, tests_of
from ablate.study.report.words import claim_in_words, conditions


def markdown(verdict: Verdict, folder: Path) -> str:
    """The report in Markdown. folder: the report's; the paths of the runs are relative to it."""
    study = verdict.study
    parts = [f"# {_plain(study.question)}", _plain(" · ".join(conditions(verdict)))]
    parts += [_sentence(name, arm) for name, arm in verdict.arms.items()]
    if not verdict.arms:
        parts.append("There is no arm besides the baseline: nothing is compared.")
    if verdict.notes:
        parts += ["## Notes", "\n".join(f"- {_plain(note)}" for note in verdict.notes)]
    if verdict.arms:
        rows = [[name, *tests_of(arm)] for name, arm in verdict.arms.items()]
        parts += [f"## {_plain(study.metric)} against {_plain(study.baseline)}", _table(["arm", *TESTS], rows)]
    parts += ["## Each arm", _arms(verdict)]
    facts = [*provenance(verdict), ("runs", ", ".join(run_folders(verdict, folder)))]
    parts += ["## Where it comes from", "\n".join(f"- {name}: {_plain(fact)}" for name, fact in facts)]
    return "\n\n".join(parts) + "\n"


def _sentence(name: str, arm: ArmVerdict) -> str:
    return _plain(f"{name}: {arm.sentence}. {claim_in_words(arm.claim)}", bold=name)


def _arms(verdict: Verdict) -> str:
    """A row for each figure and a column for each arm, because a terminal has room for few columns."""
    titles, cells = arms_table(verdict)
    rows = [[title, *(_cell(of_arm[i]) for of_arm in cells.values())] for i, title in enumerate(titles)]
    names = [f"{name} (baseline)" if name == verdict.study.baseline else name for name in cells]
    return _table(["", *names], rows)


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.spread})" if cell.spread else cell.text


def _table(titles: list[str], rows: list[list[str]]) -> str:
    """A table padded to be readable as plain text, with numbers to the right."""
    lines = [[_plain(text).replace("|", r"\|") for text in row] for row in (titles, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(titles))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = lines
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in (first, rule, *rest)
    )


def _plain(text: str, bold: str = "") -> str:
    """A user's text on one line, escaped so that it makes no markup, HTML or link. bold: the beginning to make bold."""
    begin, rest = (text[: len(bold)], text[len(bold) :]) if bold else ("", text)
    escaped = [_escaped(" ".join(part.split())) for part in (begin, rest)]
    return f"**{escaped[0]}**{escaped[1]}".strip() if bold else escaped[1]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*]|<(?=[a-zA-Z/!?])|\](?=[(\[:]))", r"\\\1", text)
