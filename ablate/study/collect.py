"""The runs under a folder, and which arm each belongs to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.errors import AblateError, did_you_mean, warn
from ablate.run import read_config, read_summary
from ablate.study.question import Claim, Study, read_claims
from ablate.study.records import RunRecord

# Overrides that make no arm: where a run lies, what is kept of it, how it is shown.
_NO_ARM = ("seed", "run_dir", "resume", "tags", "paths", "logger", "callbacks", "sample", "study", "experiment")


def read_runs(folder: Path) -> list[RunRecord]:
    """Every run of a study in `folder` and below, in the order of their paths; what cannot be read is left out."""
    return [run for run in _runs(folder) if run.arm]


def read_any_runs(folder: Path) -> list[RunRecord]:
    """Every run in `folder` and below. Its arm is the study's, or else the overrides in which it differs from others.

    Raises:
        AblateError: no such folder, or no runs in it that can be read.
    """
    if not folder.is_dir():
        raise AblateError(f"runs={folder}: no such folder; expected one with run folders in it, such as one of a sweep")
    runs = _runs(folder)
    if not runs:
        raise AblateError(f"runs={folder}: there is no run folder in it that can be read, with a summary.json")
    studied = [run for run in runs if run.arm]
    if studied:
        if len(studied) < len(runs):
            warn(f"runs={folder}: {len(runs) - len(studied)} runs of no study are left out; name a folder of theirs")
        return _of_studies(folder, [run for run in studied if run.config["study"].get("stage") != "tuning"])
    changes = [_changes(run) for run in runs]
    common = set.intersection(*map(set, changes))
    named = [", ".join(change for change in mine if change not in common) or "default" for mine in changes]
    return [replace(run, arm=name) for run, name in zip(runs, named, strict=True)]


def _of_studies(folder: Path, runs: list[RunRecord]) -> list[RunRecord]:
    """The runs; where they are of several studies, an arm's name begins with that of its study."""
    if not runs:
        raise AblateError(f"runs={folder}: its runs only chose learning rates; the study's own command goes on with it")
    names = [run.config["study"].get("name") for run in runs]
    if len(set(names)) == 1:
        return runs
    return [replace(run, arm=f"{name}/{run.arm}") for run, name in zip(runs, names, strict=True)]


def study_of(records: list[RunRecord], baseline: str | None, metric: str | None, margin: float | None) -> Study:
    """The study that the runs belong to, or one made of their arms; what is given has the last word.

    Raises:
        AblateError: a baseline that is no arm; one arm alone.
    """
    node = _node(records)
    arms = list(dict.fromkeys(record.arm for record in records))
    if len(arms) < 2:
        raise AblateError(f"runs: all {len(records)} are of one arm, '{arms[0]}': there is nothing to compare")
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
    """The node `study` of the run that was made last; of several studies, how all of them judge."""
    made = sorted((r for r in records if r.config.get("study")), key=lambda r: (r.path / "config.yaml").stat().st_mtime)
    nodes = [run.config["study"] for run in made]
    if len({node.get("name") for node in nodes}) < 2:
        return nodes[-1] if nodes else {}
    return {key: nodes[0].get(key) for key in ("metric", "margin") if len({node.get(key) for node in nodes}) == 1}


def _kept_claims(node: dict[str, Any], arms: list[str], baseline: str, metric: str | None) -> dict[str, Claim]:
    """The study's claims, which are about its own baseline and metric."""
    if node.get("baseline") != baseline or metric not in (None, node.get("metric")):
        return {}
    return read_claims({arm: claim for arm, claim in (node.get("claims") or {}).items() if arm in arms}, arms, baseline)


def _default_baseline(arms: list[str], node: dict[str, Any]) -> str:
    if node.get("baseline") in arms:
        return node["baseline"]
    return "default" if "default" in arms else arms[0]


def _arm(arms: list[str], wanted: str) -> str:
    """The arm of that name, or the only one that ends in it: `layernorm` for `model/norm=layernorm`."""
    if wanted in arms:
        return wanted
    ending = [arm for arm in arms if arm.endswith(("/" + wanted, "." + wanted, "=" + wanted))]
    if len(ending) == 1:
        return ending[0]
    raise AblateError(f"baseline: no arm '{wanted}'{did_you_mean(wanted, arms)}")


def _runs(folder: Path) -> list[RunRecord]:
    """All of them, those of no study under the arm ''."""
    found = []
    for path in sorted(path.parent for path in folder.rglob("summary.json")):
        try:
            found.append(_record(path))
        except AblateError as error:
            warn(f"left out: {error}")
    return found


def _record(path: Path) -> RunRecord:
    config, summary = read_config(path), read_summary(path)
    seed, study = config.get("seed", summary.get("seed")), config.get("study")
    if not isinstance(seed, int) or not isinstance(study, dict | None):
        raise AblateError(f"{path}: its config.yaml names no seed, or no study; restore it, or move the folder away")
    return RunRecord(path, (study or {}).get("arm") or "", seed, summary.get("status", "running"), config, summary)


def _changes(run: RunRecord) -> list[str]:
    """The overrides that make its arm."""
    overrides = [str(o).lstrip("+") for o in run.summary.get("overrides", [])]
    return sorted(o for o in overrides if not o.lstrip("~").startswith(_NO_ARM))
