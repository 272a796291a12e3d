"""Checkpoints that are whole or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ablate.errors import AblateError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, on the same filesystem, then renames. Lightning's own goes through
    the temporary folder, which may be another filesystem, where a move is a copy."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".tmp")
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def last_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that reads whole, as plain data; None where none was written yet.

    Raises:
        AblateError: there are some, and none reads whole.
    """
    found = sorted(folder.glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            print(f"skipping {path.name}: it does not read whole")
            continue
        return path
    if found:
        raise AblateError(f"resume: no checkpoint in {folder} reads whole; start a new run")
    return None
