"""Logs runs to Weights & Biases through Lightning's logger."""

import hashlib
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig


def wandb_logger(*, save_dir: str, project: str, **identity: Any) -> WandbLogger:
    """A logger that continues the wandb run with the same `id`; offline if no account is set up."""
    # Not `offline=`: Lightning then sets WANDB_MODE, which wandb no longer reads once it has looked for an account.
    return WandbLogger(save_dir=save_dir, project=project, mode=mode(), resume="allow", **identity)


def identity(config: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Name, id, group, job type and tags of a run for wandb, so that the runs of a sweep or a study are grouped.

    In a study the group is the study and the job type is the arm; runs that only tune a learning rate have a group of
    their own.
    """
    path, node, study = Path(config.run_dir), config.logger.wandb, config.study
    tags = [*config.tags, *(o for o in overrides if len(o) <= 64), f"seed={config.seed}"]
    named = {
        "tags": list(dict.fromkeys(tags)),
        "id": lasting_id(path),
        "group": node.group or path.parent.name,
        "job_type": node.job_type or "train",
        "name": path.name,
    }
    if study is not None and study.arm is not None:
        group = node.group or study.name
        named["group"] = group if study.stage == "runs" else f"{group}: {study.stage}"
        named["job_type"] = node.job_type or study.arm
        named["name"] = f"{path.parent.name}/{path.name}"
    return named


def lasting_id(path: Path) -> str:
    """The wandb id of a folder, so that a resumed run keeps the id of its first start."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def finish(summary: dict[str, Any], exit_code: int) -> None:
    """Closes the wandb run, even after a failure; otherwise the next run of a sweep would log into it."""
    import wandb

    if wandb.run is not None:
        wandb.run.summary.update(
            {key: summary[key] for key in ("status", "metrics", "speed", "budget") if key in summary}
        )
        wandb.finish(exit_code=exit_code)


def mode() -> str:
    """WANDB_MODE; where it is not set, online if an account is set up, else offline."""
    import wandb

    given = os.environ.get("WANDB_MODE")
    return given or ("online" if wandb.setup().settings.api_key or wandb.api.api_key else "offline")
