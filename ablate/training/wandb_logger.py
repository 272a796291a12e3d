"""Weights & Biases, as one of Lightning's loggers."""

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(*, save_dir: str, project: str, **identity: Any) -> WandbLogger:
    """A logger that goes on with the run of the same `id`, offline where no account is set up."""
    return WandbLogger(save_dir=save_dir, project=project, offline=not online(), resume="allow", **identity)


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
