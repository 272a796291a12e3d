"""Runs a study: plans its arms, hands arms x seeds to the configured launcher, and writes the report.

FOLDER/runs/ARM/seed_0 ...           run folders
FOLDER/tuning/ARM/lr_0.001_seed_100  run folders that only choose a learning rate
FOLDER/output/                       what runs in other processes print
FOLDER/report/                       the verdict

Runs that have finished or diverged are not run again, so repeating the command continues the study.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from ablate.compose import plain
from ablate.errors import AblateError, warn
from ablate.files import held, make_folder
from ablate.study.judge.verdict import judge
from ablate.study.launch.launchers import (
    HERE,
    Launch,
    check_devices,
    is_elsewhere,
    launch_all,
    launcher_of,
    reason,
    sigterm_exits,
)
from ablate.study.launch.progress import ENDED, Progress, status_of, watched
from ablate.study.plan.arms import Arm, Compose, Job, folder_name, plan_arms, same_as_baseline, shared_overrides
from ablate.study.plan.checks import check_arms, check_folder, check_metric, check_runs, open_corpora
from ablate.study.plan.hold import hold
from ablate.study.plan.rates import at_rate, choose, tuning_jobs
from ablate.study.question import Study, Tuning, read_study
from ablate.study.records import read_runs
from ablate.study.report.write import write_report
from ablate.study.terminal import show_plan, show_verdict


def sweep(config: DictConfig, arguments: list[str], compose: Compose, launch: Launch) -> None:
    """Runs what is left to run of the study that `config` describes, and writes its report.

    config: Hydra's configuration, with the node `hydra`. arguments: the command line's overrides.

    Raises:
        AblateError: a mistake that the user can mend, before any training; at the end, runs that failed.
    """
    study, tuning, shared = _read(config, arguments)
    folder = Path(config.hydra.sweep.dir)
    if is_elsewhere(config.hydra):
        folder = folder.absolute()  # Hydra makes it in the working folder of each job's process
    if folder.is_dir():
        with held(folder):
            pass  # a folder in use is refused now, rather than after all arms are built
    arms = _plan(study, compose, shared, config.hydra, folder)
    show_plan(study, arms, folder)
    for name in same_as_baseline(arms):
        warn(f"the arm '{name}' has the baseline's configuration: their difference is chance (an A/A study)")
    make_folder(folder, "run_dir")
    with held(folder), sigterm_exits():
        trials = [] if tuning is None else tuning_jobs(tuning, arms, folder)
        every = [job.path for job in (*trials, *_jobs(folder, arms, study.seeds))]
        run = _Runner(folder, every, launch, config.hydra)
        tuned = None
        if tuning is not None:
            tuned = _tune(study, tuning, trials, run)
            arms = [at_rate(arm, tuned["arms"][arm.name]["chosen"]) for arm in arms]
        jobs = _jobs(folder, arms, study.seeds)
        failures = run(jobs)
        records = [r for r in read_runs(folder / "runs") if r.arm in study.arms and r.seed in study.seeds]
        if failures and not any(r.arm == study.baseline and r.status in ENDED for r in records):
            raise AblateError(
                f"{failures} of {len(jobs)} runs failed, among them all of the baseline '{study.baseline}': see above"
            )
        verdict = judge(study, records, tuned)
        page = write_report(verdict, folder / "report")
    show_verdict(verdict, page)
    if "wandb" in config.logger:
        from ablate.study.on_wandb import log_verdict

        log_verdict(verdict, page.parent, config.logger.wandb, folder)
    if failures:
        raise AblateError(f"{failures} of {len(jobs)} runs failed; run the same command again to retry them")


def _read(config: DictConfig, arguments: list[str]) -> tuple[Study, Tuning | None, list[str]]:
    """The study with the command line's seeds, how it tunes learning rates, and the overrides that all runs share."""
    if config.get("study") is None:
        raise AblateError("hydra/sweeper=study: no study is configured; choose one with experiment=NAME")
    node = plain(config.study)
    study, tuning = read_study(node)
    check_arms(study, tuning is not None)
    shared, seeds = shared_overrides(arguments, study)
    if seeds != study.seeds:
        study, tuning = read_study({**node, "seeds": seeds})
    return study, tuning, shared


def _plan(study: Study, compose: Compose, shared: list[str], hydra: DictConfig, folder: Path) -> list[Arm]:
    """Composes and matches the arms, sets their numbers of steps, and checks what can be checked before training."""
    arms = plan_arms(study, compose, shared)
    check_metric(study, arms[0])
    check_devices(hydra, arms)
    runs_here = launcher_of(hydra) in HERE
    if runs_here:
        check_runs(arms)
    pieces = open_corpora(arms) if runs_here or study.hold == "flops" else {}
    return hold(study, arms, pieces, folder)


def _jobs(folder: Path, arms: list[Arm], seeds: list[int]) -> list[Job]:
    return [Job(arm, seed, folder / "runs" / folder_name(arm.name) / f"seed_{seed}") for seed in seeds for arm in arms]


def _tune(study: Study, tuning: Tuning, trials: list[Job], run: "_Runner") -> dict[str, Any]:
    """Runs the trials and returns the learning rates that `choose` picks from them.

    Raises:
        AblateError: a trial failed.
    """
    if failures := run(trials):
        raise AblateError(
            f"{failures} of {len(trials)} runs that choose the learning rates failed, so none is chosen; run the same "
            "command again to retry them"
        )
    tuned = choose(study, tuning, read_runs(run.folder / "tuning"))
    for name, arm in tuned["arms"].items():
        print(f"{name}: optimizer.lr={arm['chosen']:g}", flush=True)
        if arm["edge"]:
            warn(f"the best learning rate of '{name}' is at the edge of study.lr_grid: a better one may lie beyond")
    return tuned


class _Runner:
    """Hands jobs to the launcher. A job that fails does not stop the others.

    every: the folders of all runs of the study; the progress lines count them.
    """

    def __init__(self, folder: Path, every: list[Path], launch: Launch, hydra: DictConfig):
        self.folder, self._every, self._launch = folder, every, launch
        self._launcher, self._elsewhere = launcher_of(hydra), is_elsewhere(hydra)
        self._launched = 0

    def __call__(self, jobs: list[Job]) -> int:
        """Runs the jobs that have not finished or diverged yet; returns how many failed."""
        for job in jobs:
            check_folder(job)
        progress = Progress.begin(self.folder, self._every)
        print(progress.line(), flush=True)
        left = [job for job in jobs if status_of(job.path) not in ENDED]
        if not left:
            return 0
        try:
            with watched(progress) if self._elsewhere else nullcontext():
                returns = launch_all(self._launch, left, self._launched, self._launcher)
        except (SystemExit, KeyboardInterrupt):
            print("the study was stopped; run the same command again to continue", flush=True)
            raise
        self._launched += len(left)
        return sum(_failed(job, returned) for job, returned in zip(left, returns, strict=True))


def _failed(job: Job, returned: JobReturn) -> bool:
    """Whether a job neither finished nor diverged; if so, warns with the reason."""
    if returned.status == JobStatus.COMPLETED or status_of(job.path) in ENDED:
        return False
    warn(f"{job.arm.name}, seed {job.seed}: failed: {reason(returned._return_value)}")
    return True
