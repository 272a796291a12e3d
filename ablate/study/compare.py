"""`python compare.py`: a verdict from existing runs, of a study or of any sweep."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ablate import check
from ablate.errors import AblateError, did_you_mean, warn
from ablate.metrics import METRICS
from ablate.model.config import load_plugins
from ablate.study.judge.verdict import judge
from ablate.study.plan.rates import choose
from ablate.study.question import Claim, Study, read_claims, read_study
from ablate.study.records import RunRecord, read_any_runs, read_runs
from ablate.study.report.write import write_report
from ablate.study.terminal import show_verdict


def compare(config: DictConfig) -> None:
    """Judges the runs in `config.runs`, prints the verdict and writes the report. config: see `conf/compare.yaml`.

    Raises:
        AblateError: no runs, only one arm, a baseline that is not an arm, or a metric that no run logged.
    """
    for key in ("baseline", "metric", "out"):
        check.text(key, config[key], null=True)
    check.number("margin", config.margin, above=0, null=True, hint="in the metric's unit")
    load_plugins(config.plugins)
    folder = Path(str(config.runs))
    records = read_any_runs(folder)
    study = study_of(records, config.baseline, config.metric, config.margin)
    _check_direction(study.metric, records)
    verdict = judge(study, records, _tuned(records, folder / "tuning"))
    show_verdict(verdict, write_report(verdict, Path(config.out or folder / "report")))


def _check_direction(metric: str, records: list[RunRecord]) -> None:
    """Raises AblateError if a plug-in of the runs may say whether more of the metric is better, and is not given."""
    plugins = sorted({name for run in records for name in run.config.get("plugins") or []})
    if metric in METRICS or not any(metric in run.metrics for run in records):
        return
    if plugins:
        given = f"plugins=[{','.join(plugins)}]"
        raise AblateError(f"metric={metric}: a plug-in says whether more is better; name the runs' own: {given}")
    warn(f"metric={metric}: nothing says whether more is better; less is taken to be better")


def study_of(records: list[RunRecord], baseline: str | None, metric: str | None, margin: float | None) -> Study:
    """The study that the runs belong to, or one made of their arms. The arguments override the study's own values.

    Raises:
        AblateError: the baseline is not an arm, or there is only one arm.
    """
    node = _node(records)
    arms = list(dict.fromkeys(record.arm for record in records))
    if len(arms) < 2:
        raise AblateError(f"runs: all {len(records)} belong to one arm, '{arms[0]}'; expected at least two arms")
    chosen = _arm(arms, baseline) if baseline else _default_baseline(arms, node)
    return Study(
        name=node.get("name") or "comparison",
        question=node.get("question") or f"How do {len(arms)} arms compare?",
        baseline=chosen,
        arms={arm: [] for arm in arms},
        seeds=sorted({record.seed for record in records}),
        metric=metric or node.get("metric") or "val/loss",
        margin=margin or node.get("margin") or 0.01,
        match=node.get("match") or "none",
        match_by=node.get("match_by") or "ffn",
        hold=node.get("hold") or "tokens",
        claims=_kept_claims(node, arms, chosen, metric),
    )


def _node(records: list[RunRecord]) -> dict[str, Any]:
    """The node `study` of the newest run; for runs of several studies, the metric and margin that they agree on."""
    made = sorted((run for run in records if run.study), key=lambda run: (run.path / "config.yaml").stat().st_mtime)
    nodes = [run.study for run in made]
    if len({node.get("name") for node in nodes}) < 2:
        return nodes[-1] if nodes else {}
    return {key: nodes[0].get(key) for key in ("metric", "margin") if len({node.get(key) for node in nodes}) == 1}


def _kept_claims(node: dict[str, Any], arms: list[str], baseline: str, metric: str | None) -> dict[str, Claim]:
    """The study's claims; none with another baseline or metric, because the claims are not about these."""
    if node.get("baseline") != baseline or metric not in (None, node.get("metric")):
        return {}
    return read_claims({arm: claim for arm, claim in (node.get("claims") or {}).items() if arm in arms}, arms, baseline)


def _default_baseline(arms: list[str], node: dict[str, Any]) -> str:
    if node.get("baseline") in arms:
        return node["baseline"]
    return "default" if "default" in arms else arms[0]


def _arm(arms: list[str], wanted: str) -> str:
    """The arm of that name, or the only one whose name ends in it: `layernorm` for `model/norm=layernorm`."""
    if wanted in arms:
        return wanted
    ending = [arm for arm in arms if arm.endswith(("/" + wanted, "." + wanted, "=" + wanted))]
    if len(ending) == 1:
        return ending[0]
    raise AblateError(f"baseline: no arm '{wanted}'{did_you_mean(wanted, arms)}")


def _tuned(records: list[RunRecord], folder: Path) -> dict[str, Any] | None:
    """The learning rates, chosen again from the study's tuning runs; None if the study did not tune."""
    node = records[0].study
    if node.get("tune") is None or not folder.is_dir():
        return None
    try:
        return choose(*read_study(node), read_runs(folder))
    except AblateError as error:
        warn(f"{folder}: the learning rates are left out: {error}")
        return None
