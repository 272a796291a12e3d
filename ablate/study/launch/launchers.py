"""What becomes of runs in other processes: a result of each, though the launcher gives up at the first that dies.

Hydra's basic launcher runs jobs one by one in this process; all others run them elsewhere: joblib in processes of this
machine, submitit on a Slurm cluster, Ray on its own.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from ablate.compose import one_line
from ablate.errors import AblateError
from ablate.study.launch.progress import ENDED, status_of
from ablate.study.plan.arms import Arm, Job

Launch = Callable[..., Sequence[JobReturn]]
HERE = ("basic", "joblib", "submitit_local")  # launchers whose jobs run on this machine


def launcher_of(hydra: DictConfig) -> str:
    """The option of hydra/launcher, from Hydra's own node: basic, joblib, submitit_local, submitit_slurm, ray, ..."""
    return hydra.runtime.choices["hydra/launcher"]


def is_elsewhere(hydra: DictConfig) -> bool:
    """Whether jobs run in processes other than the sweeper's."""
    return launcher_of(hydra) != "basic"


def check_devices(hydra: DictConfig, arms: list[Arm]) -> None:
    """Raises AblateError if a launcher's processes would have to start further ones: there is no command to repeat."""
    for arm in arms:
        trainer = arm.config["trainer"]
        if is_elsewhere(hydra) and trainer["devices"] * trainer["num_nodes"] > 1:
            raise AblateError(
                f"hydra/launcher={launcher_of(hydra)}: a run of it trains on one device, and '{arm.name}' on several; "
                "leave hydra/launcher out, or set trainer.devices=1"
            )


def launch_all(launch: Launch, jobs: list[Job], shared: list[str], first: int, launcher: str) -> list[JobReturn]:
    """One result per job, in their order; `first`: the number of the first.

    joblib ends all its processes as one of them dies, and does not say whose it was. Jobs that had not begun are then
    launched again, and those that had begun, and not ended, after them, alone: whichever dies alone has failed.

    Raises:
        AblateError: the launcher fails before any job has begun.
    """
    before = [_mark(job) for job in jobs]
    try:
        with _END_OF_JOBS.get(launcher, nullcontext)():
            return list(launch([job.overrides(shared) for job in jobs], initial_job_idx=first))
    except AblateError:
        raise
    except Exception as error:
        begun = [_mark(job) != mark for job, mark in zip(jobs, before, strict=True)]
        if not any(begun):
            raise AblateError(f"hydra/launcher={launcher}: {one_line(error)}") from error
        if len(jobs) == 1:
            return [failed(error)]
    found: dict[int, JobReturn] = {}
    fresh = [i for i, has in enumerate(begun) if not has]
    alone = [[i] for i, has in enumerate(begun) if has and status_of(jobs[i].path) not in ENDED]
    for group in ([fresh] if fresh else []) + alone:
        returns = launch_all(launch, [jobs[i] for i in group], shared, first + group[0], launcher)
        found |= dict(zip(group, returns, strict=True))
    return [found.get(i, JobReturn(status=JobStatus.COMPLETED)) for i in range(len(jobs))]


def failed(error: BaseException) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def reason(error: Any) -> str:
    """Why a job failed, in one line."""
    return one_line(error) if isinstance(error, AblateError) else f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM ends this process as an exception does, so that launchers can end theirs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _mark(job: Job) -> int | None:
    """What changes as a job begins: when its summary was last written."""
    try:
        return (job.path / "summary.json").stat().st_mtime_ns
    except OSError:
        return None


class _Submitted:
    """A job of submitit's, as its launcher awaits it."""

    def __init__(self, job: Any, array: list[Any]):
        self._job, self._array = job, array

    def results(self) -> list[Any]:
        try:
            return self._job.results()
        except Exception as error:  # the process died, and left no result
            return [failed(error)]
        except BaseException:
            _end(self._array)
            raise


def _end(jobs: list[Any], rounds: int = 6) -> None:
    """Cancels jobs of a cluster. Those of this machine checkpoint and stop; a second signal ends them at once."""
    from submitit import LocalJob

    for job in jobs:
        if not isinstance(job, LocalJob):
            job.cancel()
    for _ in range(rounds):  # a process that is still importing drops the signal
        left = [job for job in jobs if isinstance(job, LocalJob) and not job.done()]
        for job in left:
            os.kill(int(job.job_id), signal.SIGTERM)
        until = time.monotonic() + 10
        while time.monotonic() < until and not all(job.done() for job in left):
            time.sleep(0.2)


@contextmanager
def _submitit() -> Iterator[None]:
    """The launcher awaits every job, and cancels them all when it is interrupted."""
    from submitit import AutoExecutor

    original = AutoExecutor.map_array

    def map_array(executor: AutoExecutor, *args: Any) -> list[_Submitted]:
        jobs = original(executor, *args)
        return [_Submitted(job, jobs) for job in jobs]

    with _replaced(AutoExecutor, "map_array", map_array):
        yield


@contextmanager
def _ray() -> Iterator[None]:
    """The launcher awaits every job; Ray itself ends them all with this process."""
    import ray

    original = ray.get

    def get(reference: Any) -> Any:
        try:
            return original(reference)
        except ray.exceptions.RayError as error:
            return failed(error)

    with _replaced(ray, "get", get):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


_END_OF_JOBS = {"submitit_local": _submitit, "submitit_slurm": _submitit, "ray": _ray}
