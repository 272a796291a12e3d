"""From a study to its report: arms times seeds, to whichever launcher is configured; what has ended is not run again.

FOLDER/runs/ARM/seed_0 ...           run folders
FOLDER/tuning/ARM/lr_0.001_seed_100  those that chose the learning rates
FOLDER/output/                       what runs in other processes have printed
FOLDER/report/                       the verdict
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from ablate.compose import plain
from ablate.errors import AblateError, warn
from ablate.files import Held, held, make_folder
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
from ablate.study.plan.arms import (
    Arm,
    Compose,
    Job,
    check_arms,
    check_folder,
    check_metric,
    check_runs,
    folder_name,
    plan_arms,
    same_as_baseline,
    shared_overrides,
)
from ablate.study.plan.hold import hold
from ablate.study.plan.rates import choose, tuning_jobs
from ablate.study.question import Study, Tuning, read_study
from ablate.study.records import read_runs
from ablate.study.report.write import write_report
from ablate.study.terminal import show_plan, show_verdict


def sweep(config: DictConfig, arguments: list[str], compose: Compose, launch: Launch) -> None:
    """Runs the study that `config` holds, and writes its report; the same command goes on with what is left.

    Raises:
        AblateError: what the user can mend, before any training; at the end, runs that failed.
    """
    if config.get("study") is None:
        raise AblateError("hydra/sweeper=study: there is no study; choose one with experiment=NAME")
    node = plain(config.study)
    study, tuning = read_study(node)
    check_arms(study, tuning is not None)
    shared, seeds = shared_overrides(arguments, study)
    if seeds != study.seeds:
        study, tuning = read_study({**node, "seeds": seeds})
    folder = Path(config.hydra.sweep.dir)
    if is_elsewhere(config.hydra):
        folder = folder.absolute()  # Hydra makes it wherever a job's process begins
    if folder.is_dir():
        with _alone(folder):
            pass  # said at once, not after all arms have been built
    arms = plan_arms(study, compose, shared)
    check_metric(study, arms[0])
    check_devices(config.hydra, arms)
    if launcher_of(config.hydra) in HERE:
        check_runs(arms)
    arms = hold(study, arms, compose, shared, folder)
    show_plan(study, arms, folder)
    for name in same_as_baseline(arms):
        warn(f"the arm '{name}' is configured as the baseline: what differs between them is chance (an A/A study)")
    make_folder(folder, "run_dir")
    with _alone(folder), sigterm_exits():
        tries = [] if tuning is None else tuning_jobs(study, tuning, arms, folder, compose, shared)
        jobs = _jobs(folder, arms, seeds)
        run = _Runner(folder, [job.path for job in (*tries, *jobs)], shared, launch, config.hydra)
        tuned = None
        if tuning is not None:
            arms, tuned = _tune(study, tuning, arms, tries, compose, run)
            jobs = _jobs(folder, arms, seeds)
        failures = run(jobs)
        records = [r for r in read_runs(folder / "runs") if r.arm in study.arms and r.seed in seeds]
        if failures and not any(r.arm == study.baseline and r.status in ENDED for r in records):
            raise AblateError(
                f"{failures} of {len(jobs)} runs failed, all of the baseline '{study.baseline}': see above"
            )
        verdict = judge(study, records, tuned)
        page = write_report(verdict, folder / "report")
    show_verdict(verdict, page)
    if "wandb" in config.logger:
        from ablate.study.on_wandb import log_verdict

        log_verdict(verdict, page.parent, config.logger.wandb, folder)
    if failures:
        raise AblateError(f"{failures} of {len(jobs)} runs failed; the same command takes them up again")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises AblateError if another command is at work on the study."""
    with ExitStack() as claims:
        try:
            claims.enter_context(held(folder))
        except Held as error:
            raise AblateError(f"run_dir={folder}: another command is at work on this study; wait for it") from error
        yield


def _jobs(folder: Path, arms: list[Arm], seeds: list[int]) -> list[Job]:
    return [Job(arm, seed, folder / "runs" / folder_name(arm.name) / f"seed_{seed}") for seed in seeds for arm in arms]


def _tune(
    study: Study, tuning: Tuning, arms: list[Arm], tries: list[Job], compose: Compose, run: "_Runner"
) -> tuple[list[Arm], dict]:
    """The arms, each at the learning rate that was its best, and what was tried."""
    if failures := run(tries):
        raise AblateError(
            f"{failures} of {len(tries)} runs that choose the learning rates failed, so none is chosen; the same "
            "command takes them up again"
        )
    tuned = choose(study, tuning, read_runs(run.folder / "tuning"))
    for name, found in tuned["arms"].items():
        print(f"{name}: optimizer.lr={found['chosen']:g}", flush=True)
        if found["edge"]:
            warn(f"the best learning rate of '{name}' is at the edge of study.lr_grid: a better one may lie beyond")
    chosen = {name: found["chosen"] for name, found in tuned["arms"].items()}
    return [arm.with_overrides([f"optimizer.lr={chosen[arm.name]}"], compose, run.shared) for arm in arms], tuned


class _Runner:
    """Hands jobs to the launcher, and keeps going whatever becomes of one."""

    def __init__(self, folder: Path, every: list[Path], shared: list[str], launch: Launch, hydra: DictConfig):
        self.folder, self.shared, self._every, self._launch = folder, shared, every, launch
        self._launcher, self._elsewhere = launcher_of(hydra), is_elsewhere(hydra)
        self._launched = 0

    def __call__(self, jobs: list[Job]) -> int:
        """Runs those that have not ended yet; returns how many failed."""
        for job in jobs:
            check_folder(job)
        progress = Progress.begin(self.folder, self._every)
        print(progress.line(), flush=True)
        left = [job for job in jobs if status_of(job.path) not in ENDED]
        if not left:
            return 0
        try:
            with watched(progress) if self._elsewhere else nullcontext():
                returns = launch_all(self._launch, left, self.shared, self._launched, self._launcher)
        except (SystemExit, KeyboardInterrupt):
            print("the study was stopped; to go on: the same command again", flush=True)
            raise
        self._launched += len(left)
        return sum(_failed(job, returned) for job, returned in zip(left, returns, strict=True))


def _failed(job: Job, returned: JobReturn) -> bool:
    """Whether a job neither finished nor diverged; then it is said why."""
    if returned.status == JobStatus.COMPLETED or status_of(job.path) in ENDED:
        return False
    warn(f"{job.arm.name}, seed {job.seed}: failed: {reason(returned._return_value)}")
    return True
