"""A study on Weights & Biases: its verdict as one run more of its group, and what is left to upload."""

import re
import shlex
from pathlib import Path
from typing import Any

import wandb
from omegaconf import DictConfig

from ablate.compose import one_line
from ablate.errors import warn
from ablate.study.dashboard import INSTALLED, make_dashboard
from ablate.study.report.findings import strict
from ablate.training.wandb_logger import lasting_id, online

_COLUMNS = ("verdict", "effect", "low", "high", "p", "p_holm", "pairs", "mde", "diverged", "claim", "outcome")
_ASKED = ("question", "seeds", "baseline", "metric", "match", "match_by", "hold")


def log_verdict(verdict: dict[str, Any], report: Path, logger: DictConfig, folder: Path) -> None:
    """Logs the verdict and the report of the study in `folder`, and says what is to be done by hand.

    What fails here is a warning: the study has its report.

    verdict: what `ablate.study.judge.verdict.judge` returns. report: the report's folder. logger: `logger.wandb` of the
    configuration.
    """
    try:
        connected = online()
        run = _log(strict(verdict), report, logger, folder, connected)
        if connected:
            print(f"wandb: {run.url}", flush=True)
            _show_dashboard(run, verdict["metric"], folder)
        if waiting := _waiting(folder):
            print(f"wandb: runs not uploaded: {len(waiting)}; to upload them: {sync_command(folder)}", flush=True)
        if not connected:
            print(
                "wandb: once they are there, the same command again makes a dashboard, if wandb is online "
                f"(wandb login, WANDB_MODE unset){'' if INSTALLED else ' and has wandb-workspaces (pip install)'}",
                flush=True,
            )
    except Exception as error:
        warn(f"wandb: {type(error).__name__}: {one_line(error)}; the report is complete without it")


def sync_command(folder: Path) -> str:
    """What uploads every offline run of the study in `folder`, those that are there already left out."""
    places = {path.parent.parent.relative_to(folder).parts for path in _waiting(folder)}
    patterns = sorted({"/".join([*("*" for _ in parts[:-1]), "wandb/offline-run-*"]) for parts in places}, reverse=True)
    return " ".join(["wandb sync", *(f"{shlex.quote(str(folder))}/{pattern}" for pattern in patterns)])


def _waiting(folder: Path) -> list[Path]:
    """The files of all offline runs in `folder`, less those that wandb has marked as uploaded."""
    files = folder.rglob("wandb/offline-run-*/run-*.wandb")
    return sorted(path for path in files if not path.with_suffix(".wandb.synced").exists())


def _log(verdict: dict[str, Any], report: Path, logger: DictConfig, folder: Path, connected: bool) -> wandb.Run:
    """One run for each study folder, however often it is logged."""
    with wandb.init(
        project=logger.project,
        entity=logger.get("entity"),
        group=logger.group or verdict["study"],
        job_type="verdict",
        name="verdict",
        id=lasting_id(folder),
        resume="allow",
        dir=folder,
        mode="online" if connected else "offline",
        config={"study": {"name": verdict["study"], **{key: verdict[key] for key in _ASKED}}},
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    ) as run:
        rows = [[name, *_row(arm)] for name, arm in verdict["arms"].items()]
        run.log({"verdict": wandb.Table(columns=["arm", *_COLUMNS], data=rows)})
        sentences = {name: arm["sentence"] for name, arm in verdict["arms"].items()}
        run.summary.update({"sentences": sentences, "notes": verdict["notes"]})
        artifact = wandb.Artifact(f"verdict-{re.sub(r'[^A-Za-z0-9._-]+', '-', verdict['study'])}", type="verdict")
        artifact.add_dir(str(report))
        run.log_artifact(artifact)
    return run


def _row(arm: dict[str, Any]) -> list[Any]:
    low, high = arm["interval"] or (None, None)
    claim = arm["claim"] or {"expect": None, "outcome": None}
    known = {**arm, "low": low, "high": high, "claim": claim["expect"], "outcome": claim["outcome"]}
    return [known[column] for column in _COLUMNS]


def _show_dashboard(run: wandb.Run, metric: str, folder: Path) -> None:
    """Makes the dashboard the first time: it is of the group, so that what comes later is in it."""
    kept = folder / "wandb" / "dashboard.txt"
    if kept.is_file():
        print(f"wandb: dashboard: {kept.read_text().strip()}", flush=True)
    elif INSTALLED:
        address = make_dashboard(run.entity, run.project, run.group, metric)
        kept.write_text(f"{address}\n")
        print(f"wandb: dashboard: {address}", flush=True)
    else:
        print("wandb: for a dashboard: pip install wandb-workspaces, then the same command again", flush=True)
