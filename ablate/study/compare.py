"""A verdict from runs that are there: those of a study, or of any sweep."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ablate.errors import AblateError, warn
from ablate.study.collect import read_any_runs, read_runs, study_of
from ablate.study.judge.verdict import judge
from ablate.study.plan.rates import choose
from ablate.study.question import read_study
from ablate.study.records import RunRecord
from ablate.study.report.write import write_report
from ablate.study.terminal import show_verdict


def compare(config: DictConfig) -> None:
    """What `conf/compare.yaml` and the overrides ask for.

    Raises:
        AblateError: no runs, one arm alone, a baseline that is none of them, a metric that no run logged.
    """
    for key in ("baseline", "metric", "out"):
        _text(key, config[key])
    margin = config.margin
    if margin is not None and (not isinstance(margin, int | float) or isinstance(margin, bool) or not margin > 0):
        raise AblateError(f"margin={margin}: expected a number above 0, in the metric's unit")
    folder = Path(str(config.runs))
    records = read_any_runs(folder)
    study = study_of(records, config.baseline, config.metric, margin)
    verdict = judge(study, records, _tuned(records, folder / "tuning"))
    show_verdict(verdict, write_report(study, records, verdict, Path(config.out or folder / "report")))


def _tuned(records: list[RunRecord], folder: Path) -> dict[str, Any] | None:
    """What a study with learning rates of its own has found of them, by its own metric."""
    node = records[0].config.get("study") or {}
    if node.get("tune") is None or not folder.is_dir():
        return None
    try:
        return choose(*read_study(node), read_runs(folder))
    except AblateError as error:
        warn(f"{folder}: the learning rates are left out: {error}")
        return None


def _text(key: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise AblateError(f"{key}={value}: expected a text; quote it: {key}='{value}'")
