"""The arms and jobs of a study. Each arm is composed once; what the plan changes later is set on that composition."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ablate import check
from ablate.compose import mistake, plain
from ablate.errors import AblateError
from ablate.model.config import load_plugins
from ablate.overrides import key_of, parsed, quoted, settings
from ablate.study.plan.match import Matched, match
from ablate.study.question import Study

Compose = Callable[[list[str]], DictConfig]  # overrides -> the configuration that Hydra composes from them


@dataclass(frozen=True)
class Arm:
    """One arm of a study.

    overrides: what its runs start with: the command line's overrides, the arm's own, and those that the plan adds.
    node: the configuration that Hydra composes from them, without the node `hydra` and with unresolved interpolations.
    """

    name: str
    overrides: list[str]
    node: DictConfig
    matched: Matched

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, resolved, as plain data."""
        with naming(self.name):
            return plain(self.node)

    def with_override(self, override: str) -> "Arm":
        """The same arm with one more value override, `trainer.max_steps=90`, also set on the composed configuration.

        Hydra applies value overrides last and in order, so composing again would give the same. Values that
        interpolate the changed one change with it.
        """
        [parsed_override] = parsed([override])
        node = copy.deepcopy(self.node)
        OmegaConf.update(node, parsed_override.key_or_group, parsed_override.value(), force_add=True)
        return replace(self, overrides=[*self.overrides, override], node=node)


@dataclass(frozen=True)
class Job:
    """One run to start: an arm with a seed, in the folder `path`. stage: runs | tuning, the folder above the arm's."""

    arm: Arm
    seed: int
    path: Path
    stage: str = "runs"

    @property
    def overrides(self) -> list[str]:
        """The overrides from which the run's own process composes its configuration."""
        study = [f"++study.arm={quoted(self.arm.name)}", f"study.stage={self.stage}"]
        return [*self.arm.overrides, f"seed={self.seed}", *study, f"run_dir={quoted(str(self.path))}"]


def shared_overrides(arguments: list[str], study: Study) -> tuple[list[str], list[int]]:
    """The command line's overrides that all runs share, and the seeds: from `seed=0,1,2`, or else the study's.

    Raises:
        AblateError: an override of a key that an arm sets; a sweep over anything but the seed.
    """
    shared, seeds = [], study.seeds
    arm_that_sets = {key_of(o): name for name, overrides in study.arms.items() for o in overrides}
    for text, override in zip(arguments, parsed(arguments), strict=True):
        key = override.key_or_group
        if key == "seed":
            seeds = _seeds(text, override)
        elif override.is_sweep_override():
            raise AblateError(f"{text}: a study sweeps only over its arms and seeds; give {key} one value")
        elif key in arm_that_sets:
            raise AblateError(f"{text}: the arm '{arm_that_sets[key]}' of the study sets {key}; leave it out")
        elif key == "resume":
            raise AblateError("resume: a study continues when its own command is run again; leave resume out")
        elif key != "run_dir":
            shared.append(text)
    return shared, seeds


def _seeds(text: str, override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        raise AblateError(f"{text}: expected seeds one by one, such as seed=0,1,2 or seed=range(0,6)")
    return [int(seed) if seed.isdecimal() else check.seed("seed", seed) for seed in map(str, override.sweep_iterator())]


def plan_arms(study: Study, compose: Compose, shared: list[str]) -> list[Arm]:
    """All arms, the baseline first, matched to the baseline's budget.

    Raises:
        AblateError: an arm that does not compose, or that cannot be built or matched; two arms with one folder name.
    """
    names = [study.baseline, *(name for name in study.arms if name != study.baseline)]
    if len({folder_name(name) for name in names}) < len(names):
        raise AblateError("study.arms: two arm names differ only in punctuation and would share a folder; rename one")
    overrides = {name: [*shared, *study.arms[name]] for name in names}
    nodes, models = {}, {}
    for name in names:
        with naming(name):
            composed = compose(overrides[name])
            nodes[name] = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
            models[name] = plain(nodes[name])["model"]
    load_plugins(nodes[study.baseline].plugins)
    arms = []
    for name, matched in match(study, models).items():
        arm = Arm(name, overrides[name], nodes[name], matched)
        if matched.override is not None:
            _check_free(study, name, key_of(matched.override))
            arm = arm.with_override(matched.override)
        arms.append(arm)
    return arms


def _check_free(study: Study, name: str, key: str) -> None:
    """Raises AblateError if the arm itself sets the size that matching would change."""
    if key in map(key_of, study.arms[name]):
        raise AblateError(
            f"study.arms.{name}: it sets {key}, which study.match={study.match} would change; choose another "
            "study.match_by, or study.match=none"
        )


@contextmanager
def naming(arm: str) -> Iterator[None]:
    """If the block raises a user's mistake, puts the arm's name in front of the message."""
    try:
        yield
    except Exception as error:
        if (text := mistake(error)) is None:
            raise
        raise AblateError(f"study.arms.{arm}: {text}") from error


def same_as_baseline(arms: list[Arm]) -> list[str]:
    """The names of arms whose configuration equals the baseline's."""
    return [arm.name for arm in arms[1:] if settings(arm.config) == settings(arms[0].config)]


def folder_name(arm: str) -> str:
    """The name of an arm's folder: its own name, with `-` for whatever a folder name should not hold."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", arm).strip("-.") or "arm"
