"""Checks before a study's first run. Each error is one line that names the arm."""

import json
from pathlib import Path

from ablate.data import CORPORA
from ablate.data.task import TaskSettings
from ablate.errors import AblateError, did_you_mean
from ablate.metrics import METRICS
from ablate.overrides import ASIDE, first_difference, key_of, settings, under
from ablate.run import read_config
from ablate.study.plan.arms import Arm, Job, naming
from ablate.study.question import Study
from ablate.training.parts import assemble, read_data

_REMEDY = "move this folder away, or choose another one for the study: run_dir=..."


def check_arms(study: Study, tuned: bool) -> None:
    """Raises AblateError if an arm sets what the study decides for all arms; the override would have no effect."""
    why = dict.fromkeys(("seed", *ASIDE, "experiment"), "which makes no difference between arms")
    why["trainer.max_steps"] = f"which follows from study.hold={study.hold}"
    if tuned:
        why["optimizer.lr"] = "which study.tune=lr chooses"
    for name, overrides in study.arms.items():
        for key in map(key_of, overrides):
            owner = under(key, why)
            if owner is not None:
                raise AblateError(f"study.arms.{name}: it sets {key}, {why[owner]}; leave it out")


def check_metric(study: Study, arm: Arm) -> None:
    """Raises AblateError if the runs will not log the study's metric."""
    kind = CORPORA.component(arm.config["data"]["name"]).Settings
    logged = METRICS.logged("task" if issubclass(kind, TaskSettings) else "text")
    if study.metric not in logged and not study.metric.startswith("train/router"):
        raise AblateError(f"study.metric: no run logs '{study.metric}'{did_you_mean(study.metric, logged)}")


def check_runs(arms: list[Arm]) -> None:
    """Raises AblateError if a run could not start on this machine. Models are built without weights."""
    for arm in arms:
        with naming(arm.name):
            assemble(arm.node, device="meta")


def open_corpora(arms: list[Arm]) -> dict[str, dict[int, int]]:
    """Prepares and opens each corpus of the arms once only, because opening hashes its files.

    Returns:
        Arm -> the pieces of its training rows, see `RowSource.pieces`.

    Raises:
        AblateError: a corpus that cannot be opened, or has too few rows for a batch.
    """
    corpus_of = {arm.name: json.dumps(arm.config["data"], sort_keys=True) for arm in arms}
    pieces: dict[str, dict[int, int]] = {}
    for arm in arms:
        if corpus_of[arm.name] in pieces:
            continue
        with naming(arm.name):
            data, corpus = read_data(arm.config["data"])
            opened = corpus.open(data, arm.config["seed"], Path(arm.config["paths"]["data"]))
            opened.require(data.batch_size)
        pieces[corpus_of[arm.name]] = opened.train.pieces(data.max_rows)
    return {arm: pieces[corpus] for arm, corpus in corpus_of.items()}


def check_folder(job: Job) -> None:
    """Raises AblateError if the job's folder holds a run of another arm or configuration."""
    if not (job.path / "summary.json").is_file():
        return
    config = read_config(job.path)
    arm = (config.get("study") or {}).get("arm")
    if arm != job.arm.name:
        raise AblateError(f"{job.path}: holds a run of the arm '{arm}', not of '{job.arm.name}'; {_REMEDY}")
    key, before, now = first_difference("", settings(config), settings(job.arm.config))
    if key:
        raise AblateError(f"{job.path}: was made with {key}={before}, but the study has {key}={now}; {_REMEDY}")
