"""Writes checkpoints completely or not at all, and finds the newest readable one."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ablate.errors import AblateError
from ablate.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames. Lightning writes to the system's temporary folder first, and the move
    from there may be a copy that a kill cuts short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with replacing(Path(path)) as beside, beside.open("wb") as file:
            torch.save(checkpoint, file)


def last_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that can be read completely, as plain data; None if the folder has none.

    Raises:
        AblateError: there are checkpoints, but none can be read.
    """
    checkpoints = sorted(folder.glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in checkpoints:
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            print(f"skipping {path.name}: it is damaged")
            continue
        return path
    if checkpoints:
        raise AblateError(f"resume: no checkpoint in {folder} can be read, all are damaged; start a new run")
    return None


def step_of(checkpoint: Path | None) -> int:
    """The optimiser step after which a checkpoint was written, from its name; 0 for None."""
    return 0 if checkpoint is None else int(checkpoint.stem.removeprefix("step="))
