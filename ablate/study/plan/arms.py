"""The runs of a study: every arm composed and checked before the first one is trained."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ablate.compose import mistake, plain
from ablate.data import CORPORA
from ablate.data.task import TaskSettings
from ablate.errors import AblateError, did_you_mean
from ablate.model.config import load_plugins
from ablate.overrides import ASIDE, first_difference, key_of, quoted, settings
from ablate.run import read_config
from ablate.study.plan.match import Matched, match
from ablate.study.question import Study
from ablate.training.parts import assemble

Compose = Callable[[list[str]], DictConfig]
_ELSEWHERE = "move this folder away, or give the study another: run_dir=..."
TRAINED = ("train/loss", "train/grad_norm", "train/tokens_per_s", "train/mfu")


@dataclass(frozen=True)
class Arm:
    """One arm, composed. `overrides`: all of its own, those that match its budget included."""

    name: str
    overrides: list[str]
    config: dict[str, Any]
    matched: Matched

    def with_overrides(self, more: list[str], compose: Compose, shared: list[str]) -> "Arm":
        overrides = [*self.overrides, *more]
        return replace(self, overrides=overrides, config=composed(self.name, compose, [*shared, *overrides]))


@dataclass(frozen=True)
class Job:
    """One run to be: of `arm`, with `seed`, in the folder `path`."""

    arm: Arm
    seed: int
    path: Path
    stage: str = "runs"

    def overrides(self, shared: list[str]) -> list[str]:
        named = [f"++study.arm={quoted(self.arm.name)}", f"study.stage={self.stage}"]
        return [*shared, *self.arm.overrides, f"seed={self.seed}", *named, f"run_dir={quoted(str(self.path))}"]


def shared_overrides(arguments: list[str], study: Study) -> tuple[list[str], list[int]]:
    """The command line's overrides that hold for all runs, and the seeds: its own, as in seed=0,1,2, or the study's.

    Raises:
        AblateError: an override of what the arms differ in; a sweep over anything but the seed.
    """
    shared, seeds = [], study.seeds
    varied = {key_of(o): name for name, overrides in study.arms.items() for o in overrides}
    for text, override in zip(arguments, OverridesParser.create().parse_overrides(arguments), strict=True):
        key = override.key_or_group
        if key == "seed":
            seeds = _seeds(text, override)
        elif override.is_sweep_override():
            raise AblateError(f"{text}: a study sweeps over its arms and seeds alone; {key} may have one value")
        elif key in varied:
            raise AblateError(f"{text}: the arm '{varied[key]}' of the study sets {key}; leave it out")
        elif key == "resume":
            raise AblateError("resume: the same command goes on with a study; leave it out")
        elif key != "run_dir":
            shared.append(text)
    return shared, seeds


def _seeds(text: str, override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        raise AblateError(f"{text}: expected seeds one by one, such as seed=0,1,2 or seed=range(0,6)")
    return [int(s) for s in override.sweep_iterator()]


def check_arms(study: Study, tuned: bool) -> None:
    """Raises AblateError if an arm sets what the study itself decides, so that its change would be lost."""
    decided = dict.fromkeys(("seed", "experiment", *ASIDE), "which makes no difference between arms")
    decided["trainer.max_steps"] = f"which follows from study.hold={study.hold}"
    if tuned:
        decided["optimizer.lr"] = "which study.tune=lr chooses"
    for name, overrides in study.arms.items():
        for key in map(key_of, overrides):
            why = next((why for own, why in decided.items() if re.match(rf"{re.escape(own)}($|[./@])", key)), None)
            if why is not None:
                raise AblateError(f"study.arms.{name}: it sets {key}, {why}; leave it out")


def plan_arms(study: Study, compose: Compose, shared: list[str]) -> list[Arm]:
    """All arms, the baseline first, at the baseline's budget.

    Raises:
        AblateError: an arm that does not compose, cannot be built or matched, by its name.
    """
    names = [study.baseline, *(name for name in study.arms if name != study.baseline)]
    configs = {name: composed(name, compose, [*shared, *study.arms[name]]) for name in names}
    load_plugins(configs[study.baseline]["plugins"])
    arms = []
    for name, matched in match(study, {name: config["model"] for name, config in configs.items()}).items():
        arm = Arm(name, study.arms[name], configs[name], matched)
        if matched.override is not None:
            if (key := key_of(matched.override)) in map(key_of, arm.overrides):
                raise AblateError(
                    f"study.arms.{name}: it sets {key}, which study.match={study.match} would change; choose another "
                    "study.match_by, or study.match=none"
                )
            arm = arm.with_overrides([matched.override], compose, shared)
        arms.append(arm)
    if len({folder_name(name) for name in names}) < len(names):
        raise AblateError("study.arms: two names differ in signs alone, and would share a folder; rename one")
    return arms


def check_runs(arms: list[Arm]) -> None:
    """Raises AblateError, by the arm's name, if its runs could not begin on this machine; prepares their corpora."""
    opened = []
    for arm in arms:
        try:
            parts = assemble(OmegaConf.create(arm.config))
            if arm.config["data"] in opened:
                continue  # to open it again is to hash its files again
            opened.append(arm.config["data"])
            corpus = parts.corpus.open(parts.data, arm.config["seed"], Path(arm.config["paths"]["data"]))
            corpus.require(parts.data.batch_size)
        except AblateError as error:
            raise AblateError(f"study.arms.{arm.name}: {error}") from error


def check_metric(study: Study, arm: Arm) -> None:
    """Raises AblateError if no run of the study is going to log its metric."""
    kind = CORPORA.component(arm.config["data"]["name"]).Settings
    logged = ["val/loss", "val/accuracy" if issubclass(kind, TaskSettings) else "val/bpb", *TRAINED]
    if study.metric not in logged and not study.metric.startswith("train/router"):
        raise AblateError(f"study.metric: no run logs '{study.metric}'{did_you_mean(study.metric, logged)}")


def composed(name: str, compose: Compose, overrides: list[str]) -> dict[str, Any]:
    try:
        config = compose(overrides)
        return plain(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    except Exception as error:
        if (text := mistake(error)) is None:
            raise
        raise AblateError(f"study.arms.{name}: {text}") from error


def same_as_baseline(arms: list[Arm]) -> list[str]:
    """Arms whose configuration is the baseline's own."""
    return [arm.name for arm in arms[1:] if settings(arm.config) == settings(arms[0].config)]


def check_folder(job: Job) -> None:
    """Raises AblateError if the job's folder holds a run of another arm or configuration."""
    if not (job.path / "summary.json").is_file():
        return
    config = read_config(job.path)
    arm = (config.get("study") or {}).get("arm")
    if arm != job.arm.name:
        raise AblateError(f"{job.path}: holds a run of the arm '{arm}', not of '{job.arm.name}'; {_ELSEWHERE}")
    wanted, found = settings(job.arm.config), settings(config)
    key = next((key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)), None)
    if key is not None:
        where, then, now = first_difference(key, found.get(key), wanted.get(key))
        raise AblateError(f"{job.path}: was made with {where}={then}, and the study has {now}; {_ELSEWHERE}")


def folder_name(arm: str) -> str:
    """An arm's name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", arm).strip("-.") or "arm"
