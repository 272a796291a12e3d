"""The learning rate of each arm: the same grid for all, on seeds that are then not used again."""

import statistics
from pathlib import Path
from typing import Any

from ablate.errors import AblateError
from ablate.study.plan.arms import Arm, Compose, Job, folder_name
from ablate.study.question import Study, Tuning
from ablate.study.records import RunRecord


def tuning_jobs(
    study: Study, tuning: Tuning, arms: list[Arm], folder: Path, compose: Compose, shared: list[str]
) -> list[Job]:
    """Every arm at every learning rate, with every tuning seed."""
    return [
        Job(tried, seed, folder / "tuning" / folder_name(arm.name) / f"lr_{lr:g}_seed_{seed}", "tuning")
        for lr in tuning.grid
        for arm in arms
        for tried in [arm.with_overrides([f"optimizer.lr={lr}"], compose, shared)]
        for seed in tuning.seeds
    ]


def choose(study: Study, tuning: Tuning, records: list[RunRecord]) -> dict[str, Any]:
    """The grid, each arm's points (learning rate, seed, metric or null) and its choice.

    A learning rate at which a run diverged is not chosen. `edge`: the choice is the grid's first or last.

    Raises:
        AblateError: an arm that finished at no learning rate.
    """
    found: dict[str, Any] = {}
    for arm in study.arms:
        points = [(_lr(r), r.seed, r.metric(study.metric)) for r in records if r.arm == arm]
        points = sorted(p for p in points if p[0] in tuning.grid and p[1] in tuning.seeds)
        means = {}
        for lr in tuning.grid:
            values = [value for rate, _, value in points if rate == lr]
            if len(values) == len(tuning.seeds) and None not in values:
                means[lr] = statistics.fmean(values)
        if not means:
            raise AblateError(f"study.lr_grid: '{arm}' finished at no learning rate of it; choose lower ones")
        chosen = (max if study.rising else min)(means, key=means.get)
        edge = chosen in (tuning.grid[0], tuning.grid[-1])
        found[arm] = {"points": [list(point) for point in points], "chosen": chosen, "edge": edge}
    return {"grid": tuning.grid, "arms": found}


def _lr(record: RunRecord) -> float:
    return float(record.config["optimizer"]["lr"])
