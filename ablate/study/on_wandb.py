"""Logs a study's verdict to Weights & Biases as one more run of its group, says how to upload offline runs, and makes a
dashboard that compares the arms (with wandb-workspaces, an extra)."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb
from omegaconf import DictConfig

from ablate.compose import one_line
from ablate.errors import warn
from ablate.study.judge.verdict import ArmVerdict, Verdict
from ablate.training.wandb_logger import lasting_id, mode

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

INSTALLED = find_spec("wandb_workspaces") is not None
_COLUMNS = ("verdict", "effect", "low", "high", "p", "p_holm", "pairs", "mde", "diverged", "claim", "outcome")
_ASKED = ("name", "question", "seeds", "baseline", "metric", "match", "match_by", "hold")  # of a Study
_MOST = 100  # runs or arms in one plot; wandb's default is ten


def log_verdict(verdict: Verdict, report: Path, logger: DictConfig, folder: Path) -> None:
    """Logs the verdict and the report of the study in `folder`, and prints what is left for the user to do.

    A failure here is only a warning, because the report is already on disk.

    report: the report's folder. logger: `logger.wandb` of the configuration.
    """
    try:
        chosen = mode()
        connected = chosen == "online"
        run = _log(verdict, report, logger, folder, chosen)
        if connected:
            print(f"wandb: {run.url}", flush=True)
            _show_dashboard(run, verdict.study.metric, folder)
        if waiting := _waiting(folder):
            print(f"wandb: runs not uploaded: {len(waiting)}; upload them with: {sync_command(folder)}", flush=True)
        if not connected:
            print(
                f"wandb: for a dashboard, {'' if INSTALLED else 'pip install wandb-workspaces, '}go online (wandb "
                "login, WANDB_MODE unset), upload the runs, and run the same command again",
                flush=True,
            )
    except Exception as error:
        warn(f"wandb: {type(error).__name__}: {one_line(error)}; the report is complete without it")


def sync_command(folder: Path) -> str:
    """The command that uploads every offline run of the study in `folder` that is not uploaded yet."""
    places = {path.parent.parent.relative_to(folder).parts for path in _waiting(folder)}
    patterns = sorted({"/".join([*("*" for _ in parts[:-1]), "wandb/offline-run-*"]) for parts in places}, reverse=True)
    return " ".join(["wandb sync", *(f"{shlex.quote(str(folder))}/{pattern}" for pattern in patterns)])


def _waiting(folder: Path) -> list[Path]:
    """The files of all offline runs in `folder` that wandb has not marked as uploaded."""
    files = folder.rglob("wandb/offline-run-*/run-*.wandb")
    return sorted(path for path in files if not path.with_suffix(".wandb.synced").exists())


def _log(verdict: Verdict, report: Path, logger: DictConfig, folder: Path, mode: str) -> wandb.Run:
    """Logs to the one wandb run that belongs to the study's folder; resumes it if it exists."""
    study = verdict.study
    with wandb.init(
        project=logger.project,
        entity=logger.get("entity"),
        group=logger.group or study.name,
        job_type="verdict",
        name="verdict",
        id=lasting_id(folder),
        resume="allow",
        dir=folder,
        mode=mode,
        config={"study": {key: getattr(study, key) for key in _ASKED}},
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    ) as run:
        rows = [[name, *_row(arm)] for name, arm in verdict.arms.items()]
        run.log({"verdict": wandb.Table(columns=["arm", *_COLUMNS], data=rows)})
        sentences = {name: arm.sentence for name, arm in verdict.arms.items()}
        run.summary.update({"sentences": sentences, "notes": verdict.notes})
        artifact = wandb.Artifact(f"verdict-{re.sub(r'[^A-Za-z0-9._-]+', '-', study.name)}", type="verdict")
        artifact.add_dir(str(report))
        run.log_artifact(artifact)
    return run


def _row(arm: ArmVerdict) -> list[Any]:
    """The values of _COLUMNS."""
    values = {
        **vars(arm.statistics),
        **dict(zip(("low", "high"), arm.statistics.interval or (None, None), strict=True)),
        "verdict": arm.verdict,
        "p_holm": arm.p_holm,
        "diverged": arm.runs.diverged,
        "claim": arm.claim and arm.claim.expect,
        "outcome": arm.claim and arm.claim.outcome,
    }
    return [values[column] for column in _COLUMNS]


# --- the dashboard ---------------------------------------------------------------------------------------


def _show_dashboard(run: wandb.Run, metric: str, folder: Path) -> None:
    """Prints the dashboard's address; makes the dashboard the first time. It shows the group, with all later runs."""
    kept = folder / "wandb" / "dashboard.txt"
    if kept.is_file():
        print(f"wandb: dashboard: {kept.read_text().strip()}", flush=True)
    elif INSTALLED:
        address = make_dashboard(run.entity, run.project, run.group, metric)
        kept.write_text(f"{address}\n")
        print(f"wandb: dashboard: {address}", flush=True)
    else:
        print("wandb: for a dashboard, pip install wandb-workspaces and run the same command again", flush=True)


def make_dashboard(entity: str, project: str, group: str, metric: str) -> str:
    """Saves a new view of `project` and returns its address. Needs an account."""
    return dashboard(entity, project, group, metric).save().url


def dashboard(entity: str, project: str, group: str, metric: str) -> "Workspace":
    """Shows the runs of `group`: curves and final values by arm (the job type), and the metric against speed."""
    from wandb_workspaces.reports import v2 as panels
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace, WorkspaceSettings

    by_arm = {"groupby": "JobType", "groupby_aggfunc": "mean", "max_runs_to_show": _MOST}
    curves = [
        panels.LinePlot(title=f"{metric} by {title}", x=x, y=[metric], groupby_rangefunc="minmax", **by_arm)
        for x, title in (("trainer/global_step", "step"), ("RelativeTime(Process)", "seconds"))
    ]
    final = [
        panels.BarPlot(title=f"{metric} at the end", metrics=[metric], groupby_rangefunc="stderr", **by_arm),
        panels.ScatterPlot(
            title=f"{metric} and speed",
            x=panels.SummaryMetric("speed.train_tokens_per_s"),
            y=panels.SummaryMetric(metric),
        ),
    ]
    verdict = [panels.WeavePanelSummaryTable(table_name="verdict")]
    return Workspace(
        entity=entity,
        project=project,
        name=re.sub(r"[^\w .,:()/-]", "-", f"Study: {group}"),  # wandb refuses other characters, even =
        sections=[
            Section(name=name, panels=shown, is_open=True)
            for name, shown in (("Verdict", verdict), ("Curves", curves), ("Final values", final))
        ],
        settings=WorkspaceSettings(max_runs=_MOST),
        runset_settings=RunsetSettings(filters=f"Metric('Group') == {_quoted(group)}"),
    )


def _quoted(text: str) -> str:
    """Quotes a text for a filter. wandb-workspaces doubles every single =, < or >, so these are escaped."""
    return re.sub("[=<>]", lambda sign: f"\\x{ord(sign[0]):02x}", repr(text))
