"""The page of a study."""

from pathlib import Path

from ablate.model.config import AXES
from ablate.page.drawing import colour_of
from ablate.page.write import write_page as write
from ablate.study.report.findings import Findings
from ablate.study.report.layers import differences, layer_rows
from ablate.study.report.plots import all_plots
from ablate.study.report.provenance import provenance, run_folders
from ablate.study.report.tables import TESTS, table, tests_of
from ablate.study.report.words import claim_in_words, conditions


def write_page(findings: Findings) -> Path:
    """Writes `index.html` into the report's folder; returns its path."""
    path = findings.folder / "index.html"
    titles, cells = table(findings)
    changes = differences(findings)
    values = {
        "study": findings.study,
        "arms": findings.arms,
        "conditions": conditions(findings),
        "verdicts": [(arm, said, claim_in_words(said["claim"])) for arm, said in _judged(findings)],
        "colours": {arm: colour_of(i) for i, arm in enumerate(findings.arms)},  # as in the plots
        "notes": findings.verdict["notes"],
        "tests": [(arm, tests_of(said)) for arm, said in _judged(findings)],
        "test_titles": TESTS,
        "titles": titles,
        "cells": cells,
        "changes": changes,
        "axes": list(AXES),
        "layers": {arm: layer_rows(runs[0]) for arm in findings.arms if (runs := findings.runs(arm))},
        "provenance": provenance(findings),
        "run_folders": run_folders(findings),
    }
    write(path, Path(__file__).with_name("page.html"), all_plots(findings), values)
    return path


def _judged(findings: Findings):
    return [(arm, findings.judged[arm]) for arm in findings.rivals]
