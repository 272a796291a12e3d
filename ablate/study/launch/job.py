"""One run of a study, in whichever process and on whichever machine its launcher has put it."""

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
    """Begins the run that `config` describes, or goes on with it; returns the final validation loss.

    In a process of its own, it prints into FOLDER/output/ARM/SEED.txt, and ends as a job does, with a result.

    Raises:
        AblateError: what the user can mend; a run that diverged; elsewhere, all that a run can fail with.
        SystemExit: the run was stopped by a signal, and with it the study.
    """
    hydra = HydraConfig.get()
    if not is_elsewhere(hydra):
        try:
            return _begin_or_go_on(config, overrides)
        finally:
            tell(config.run_dir)
    _go_home(hydra.runtime.cwd)
    with _output_to(Path(config.run_dir)):
        try:
            return _begin_or_go_on(config, overrides)
        except Exception as error:
            if not isinstance(error, AblateError):
                traceback.print_exc()
            raise AblateError(reason(error)) from None  # which can travel between processes, whatever the error is
        except SystemExit as stop:
            if isinstance(stop.__cause__, Interrupted):
                raise AblateError(str(stop.__cause__)) from None
            raise


def _begin_or_go_on(config: DictConfig, overrides: list[str]) -> float:
    """Decided here, not by the sweeper: a cluster may put a job in the queue again, as it was."""
    path = Path(config.run_dir)
    if path.is_dir():
        with held(path):
            if (path / "summary.json").is_file():
                config.resume = str(path)
                overrides = [*overrides, f"resume={quoted(str(path))}"]  # for the ranks that the run starts
            elif any(path.glob("*/*")):
                raise AblateError(f"{path}: it has files of a run, and no summary.json; restore it, or move it away")
            else:
                shutil.rmtree(path)  # killed before it had begun
    return train(config, overrides)


def _go_home(folder: str) -> None:
    """Relative paths, and modules of the user's own, are those of where the study was started."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise AblateError(
            f"{folder}: {error.strerror} on {platform.node()}: a launcher's machines need the same folders as this one"
        ) from error
    if folder not in sys.path:
        sys.path.append(folder)


@contextmanager
def _output_to(run_dir: Path) -> Iterator[None]:
    """stdout and stderr go to a file of the study's: those of several runs at once are no reading."""
    study, stage, arm, seed = run_dir.parents[2], *run_dir.parts[-3:]
    path = study / "output" / stage / arm / f"{seed}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        yield
