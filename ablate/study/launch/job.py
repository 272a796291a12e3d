"""One run of a study, in the process in which its launcher starts it."""

import os
import platform
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ablate.errors import AblateError
from ablate.files import held
from ablate.overrides import quoted
from ablate.study.launch.launchers import is_elsewhere, reason
from ablate.study.launch.progress import tell
from ablate.training.callbacks import Interrupted
from ablate.training.job import train


def run(config: DictConfig, overrides: list[str]) -> float:
    """Starts or resumes the run that `config` describes; returns the final validation loss.

    In a process of its own it prints to FOLDER/output/STAGE/ARM/SEED.txt, and every failure becomes an AblateError.

    Raises:
        AblateError: a mistake that the user can mend; a run that diverged; in a process of its own, any failure.
        SystemExit: a signal stopped the run, and with it the study.
    """
    hydra = HydraConfig.get()
    if not is_elsewhere(hydra):
        try:
            return _start_or_resume(config, overrides)
        finally:
            tell(config.run_dir)
    _enter(hydra.runtime.cwd)
    with _output_to(Path(config.run_dir)):
        try:
            return _start_or_resume(config, overrides)
        except Exception as error:
            if not isinstance(error, AblateError):
                traceback.print_exc()
            raise AblateError(reason(error)) from None  # other errors may not survive pickling
        except SystemExit as stop:
            if isinstance(stop.__cause__, Interrupted):
                raise AblateError(str(stop.__cause__)) from None
            raise


def _start_or_resume(config: DictConfig, overrides: list[str]) -> float:
    """Resumes the run if its folder holds one. Decided here because a cluster may requeue a job with old overrides."""
    path = Path(config.run_dir)
    if path.is_dir():
        with held(path):
            if (path / "summary.json").is_file():
                config.resume = str(path)
                overrides = [*overrides, f"resume={quoted(str(path))}"]  # for the ranks that the run starts
            elif any(path.glob("*/*")):
                raise AblateError(
                    f"{path}: it holds files of a run but no summary.json; restore that, or move the folder away"
                )
            else:
                shutil.rmtree(path)  # the run was killed before its first checkpoint
    return train(config, overrides)


def _enter(folder: str) -> None:
    """Makes `folder` the working folder, where relative paths and the user's own modules are looked up."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise AblateError(
            f"{folder}: {error.strerror} on {platform.node()}: every machine needs this folder"
        ) from error
    if folder not in sys.path:
        sys.path.append(folder)


@contextmanager
def _output_to(run_dir: Path) -> Iterator[None]:
    """Sends stdout and stderr to a file in the study's folder, because several runs print at once."""
    study, stage, arm, seed = run_dir.parents[2], *run_dir.parts[-3:]
    path = study / "output" / stage / arm / f"{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        yield
