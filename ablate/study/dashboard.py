"""A dashboard on Weights & Biases that compares the arms of a study, by wandb-workspaces, which is an extra."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

INSTALLED = find_spec("wandb_workspaces") is not None
_MOST = 100  # runs, or arms, in one plot: wandb shows ten


def make_dashboard(entity: str, project: str, group: str, metric: str) -> str:
    """Saves a new view of `project`; returns its address. Wants an account."""
    return dashboard(entity, project, group, metric).save().url


def dashboard(entity: str, project: str, group: str, metric: str) -> "Workspace":
    """The runs of `group`; curves and final values by arm, which is the job type, and what an arm's speed costs."""
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
        name=re.sub(r"[^\w .,:()/-]", "-", f"Study: {group}"),  # wandb takes no signs, not even =
        sections=[
            Section(name=name, panels=shown, is_open=True)
            for name, shown in (("Verdict", verdict), ("Curves", curves), ("Final values", final))
        ],
        settings=WorkspaceSettings(max_runs=_MOST),
        runset_settings=RunsetSettings(filters=f"Metric('Group') == {_quoted(group)}"),
    )


def _quoted(text: str) -> str:
    """As a text in a filter, in which wandb-workspaces doubles a lone =, < or >, wherever it stands."""
    return re.sub("[=<>]", lambda sign: f"\\x{ord(sign[0]):02x}", repr(text))
