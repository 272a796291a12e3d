"""Weights & Biases, as one of Lightning's loggers."""

import hashlib
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig


def wandb_logger(*, save_dir: str, project: str, **identity: Any) -> WandbLogger:
    """A logger that goes on with the run of the same `id`, offline where no account is set up."""
    return WandbLogger(save_dir=save_dir, project=project, offline=not online(), resume="allow", **identity)


def identity(config: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Names a run for wandb, so that the runs of a sweep or a study compare well.

    In a study, its group is the study and its job type the arm; runs that choose a learning rate are a group beside.
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
    """What wandb knows a folder by, so that whoever goes on there goes on in the same run."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def finish(summary: dict[str, Any], exit_code: int) -> None:
    """Closes the run even when training failed, so that the next one of a sweep does not go on in it."""
    import wandb

    if wandb.run is not None:
        wandb.run.summary.update(
            {key: summary[key] for key in ("status", "metrics", "speed", "budget") if key in summary}
        )
        wandb.finish(exit_code=exit_code)


def online() -> bool:
    """Whether an account is set up, and WANDB_MODE does not say otherwise."""
    import wandb

    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    return bool(wandb.setup().settings.api_key or wandb.api.api_key)
