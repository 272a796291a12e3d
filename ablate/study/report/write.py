"""The report of a study: verdict.json for programs, verdict.md for a terminal and a forge, index.html for a browser."""

from pathlib import Path
from typing import Any

from ablate.files import make_folder, write_json, write_text
from ablate.study.question import Study
from ablate.study.records import RunRecord
from ablate.study.report.findings import Findings, strict
from ablate.study.report.markdown import markdown
from ablate.study.report.page import write_page


def write_report(study: Study, records: list[RunRecord], verdict: dict[str, Any], folder: Path) -> Path:
    """Writes the report into `folder`, which is made if need be; returns the path of its page.

    verdict: what `ablate.study.judge.verdict.judge` returns.

    Raises:
        AblateError: the folder cannot be made.
    """
    make_folder(folder, "out")
    findings = Findings(study, records, strict(verdict), folder)
    write_json(folder / "verdict.json", findings.verdict)
    write_text(folder / "verdict.md", markdown(findings))
    return write_page(findings)
