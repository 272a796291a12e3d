"""Runs jobs by a Hydra launcher and returns a result for each, even if the launcher aborts when one dies.

Hydra's basic launcher runs jobs one by one in this process. All others start processes for them: joblib on this
machine, submitit on a Slurm cluster, Ray on a Ray cluster.
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
HERE = ("basic", "joblib", "submitit_local")  # the launchers that run jobs on this machine


def launcher_of(hydra: DictConfig) -> str:
    """The chosen option of hydra/launcher: basic, joblib, submitit_local, submitit_slurm, ray, ..."""
    return hydra.runtime.choices["hydra/launcher"]


def is_elsewhere(hydra: DictConfig) -> bool:
    """Whether jobs run in processes other than the sweeper's."""
    return launcher_of(hydra) != "basic"


def check_devices(hydra: DictConfig, arms: list[Arm]) -> None:
    """Raises AblateError if an arm trains on several devices and its runs are started in other processes.

    Lightning starts further ranks by repeating the command line, and a process of a launcher has no such command line.
    """
    for arm in arms:
        trainer = arm.config["trainer"]
        if is_elsewhere(hydra) and trainer["devices"] * trainer["num_nodes"] > 1:
            raise AblateError(
                f"hydra/launcher={launcher_of(hydra)}: its runs train on one device, but '{arm.name}' wants more; "
                "leave hydra/launcher out, or set trainer.devices=1"
            )


def launch_all(launch: Launch, jobs: list[Job], first: int, launcher: str) -> list[JobReturn]:
    """One result per job, in their order. first: Hydra's number of the first job.

    When one of its processes dies, joblib ends all of them and does not say which one died. The jobs that had not begun
    are then launched again together. After them each job that had begun but not ended is launched alone: if it dies
    again, it is the one that failed.

    Raises:
        AblateError: the launcher failed before any job had begun.
    """
    before = [_mark(job) for job in jobs]
    try:
        with _KEEPS_RESULTS.get(launcher, nullcontext)():
            return list(launch([job.overrides for job in jobs], initial_job_idx=first))
    except AblateError:
        raise
    except Exception as error:
        begun = [_mark(job) != mark for job, mark in zip(jobs, before, strict=True)]
        if not any(begun):
            raise AblateError(f"hydra/launcher={launcher}: {one_line(error)}") from error
        if len(jobs) == 1:
            return [failed(error)]
    fresh = [i for i, has_begun in enumerate(begun) if not has_begun]
    alone = [[i] for i, has_begun in enumerate(begun) if has_begun and status_of(jobs[i].path) not in ENDED]
    results = [JobReturn(status=JobStatus.COMPLETED) for _ in jobs]
    for group in [fresh, *alone] if fresh else alone:
        returns = launch_all(launch, [jobs[i] for i in group], first + group[0], launcher)
        for i, returned in zip(group, returns, strict=True):
            results[i] = returned
    return results


def failed(error: BaseException) -> JobReturn:
    """The result of a job that died without one."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def reason(error: Any) -> str:
    """Why a job failed, in one line."""
    return one_line(error) if isinstance(error, AblateError) else f"{type(error).__name__}: {one_line(error)}"


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that a launcher can end its processes on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _mark(job: Job) -> int | None:
    """When the job's summary was last written: that changes when the job begins."""
    try:
        return (job.path / "summary.json").stat().st_mtime_ns
    except OSError:
        return None


class _Submitted:
    """A job of submitit that returns a failed result if its process died, and ends the others if interrupted."""

    def __init__(self, job: Any, array: list[Any]):
        self._job, self._array = job, array

    def results(self) -> list[Any]:
        try:
            return self._job.results()
        except Exception as error:
            return [failed(error)]
        except BaseException:
            _end(self._array)
            raise


def _end(jobs: list[Any], rounds: int = 6) -> None:
    """Cancels jobs on a cluster, and sends SIGTERM to those on this machine.

    The first signal makes a run write a checkpoint and stop, a second one ends it at once.
    """
    from submitit import LocalJob

    for job in jobs:
        if not isinstance(job, LocalJob):
            job.cancel()
    for _ in range(rounds):  # a process that is still importing may ignore the signal
        left = [job for job in jobs if isinstance(job, LocalJob) and not job.done()]
        for job in left:
            os.kill(int(job.job_id), signal.SIGTERM)
        until = time.monotonic() + 10
        while time.monotonic() < until and not all(job.done() for job in left):
            time.sleep(0.2)


@contextmanager
def _submitit() -> Iterator[None]:
    """Lets Hydra's submitit launcher wait for every job, and end them all when it is interrupted."""
    from submitit import AutoExecutor

    original = AutoExecutor.map_array

    def map_array(executor: AutoExecutor, *args: Any) -> list[_Submitted]:
        jobs = original(executor, *args)
        return [_Submitted(job, jobs) for job in jobs]

    with _replaced(AutoExecutor, "map_array", map_array):
        yield


@contextmanager
def _ray() -> Iterator[None]:
    """Lets Hydra's Ray launcher wait for every job. Ray itself ends its processes with this one."""
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
    """Sets an attribute of a library for the duration of the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# Without these the launcher gives up all jobs when one has left no result.
_KEEPS_RESULTS = {"submitit_local": _submitit, "submitit_slurm": _submitit, "ray": _ray}
