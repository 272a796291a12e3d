"""The report as Markdown: for a terminal, and for a forge."""

import re

from ablate.study.report.findings import Findings
from ablate.study.report.provenance import provenance, run_folders
from ablate.study.report.tables import TESTS, Cell, table, tests_of
from ablate.study.report.words import claim_in_words, conditions


def markdown(findings: Findings) -> str:
    study, judged = findings.study, findings.judged
    parts = [f"# {_plain(study.question)}", _plain(" · ".join(conditions(findings)))]
    parts += [_verdict(findings, arm) for arm in findings.rivals]
    if not judged:
        parts.append("There is no arm beside the baseline: nothing is compared.")
    notes = [f"- {_plain(note)}" for note in findings.verdict["notes"]]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    if judged:
        rows = [[arm, *tests_of(judged[arm])] for arm in findings.rivals]
        parts += [f"## {_plain(study.metric)} against {_plain(study.baseline)}", _table(["arm", *TESTS], rows)]
    parts += ["## Each arm", _arms(findings)]
    facts = [f"- {name}: {_plain(fact)}" for name, fact in provenance(findings)]
    parts += ["## Where it comes from", "\n".join([*facts, f"- runs: {_plain(', '.join(run_folders(findings)))}"])]
    return "\n\n".join(parts) + "\n"


def _verdict(findings: Findings, arm: str) -> str:
    said = findings.judged[arm]
    return _plain(f"{arm}: {said['sentence']}. {claim_in_words(said['claim'])}", bold=arm)


def _arms(findings: Findings) -> str:
    """A row a figure and a column an arm: as wide as there are arms, which a terminal has room for."""
    titles, cells = table(findings)
    rows = [[title, *(_cell(cells[arm][i]) for arm in findings.arms)] for i, title in enumerate(titles)]
    names = [f"{arm} (baseline)" if arm == findings.study.baseline else arm for arm in findings.arms]
    return _table(["", *names], rows)


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.spread})" if cell.spread else cell.text


def _table(titles: list[str], rows: list[list[str]]) -> str:
    """Padded, so that it can be read as it is; numbers to the right."""
    lines = [[_plain(text).replace("|", r"\|") for text in row] for row in (titles, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(titles))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = lines
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in (first, rule, *rest)
    )


def _plain(text: str, bold: str = "") -> str:
    """User's text as text, on one line: no markup, HTML or link comes of it. `bold`: its beginning that is."""
    begin, rest = (text[: len(bold)], text[len(bold) :]) if bold else ("", text)
    escaped = [_escaped(" ".join(part.split())) for part in (begin, rest)]
    return f"**{escaped[0]}**{escaped[1]}".strip() if bold else escaped[1]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*]|<(?=[a-zA-Z/!?])|\](?=[(\[:]))", r"\\\1", text)
