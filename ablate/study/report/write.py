"""Writes a study's report: verdict.json for programs, verdict.md for terminals and Git hosts, index.html to browse."""

from pathlib import Path
from typing import Any

from ablate.files import make_folder, write_json, write_text
from ablate.model.config import AXES
from ablate.page.drawing import colour_of
from ablate.page.write import write_page
from ablate.study.judge.verdict import Verdict, as_json
from ablate.study.report.markdown import markdown
from ablate.study.report.plots import all_plots
from ablate.study.report.provenance import provenance, run_folders
from ablate.study.report.tables import TESTS, arms_table, differences, layer_rows, tests_of
from ablate.study.report.words import claim_in_words, conditions
from ablate.words import setting


def write_report(verdict: Verdict, folder: Path) -> Path:
    """Writes the report into `folder`, which is made if it does not exist; returns the path of its page.

    Raises:
        AblateError: the folder cannot be made.
    """
    make_folder(folder, "out")
    write_json(folder / "verdict.json", as_json(verdict))
    write_text(folder / "verdict.md", markdown(verdict, folder))
    page = folder / "index.html"
    write_page(page, Path(__file__).with_name("page.html"), all_plots(verdict), _values(verdict, folder))
    return page


def _values(verdict: Verdict, folder: Path) -> dict[str, Any]:
    """The values that page.html shows."""
    titles, cells = arms_table(verdict)
    return {
        "study": verdict.study,
        "margin": setting(verdict.study.margin),
        "arms": list(verdict.runs),
        "conditions": conditions(verdict),
        "verdicts": [(name, arm, claim_in_words(arm.claim)) for name, arm in verdict.arms.items()],
        "colours": {name: colour_of(i) for i, name in enumerate(verdict.runs)},  # as in the plots
        "notes": verdict.notes,
        "tests": [(name, tests_of(arm)) for name, arm in verdict.arms.items()],
        "test_titles": TESTS,
        "titles": titles,
        "cells": cells,
        "changes": differences(verdict),
        "axes": list(AXES),
        "layers": {name: layer_rows(next(iter(arm.runs.values()))) for name, arm in verdict.runs.items() if arm.runs},
        "provenance": provenance(verdict),
        "run_folders": run_folders(verdict, folder),
    }
